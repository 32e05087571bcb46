"""`segkit reproduce`: the tables without files, and a cell with a small file in the authors' place."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from class_images import write_folders

from segkit.cli import main, reproduce
from segkit.data.sets.synthetic import SyntheticDataModule
from segkit.files import parse_json, write_text
from segkit.models import authors
from segkit.models.classifier import Classifier
from segkit.models.segmentation import FCN
from segkit.text import percent
from tests.support.checkpoints import write_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.mark.slow
def test_the_ablation_has_the_published_parameters_and_nearly_the_flops(capsys: pytest.CaptureFixture[str]) -> None:
    """ablation.md of zhanghang1989/ResNeSt; two cells are known not to agree when rounded, and are said."""
    assert main(["reproduce", "ablation", "comparators", "coco"]) == 0
    cells = parse_json(Path("reproduce/reproduce.json").read_text())["cells"]
    differ = [cell["recipe"][-7:] for cell in cells if round(cell["M"], 1) != cell["M published"]]
    assert len(cells) == 7 and set(differ) <= {"1s1x64d", "1s2x40d"}
    assert all(abs(cell["M"] - cell["M published"]) < 0.09 for cell in cells)
    assert all(0.99 < cell["GMAC"] / cell["GMAC published"] < 1 for cell in cells)
    said = capsys.readouterr().out
    assert "missing weights (about 105 MB, https://github.com/zhanghang1989/" in said
    assert "data (50000 images): segkit reproduce imagenet/resnest50_fast_1s1x64d --data imagenet=ROOT" in said
    assert "no weights of the first three" in said and "Out of scope" in said


def in_the_authors_place(recipe: Path, file: Path, digest: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a recipe be the only cell, and a file the one that the authors publish for it."""
    monkeypatch.setattr(authors, "_FILES", {str(recipe): ("file", digest)})
    monkeypatch.setattr(authors, "NAMES", (str(recipe),))
    monkeypatch.setattr(reproduce, "TABLES", {"made": (str(recipe),)})
    place = authors.local_path(str(recipe))
    place.parent.mkdir(parents=True)
    return file.rename(place)


def the_cell() -> dict[str, Any]:
    (cell,) = parse_json(Path("reproduce/reproduce.json").read_text())["cells"]
    low, high = cell["interval"]
    assert low <= cell["measured"] <= high and low < high
    assert f" {percent(low)} to {percent(high)} " in Path("reproduce/reproduce.md").read_text()
    return cell


@pytest.mark.slow
def test_a_cell_is_scored_once_its_file_and_data_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    init_args = {"root": "nowhere", "height": 64, "width": 64, "crop_size": 64, "num_workers": 0}
    init_args |= {"num_train": 1, "num_val": 1, "num_test": 2}
    content = {
        "data": {"class_path": "SyntheticDataModule", "init_args": init_args},
        "model": {"network": {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny"}}},
        "protocol": "whole",
        "published": {"mIoU": 50, "protocol": "whole", "images": 2, "source": "nobody"},
    }
    write_text(recipe := Path("made/fcn.yaml"), yaml.safe_dump(content))
    Path("drawn").mkdir()
    space = SyntheticDataModule("drawn").label_space
    file = write_checkpoint(Path("file.ckpt"), FCN("resnest14_tiny", space.num_classes), space)
    digest = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
    place = in_the_authors_place(recipe, file, digest, monkeypatch)
    assert main(["reproduce", "made", "--data", "made=drawn"]) == 0
    cell = the_cell()
    assert 0 <= cell["measured"] < 0.5 and cell["published"] == 0.5 and cell["state"].startswith("2 images")
    place.write_bytes(b"damaged")
    assert main(["reproduce", "made", "--data", "made=drawn"]) == 2


@pytest.mark.slow
def test_an_encoders_cell_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear layer that says the first class: right for 2 images of 6, which Wilson puts between 9.7 and 70.0 %."""
    init_args = {"root": "nowhere", "num_classes": 3, "batch_size": 4, "crop_size": 32, "num_workers": 0}
    content = {
        "data": {"class_path": "ImageNetDataModule", "init_args": init_args},
        "model": {"network": {"class_path": "Classifier", "init_args": {"encoder": "resnest14_tiny"}}},
        "published": {"top1": 50, "protocol": "resnest@32", "images": 6, "source": "nobody"},
    }
    write_text(recipe := Path("imagenet/tiny.yaml"), yaml.safe_dump(content))
    network = Classifier("resnest14_tiny", 3)
    first = {"fc.weight": torch.zeros_like(network.fc.weight), "fc.bias": torch.tensor([1.0, 0.0, 0.0])}
    torch.save({**network.encoder.state_dict(), **first}, file := Path("file.pth"))
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    in_the_authors_place(recipe, file, digits, monkeypatch)
    assert main(["reproduce", "made", "--data", f"imagenet={write_folders(Path('folders'))}"]) == 0
    cell = the_cell()
    assert (cell["measured"], cell["published"], cell["state"]) == (1 / 3, 0.5, "6 images")
    assert cell["interval"] == pytest.approx([0.0968, 0.7000], abs=1e-4) and cell["GMAC"] > 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["adek"], "no table or cell 'adek'; did you mean ade20k?"),
        (["ade20k/fcn_resnest5"], "did you mean ade20k/fcn_resnest50?"),
        (["--data", "ade=x"], "--data ade=x: expected is NAME=ROOT; did you mean ade20k?"),
        (["--data", "ade20k=nowhere"], "--data ade20k=nowhere: there is no nowhere"),
        (["ade20k/fcn_resnest50", "--fetch"], "HF_HUB_OFFLINE is set); download it on a machine with a network"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error
