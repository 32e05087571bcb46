"""`segkit benchmark` and its subcommands `score`, `compare` and `explain`: their options.

Nothing here needs PyTorch, which takes seconds to import.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from segkit.cli.parser import Parser, Switch, add_data_options, add_network_option, number, whole_number
from segkit.evaluation.conventions import ALL_METRICS, CONVENTIONS, DEFAULT

_TABLE = """\
Score several models under several protocols on one data set, or the rows of a plan file, in one table:
benchmark.md, .csv, .json and .png in the output folder. Finished rows are not computed again; a row that was stopped
resumes with the next image. With a recipe of configs/imagenet rows are encoders: top-1 and top-5 of a file with
its classifier, by --protocol resnest, encoding or timm.

segkit benchmark score PRED_DIR TRUTH_DIR ... scores label PNGs that any tool wrote; segkit benchmark compare ... tells
whether two models really differ; segkit benchmark explain MODEL ... why a score is not the claimed one. Each has its
own --help."""

_SCORE = """\
Score the label maps in PRED_DIR against those in TRUTH_DIR, which are paired by name (in the Cityscapes layout by
city_sequence_frame, else by relative path without suffix), and write one result file. Nothing is predicted.

One wrong image does not stop the others: what is wrong is listed (file, value, likely cause), the rest is scored and
kept in OUTPUT-partial.json. Exit code: 0 all scored, 1 some could not be, 2 none could, or the command is wrong."""

_COMPARE = """\
Score two models on the same images and say whether they differ: for each class and for the mIoU the difference
B - A with a bootstrap interval over images, and p of a permutation test that swaps the models' predictions image
by image (over the classes corrected by Holm). Writes OUTPUT and, beside it, a figure of the differences.

Each PRED is a folder of label maps, of any tool (see `segkit benchmark score --help`), or the .npz file that `segkit
benchmark score --bootstrap` wrote; of two of those no TRUTH_DIR is needed."""

_EXPLAIN = """\
Say why a measured mIoU is not the claimed one: one setting is changed at a time, on the same images, and the change
that comes closest to the claim is kept before the next is sought. Tried are protocol (flip, scales, windows,
align_corners), input size and resize rule, normalization, channel order, precision, label table, resized masks,
ignore rule and metric. A change counts if its 95 % interval over the images leaves out 0. Writes explain.md, .json and
.png."""


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark`; see `--help`, which is printed without importing what the commands need."""
    command = args[0] if args else ""
    if "--help" in args or "-h" in args:
        parsers = {"score": score_parser, "compare": compare_parser, "explain": explain_parser}
        parsers.get(command, table_parser)().print_help()
        return 0
    if command == "explain":
        from segkit.cli.benchmark import explain

        return explain.main(args[1:])
    if command in ("score", "compare"):
        from segkit.cli.benchmark import score

        return score.score(args[1:]) if command == "score" else score.compare(args[1:])
    from segkit.cli.benchmark import table

    return table.main(args)


def table_parser() -> Parser:
    """The parser of `segkit benchmark`, for the arguments that `split_options` leaves over."""
    parser = Parser("segkit benchmark", description=_TABLE)
    add_data_options(parser)
    add_network_option(parser)
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        default=[],
        help="files that segkit.load reads, any ONNX or OpenVINO file, a transformers folder or id, a folder of "
        "predictions, my_module:function (docs/evaluation.md, Judging any model); a recipe (.yaml): cost only",
    )
    add(
        "--plan",
        metavar="FILE",
        help="YAML list of rows with some of name, model, config, data, protocol, metric, classes, preprocessing, in "
        "place of models and data",
    )
    add("--config", metavar="FILE", help="a recipe: gives data and published number of the models")
    add("--protocol", nargs="+", help="whole, ms-flip, ..., or YAML files; default: the recipe's, or whole")
    add(
        "--classes",
        metavar="FILE",
        help="YAML, the model's class (name or number): the data's (or null), for what is not matched by name; or raw: "
        "the model's numbers are the raw values of the masks",
    )
    add(
        "--preprocessing",
        metavar="FILE",
        help="YAML of mean, std, channels (RGB, BGR), range (1, 255) and size ([height, width]), for an ONNX or "
        "OpenVINO file that does not say it; default: ImageNet's",
    )
    add("--metric", default=DEFAULT, help=f"convention of the scores: {', '.join(CONVENTIONS)}; default: {DEFAULT}")
    _add_without(parser)
    add("--output", metavar="DIR", default="benchmark", help="folder of the table; default: benchmark")
    add("--device", help="cpu, cuda, ...; default: the GPU where there is one")
    add("--limit", type=whole_number(1), help="images at most; the row is then marked partial")
    add(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        default=[480, 480],
        help="size of the image whose FLOPs are counted, in pixels; default: 480 480",
    )
    return parser


def score_parser() -> Parser:
    """The parser of `segkit benchmark score`."""
    parser = Parser("segkit benchmark score", description=_SCORE)
    add = parser.add_argument
    add("pred_dir", type=Path, help="folder of predicted label maps, searched with its folders")
    add("truth_dir", type=Path, help="folder of true ones")
    add("--metric", nargs="+", default=[DEFAULT], help=f"{ALL_METRICS}, or any of {', '.join(CONVENTIONS)}")
    _add_label_options(parser)
    add("--boundary", action=Switch, help="also score the boundary IoU, which reads the images once more")
    add(
        "--bootstrap",
        type=whole_number(1),
        help="95 %% interval of every IoU, from that many resampled sets; 1000 is usual",
    )
    add("--plot", action=Switch, help="list the most confused pairs, and draw the confusion matrix beside the result")
    add("--limit", type=whole_number(1), help="images at most; the result is then marked partial")
    add("--output", type=Path, default=Path("result.json"), help="result file; -2, -3, ... rather than over another")
    return parser


def compare_parser() -> Parser:
    """The parser of `segkit benchmark compare`."""
    parser = Parser("segkit benchmark compare", description=_COMPARE)
    add = parser.add_argument
    # argparse takes a tuple of names for options only: on a positional argument, `--help` ends in a traceback.
    add("predicted", nargs=2, type=Path, metavar="PRED", help="the predictions of two models, A and B")
    add("truth_dir", nargs="?", type=Path, metavar="TRUTH_DIR", help="folder of true label maps")
    add("--names", nargs=2, metavar=("A", "B"), help="names of the models; default: their folders'")
    _add_label_options(parser)
    add("--samples", type=int, default=1000, help="resampled data sets of the interval (default: 1000)")
    add("--permutations", type=int, default=10_000, help="swaps of the test (default: 10000)")
    add("--seed", type=int, default=0, help="seed of both; equal seeds give equal numbers (default: 0)")
    add("--level", type=float, default=0.95, help="level of the interval (default: 0.95)")
    add("--output", type=Path, default=Path("comparison.json"), help="-2, -3, ... rather than over another file")
    return parser


def explain_parser() -> Parser:
    """The parser of `segkit benchmark explain`, for the arguments that `split_options` leaves over."""
    parser = Parser("segkit benchmark explain", description=_EXPLAIN)
    add_data_options(parser)
    add_network_option(parser)
    add = parser.add_argument
    add("model", help="as of `segkit benchmark`")
    add(
        "--claimed",
        type=number(lambda miou: 1 < miou <= 100, "in percent, such as 44.2"),
        metavar="MIOU",
        help="in percent; default: whatever raises the score is named",
    )
    add("--protocol", default="whole", help="how it is measured at first; default: whole")
    add("--metric", default=DEFAULT, help=f"likewise: {', '.join(CONVENTIONS)}; default: {DEFAULT}")
    add("--classes", metavar="FILE", help="as of `segkit benchmark`")
    add("--limit", type=whole_number(2), default=50, help="images at most; default: 50")
    add("--device", help="cpu, cuda, ...; default: the GPU where there is one")
    add("--output", metavar="DIR", type=Path, default=Path("explain"), help="default: explain")
    return parser


def _add_without(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--without", nargs="+", default=[], metavar="CLASS", help="leave these out of all means")


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which files are scored and what their values mean."""
    add, ids = parser.add_argument, ("train", "raw")
    add("--labels", help="cityscapes, ade20k, a classes.txt or its folder, none; default: as predictions.json says")
    add(
        "--data.masks",
        dest="masks",
        choices=("ids", "binary"),
        default="ids",
        help="what the true values are, with a classes.txt: class numbers, or 0 and 255",
    )
    add("--num_classes", type=int, help="with --labels none: classes numbered from 0, 255 ignored")
    add("--prediction_ids", choices=ids, default="train", help="what the predictions hold (default: train ids)")
    add("--truth_ids", choices=ids, default="raw", help="what the truth holds (default: the data set's raw ids)")
    add("--prediction_ending", default="", help="end of the file names that count, no part of the name: _labels.png")
    add("--truth_ending", default="", help="the same for the truth")
    _add_without(parser)
    add("--allow_missing", action=Switch, help="score the images that have a prediction, and leave out the others")
    add("--workers", type=whole_number(1), help="threads; default: one a core")
