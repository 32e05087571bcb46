"""`segkit benchmark`: models under protocols in one table, with what they cost and the numbers that were published."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from segkit.benchmark.plan import PlannedRow, rows_of_models, rows_of_plan
from segkit.benchmark.progress import Settings
from segkit.benchmark.rows import fill_table
from segkit.benchmark.table import Table
from segkit.cli.benchmark.command import add_table_options
from segkit.cli.jsonargparse_border import SegmentationParser, explain
from segkit.cli.lightning import SHORT_NAMES
from segkit.cli.words import say, say_above_bar
from segkit.data.datamodule import SegmentationDataModule
from segkit.errors import InputError
from segkit.files import check_writable
from segkit.plain_data import flatten


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark`; see `--help`.

    Returns:
        0: all rows are in the table. 1: some failed, the others are in it. 2: none could be computed.
    """
    reader = _Reader(args)
    rows, typed = _rows(reader), reader.typed
    device = typed["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(device, typed["limit"], (typed["size"][0], typed["size"][1]), Path(typed["output"]))
    check_writable(settings.output)
    table = Table(settings.output)
    try:
        fill_table(table, rows, settings, say_above_bar)
    except KeyboardInterrupt:
        done = f"{len(table.rows)} rows are in {settings.output}"
        say_above_bar(f"segkit benchmark: {done}; the same command goes on from here")
        raise
    except InputError:  # the table cannot be written
        say(table.markdown())
        raise
    if table.rows:
        say(f"\n{table.markdown()}\n\n{settings.output / 'benchmark'}.md, .csv, .json")
    for message in table.failed:
        say_above_bar(f"segkit benchmark: error: {message}")
    if table.failed:
        table.write()
    return 0 if not table.failed else 1 if len(table.failed) < len(rows) else 2


class _Reader:
    """The command line, and the data modules that it made: rows of one data set share one."""

    def __init__(self, args: Sequence[str]) -> None:
        self.parser = SegmentationParser("segkit benchmark")
        add_table_options(self.parser)
        self.parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True, required=False)
        self.args, self.typed = list(args), self._parse(args)
        self._made: dict[str, SegmentationDataModule] = {}

    def data(self, given: Mapping[str, Any] | str | None) -> SegmentationDataModule | None:
        """The data module of a config or a recipe, and of what was typed, which wins, option by option."""
        config = self._parse([*_data_option(given), *self.args])
        key = str(config["data"])
        if key not in self._made:
            self._made[key] = self.parser.build(config)["data"]
        return self._made[key]

    def _parse(self, args: Sequence[str]) -> Namespace:
        try:
            return self.parser.parse_args(list(args))
        except InputError as error:
            known = flatten(self.parser.get_defaults().as_dict())
            raise InputError(explain(str(error), known, SHORT_NAMES)) from error


def _rows(reader: _Reader) -> list[PlannedRow]:
    typed = reader.typed
    if typed["limit"] is not None and typed["limit"] < 1:
        raise InputError("--limit must be 1 or more")
    if min(typed["size"]) < 1:
        raise InputError("--size must be two numbers of pixels, height and width, 1 or more")
    if typed["plan"]:
        given = [name for name in ("models", "config", "protocol", "data") if typed[name]]
        if given:
            raise InputError(f"--plan and {', '.join(given)} exclude each other: the plan's rows say it")
        return rows_of_plan(Path(typed["plan"]), typed["metric"], reader.data)
    if not typed["models"]:
        raise InputError("nothing to do: give model files, or --plan FILE (see `segkit benchmark --help`)")
    return rows_of_models(typed["models"], typed["config"], typed["protocol"], typed["metric"], reader.data)


def _data_option(given: Mapping[str, Any] | str | None) -> list[str]:
    return [] if given is None else ["--data", given if isinstance(given, str) else json.dumps(given)]
