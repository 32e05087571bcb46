"""The one reader of recipes: by path or name, with published numbers as keys, which `fit` does not take for options."""

import json
import os
from pathlib import Path

import pytest
import yaml
from parsed import parse

from segkit.cli import main
from segkit.errors import InputError
from segkit.inference.protocols import get
from segkit.recipes import CONFIGS, find_recipe, is_recipe, own_recipes, read_recipe

RECIPE = "camvid/fcn_resnest14_tiny"


def test_a_path_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = CONFIGS / f"{RECIPE}.yaml"
    assert {find_recipe(name) for name in (RECIPE, f"{RECIPE}.yaml", f"configs/{RECIPE}.yaml", own)} == {own}
    (tmp_path / "camvid").mkdir()
    (tmp_path / f"{RECIPE}.yaml").write_text("data: {class_path: FolderDataModule}")
    assert read_recipe(f"{RECIPE}.yaml").data == {"class_path": "FolderDataModule"}
    assert find_recipe(RECIPE) == own  # a name is no path without its ending
    assert {name: is_recipe(name) for name in (RECIPE, "mine.yaml", "camvid", "a.ckpt", "whole")} == {
        RECIPE: True, "mine.yaml": True, "camvid": False, "a.ckpt": False, "whole": False,
    }  # fmt: skip


def test_what_is_not_there_is_said_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"did you mean camvid/fcn_resnest14_tiny\? `segkit recipes`"):
        find_recipe("camvid/fcn_resnest14")
    assert main(["fit", "--config", "ade20k/deeplab_resnest50"]) == 2 and not os.listdir()


def test_the_data_of_a_recipe_are_those_that_it_includes() -> None:
    data = read_recipe("ade20k/deeplabv3_resnest50").data
    assert data == yaml.safe_load((CONFIGS / "data" / "ade20k.yaml").read_text()) == read_recipe("data/ade20k").data
    assert read_recipe("overlays/modern").data is None is read_recipe("protocols/half-ms-flip").data


def test_the_number_for_a_protocol() -> None:
    recipe = read_recipe("ade20k/mmseg_fcn_resnest101_160k")
    of = {name: recipe.published_for(name).miou for name in ("mmseg-ss", "mmseg-0x-ms", "whole")}
    assert of == pytest.approx({"mmseg-ss": 0.4562, "mmseg-0x-ms": 0.4616, "whole": 0.4562}, abs=1e-9)
    assert read_recipe("overlays/smoke").published_for("whole") is None


@pytest.mark.parametrize(
    "published", [3, {"mIoU": "much"}, {"mIoU": 40.0, "protocol": "whole", "images": 5, "source": "x", "miou": 1}]
)
def test_a_wrong_number_is_refused(tmp_path: Path, published: object) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps({"published": published}))
    with pytest.raises(InputError, match=r"published: .*expected are mIoU"):
        read_recipe(tmp_path / "r.yaml")


def test_fit_takes_names_and_leaves_numbers_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse("--config", "ade20k/deeplabv3_resnest50", "--data", "data/camvid", "--config=overlays/modern")
    assert config.data.class_path.endswith("CamVidDataModule") and "published" not in config
    assert (config.model.network.init_args.encoder, config.model.optim.name) == ("resnest50", "adamw")
    half = get(parse("--config", RECIPE).protocol)  # by its name, too
    assert half.name == "half-ms-flip" and half.scales == (0.5, 0.75)


def test_recipes_are_listed_with_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if "mmseg-0x" not in line] == own_recipes()
    number = next(line for line in said if line.startswith("ade20k/deeplabv3_resnest50 "))
    assert "45.12 mIoU by encoding-ms (the authors" in number
    assert main(["recipes", "overlays"]) == 0 and len(capsys.readouterr().out.splitlines()) == 2
