"""`model.loss.class_weights: enet | median | none`: numbers from the data for the run, the word in the checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.cli import main
from segkit.cli.lightning import SegmentationCLI
from segkit.errors import InputError
from segkit.files import write_text
from segkit.io import write_png
from segkit.training.losses import LossConfig, segmentation_loss
from segkit.training.module import Batch, SegmentationModule

TINY = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--model.network.output_stride", "16"]
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 1), ("test", 1)):
        for i in range(count):
            write_png(tmp_path / f"data/images/{split}/{i}.png", rng.integers(0, 256, (32, 32, 3), np.uint8))
            labels = rng.choice([0, 1, 255], (32, 32), p=[0.8, 0.15, 0.05])
            if i % 2:
                labels[:4, :8] = 2  # a class that only some images have
            write_png(tmp_path / f"data/labels/{split}/{i}.png", labels.astype(np.uint8))
    write_text(tmp_path / "data/classes.txt", "a\nb\nc\n")
    return tmp_path / "data"


def fit(data: Path, run: str, *options: str) -> int:
    of_data = ["--data", "FolderDataModule", "--data.root", str(data), "--data.batch_size", "2"]
    of_data += ["--data.crop_size", "32", "--data.base_size", "32", "--data.num_workers", "0"]
    return main(["fit", *of_data, *TINY, *TRAINER, "--run_dir", str(data.parent / run), *options])


def masks(data: Path) -> np.ndarray:
    import cv2

    return np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((data / "labels/train").iterdir())])


def expected(data: Path, kind: str) -> list[float]:
    labels = masks(data)
    valid = labels != 255
    if kind == "enet":
        return [1 / np.log(1.02 + (labels == k).sum() / valid.sum()) for k in range(3)]
    shares = []
    for k in range(3):
        having = (labels == k).any(axis=(1, 2))
        shares.append((labels == k).sum() / valid[having].sum())
    return [float(np.median(shares) / share) for share in shares]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[LossConfig]:
    """The loss of each run, as training begins."""
    seen: list[LossConfig] = []
    before = SegmentationCLI.before_fit

    def spy(self: SegmentationCLI) -> None:
        before(self)
        seen.append(self.model.loss)

    monkeypatch.setattr(SegmentationCLI, "before_fit", spy)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["enet", "median"])
def test_weights_come_from_the_training_masks(data: Path, used: list[LossConfig], kind: str) -> None:
    assert fit(data, "run", "--model.loss.class_weights", kind) == 0
    assert used[0].class_weights == pytest.approx(expected(data, kind), rel=1e-12)
    assert (data / "segkit-statistics-train.json").is_file()
    last = data.parent / "run/checkpoints/last.ckpt"
    stored = torch.load(last, weights_only=True)["hyper_parameters"]["loss"]
    assert stored["class_weights"] == kind
    # The word goes on with the run, and the numbers with it.
    assert fit(data, "more", "--ckpt_path", str(last), "--trainer.max_epochs", "2", "--reschedule") == 0
    assert used[1] == used[0]


@pytest.mark.slow
def test_only_training_counts(data: Path) -> None:
    """The word in a checkpoint asks nobody else for statistics: others may have no training images at all."""
    assert fit(data, "run", "--model.loss.class_weights", "enet") == 0
    last, out = str(data.parent / "run/checkpoints/last.ckpt"), data.parent / "out"
    (data / "segkit-statistics-train.json").unlink()
    for kind in ("images", "labels"):
        shutil.rmtree(data / kind / "train")
    of_data = ["--data", "FolderDataModule", "--data.root", str(data), "--data.num_workers", "0"]
    arguments = [*of_data, *TRAINER[:4], "--ckpt_path", last, "--run_dir", str(out)]
    assert main(["test", *arguments]) == main(["validate", *arguments]) == 0
    assert main(["predict", *arguments, "--output", str(out / "labels")]) == 0
    write_text(
        data.parent / "data.yaml", f"class_path: FolderDataModule\ninit_args: {{root: {data}, num_workers: 0}}\n"
    )
    common = ["--data", str(data.parent / "data.yaml"), "--device", "cpu", "--size", "32", "32"]
    assert main(["benchmark", last, *common, "--output", str(out / "table")]) == 0
    (row,) = json.loads((out / "table/benchmark.json").read_text())["rows"]
    assert row["mIoU"] == json.loads((out / "result.json").read_text())["scores"]["mIoU"]
    assert not (data / "segkit-statistics-train.json").exists()


@pytest.mark.slow
def test_what_is_typed_beats_the_checkpoint(data: Path, used: list[LossConfig]) -> None:
    assert fit(data, "run", "--model.loss.class_weights", "enet") == 0
    last = ["--ckpt_path", str(data.parent / "run/checkpoints/last.ckpt"), "--trainer.max_epochs", "2", "--reschedule"]
    assert fit(data, "none", *last, "--model.loss.class_weights", "none") == 0
    assert fit(data, "list", *last, "--model.loss.class_weights", "[1, 2, 3]") == 0
    assert [loss.class_weights for loss in used[1:]] == [None, (1.0, 2.0, 3.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, words",
    [
        ("enett", "is 'enett'; allowed are enet, median, none, or a list of one number a class"),
        ("[1, x, 2]", "allowed are enet, median, none, or a list of one number a class"),
        ("[1, -1, 2]", "must be finite numbers, 0 or more, and one above 0"),
        ("[1, .inf, 2]", "must be finite numbers"),
        ("[0, 0, 0]", "one above 0"),
        ("[1, 2]", "has 2 numbers, the network 3 classes"),
    ],
)
def test_wrong_weights_are_one_line(data: Path, capsys, given: str, words: str) -> None:
    assert fit(data, "run", "--model.loss.class_weights", given) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("segkit fit: error: model.loss.class_weights") and words in message


def test_masks_without_a_valid_pixel_are_one_line(data: Path, capsys) -> None:
    for path in (data / "labels/train").iterdir():
        write_png(path, np.full((32, 32), 255, np.uint8))
    assert fit(data, "run", "--model.loss.class_weights", "median") == 2
    assert "the masks of the train split have no valid pixel" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_word_alone_makes_no_loss() -> None:
    with pytest.raises(InputError, match=r"data\.class_weights\('enet'\)"):
        segmentation_loss({"out": torch.zeros(1, 3, 2, 2)}, torch.zeros(1, 4, 4), LossConfig(class_weights="enet"))


@pytest.mark.slow
def test_the_extremes_are_printed_once(data: Path, capsys, caplog) -> None:
    with caplog.at_level("INFO"):
        assert fit(data, "run", "--model.loss.class_weights", "enet") == 0
    weights = expected(data, "enet")
    line = f"class weights enet: from a {min(weights):.3g} to c {max(weights):.3g}"
    assert [record.getMessage() for record in caplog.records].count(line) == 1


@pytest.mark.slow
def test_rare_classes_are_sampled(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 2 has 2 % of the pixels: at T = 0.01 nearly every crop is of an image that has it, and shows it."""
    steps: list[list[bool]] = []
    step = SegmentationModule.training_step

    def spy(self: SegmentationModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        steps.append([bool((mask == 2).any()) for mask in batch["mask"]])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", spy)
    options = ["--data.cat_max_ratio", "0.9", "--data.seed", "3", "--trainer.max_epochs", "4"]
    shares = []
    for sampling in ("uniform", "rare_classes"):
        steps.clear()
        assert fit(data, sampling, "--data.sampling", sampling, *options) == 0
        shares.append(np.mean(steps))
        assert len(steps) == 8 and (data / "segkit-statistics-train.json").is_file() == (sampling == "rare_classes")
    assert shares[1] > 0.9 > shares[0] + 0.2
