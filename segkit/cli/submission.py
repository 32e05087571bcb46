"""`segkit submission`: make and check uploads for the Cityscapes and ADE20K servers; official Cityscapes scores."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from segkit.cli.parser import Parser, Switch
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_new_file, check_writable, free_path, write_json
from segkit.io import image_size
from segkit.paths import walk_files
from segkit.predictions.label_files import IdError, Ids, find_predictions, write_raw
from segkit.predictions.submission import (
    Entry,
    check_submission,
    in_threads,
    open_submission,
    write_archive,
)
from segkit.predictions.submission_rules import BENCHMARKS, Benchmark, Size

_DESCRIPTION = """\
make   turn predictions (`segkit predict`, `segkit infer`) into the zip that a test server takes, and check it
check  list everything that is wrong with such a zip, or with the folder that it is made of
score  run cityscapesScripts' own evaluation (classes, categories, iIoU) on predictions of the validation split

Cityscapes: 8-bit PNGs of label ids 0..33, CITY_SEQUENCE_FRAME*.png, 2048x1024. ADE20K: 8-bit PNGs of 1..150, with the
name and size of the image. Exit code: 0 nothing wrong, 1 something is wrong (listed), 2 wrong input."""

# Where the images of a split lie, below the data root. Not asked of `segkit.data`, whose import takes seconds.
_FOLDERS = {
    ("cityscapes", "val"): ("leftImg8bit/val",),
    ("cityscapes", "test"): ("leftImg8bit/test",),
    ("ade20k", "val"): ("images/validation", "ADEChallengeData2016/images/validation"),
    ("ade20k", "test"): ("images/testing", "ADEChallengeData2016/images/testing", "release_test/testing", "testing"),
}


def main(args: Sequence[str]) -> int:
    """Run `segkit submission make | check | score`.

    Returns:
        0: nothing wrong. 1: the submission is wrong, in the ways that are printed.

    Raises:
        InputError: The command itself cannot be done.
    """
    options = _parser().parse_args(list(args))
    code: int = options.run(options)
    return code


def make(options: argparse.Namespace) -> int:
    """Rewrite predictions in the benchmark's ids, check the result, and write it unless something is wrong."""
    benchmark = BENCHMARKS[options.benchmark]
    check_new_file(options.output, options.overwrite)
    found = find_predictions(options.predictions, benchmark)
    sizes = _sizes(benchmark, options.data, options.split)
    wanted = {key: paths for key, paths in found.items() if sizes is None or key in sizes}
    with tempfile.TemporaryDirectory() as folder:
        failures = _convert(wanted, Path(folder), benchmark, options.ids)
        entries = [Entry(path.name, path.read_bytes) for path in sorted(Path(folder).iterdir())]
        left = None if sizes is None else {key: size for key, size in sizes.items() if key not in failures}
        problems = check_submission(entries, benchmark, options.split, left)
        for kind, failure in failures.values():
            problems.add(kind, failure)
        for key, paths in wanted.items():
            if len(paths) > 1:
                problems.add("duplicate", f"{key}: {paths[0]} and {paths[1]}")
        if problems:
            say(f"{options.output}: not written\n{problems.report(options.limit)}")
            return 1
        write_archive(options.output, entries)
    if len(wanted) < len(found):
        say(f"left out: {len(found) - len(wanted)} predictions of no image of the {options.split} split")
    say(f"{options.output}: {_all_right(entries, options)}")
    return 0


def check(options: argparse.Namespace) -> int:
    """List everything that is wrong with an archive or folder."""
    benchmark = BENCHMARKS[options.benchmark]
    sizes = _sizes(benchmark, options.data, options.split)
    entries = open_submission(options.submission)
    problems = check_submission(entries, benchmark, options.split, sizes)
    if problems:
        say(f"{options.submission}: wrong\n{problems.report(options.limit)}")
        return 1
    say(f"{options.submission}: {_all_right(entries, options)}")
    return 0


def score(options: argparse.Namespace) -> int:
    """Print, and write on demand, the official Cityscapes scores of predictions."""
    from segkit.predictions.cityscapes import find_pairs, format_official, label_id_copies, official_scores

    if options.output is not None:
        check_writable(options.output.absolute().parent)
    pairs = find_pairs(options.predictions, options.truth)
    with tempfile.TemporaryDirectory() as folder:
        copies = label_id_copies(pairs, Path(folder), options.ids)
        found = official_scores(copies, options.instances)
    say(f"{format_official(found)}\n{found['num_images']} images")
    if options.output is not None:
        path = free_path(options.output)
        write_json(path, found | {"predictions": str(options.predictions), "truth": str(options.truth)})
        say(path)
    return 0


def _convert(
    found: Mapping[str, list[Path]], folder: Path, benchmark: Benchmark, ids: Ids
) -> dict[str, tuple[str, str]]:
    """Write the first label map of each image into `folder`, in the benchmark's ids.

    Returns:
        By image, the kind of problem (`segkit.predictions.submission.KINDS`) and its line.
    """

    def convert(key: str) -> tuple[str, str] | None:
        path = found[key][0]
        try:
            write_raw(path, folder / f"{key}{benchmark.ending}", benchmark, ids)
        except IdError as error:
            return "wrong ids", str(error)
        except InputError as error:
            return ("format" if _is_image(path) else "unreadable"), str(error)
        return None

    failures = in_threads(convert, list(found), "convert")
    return {key: failure for key, failure in zip(found, failures, strict=True) if failure is not None}


def _is_image(path: Path) -> bool:
    try:
        image_size(path)
    except InputError:
        return False
    return True


def _sizes(benchmark: Benchmark, root: Path | None, split: str) -> Mapping[str, Size] | None:
    """Name and (width, height) of every image of the split; None without a data root."""
    if root is None:
        return None
    tried = [root / folder for folder in _FOLDERS[benchmark.name, split]]
    folder = next((folder for folder in tried if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"{root}: no {split} images here; looked for {', '.join(map(str, tried))}")
    files = walk_files(folder, (".png", ".jpg"))
    images = {key: path for path in files if (key := benchmark.key(path.name)) is not None}
    if not images:
        raise InputError(f"{folder}: no image named as those of {benchmark.name}; give another --data")
    return dict(zip(images, in_threads(image_size, list(images.values()), "images"), strict=True))


def _all_right(entries: Sequence[Entry], options: argparse.Namespace) -> str:
    against = f"names and sizes are those in {options.data}" if options.data else "names not compared: give --data"
    return f"{len(entries)} label maps of {options.benchmark} {options.split}, nothing wrong ({against})"


def _parser() -> Parser:
    parser = Parser("segkit submission", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="make | check | score")
    making = commands.add_parser("make", help="write the zip")
    making.add_argument("benchmark", choices=list(BENCHMARKS))
    making.add_argument("predictions", type=Path, metavar="PRED_DIR", help="label PNGs by image name")
    making.add_argument("-o", "--output", type=Path, required=True, metavar="ZIP")
    making.add_argument("--overwrite", action=Switch, help="replace an existing ZIP")
    making.set_defaults(run=make)
    checking = commands.add_parser("check", help="list what is wrong")
    checking.add_argument("benchmark", choices=list(BENCHMARKS))
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
    scoring.add_argument("--instances", action=Switch, default=True, help="the iIoU, too")
    scoring.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write the scores")
    scoring.set_defaults(run=score)
    for command in (making, scoring):
        command.add_argument(
            "--ids", choices=["train", "label"], default="train", help="what the PNGs hold (train, as segkit writes)"
        )
    return parser
