"""`segkit predict`: which images it reads of a data set, and that no archive makes it write anywhere else."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.cli import main
from segkit.io import write_png
from segkit.models.segmentation import FCN
from segkit.training.module import SegmentationModule


def predict(data: str, root: Path, out: Path, classes: int, root_is: str = "root") -> int:
    torch.manual_seed(0)
    module = SegmentationModule(FCN("resnest14_tiny", classes))
    checkpoint = out.with_name("random.ckpt")
    weights = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**weights, "pytorch-lightning_version": "2.6.4"}, checkpoint)
    arguments = ["predict", "--data", data, f"--data.{root_is}", str(root), "--data.num_workers", "0"]
    arguments += ["--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu", "--output", str(out)]
    return main([*arguments, "--run_dir", str(out.with_name("run")), "--trainer.enable_progress_bar", "false"])


def image(path: Path) -> Path:
    write_png(path, np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    return path


def test_cityscapes_without_test_images_predicts_val(tmp_path: Path) -> None:
    image(tmp_path / "data/leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png")
    assert predict("CityscapesDataModule", tmp_path / "data", tmp_path / "out", 19) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["bonn_000000_000019_leftImg8bit.png"]


def test_own_data_whose_folder_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "from segkit.data.sets.folder import FolderDataModule",
        "class Mine(FolderDataModule):",
        "    def __init__(self, place: str, num_workers: int = 0) -> None:",
        "        super().__init__(place, num_workers=num_workers)",
    )
    (tmp_path / "own_place.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    image(tmp_path / "data/images/test/a.png")
    (tmp_path / "data/classes.txt").write_text("sky\nroad\n")
    assert predict("own_place.Mine", tmp_path / "data", tmp_path / "out", 2, "place") == 0
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]
    named = json.loads((tmp_path / "out/predictions.json").read_text())["run"]["data"]
    assert named == {"class_path": "own_place.Mine", "init_args": {"place": str(tmp_path / "data"), "num_workers": 0}}


def test_a_zip_whose_names_lead_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tests/test_archives.py has the other ways to lie."""
    root, out = tmp_path / "data.zip", tmp_path / "deep" / "er" / "out"
    out.parent.mkdir(parents=True)
    data = image(tmp_path / "image.png").read_bytes()
    with zipfile.ZipFile(root, "w") as archive:
        archive.writestr("images/validation/ADE_val_1.jpg", data)
        archive.writestr("images/validation/../../../../X.jpg", data)
    assert predict("ADE20KDataModule", root, out, 150) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"segkit predict: error: {root}: 'images/validation/../../../../X.jpg' in it leads out")
    assert not list(tmp_path.rglob("X*")) and not out.exists()
