"""Every file under configs/ is parsed as `segkit fit` parses it, and its header tells what a reader needs."""

from pathlib import Path

import pytest
import yaml

from segkit.cli.benchmark.recipe import read_recipe
from segkit.cli.lightning import SegmentationCLI, main
from segkit.inference.protocols import get

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name not in ("data", "overlays", "protocols"))
PARTS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name in ("data", "overlays"))


class Parsed(SegmentationCLI):
    """Parses and stops before anything is built."""

    def before_instantiate_classes(self) -> None:
        raise StopIteration(self.config[self.config.subcommand])


def parse(*arguments: str):
    with pytest.raises(StopIteration) as stopped:
        Parsed(None, ["fit", *arguments])
    return stopped.value.value


def test_the_published_networks_are_there() -> None:
    names = {p.relative_to(CONFIGS).as_posix() for p in RECIPES}
    for data in ("ade20k", "cityscapes"):
        for name in ("fcn_resnest50", "fcn_resnest101", *(f"deeplabv3_resnest{n}" for n in (50, 101, 200, 269))):
            assert f"{data}/{name}.yaml" in names
    assert any(name.startswith("camvid/") for name in names)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_recipe_parses_and_says_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)  # where a reader runs it: data roots and protocol files are relative to it
    config = parse("--config", str(path))
    head, encoder = path.stem.split("_", 1)
    assert config.model.network.class_path.lower().endswith(f".{head}")
    assert config.model.network.init_args.encoder in encoder
    get(config.protocol)
    header = path.read_text().split("\ndata:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"segkit fit --config {path.relative_to(CONFIGS.parent).as_posix()}" in header
    for word in ("# Hardware:", "# Published:", "# Protocol:", "# Here:"):
        assert word in header
    published = read_recipe(path).published
    assert (published is None) == ("# Published: none" in header)  # anything else is what `segkit benchmark` reads
    assert published is None or published.protocol == config.protocol


def test_published_numbers() -> None:
    """Those of the authors' documentation; the two for Cityscapes are quoted from the paper and say so."""
    found = {path.relative_to(CONFIGS).with_suffix("").as_posix(): read_recipe(path).published for path in RECIPES}
    numbers = {
        name: (round(100 * p.miou, 2), p.pixel_accuracy and round(100 * p.pixel_accuracy, 2), p.pictures)
        for name, p in found.items()
        if p is not None
    }
    assert numbers == {
        "ade20k/fcn_resnest50": (42.94, 80.18, 2000),
        "ade20k/deeplabv3_resnest50": (45.12, 81.17, 2000),
        "ade20k/deeplabv3_resnest101": (46.91, 82.07, 2000),
        "ade20k/deeplabv3_resnest200": (48.36, 82.45, 2000),
        "ade20k/deeplabv3_resnest269": (47.60, 82.62, 2000),
        "cityscapes/deeplabv3_resnest50": (79.87, None, 500),
        "cityscapes/deeplabv3_resnest101": (80.42, None, 500),
    }
    assert all("paper; not re-read" in p.source for name, p in found.items() if p and name.startswith("cityscapes"))


@pytest.mark.parametrize("path", PARTS, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_data_recipes_and_overlays_parse(path: Path) -> None:
    recipe = str(CONFIGS / "ade20k" / "deeplabv3_resnest50.yaml")
    option = "--data" if path.parent.name == "data" else "--config"
    config = parse("--config", recipe, option, str(path))
    given = yaml.safe_load(path.read_text())
    if path.parent.name == "data":
        assert config.data.class_path.endswith(given["class_path"])
        assert str(config.data.init_args.root) == given["init_args"]["root"]
    else:
        assert config.model.network.init_args.encoder == "resnest50"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("protocols/*.yaml")), ids=lambda p: p.name)
def test_protocol_files_are_protocols(path: Path) -> None:
    assert get(str(path)).name == path.stem


def test_the_authors_recipe_is_what_the_configs_say() -> None:
    ade = parse("--config", str(CONFIGS / "ade20k" / "deeplabv3_resnest50.yaml"))
    optim = ade.model.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.head_lr_mult) == (
        "sgd",
        0.01,
        0.9,
        1e-4,
        10,
    )
    assert (optim.schedule, optim.power, ade.model.loss.aux_weight) == ("poly", 0.9, 0.2)
    assert (ade.data.init_args.base_size, ade.data.init_args.crop_size) == (520, 480)
    assert ade.data.init_args.batch_size * ade.trainer.devices == 16
    assert ade.trainer.max_epochs == 120 and ade.trainer.sync_batchnorm
    city = parse("--config", str(CONFIGS / "cityscapes" / "deeplabv3_resnest101.yaml"))
    assert (city.data.init_args.base_size, city.data.init_args.crop_size, city.trainer.max_epochs) == (2048, 768, 240)
    deep = parse("--config", str(CONFIGS / "ade20k" / "deeplabv3_resnest269.yaml"))
    assert deep.model.optim.warmup_steps == 5 * 1263


def test_smoke_overlay_runs_a_recipe(tmp_path: Path) -> None:
    """The whole of `fit`, two steps, with a recipe of configs/ and the drawn data set in place of Cityscapes."""
    arguments = ["fit", "--config", str(CONFIGS / "cityscapes" / "fcn_resnest50.yaml")]
    arguments += ["--config", str(CONFIGS / "overlays" / "smoke.yaml"), "--run_dir", str(tmp_path / "run")]
    arguments += ["--data", "SyntheticDataModule", "--data.root", str(tmp_path / "data"), "--data.crop_size", "64"]
    arguments += ["--data.base_size", "64", "--data.num_train", "4", "--data.num_val", "2", "--data.num_test", "1"]
    arguments += ["--data.batch_size", "2", "--model.network.encoder", "resnest14_tiny"]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
