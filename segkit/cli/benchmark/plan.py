"""The rows of `segkit benchmark`: from the command line (models x protocols) or from a plan file.

A plan is a YAML list; each item is one row, or one for each of its protocols:

    - model: runs/3/checkpoints/last.ckpt                 # any file that `segkit.load` reads
      config: ade20k/deeplabv3_resnest50                  # its data, its protocol, its published number
      protocol: [whole, encoding-ms]                      # instead of the recipe's
    - config: ade20k/deeplabv3_resnest269                 # no model: random weights, what the network costs
    - {name: theirs, model: theirs.pth, data: data/ade20k, protocol: mmseg-ss, metric: mmseg}

Paths are relative to the working directory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from segkit.cli.benchmark.options import KEYS, add_table_options
from segkit.cli.benchmark.recipe import Experiment, read_experiment, read_protocol
from segkit.cli.jsonargparse_border import SegmentationParser, explain
from segkit.cli.lightning import SHORT_NAMES
from segkit.data.datamodule import SegmentationDataModule
from segkit.errors import InputError, did_you_mean
from segkit.evaluation.conventions import convention
from segkit.inference import protocols
from segkit.inference.protocols import Protocol
from segkit.plain_data import flatten, read_yaml
from segkit.recipes import SUFFIXES, own_recipes


@dataclass(frozen=True)
class Row:
    """What one row is to be.

    Attributes:
        name: what the table calls it.
        model: the file; None = the recipe's network with random weights.
        recipe: of the model, or None.
        data: what is scored on, not set up; None for a network without a model, if its recipe has no data.
        protocol: how.
        metric: convention of the scores.
    """

    name: str
    model: str | None
    recipe: Experiment | None
    data: SegmentationDataModule | None
    protocol: Protocol
    metric: str

    @property
    def title(self) -> str:
        """For bars and messages."""
        return f"{self.name}, {self.protocol.name}"


@dataclass(frozen=True)
class Options:
    """What `segkit benchmark` was asked for."""

    rows: tuple[Row, ...]
    output: Path
    device: str | None
    limit: int | None
    size: tuple[int, int]


def parse(args: Sequence[str]) -> Options:
    """Read the command line and the files that it names; nothing is loaded or computed.

    Raises:
        InputError: what is wrong, in one line.
    """
    reader = _Reader()
    typed = reader.parse(args)
    _check_numbers(typed)
    rows = _rows_of_plan(reader, typed) if typed["plan"] else _rows_of_command_line(reader, args, typed)
    size = (typed["size"][0], typed["size"][1])
    return Options(tuple(rows), Path(typed["output"]), typed["device"], typed["limit"], size)


class _Reader:
    """The parser, and the data modules that it made: rows of one data set share one."""

    def __init__(self) -> None:
        self.parser = SegmentationParser("segkit benchmark")
        add_table_options(self.parser)
        self.parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True, required=False)
        self._made: dict[str, SegmentationDataModule] = {}

    def parse(self, args: Sequence[str]) -> Namespace:
        try:
            return self.parser.parse_args(list(args))
        except InputError as error:
            known = flatten(self.parser.get_defaults().as_dict())
            raise InputError(explain(str(error), known, SHORT_NAMES)) from error

    def data(self, args: Sequence[str]) -> SegmentationDataModule | None:
        """The data module that `--data` and `--data.*` in these arguments describe."""
        config = self.parse(args)
        key = str(config["data"])
        if key not in self._made:
            self._made[key] = self.parser.build(config)["data"]
        return self._made[key]


def _rows_of_command_line(reader: _Reader, args: Sequence[str], typed: Namespace) -> list[Row]:
    if not typed["models"]:
        raise InputError("nothing to do: give model files, or --plan FILE (see `segkit benchmark --help`)")
    shared = read_experiment(typed["config"]) if typed["config"] else None
    rows = []
    for model in typed["models"]:
        recipe = read_experiment(model) if _is_recipe(model) else shared
        # What was typed comes behind the recipe's data, and so wins, option by option.
        below = ["--data", recipe.data] if recipe is not None and recipe.data is not None else []
        data = reader.data([*below, *args])
        names = typed["protocol"] or [recipe.protocol if recipe else "whole"]
        for name in names:
            protocol = name if isinstance(name, Protocol) else protocols.get(name)
            row = Row(model, None if _is_recipe(model) else model, recipe, data, protocol, typed["metric"])
            rows.append(_checked(row, model, "--data or --config"))
    return rows


def _rows_of_plan(reader: _Reader, typed: Namespace) -> list[Row]:
    given = [name for name in ("models", "config", "protocol", "data") if typed[name]]
    if given:
        raise InputError(f"--plan and {', '.join(given)} exclude each other: the plan's rows say it")
    path = Path(typed["plan"])
    items = read_yaml(path)
    if not isinstance(items, list) or not items:
        raise InputError(f"{path}: not a list of rows; write one '- {{model: ..., data: ..., protocol: ...}}' for each")
    rows = []
    for number, item in enumerate(items, start=1):
        rows += _rows_of_item(reader, item, f"{path}, row {number}", typed["metric"])
    return rows


def _rows_of_item(reader: _Reader, item: Any, where: str, metric: str) -> list[Row]:
    if not isinstance(item, dict):
        raise InputError(f"{where}: {item!r} is not a mapping; allowed keys are {', '.join(KEYS)}")
    for key in item:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            raise InputError(f"{where}: no such key {str(key)!r}; {hint}allowed: {', '.join(KEYS)}")
    recipe = read_experiment(item["config"]) if "config" in item else None
    if recipe is None and "model" not in item:
        raise InputError(f"{where}: neither model nor config; give a model file, a recipe, or both")
    data = reader.data(_data_arguments(item.get("data"), recipe, where))
    wanted = item.get("protocol", recipe.protocol if recipe else "whole")
    name = str(item.get("name", item.get("model", item.get("config"))))
    rows = []
    for protocol in wanted if isinstance(wanted, list) else [wanted]:
        chosen = protocol if isinstance(protocol, Protocol) else read_protocol(protocol, where)
        model = str(item["model"]) if "model" in item else None
        row = Row(name, model, recipe, data, chosen, str(item.get("metric", metric)))
        rows.append(_checked(row, where, "the key data, or config"))
    return rows


def _data_arguments(data: Any, recipe: Experiment | None, where: str) -> list[str]:
    if data is None:
        return ["--data", recipe.data] if recipe is not None and recipe.data is not None else []
    if isinstance(data, dict):
        return ["--data", json.dumps(data)]
    if isinstance(data, str):
        return ["--data", data]
    raise InputError(f"{where}: data is {data!r}; give a YAML file, or a mapping with class_path and init_args")


def _is_recipe(path: str) -> bool:
    return path.endswith(SUFFIXES) or (path in own_recipes() and not Path(path).is_file())


def _checked(row: Row, where: str, how: str) -> Row:
    if row.model is not None and row.data is None:
        raise InputError(f"{where}: no data to score on; give it with {how}")
    try:
        convention(row.metric)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return row


def _check_numbers(typed: Namespace) -> None:
    if typed["limit"] is not None and typed["limit"] < 1:
        raise InputError("--limit must be 1 or more")
    if min(typed["size"]) < 1:
        raise InputError("--size must be two numbers of pixels, height and width, 1 or more")
