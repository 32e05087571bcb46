"""`segkit predict`: every image once, by any number of processes, and gone on with after whatever stopped it."""

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from checkpoints import write_module
from left_behind import left_behind

from segkit.cli import main
from segkit.inference.segmenter import load
from segkit.io.confidence import confidence_path, read_confidence
from segkit.models.checkpoint import Checkpoint
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint
from segkit.training import prediction_writer

pytestmark = pytest.mark.slow

COUNT = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of different sizes, two of them in a folder of their own."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        path = root / "images" / "test" / ("town" if i > 4 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), generator.integers(0, 256, (20 + 5 * i, 40 - 3 * i, 3), np.uint8))
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_module(tmp_path_factory.mktemp("checkpoint") / "random.ckpt", 0)


@pytest.fixture(scope="module")
def wanted(root: Path, checkpoint: Path) -> dict[str, np.ndarray]:
    """The labels that one image at a time gives."""
    segmenter = load(checkpoint, precision="exact")
    folder = root / "images" / "test"
    return {p.relative_to(folder).as_posix(): segmenter.predict(p) for p in sorted(folder.rglob("*.png"))}


def command(root: Path, checkpoint: Path, out: Path, *more: str) -> list[str]:
    arguments = ["predict", "--data", "FolderDataModule", "--data.root", str(root), "--data.num_workers", "0"]
    arguments += ["--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu", "--output", str(out)]
    return [*arguments, "--run_dir", str(out.with_name("run")), "--trainer.enable_progress_bar", "false", *more]


def check(out: Path, wanted: dict[str, np.ndarray]) -> None:
    """All label maps, right, and nothing else but a manifest that says so."""
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert found == sorted([*wanted, "predictions.json"])
    for name, labels in wanted.items():
        assert np.array_equal(cv2.imread(str(out / name), cv2.IMREAD_UNCHANGED), labels)
    manifest = json.loads((out / "predictions.json").read_text())
    assert manifest["complete"] and manifest["images"]["count"] == COUNT
    assert manifest["label_space"]["class_names"] == ["a", "b", "c"] and manifest["weights"]["file"] == "random.ckpt"
    assert manifest["dataset"] == {"name": "FolderDataModule", "split": "test"}
    assert manifest["protocol"]["name"] == "whole" and manifest["protocol"]["align_corners"] is not None


def failing_after(count: int, real: Callable[..., None]) -> Callable[..., None]:
    written = []

    def write(path: Path, labels: np.ndarray) -> None:
        if len(written) == count:
            raise RuntimeError("the disk went away")
        written.append(path)
        real(path, labels)

    return write


def test_a_second_run_does_what_the_first_left(
    root: Path, checkpoint: Path, wanted: dict[str, np.ndarray], tmp_path: Path, monkeypatch, caplog, capsys
) -> None:
    out = tmp_path / "labels"
    arguments = command(root, checkpoint, out)
    with monkeypatch.context() as patch:
        patch.setattr(prediction_writer, "write_png", failing_after(3, prediction_writer.write_png))
        with pytest.raises(RuntimeError, match="disk"):
            main(arguments)
    first = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert len(first) == 3 and not json.loads((out / "predictions.json").read_text())["complete"]
    left_behind(out / "5.png").write_bytes(b"half")
    with caplog.at_level("INFO"):
        assert main(arguments) == 0
    assert f"3 of {COUNT} images already exist; 4 to do" in caplog.text + capsys.readouterr().err
    check(out, wanted)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in first.items())
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert main(arguments) == 0  # nothing to do: nothing is touched
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_other_makers_are_refused(
    root: Path, checkpoint: Path, wanted: dict[str, np.ndarray], tmp_path: Path, capsys
) -> None:
    out = tmp_path / "labels"
    assert main(command(root, checkpoint, out)) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other = write_module(tmp_path / "other.ckpt", 1)
    (root.with_name("more")).mkdir(exist_ok=True)
    for arguments, words in (
        (command(root, other, out), "weights: random.ckpt ("),
        (command(root, checkpoint, out, "--protocol", "ms-flip"), "protocol: whole, not ms-flip"),
        (command(root, checkpoint, out, "--trainer.precision", "bf16-mixed"), "precision: 32-true, not bf16-mixed"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in last and "--overwrite" in last and last.startswith("segkit predict: error: ")
    (out / "town" / "6.png").unlink()
    assert main(command(root, other, out)) == 2  # the same with something left to do
    assert not (out / "town" / "6.png").exists()
    assert all(p.read_bytes() == data for p, data in before.items() if p.exists())
    assert main(command(root, checkpoint, out, "--overwrite")) == 0
    check(out, wanted)
    assert main(command(root, other, out, "--overwrite")) == 0
    assert json.loads((out / "predictions.json").read_text())["weights"]["file"] == "other.ckpt"
    capsys.readouterr()
    (out / "predictions.json").unlink()
    assert main(command(root, other, out)) == 2
    assert "without a predictions.json that says what made it" in capsys.readouterr().err


def test_other_images_are_refused(root: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    out, data = tmp_path / "labels", tmp_path / "data"
    (data / "images" / "test").mkdir(parents=True)
    (data / "classes.txt").write_text("a\nb\nc\n")
    cv2.imwrite(str(data / "images" / "test" / "0.png"), np.zeros((20, 20, 3), np.uint8))
    assert main(command(data, checkpoint, out)) == 0
    for more in ([], ["--overwrite"]):
        assert main(command(root, checkpoint, out, *more)) == 2
        assert "images" in capsys.readouterr().err.strip().splitlines()[-1]
    assert [p.name for p in out.rglob("*.png")] == ["0.png"]


def test_confidence_lies_beside_the_labels_and_is_added_to_a_folder_without(
    root: Path, checkpoint: Path, wanted: dict[str, np.ndarray], tmp_path: Path, capsys
) -> None:
    out, labels_only = tmp_path / "labels", tmp_path / "plain"
    assert main(command(root, checkpoint, labels_only)) == 0
    assert main(command(root, checkpoint, out)) == 0
    before = {p: p.read_bytes() for p in out.rglob("*.png")}
    (out / "predictions.json").rename(tmp_path / "kept.json")
    assert main(command(root, checkpoint, out, "--confidence")) == 2  # label maps of an unknown maker
    (tmp_path / "kept.json").rename(out / "predictions.json")
    assert main(command(root, checkpoint, out, "--confidence")) == 0
    assert {p: p.read_bytes() for p in before} == before
    segmenter, folder = load(checkpoint, precision="exact"), root / "images" / "test"
    for name in wanted:
        sure = segmenter.predict(folder / name, with_confidence=True)[1]
        assert abs(read_confidence(confidence_path(out / name)) - 255 * sure).max() < 0.51
    plain, with_confidence = (json.loads((f / "predictions.json").read_text()) for f in (labels_only, out))
    assert plain | {"run": 0} == with_confidence | {"run": 0} and plain["complete"]
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    for more in ([], ["--confidence"]):  # all is there
        assert main(command(root, checkpoint, out, *more)) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    stored = read_checkpoint(checkpoint)
    warm = Checkpoint(stored.hyper_parameters, stored.state_dict, {"calibration": {"temperature": 2.0}})
    write_model_file(tmp_path / "warm.safetensors", warm)
    assert main(command(root, tmp_path / "warm.safetensors", out, "--confidence")) == 2
    assert "made by something else (temperature: 1.0, not 2.0)" in capsys.readouterr().err
    assert main(command(root, checkpoint, out, "--overwrite")) == 0
    check(out, wanted)  # of confidence maps it cannot be known what made them


def test_an_image_whose_name_is_that_of_a_confidence_map(root: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    images = tmp_path / "data" / "images" / "test"
    images.mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\n")
    for name in ("0", "0_confidence"):
        cv2.imwrite(str(images / f"{name}.png"), np.zeros((20, 20, 3), np.uint8))
    assert main(command(tmp_path / "data", checkpoint, tmp_path / "labels", "--confidence")) == 2
    assert "there are images 0 and 0_confidence; rename" in capsys.readouterr().err
    assert not list(tmp_path.rglob("labels/*.png"))
    assert main(command(tmp_path / "data", checkpoint, tmp_path / "labels")) == 0


def process(rank: int, world: int, port: int, arguments: list[str], log: str, last: int | None) -> None:
    """One process as torchrun starts it; it lists in `log` what it writes, and kills itself after `last` of them."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    real, written = prediction_writer.write_png, []

    def write(path: Path, labels: np.ndarray) -> None:
        real(path, labels)
        written.append(path)
        with open(f"{log}.written.{rank}", "a") as file:
            file.write(f"{path}\n")
        if len(written) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    prediction_writer.write_png = write
    with open(f"{log}.{rank}", "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        raise SystemExit(main(arguments))


def start(world: int, arguments: list[str], log: Path, last: int | None = None) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("forkserver")  # its children share one import of torch and Lightning
    context.set_forkserver_preload(["segkit.cli.lightning"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*arguments, "--trainer.devices", str(world), "--trainer.strategy", "ddp" if world > 1 else "auto"]
    processes = [
        context.Process(target=process, args=(r, world, port, arguments, str(log), last)) for r in range(world)
    ]
    for p in processes:
        p.start()
    return processes


def finish(processes: list[multiprocessing.Process], log: Path) -> list[str]:
    """Wait, demand success, and return what was written, with repetitions."""
    for p in processes:
        p.join(timeout=300)
    hung = [p.kill() for p in processes if p.is_alive()]
    text = "\n".join(path.read_text()[-2000:] for path in sorted(log.parent.glob(f"{log.name}.[0-9]")))
    assert not hung and all(p.exitcode == 0 for p in processes), text
    written = [line for path in log.parent.glob(f"{log.name}.written.*") for line in path.read_text().splitlines()]
    return sorted(written)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_each_image_once_also_when_resumed(
    world: int, root: Path, checkpoint: Path, wanted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    arguments = command(root, checkpoint, out)
    written = finish(start(world, arguments, tmp_path / "first"), tmp_path / "first")
    assert written == sorted(str(out / name) for name in wanted)
    check(out, wanted)
    # Without these, a process of two or of three has nothing left; dealt out anew, they would go to other processes.
    removed = [out / "1.png", out / "town" / "5.png"] if world == 2 else [out / "1.png"]
    for path in removed:
        path.unlink()
    written = finish(start(world, arguments, tmp_path / "second"), tmp_path / "second")
    assert written == sorted(map(str, removed))
    check(out, wanted)


def test_killed_and_resumed_by_another_number_of_processes(
    root: Path, checkpoint: Path, wanted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    arguments = command(root, checkpoint, out)
    (killed,) = start(1, arguments, tmp_path / "killed", last=2)
    killed.join(timeout=300)
    assert killed.exitcode == -signal.SIGKILL
    there = sorted(out.rglob("[0-9].png"))
    assert 2 <= len(there) < COUNT
    assert all(np.array_equal(cv2.imread(str(p), -1), wanted[p.relative_to(out).as_posix()]) for p in there)
    written = finish(start(2, arguments, tmp_path / "resumed"), tmp_path / "resumed")
    assert sorted([*written, *map(str, there)]) == sorted(str(out / name) for name in wanted)
    check(out, wanted)
