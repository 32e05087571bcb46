"""What `segkit infer` is given: patterns, lists on standard input, images that are done, and shares of launchers."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli.infer import main
from segkit.inference.segmenter import load

NAMES = tuple("abcdefg")

Run = Callable[..., int]


@pytest.fixture
def run(tiny_checkpoint: Path, tmp_path: Path) -> Run:
    def call(*args: str | Path) -> int:
        options = ("--checkpoint", tiny_checkpoint, "--output", tmp_path / "out", "--device", "cpu")
        kinds = () if "--output_kinds" in args else ("--output_kinds", "labels")
        return main([*map(str, (*args, *options, *kinds))])

    return call


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        save(tmp_path / f"shots/{name}.png", i)
    return tmp_path / "shots"


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)).save(path)


def done(out: Path) -> dict[str, object]:
    """The label maps of a folder, and which file each is."""
    return {path.name.removesuffix("_labels.png"): identity(path.stat()) for path in out.rglob("*_labels.png")}


def identity(about: os.stat_result) -> object:
    return about.st_ino, about.st_mtime_ns


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: object) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))


def test_a_pattern_that_no_shell_has_replaced(run: Run, shots: Path, tmp_path: Path) -> None:
    save(tmp_path / "out/x_labels.png", 0)  # below the results: not matched
    save(shots / "deeper/h.png", 9)
    save(tmp_path / "a[1].png", 9)  # exists: no pattern
    assert run(tmp_path / "**/[a-b].png", tmp_path / "**/*_labels.png", tmp_path / "a[1].png") == 2
    assert run(tmp_path / "**/[a-bh].png", tmp_path / "a[1].png") == 0
    assert set(done(tmp_path / "out")) == {"a", "b", "h", "a[1]", "x"}


def test_a_list_on_standard_input_beside_other_inputs(
    run: Run, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(shots / "two words ü.png", 9)
    type_in(monkeypatch, shots / "c.png", "", shots / "two words ü.png", shots / "a.png")
    assert run(shots / "a.png", "-") == 0
    assert set(done(tmp_path / "out")) == {"a", "c", "two words ü"}


def test_inputs_that_name_nothing(
    run: Run, shots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch)
    assert run("-") == 2
    assert run(shots / "*.tif") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no paths on standard input" in first and "*.tif: nothing matches" in second


@pytest.mark.slow
def test_only_what_is_not_done_is_done(
    run: Run, shots: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (shots / "g.png").write_bytes(b"no image")
    assert run(shots) == 1
    first = done(out)
    save(shots / "g.png", 7)  # mended
    save(shots / "f.png", 8)  # another image of the same name and size
    os.utime(shots / "f.png", (0, 0))
    (out / "e_labels.png").unlink()
    capsys.readouterr()
    assert run(shots) == 0
    second = done(out)
    assert {name for name in second if second[name] != first.get(name)} == {"e", "f", "g"}
    assert "note: 4 images finished by an earlier run are skipped; --overwrite" in capsys.readouterr().err
    assert run(shots) == 0 and done(out) == second
    with next(out.glob(".finished.*")).open("a") as file:
        file.write('["half a li')  # a killed run
    save(shots / "h.png", 10)
    assert run(shots) == 0
    second = done(out)
    assert run(shots) == 0 and done(out) == second  # h, too, whose line follows the half one
    os.utime(tiny_checkpoint)  # trained again
    assert run(shots) == 0
    third = done(out)
    assert not set(third.values()) & set(second.values())
    assert run(shots, "--overwrite") == 0 and not set(done(out).values()) & set(third.values())


def test_files_of_all_images_hold_those_that_were_done_before(run: Run, shots: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(shots, "--output_kinds", "area.csv") == 0


@pytest.mark.slow
@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_processes_of_a_launcher_share_the_images(
    run: Run, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    (shots / "f.png").write_bytes(b"no image")
    written: list[set[str]] = []
    monkeypatch.setenv(names[1], "2")
    for rank, code in ((0, 0), (1, 1)):  # f, the sixth, is in the share of the second
        monkeypatch.setenv(names[0], str(rank))
        before = done(tmp_path / "out")
        assert run(shots) == code
        after = done(tmp_path / "out")
        assert before.items() <= after.items()
        written.append(after.keys() - before.keys())
    assert written == [{"a", "c", "e", "g"}, {"b", "d"}]
    assert len(list((tmp_path / "out").glob(".finished.*"))) == 2
    monkeypatch.delenv(names[0])
    monkeypatch.delenv(names[1])
    assert run(shots) == 1 and done(tmp_path / "out") == after  # of all ranks, what is done


@pytest.mark.parametrize(
    ("rank", "arguments", "said"),
    [
        ("2", ("shots",), "RANK=2, WORLD_SIZE=2"),
        ("one", ("shots",), "RANK=one"),
        ("0", ("-",), "share one standard input"),
        ("0", ("shots", "--output_kinds", "cvat", "labels"), "--output_kinds cvat: one file of all images"),
    ],
)
def test_what_processes_of_a_launcher_cannot_do(
    run: Run, shots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rank: str, arguments: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(shots.parent)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tif", "gif", "png", "webp"])
def test_each_page_or_frame_as_an_image(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (40, 40, 40)]
    frames = [Image.new("RGB", (32, 24), colour) for colour in colours]
    how = {"lossless": True} if kind == "webp" else {}
    frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:], **how)
    save(tmp_path / "moving_p0002.png", 0)  # whose name a frame would have
    save(tmp_path / "still.png", 1)
    given = (tmp_path / f"moving.{kind}", tmp_path / "moving_p0002.png", tmp_path / "still.png")
    assert run(*given, "--output_kinds", "overlay", "labels", "--alpha", "0", "--pages") == 0
    out, names = tmp_path / "out", [f"moving__p000{number}" for number in (1, 2, 3, 4)]
    assert set(done(out)) == {*names, "moving_p0002", "still"}
    for name, frame in zip(names, frames, strict=True):
        with Image.open(out / f"{name}_overlay.png") as image:
            assert np.asarray(image)[2, 2].tolist() == np.asarray(frame)[0, 0].tolist()
        with Image.open(out / f"{name}_labels.png") as image:
            assert (np.asarray(image) == load(tiny_checkpoint, "cpu").predict(frame)).all()
    assert "only the first" not in capsys.readouterr().err
    before = done(out)
    assert run(*given, "--output_kinds", "overlay", "labels", "--alpha", "0", "--pages") == 0 and done(out) == before


def test_previews_in_a_tiff_are_no_pages(run: Run, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue", "green")]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    assert run(tmp_path / "scan.tif", "--pages") == 0
    assert set(done(tmp_path / "out")) == {"scan_p0001", "scan_p0002"}


def test_a_damaged_page_leaves_the_others(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)) for i in range(3)]
    path = tmp_path / "scan.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(1)
        start = image.tag_v2[273][0]
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    assert run(path, "--pages") == 1
    assert set(done(tmp_path / "out")) == {"scan_p0001", "scan_p0003"}
    assert "scan.tif#page=2: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_of_torchrun_that_failed_waits_for_the_others(
    shots: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Torchrun ends all processes as soon as one ends with an error."""
    (shots / "a.png").write_bytes(b"no image")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "segkit", "infer", str(shots), "--checkpoint", str(tiny_checkpoint)]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu"]

    def start(rank: int) -> "subprocess.Popen[str]":
        launcher = {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}
        launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return subprocess.Popen(command, env=os.environ | launcher, stdout=subprocess.PIPE, text=True)

    with start(0) as first:
        assert first.stdout is not None and "1 failed" in first.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(3)
        with start(1) as second:
            assert second.wait(200) == 0
        assert first.wait(200) == 1
    assert len(done(tmp_path / "out")) == len(NAMES) - 1


@pytest.mark.slow
def test_torchrun_ends_with_an_error_if_one_image_fails(shots: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (shots / "a.png").write_bytes(b"no image")
    for name in "ceg":
        (shots / f"{name}.png").unlink()
    for i in range(20):
        save(shots / f"{'bd'[i % 2]}{i}.png", i)
    (shots / "b.png").rename(shots / "a1.png")
    command = [
        "infer",
        str(shots),
        "--checkpoint",
        str(tiny_checkpoint),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "segkit", *command]
    ended = subprocess.run([sys.executable, *launcher], capture_output=True, timeout=300)
    assert ended.returncode == 1
    assert len(done(tmp_path / "out")) == len(list(shots.iterdir())) - 1
