"""`segkit benchmark`: several models under several protocols, in one table with what they cost and what was published.

The table is written after every row, and rows that are already in it are not computed again. Two subcommands need no
network: `score` scores folders of label PNGs, `compare` asks whether two models really differ.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segkit.cli.benchmark.options import compare_parser, score_parser, table_parser
from segkit.cli.words import say, say_above_bar
from segkit.errors import InputError

if TYPE_CHECKING:  # they need PyTorch and Lightning, which take seconds to import, and `score` does not
    from segkit.cli.benchmark.plan import Options, Row
    from segkit.cli.benchmark.progress import Settings
    from segkit.cli.benchmark.table import Table


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark`; see `--help`.

    Returns:
        0: all rows are in the table. 1: some failed, the others are in it. 2: none could be computed.
    """
    if "--help" in args or "-h" in args:
        _help_parser(args[0]).print_help()
        return 0
    if args and args[0] in ("score", "compare"):
        from segkit.cli.benchmark import score

        return score.score(args[1:]) if args[0] == "score" else score.compare(args[1:])
    from segkit.cli.benchmark.plan import parse

    return _run(parse(args))


def _help_parser(command: str) -> argparse.ArgumentParser:
    """That of the help, which is there before what the command needs could be imported."""
    return {"score": score_parser, "compare": compare_parser}.get(command, table_parser)()


def _run(options: "Options") -> int:
    import torch

    from segkit.cli.benchmark.progress import Settings
    from segkit.cli.benchmark.table import Table
    from segkit.files import check_writable

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(device, options.limit, options.size, options.output)
    check_writable(options.output)
    table = Table(options.output)
    try:
        for number, row in enumerate(options.rows, start=1):
            _one(table, row, settings, f"row {number} of {len(options.rows)} ({row.title})")
    except KeyboardInterrupt:
        say_above_bar(
            f"segkit benchmark: {len(table.rows)} rows are in {options.output}; the same command goes on from here"
        )
        raise
    except InputError:  # the table cannot be written
        say(table.markdown())
        raise
    if table.rows:
        say(f"\n{table.markdown()}\n\n{options.output / 'benchmark'}.md, .csv, .json")
    for message in table.failed:
        say_above_bar(f"segkit benchmark: error: {message}")
    if table.failed:
        table.write()
    return 0 if not table.failed else 1 if len(table.failed) < len(options.rows) else 2


def _one(table: "Table", row: "Row", settings: "Settings", where: str) -> None:
    """Compute a row unless it is there; what goes wrong is kept for the end, so that the other rows are computed."""
    from segkit.cli.benchmark.progress import asked_of, key_of
    from segkit.cli.benchmark.rows import compute

    try:
        key, asked = key_of(row, settings), asked_of(row, settings)
        if table.has(key, row.name, row.metric, asked):
            say_above_bar(f"{where}: already in {table.folder / 'benchmark.json'}")
            return
        values = compute(row, key, settings)
    except (InputError, OSError, RuntimeError) as error:  # the last: out of memory, and what a device refuses
        message = " ".join(str(error).split())
        table.failed.append(f"{where}: {message}")
        say_above_bar(f"segkit benchmark: error: {where}: {message}")
    else:
        table.put({"key": key, "asked": asked, **values})
