"""What an evaluation says while it runs, through the front door; and that saying it changes nothing."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from segkit.cli import main
from segkit.inference.protocols import Protocol, get
from segkit.training.views.progress import Job, RunProgress, duration, image_sizes

SIZES = [(40, 56), (56, 40), (41, 90), (40, 56)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training, four validation and test images in the folder layout, and a config without training."""
    root = tmp_path_factory.mktemp("folder")
    for split in ("train", "val", "test"):
        for i, (height, width) in enumerate(SIZES):
            mask = np.zeros((height, width), np.uint8)
            mask[:, width // 2 :] = 1
            mask[:2] = 255
            image = np.array([[200, 40, 40], [40, 200, 40], *[[0, 0, 0]] * 254], np.uint8)[mask]
            for kind, array in (("images", image), ("labels", mask)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / kind / split / f"{i}.png"), array)
    (root / "classes.txt").write_text("left\nright\n")
    data = {"root": str(root), "batch_size": 2, "base_size": 56, "crop_size": 32, "num_workers": 0}
    network = {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny", "output_stride": 16}}
    config = {
        "data": {"class_path": "FolderDataModule", "init_args": data},
        "model": {"network": network},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1},
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """The lines that the run logs."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "propagate", True)
    caplog.set_level(logging.INFO, logger.name)
    return lambda: [record.getMessage() for record in caplog.records if " forward" in record.getMessage()]


def run(command: str, recipe: Path, folder: Path, *more: str) -> int:
    return main([command, "--config", str(recipe), "--run_dir", str(folder), "--seed_everything", "3", *more])


@pytest.mark.slow
def test_a_long_test_says_how_long_and_shows_speed_and_miou(recipe, tmp_path, said, capsys) -> None:
    assert run("test", recipe, tmp_path, "--protocol", "ms-flip", "--metric", "void-class") == 0
    (line,) = said()
    assert line.startswith("4 images, protocol ms-flip: 12 forwards each, 48 in all; the network needs about ")
    bar = capsys.readouterr().err.splitlines()[-1]
    miou = json.loads((tmp_path / "result.json").read_text())["scores"]["mIoU"]
    assert bar.startswith("test: 100%") and "4/4" in bar and "forwards/s" in bar
    assert f"mIoU {100 * miou:.2f}" in bar


@pytest.mark.slow
def test_forwards_that_differ_and_a_limit(recipe, tmp_path, said) -> None:
    protocol = tmp_path / "windows.yaml"
    protocol.write_text("window: 40\nstride: 20\n")
    assert run("validate", recipe, tmp_path, "--protocol", str(protocol)) == 0
    assert run("test", recipe, tmp_path, "--protocol", "mmseg-ss", "--trainer.limit_test_batches", "2") == 0
    assert said() == [
        # 40 x 56: 2 windows; 56 x 40: 2; 41 x 90: 2 x 4. Below 20 forwards none is timed.
        "4 images, protocol windows: 2 to 8 forwards each, about 14 in all",
        "2 images, protocol mmseg-ss: 1 forward each, 2 in all",
    ]


@pytest.mark.slow
def test_prediction_has_a_line_and_a_bar_without_miou(recipe, tmp_path, said, capsys) -> None:
    assert run("predict", recipe, tmp_path, "--output", str(tmp_path / "out"), "--protocol", "paddleseg-ms") == 0
    assert said() and said()[0].startswith("4 images, protocol paddleseg-ms: 6 forwards each, 24 in all; the network")
    bar = capsys.readouterr().err
    assert "predict: 100%" in bar and "forwards/s" in bar and "mIoU" not in bar
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


@pytest.mark.slow
def test_the_estimate_changes_neither_result_nor_random_numbers(recipe, tmp_path, monkeypatch) -> None:
    states = []

    def after_start(self, trainer, module, *rest):
        states.append((torch.get_rng_state(), np.random.get_state()[1].copy(), module.network.training))
        opened(self, trainer, module, *rest)
        states.append((torch.get_rng_state(), np.random.get_state()[1].copy(), module.network.training))

    opened = RunProgress.on_test_start
    monkeypatch.setattr(RunProgress, "on_test_start", after_start)
    assert run("test", recipe, tmp_path / "a", "--protocol", "ms-flip") == 0
    assert run("test", recipe, tmp_path / "b", "--protocol", "ms-flip", "--trainer.enable_progress_bar", "false") == 0
    assert len(states) == 2
    assert torch.equal(states[0][0], states[1][0]) and np.array_equal(states[0][1], states[1][1])
    assert states[0][2] == states[1][2]
    with_bar, without = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert with_bar["confusion_matrix"] == without["confusion_matrix"]


@pytest.mark.slow
def test_training_leaves_a_line_an_epoch_where_there_is_no_terminal(recipe, tmp_path, said, capsys) -> None:
    assert run("fit", recipe, tmp_path, "--trainer.max_epochs", "3") == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.err.split("\n") if "step/s" in line or "s/step" in line]
    assert [line[:14] for line in lines] == [f"epoch {epoch}: 100%|" for epoch in range(3)]
    assert all("2/2" in line and "train/loss=" in line and "val/mIoU=" in line for line in lines)
    assert "\r" not in shown.err + shown.out and "it/s" not in shown.out and said() == []


def test_an_image_that_cannot_be_read_is_reported_by_the_run(recipe, tmp_path, said) -> None:
    broken = recipe.parent / "images" / "test" / "0.png"
    kept = broken.read_bytes()
    try:
        broken.write_bytes(b"no image")
        assert run("test", recipe, tmp_path) != 0
    finally:
        broken.write_bytes(kept)
    assert said() == []


def test_the_estimate_is_pixels_times_time() -> None:
    job = Job(get("encoding-ms"), 2000, [(512, 683)])
    assert job.forwards == 2000 * 36
    assert job.heaviest(torch.device("cuda")) == (9, (480, 480))  # of 12 at scale 1.75, as many as the engine sends
    assert job.heaviest(torch.device("cpu")) == (2, (480, 480))
    assert job.seconds(1e-9) == pytest.approx(2000 * 36 * 480 * 480 * 1e-9)
    assert job.seconds(None) is None
    whole = Job(Protocol("p", scales=(1.0, 2.0)), 10, [(100, 200), (300, 100)])
    assert whole.seconds(1e-6) == pytest.approx(10 * (20_000 + 30_000) / 2 * 5 * 1e-6)
    assert [duration(s) for s in (0.01, 45.2, 90, 3000, 9000)] == ["1 s", "45 s", "2 min", "50 min", "2.5 h"]


def test_sizes_are_taken_from_all_over_the_data_set() -> None:
    dataset = [{"image": torch.zeros(3, 4, 10 + i)} for i in range(100)]
    assert image_sizes(dataset) == [(4, 10), (4, 30), (4, 50), (4, 70), (4, 90)]
    assert image_sizes([]) == []
