"""Options of `segkit benchmark`, for two parsers: jsonargparse's, which also makes the data, and that of `--help`.

The help is argparse's own: jsonargparse asks Lightning and every data module for theirs, which takes ten seconds.
"""

import argparse

from segkit.cli.parser import Parser
from segkit.evaluation.conventions import CONVENTIONS, DEFAULT

KEYS = ("name", "model", "config", "data", "protocol", "metric")  # of a plan's row

_DESCRIPTION = (
    "Score several models under several protocols on one data set, or the rows of a plan file, in one table: "
    "benchmark.md, .csv, .json and .png in the output folder. Rows that are there are not computed again; a row that "
    "was stopped goes on with the next image."
)

_EPILOG = (
    "segkit benchmark score PRED_DIR TRUTH_DIR ... scores label PNGs that any tool wrote; segkit benchmark compare ... "
    "tells whether two models really differ. Each has its own --help."
)


def help_parser() -> Parser:
    """The parser that prints the help, with the options of the data as `add_lightning_class_args` names them."""
    parser = Parser(
        "segkit benchmark", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.HelpFormatter
    )
    add_options(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--data", help="data config (.yaml), or a data module: ADE20KDataModule, FolderDataModule, ...")
    data.add_argument("--data.KEY", metavar="VALUE", help="an argument of the data module: --data.root DIR")
    data.add_argument("--data.help", metavar="CLASS", help="list the arguments of a data module")
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options but those of the data."""
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        default=[],
        help="files that segkit.load reads; a recipe (.yaml) in place of a file: random weights, cost only",
    )
    add(
        "--plan",
        metavar="FILE",
        help=f"YAML list of rows, in place of models and data: each a mapping with some of {', '.join(KEYS)}",
    )
    add("--config", metavar="FILE", help="a recipe: gives data and published number of the models")
    add(
        "--protocol",
        nargs="+",
        help="one or more: whole, ms-flip, ..., or a YAML file; default: the recipe's, or whole",
    )
    add("--metric", default=DEFAULT, help=f"convention of the scores: {', '.join(CONVENTIONS)}; default: {DEFAULT}")
    add("--output", metavar="DIR", default="benchmark", help="folder of the table; default: benchmark")
    add("--device", help="cpu, cuda, ...; default: the GPU where there is one")
    add("--limit", type=int, help="images; the row is then marked partial")
    add(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        default=[480, 480],
        help="of the image whose FLOPs are counted; default: 480 480",
    )
