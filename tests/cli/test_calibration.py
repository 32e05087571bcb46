"""`segkit test --calibration` through the front door: the error is that of the engine's own confidences."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segkit.cli import main
from segkit.inference.engine import predict_with_confidence
from segkit.inference.segmenter import load
from segkit.io import read_image, read_label
from segkit.ops.normalize import normalize


@pytest.fixture
def checkpoint(benchmark_folder: Path, tmp_path: Path) -> Path:
    """Its confidences fill many bins."""
    data = torch.load(benchmark_folder / "b.ckpt", weights_only=True)
    data["state_dict"]["network.head.4.weight"] *= 100
    torch.save(data, tmp_path / "sure.ckpt")
    return tmp_path / "sure.ckpt"


@pytest.fixture
def arguments(checkpoint: Path, benchmark_folder: Path, tmp_path: Path) -> list[str]:
    data = ["--data", "FolderDataModule", "--data.root", str(benchmark_folder / "data"), "--data.num_workers", "0"]
    options = ["--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu"]
    return [*data, *options, "--run_dir", str(tmp_path / "run"), "--calibration"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["whole", "ms-flip"])
def test_labels_and_confidence_are_of_the_same_scores(
    protocol: str,
    arguments: list[str],
    checkpoint: Path,
    benchmark_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["test", *arguments, "--protocol", protocol]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    segmenter = load(checkpoint, "cpu", protocol, precision="exact")
    right, sure = [], []
    for path in sorted((benchmark_folder / "data/images/test").iterdir()):
        image = normalize(torch.from_numpy(read_image(path)).permute(2, 0, 1)[None], segmenter.normalization)
        labels, confidence = predict_with_confidence(
            segmenter.network, image, segmenter.protocol, normalization=segmenter.normalization
        )
        mask = read_label(benchmark_folder / "data/labels/test" / path.name)
        right.append((labels[0].numpy() == mask)[mask != 255])
        sure.append(confidence[0].numpy()[mask != 255])
    right, sure = np.concatenate(right), np.concatenate(sure).astype(np.float64)
    bins = np.minimum(np.ceil(sure * 15), 15).astype(int) - 1
    error = sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))
    assert len(set(bins.tolist())) > 5
    calibration = result["calibration"]
    assert calibration["expected_calibration_error"] == pytest.approx(error, abs=1e-5)
    assert sum(b["pixels"] for b in calibration["bins"]) == len(right) == result["num_pixels"]
    found = sum(b["pixels"] * b["accuracy"] for b in calibration["bins"] if b["pixels"])
    assert found / len(right) == pytest.approx(result["scores"]["pixel_accuracy"], rel=1e-12)
    rows = calibration["thresholds"]
    assert rows[0]["coverage"] == 1 and rows[0]["mIoU"] == pytest.approx(result["scores"]["mIoU"], rel=1e-12)
    for row in rows:
        assert row["coverage"] == pytest.approx((sure >= row["threshold"]).mean(), abs=1e-4)  # but for rounding
    assert "temperature" not in calibration and "confidence >=  pixels kept, %  mIoU, %" in caplog.text
    with Image.open(tmp_path / "run" / "reliability.png") as image:
        image.load()
    assert f"expected calibration error {100 * calibration['expected_calibration_error']:.2f} %" in caplog.text
    assert not re.search("available|Seed set|weights_only|Tip|Loaded model", caplog.text)  # nothing to act on


@pytest.mark.slow
def test_labels_stay_those_of_a_plain_test(arguments: list[str], tmp_path: Path) -> None:
    assert main(["test", *arguments]) == main(["test", *arguments[:-1]]) == 0
    first, second = (json.loads((tmp_path / "run" / f"result{end}.json").read_text()) for end in ("", "-2"))
    assert first["confusion_matrix"] == second["confusion_matrix"] and "calibration" not in second
    assert not (tmp_path / "run" / "reliability-2.png").exists()


def test_only_a_test_is_measured(
    arguments: list[str], benchmark_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "labels"):
        shutil.copytree(benchmark_folder / "data" / kind / "test", tmp_path / "data" / kind / "val")
    shutil.copy(benchmark_folder / "data" / "classes.txt", tmp_path / "data")
    assert main(["validate", *arguments, "--data.root", str(tmp_path / "data")]) == 2
    assert "only on test" in capsys.readouterr().err.strip().splitlines()[-1]
