"""`segkit submission`: make and check uploads for the Cityscapes and ADE20K servers; official Cityscapes scores."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from segkit.cli.parser import Parser, Switch
from segkit.cli.words import say
from segkit.files import check_new_file, check_writable, free_path, write_json
from segkit.predictions.label_files import SERVERS
from segkit.predictions.submission import check_submission, image_sizes, make_submission, open_submission

_DESCRIPTION = """\
make   turn predictions (`segkit predict`, `segkit infer`) into the zip that a test server takes, and check it
check  list everything that is wrong with such a zip, or with the folder that it is made of
score  run cityscapesScripts' own evaluation (classes, categories, iIoU) on predictions of the validation split

Cityscapes: 8-bit PNGs of label ids 0..33, CITY_SEQUENCE_FRAME*.png, 2048x1024. ADE20K: 8-bit PNGs of 1..150, with the
name and size of the image. Exit code: 0 nothing wrong, 1 something is wrong (listed), 2 wrong input."""


def main(args: Sequence[str]) -> int:
    """Run `segkit submission make | check | score`.

    Returns:
        0: nothing wrong. 1: the submission is wrong; the problems are printed.

    Raises:
        InputError: The command itself is wrong.
    """
    options = _parser().parse_args(list(args))
    code: int = options.run(options)
    return code


def make(options: argparse.Namespace) -> int:
    """Rewrite predictions in the server's ids, check the result, and write it if nothing is wrong."""
    server = SERVERS[options.benchmark]
    check_new_file(options.output, options.overwrite)
    sizes = image_sizes(server, options.data, options.split)
    made = make_submission(options.predictions, options.output, server, options.prediction_ids, options.split, sizes)
    if made.problems:
        say(f"{options.output}: not written\n{made.problems.report(options.limit)}")
        return 1
    if made.left_out:
        say(f"left out: {made.left_out} predictions of no image of the {options.split} split")
    say(f"{options.output}: {_all_right(made.problems.num_files, options)}")
    return 0


def check(options: argparse.Namespace) -> int:
    """List everything that is wrong with an archive or folder."""
    server = SERVERS[options.benchmark]
    sizes = image_sizes(server, options.data, options.split)
    problems = check_submission(open_submission(options.submission), server, options.split, sizes)
    if problems:
        say(f"{options.submission}: wrong\n{problems.report(options.limit)}")
        return 1
    say(f"{options.submission}: {_all_right(problems.num_files, options)}")
    return 0


def score(options: argparse.Namespace) -> int:
    """Print the official Cityscapes scores of predictions, and write them to `--output`."""
    from segkit.predictions.cityscapes import format_official, label_id_copies, official_pairs, official_scores

    if options.output is not None:
        check_writable(options.output.absolute().parent)
    pairs = official_pairs(options.predictions, options.truth)
    with tempfile.TemporaryDirectory() as folder:
        copies = label_id_copies(pairs, Path(folder), options.prediction_ids)
        found = official_scores(copies, options.instances)
    say(f"{format_official(found)}\n{found['num_images']} images")
    if options.output is not None:
        path = free_path(options.output)
        write_json(path, found | {"predictions": str(options.predictions), "truth": str(options.truth)})
        say(path)
    return 0


def _all_right(count: int, options: argparse.Namespace) -> str:
    against = f"names and sizes are those in {options.data}" if options.data else "names not compared: give --data"
    return f"{count} label maps of {options.benchmark} {options.split}, nothing wrong ({against})"


def _parser() -> Parser:
    parser = Parser("segkit submission", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="make | check | score")
    making = commands.add_parser("make", help="write the zip")
    making.add_argument("benchmark", choices=list(SERVERS))
    making.add_argument("predictions", type=Path, metavar="PRED_DIR", help="label PNGs by image name")
    making.add_argument("-o", "--output", type=Path, required=True, metavar="ZIP")
    making.add_argument("--overwrite", action=Switch, help="replace an existing ZIP")
    making.set_defaults(run=make)
    checking = commands.add_parser("check", help="list what is wrong")
    checking.add_argument("benchmark", choices=list(SERVERS))
    checking.add_argument("submission", type=Path, metavar="ZIP_OR_DIR")
    checking.set_defaults(run=check)
    for command in (making, checking):
        command.add_argument("--data", type=Path, metavar="ROOT", help="the data set, for names and sizes of images")
        command.add_argument("--split", choices=["test", "val"], default="test")
        command.add_argument("--limit", type=int, default=10, metavar="N", help="cases listed of each kind (10)")
    scoring = commands.add_parser("score", help="official Cityscapes scores")
    scoring.add_argument("benchmark", choices=["cityscapes"])
    scoring.add_argument("predictions", type=Path, metavar="PRED_DIR", help="label PNGs by image name")
    scoring.add_argument("truth", type=Path, metavar="TRUTH_DIR", help="gtFine/val")
    scoring.add_argument("--instances", action=Switch, default=True, help="score instances, too: the iIoU")
    scoring.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write the scores")
    scoring.set_defaults(run=score)
    for command in (making, scoring):
        command.add_argument(
            "--prediction_ids", choices=["train", "raw"], default="train", help="what the PNGs hold (default: train)"
        )
    return parser
