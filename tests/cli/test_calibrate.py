"""`segkit weights calibrate` through the front door: a network that is three times too sure gets its own sureness back.

The truth is drawn from what a network itself says of each pixel, so that it is calibrated; then its logits are tripled.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from torch.nn import functional as F

from segkit.cli import main
from segkit.files import write_text
from segkit.inference.segmenter import Segmenter, load
from segkit.io import read_label, write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.checkpoint import Checkpoint
from segkit.models.segmentation import FCN
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint

SPACE = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, and checkpoints of one network: its logits as they fit the data, true.ckpt, and tripled, sure.ckpt."""
    folder, rng = tmp_path_factory.mktemp("calibrate"), np.random.default_rng(0)
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", 3, output_stride=16, encoder_args={"radix": 0})
    for factor, name in ((300, "true"), (3, "sure")):
        for parameter in network.head[-1].parameters():
            parameter.data *= factor
        write_checkpoint(folder / f"{name}.ckpt", network, SPACE)
    made = load(folder / "true.ckpt", "cpu", precision="exact")
    for split, count in (("val", 3), ("test", 2)):
        for i in range(count):
            image = rng.integers(0, 256, (14, 16, 3), np.uint8).repeat(6, 0).repeat(5, 1)
            write_png(folder / f"data/images/{split}/{i}.png", image)
            below = made.predict_proba(image).cumsum(0) < rng.random(image.shape[:2])  # inverse of the distribution
            labels = np.where(rng.random(image.shape[:2]) < 0.1, 255, below.sum(0).clip(max=2))
            write_png(folder / f"data/labels/{split}/{i}.png", labels.astype(np.uint8))
    write_text(folder / "data/classes.txt", "\n".join(SPACE.class_names) + "\n")
    return folder


@pytest.fixture
def calibrate(folder: Path, tmp_path: Path) -> Callable[..., int]:
    def call(*more: str, file: str = "sure.ckpt") -> int:
        data = ["--data", "FolderDataModule", "--data.root", str(folder / "data"), "--data.num_workers", "0"]
        output = ["-o", str(tmp_path / "model.safetensors"), "--overwrite", "--device", "cpu"]
        return main(["weights", "calibrate", str(folder / file), *data, *output, *more])

    return call


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["whole", "ms-flip"])
def test_it_is_as_sure_again_as_it_is_right(
    folder: Path,
    tmp_path: Path,
    calibrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    protocol: str,
) -> None:
    assert calibrate("--protocol", protocol) == 0
    shown = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    made, sure = (
        load(p, "cpu", protocol, precision="exact") for p in (tmp_path / "model.safetensors", folder / "sure.ckpt")
    )
    card = made.card["calibration"]
    assert (card["split"], card["protocol"], card["images"]) == ("val", protocol, 3)
    assert made.temperature == card["temperature"] and f"{made.temperature:.4f}" in shown["temperature"]
    image = np.random.default_rng(1).integers(0, 256, (60, 70, 3), np.uint8)
    assert np.array_equal(made.predict(image), sure.predict(image))
    assert f"{100 * card['ece_before']:.2f} % -> {100 * card['ece_after']:.2f} %" in shown["ECE"]
    before, after = loss(folder, sure), loss(folder, made)
    assert f"{before:.4f} -> {after:.4f} nats" in shown["NLL"]
    for factor in (0.97, 1.03):
        made.temperature = card["temperature"] * factor
        assert loss(folder, made) > after
    if protocol == "whole":  # under which the truth was drawn
        made.temperature = card["temperature"]
        assert made.temperature == pytest.approx(3, rel=0.1) and card["ece_after"] < card["ece_before"] / 2
        true = load(folder / "true.ckpt", "cpu", precision="exact")
        np.testing.assert_allclose(made.predict_proba(image), true.predict_proba(image), atol=0.03)


def loss(folder: Path, segmenter: Segmenter) -> float:
    """The mean negative log likelihood over the validation images."""
    shares, masks = [], []
    for path in sorted((folder / "data/images/val").iterdir()):
        shares.append(torch.from_numpy(segmenter.predict_proba(path)).double().log().flatten(1))
        masks.append(torch.from_numpy(read_label(folder / "data/labels/val" / path.name)).long().flatten())
    return F.nll_loss(torch.cat(shares, 1)[None], torch.cat(masks)[None], ignore_index=255).item()


@pytest.mark.slow
def test_other_commands_keep_apply_and_drop_it(
    folder: Path, tmp_path: Path, calibrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate("--limit", "2") == 0
    model = tmp_path / "model.safetensors"
    fitted = read_checkpoint(model).card["calibration"]
    assert fitted["images"] == 2
    assert main(["export", str(model), "-o", str(tmp_path / "exported.safetensors")]) == 0
    assert main(["weights", "convert", str(model), "-o", str(tmp_path / "converted.safetensors")]) == 0
    assert all(read_checkpoint(p).card["calibration"] == fitted for p in tmp_path.glob("*ed.safetensors"))
    capsys.readouterr()
    assert main(["weights", "inspect", str(model)]) == 0
    assert (
        f"temperature {fitted['temperature']:.4f} (data data, split val, protocol whole, images 2)"
        in capsys.readouterr().out
    )
    again = calibrate("--limit", "2", file=str(tmp_path / "exported.safetensors"))  # begins from 1 again
    assert again == 0 and read_checkpoint(model).card["calibration"] == fitted
    for name in ("images", "labels"):
        (folder / "data" / name / "train").mkdir(exist_ok=True)
        for i in range(2):
            source = folder / "data" / name / f"val/{i}.png"
            (folder / "data" / name / f"train/{i}.png").write_bytes(source.read_bytes())
    data = ["--data", "FolderDataModule", "--data.root", str(folder / "data"), "--data.num_workers", "0"]
    more = ["--data.batch_size", "2", "--batches", "1", "--device", "cpu", "-o", str(tmp_path / "new.safetensors")]
    assert main(["weights", "recalibrate", str(model), *data, *more]) == 0
    assert "calibration" not in read_checkpoint(tmp_path / "new.safetensors").card
    assert load(tmp_path / "new.safetensors", "cpu").temperature == 1


@pytest.mark.slow
def test_a_test_measures_it_and_an_exported_file_has_it(
    folder: Path, tmp_path: Path, calibrate: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    assert calibrate() == 0
    model, exported = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    assert main(["export", str(model), "-o", str(exported)]) == 0
    errors = []
    for path in (folder / "sure.ckpt", model, exported):
        data = ["--data", "FolderDataModule", "--data.root", str(folder / "data"), "--data.num_workers", "0"]
        run = ["--run_dir", str(tmp_path / f"run-{path.suffix}"), "--trainer.accelerator", "cpu"]
        assert main(["test", "--ckpt_path", str(path), *data, *run, "--calibration"]) == 0
        errors.append(json.loads((tmp_path / f"run-{path.suffix}" / "result.json").read_text())["calibration"])
    temperature = read_checkpoint(model).card["calibration"]["temperature"]
    assert [error.get("temperature") for error in errors] == [None, temperature, temperature]
    before, after, of_exported = (error["expected_calibration_error"] for error in errors)
    assert after < before / 2 and of_exported == pytest.approx(after, abs=1e-3)
    assert f"temperature {temperature:.4g}; " in caplog.text
    image = folder / "data/images/test/0.png"
    ours, theirs = (load(p, "cpu", precision="exact") for p in (model, exported))
    assert np.array_equal(ours.predict(image), theirs.predict(image))
    np.testing.assert_allclose(ours.predict_proba(image), theirs.predict_proba(image), atol=1e-4)
    np.testing.assert_allclose(ours.predict(image, True)[1], theirs.predict(image, True)[1], atol=1e-4)


def test_what_it_cannot_make_better_is_said(
    folder: Path, tmp_path: Path, calibrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that is right half of the time, and half sure, but not of the right pixels."""
    checkpoint = read_checkpoint(folder / "sure.ckpt")
    weights = {n: torch.zeros_like(v) if n.startswith("head.4") else v for n, v in checkpoint.state_dict.items()}
    file = tmp_path / "flat.safetensors"
    write_model_file(file, Checkpoint(checkpoint.hyper_parameters, weights))
    assert calibrate(file=str(file)) == 0
    said = capsys.readouterr().out
    assert "the calibration error did not get smaller" in said and "no temperature between these" in said


def test_wrong_classes_and_files_are_one_line(
    folder: Path, tmp_path: Path, calibrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    others = LabelSpace(("sky", "tree", "road"), SPACE.palette, SPACE.table)
    write_checkpoint(tmp_path / "other.ckpt", FCN("resnest14_tiny", 3), others)
    for more, file, words in (
        ([], str(tmp_path / "other.ckpt"), "other.ckpt"),
        (["--protocol", "all"], "sure.ckpt", "'all' is not known"),
        (["-o", str(tmp_path / "a.ckpt")], "sure.ckpt", "the result is safetensors"),
        (["--limit", "0"], "sure.ckpt", "whole number from 1"),
    ):
        capsys.readouterr()
        assert calibrate(*more, file=file) == 2
        said = capsys.readouterr().err
        assert words in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "model.safetensors").exists()
