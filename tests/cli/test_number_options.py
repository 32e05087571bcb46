"""Options of lists, and of integers or floats, found in the signatures: what is typed is what arrives."""

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from parsed import parse

from segkit.cli import main
from segkit.cli.lightning import SHORT_NAMES
from segkit.data.datamodule import SegmentationDataModule
from segkit.models.segmentation import NETWORKS, SegmentationModel
from segkit.training.module import SegmentationModule

BASE = (
    "--data",
    "CamVidDataModule",
    "--data.root",
    "x",
    "--model.network",
    "FCN",
    "--model.network.encoder",
    "resnet18",
)


def options(owner: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and types of a class's arguments; those of dataclasses one by one."""
    for base in (cls for cls in owner.__mro__[:-1] if "__init__" in vars(cls)):
        for name, hint in typing.get_type_hints(base.__init__).items():
            if dataclasses.is_dataclass(hint):
                yield from ((f"{prefix}.{name}.{field}", kind) for field, kind in typing.get_type_hints(hint).items())
            elif name not in ("self", "return"):
                yield f"{prefix}.{name}", hint
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.__init__).parameters.values()):
            return


def sequence(hint: Any) -> Any:
    """The tuple or list among the types of a hint, of strings or numbers; None without one."""
    kinds = [hint, *typing.get_args(hint)]
    found = [k for k in kinds if typing.get_origin(k) in (tuple, list)]
    return next((k for k in found if set(typing.get_args(k)) <= {int, float, str, ...}), None)


def sequences(owner: type, prefix: str) -> list[tuple[str, list[Any], Any]]:
    """Name, a whole value, and another last item, of each option that is a tuple or list."""
    found = []
    for name, hint in options(owner, prefix):
        kind = sequence(hint)
        if kind is not None:
            item = typing.get_args(kind)[0]
            values = [f"class {n}" if item is str else item(n) for n in (5, 6, 7, 8)]  # a 5 would be read as a number
            length = (
                3 if typing.get_origin(kind) is list or ... in typing.get_args(kind) else len(typing.get_args(kind))
            )
            found.append((name, values[:length], values[-1]))
    return found


DATA = [
    cls
    for cls in SHORT_NAMES
    if issubclass(cls, SegmentationDataModule)
    and ("__init__" in vars(cls) or cls.__name__ == "ADE20KDataModule")
    and any(map(sequence, typing.get_type_hints(cls.__init__).values()))
]  # one of those that take the arguments of the base class as they are, and all that have lists of their own


def value_at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config.init_args[part] if part not in config and "init_args" in config else config[part]
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, prefix, choice",
    [
        *((cls, "data", ["--data", cls.__name__, "--data.root", "x"]) for cls in DATA),
        *(
            (cls, "model.network", ["--model.network", cls.__name__])
            for cls in NETWORKS.values()
            if SegmentationModel in cls.__mro__
        ),
        (SegmentationModule, "model", []),
        (pl.Trainer, "trainer", []),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_an_item_is_replaced_and_the_rest_stays(owner: type, prefix: str, choice: list[str]) -> None:
    found = sequences(owner, prefix)
    assert len(found) >= {"data": 3, "model": 3, "trainer": 1}.get(prefix, 0)
    whole = [f"--{name}={value}" for name, value, _ in found]
    items = [text for name, value, last in found for text in (f"--{name}.{len(value) - 1}", str(last))]
    config = parse(*BASE, *choice, *whole, *items)
    for name, value, last in found:
        assert list(value_at(config, name)) == [*value[:-1], last], name


@pytest.mark.slow
def test_an_item_of_what_the_recipe_says(tmp_path) -> None:
    recipe = {"data": {"class_path": "CamVidDataModule", "init_args": {"root": "x", "scale_range": [0.8, 1.25]}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = parse(*BASE[4:], "--config", str(tmp_path / "recipe.yaml"), "--data.scale_range.1", "2.0")
    assert config.data.init_args.scale_range == (0.8, 2.0)
    config = parse(*BASE, "--data.init_args.scale_range.1=2", "--data.scale_range.0=0.1")  # above the default's
    assert config.data.init_args.scale_range == (0.1, 2.0)
    config = parse(*BASE, "--model.network.encoder_args", "{a: 1}", "--model.network.encoder_args.1", "2")
    assert config.model.network.init_args.encoder_args == {"a": 1, "1": 2}  # a dictionary's key, no item


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, words",
    [
        (
            ["--data.scale_range.2", "2"],
            "data.scale_range.2: no such item of data.scale_range; allowed: 0 to 1; or",
        ),
        (["--data.scale_range.-1", "2"], "data.scale_range.-1: no such item"),
        (["--data.scale_range.1.0", "2"], "'1' is no item of a list; give the whole list: --data.scale_range '[...]'"),
        (["--data.base_size.0", "2"], "data.base_size is 480, no list; give the whole list: --data.base_size '[...]'"),
        (["--model.loss.class_weights.0", "2"], "model.loss.class_weights is null, no list"),
        (["--model.optim.milestones.0", "2"], "allowed: none, for it is empty; or give the whole list"),
        (["--data.scale_range.1", "2", "--data.scale_range", "[1, 2]"], "stands before --data.scale_range, which may"),
        (
            ["--data.scale_range.1", "2", "--config", "overlays/smoke.yaml"],
            "stands before --config, which may replace it; give it",
        ),
        (["--trainer.foo.1", "2"], "no such option 'trainer.foo.1'"),
    ],
)
def test_items_that_are_none_take_one_line(capsys, change: list[str], words: str) -> None:
    base = [*BASE, "--data.base_size", "480"]
    assert main(["fit", *base, *change]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


NUMBERS = [
    name
    for name, parameter in inspect.signature(pl.Trainer).parameters.items()
    if {int, float} <= set(typing.get_args(parameter.annotation))
]


@pytest.mark.slow
@pytest.mark.parametrize("written", ["1", "1.0"])
def test_an_integer_of_the_trainer_stays_one(written: str, tmp_path) -> None:
    """`limit_val_batches: 1` is one batch, 1.0 all of them."""
    assert {"limit_train_batches", "limit_val_batches", "val_check_interval", "overfit_batches"} <= set(NUMBERS)
    expected = yaml.safe_load(written)
    (tmp_path / "trainer.yaml").write_text("trainer:\n" + "".join(f"  {name}: {written}\n" for name in NUMBERS))
    typed = parse(*BASE, *(x for name in NUMBERS for x in (f"--trainer.{name}", written)))
    read = parse(*BASE, "--config", str(tmp_path / "trainer.yaml"))
    for config in (typed, read):
        for name in NUMBERS:
            assert (name, config.trainer[name], type(config.trainer[name])) == (name, expected, type(expected))
