"""`segkit data check | stats | cache | browse`: the arguments. What a command needs is imported when it runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from segkit.cli.parser import Parser, Switch, whole_number

_DESCRIPTION = """\
check   list everything that is wrong with a data set, and what its label values become
stats   pixels of each class, and the class weights that follow from them
cache   decode a data set once, into files that training maps into memory; go on, verify or list
browse  look at images and masks"""

_DATA = """\
NAME is a data set (ade20k, cityscapes, camvid, folder, ...), or a data config or recipe (.yaml). ROOT is its folder or
zip; of a config it may be left out."""

_CHECK = """\
List everything that is wrong with a data set: images without mask and masks without image, sizes that differ,
damaged files, masks that are JPEG or RGB, values that the label table does not declare, numbers of images.
Exit code: 0 nothing wrong (warnings allowed), 1 problems, 2 wrong command or nothing there."""

_CACHE = """\
Decode a data set once. A run that was stopped goes on; a cache that is there and right is left as it is. Caches that
are no longer of use are named, never removed."""


def main(args: Sequence[str]) -> int:
    """Run `segkit data`.

    Args:
        args: What follows `segkit data` on the command line.

    Returns:
        0: nothing wrong. 1: the data or a cache are wrong, in the ways that are printed.

    Raises:
        InputError: The command itself cannot be done.
    """
    if args and args[0] == "browse":
        from segkit.cli.data.browse import main as browse

        return browse(args[1:])
    options = _parser().parse_args(list(args))
    if options.action == "check":
        from segkit.cli.data.check import run
    elif options.action == "stats":
        from segkit.cli.data.stats import run
    else:
        from segkit.cli.data.cache import run
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = _raw("segkit data", _DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | stats | cache | browse")
    check = _add(actions, "check", "list what is wrong", _CHECK)
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the full report")
    check.add_argument("--limit", type=whole_number(1), metavar="N", help="open N images of each split, evenly spread")
    stats = _add(actions, "stats", "pixels of each class, and class weights", "Count the pixels of each class.")
    stats.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep them here (default: beside the data)")
    cache = _add(actions, "cache", "decode once, for fast training", _CACHE)
    cache.add_argument("--cache_dir", type=Path, required=True, metavar="DIR", help="as --data.cache_dir of training")
    cache.add_argument(
        "--verify",
        action=Switch,
        help="compare all check sums of the caches that are there",
    )
    cache.add_argument("--list", action=Switch, help="only list the caches of this data set")
    actions.add_parser("browse", help="look at images and masks", add_help=False)
    return parser


def _raw(program: str, description: str) -> Parser:
    return Parser(program, description=description)


def _add(actions: "argparse._SubParsersAction[Parser]", name: str, short: str, long: str) -> Parser:
    """A command, with the arguments that all of them have."""
    splits = {"check": "all that there are", "stats": "train", "cache": "train val"}[name]
    command = actions.add_parser(name, help=short, description=f"{long}\n\n{_DATA}")
    command.add_argument("name", metavar="NAME", help="of the data set, or a .yaml")
    command.add_argument("root", metavar="ROOT", nargs="?", help="folder or zip of the data set")
    command.add_argument(
        "--split", nargs="+", choices=("train", "val", "test"), metavar="SPLIT", help=f"default: {splits}"
    )
    command.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set: masks=colors, coarse=true"
    )
    command.add_argument("--workers", type=whole_number(1), metavar="N", help="threads (default: one for each core)")
    return command
