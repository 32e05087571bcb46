"""`segkit benchmark`: models and protocols in one table, with their cost and their published numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from segkit.benchmark.models.options import OPTIONS, ModelOptions
from segkit.benchmark.plan import Data, PlannedRow, rows_of_models, rows_of_plan
from segkit.benchmark.progress import Settings
from segkit.benchmark.rows import fill_table
from segkit.benchmark.table import Table
from segkit.cli.benchmark.command import table_parser
from segkit.cli.data.source import open_any
from segkit.cli.parser import split_options
from segkit.cli.words import say, say_above_bar
from segkit.errors import InputError
from segkit.files import check_writable


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark`; see `--help`.

    Returns:
        0: all rows are in the table. 1: some rows failed and are missing. 2: no row could be computed.
    """
    reader = _Reader(args)
    rows, typed = _rows(reader), reader.typed
    device = typed["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    size, without = (typed["size"][0], typed["size"][1]), tuple(typed["without"])
    settings = Settings(device, typed["limit"], size, Path(typed["output"]), without)
    check_writable(settings.output)
    table = Table(settings.output)
    try:
        fill_table(table, rows, settings, say_above_bar)
    except KeyboardInterrupt:
        done = f"{len(table.rows)} rows are in {settings.output}"
        say_above_bar(f"segkit benchmark: {done}; the same command continues from here")
        raise
    except InputError:  # the table cannot be written
        say(table.markdown())
        raise
    if table.rows:
        say(f"\n{table.markdown()}\n\n{settings.output / 'benchmark'}.md, .csv, .json")
        for message in table.failed:  # said when they failed, by now far up the screen
            say_above_bar(f"segkit benchmark: error: {message}")
    if table.failed:
        table.write()
    return 0 if not table.failed else 1 if len(table.failed) < len(rows) else 2


class _Reader:
    """Reads the command line and keeps the data modules that it built: rows of one data set share one."""

    def __init__(self, args: Sequence[str]) -> None:
        own, self.of_data = split_options(args)
        self.typed = vars(table_parser().parse_args(own))
        self._made: dict[str, Data] = {}

    def data(self, given: Mapping[str, Any] | str | None) -> Data | None:
        """The data module of a config or recipe; options typed on the command line override it one by one."""
        named = [] if given is None else ["--data", given if isinstance(given, str) else json.dumps(given)]
        args = [*named, *self.of_data]
        if not args:
            return None
        key = json.dumps(args)
        if key not in self._made:
            self._made[key] = open_any(args, "segkit benchmark")
        return self._made[key]


def _rows(reader: _Reader) -> list[PlannedRow]:
    typed = reader.typed
    if typed["plan"]:
        given = [name for name in ("models", "config", "protocol", *OPTIONS) if typed[name]]
        given += ["data"] if any(arg.split("=")[0] == "--data" for arg in reader.of_data) else []
        if given:
            raise InputError(f"--plan and {', '.join(given)} exclude each other: the plan's rows say it")
        return rows_of_plan(Path(typed["plan"]), typed["metric"], reader.data)
    if not typed["models"]:
        raise InputError("nothing to do: give model files, or --plan FILE (see `segkit benchmark --help`)")
    options = ModelOptions.read(typed, "")
    return rows_of_models(typed["models"], typed["config"], typed["protocol"], typed["metric"], reader.data, options)
