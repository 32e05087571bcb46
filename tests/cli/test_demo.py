"""`segkit demo` through the front door, made small."""

import json
from pathlib import Path

import cv2
import pytest

from segkit.cli import demo, main
from segkit.recipes import find_recipe


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of few scenes and one epoch."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    recipe = output.parent / "small.yaml"
    small = find_recipe(demo.RECIPE).read_text()
    small = small.replace("num_train: 160", "num_train: 16\n    num_val: 2\n    num_test: 3")
    recipe.write_text(small.replace("check_val_every_n_epoch: 5", "check_val_every_n_epoch: 1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RECIPE", str(recipe))
        assert main(["demo", "--output", str(output), "--epochs", "1", "--images", "2"]) == 0
    return output


@pytest.mark.slow
def test_demo_leaves_data_images_curves_and_result(output: Path) -> None:
    run = output / "run"
    assert len(list((output / "data" / "gtFine" / "train").rglob("*_labelIds.png"))) == 16
    images = sorted((run / "images").iterdir())
    assert len(images) == 2 and all(cv2.imread(str(p)) is not None for p in images)
    result = json.loads((run / "result.json").read_text())
    assert result["num_images"] == 3 and result["protocol"]["flip"] and len(result["protocol"]["scales"]) > 1
    assert (run / "curves.png").is_file()
    assert (run / "report.html").is_file() and len(list((run / "predictions").rglob("*_confidence.png"))) == 3


@pytest.mark.slow
def test_a_second_demo_writes_beside_the_first(output: Path) -> None:
    assert demo._new_run(output) == output / "run-2"


def test_demo_refuses_a_file_in_the_folders_place(tmp_path: Path, capsys) -> None:
    (tmp_path / "demo").write_text("mine")
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "is a file, so" in capsys.readouterr().err
    assert (tmp_path / "demo").read_text() == "mine"
