"""Options of the commands that score folders of label maps: which files, and what their values mean.

Nothing here needs PyTorch, which takes seconds to import, and `--help` does not need it either.
"""

import argparse
from pathlib import Path
from typing import Any

from segkit.cli.parser import Parser, Switch
from segkit.errors import InputError
from segkit.evaluation.conventions import CONVENTIONS, DEFAULT
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.class_files import read_classes
from segkit.metadata.label_space import LabelSpace, binary_table, distinct_palette, identity_table, numbered_space
from segkit.predictions.manifest import NAME, Manifest

ALL_METRICS = "all"

_SPACES = {"cityscapes": CITYSCAPES, "ade20k": ADE20K}

_SCORE = """\
Score the label maps in PRED_DIR against those in TRUTH_DIR, which are paired by name (in the Cityscapes layout by
city_sequence_frame, else by relative path without suffix), and write one result file. Nothing is predicted.

One wrong image does not stop the others: what is wrong is listed (file, value, likely cause), the rest is scored and
kept in OUTPUT-partial.json. Exit code: 0 all scored, 1 some could not be, 2 none could, or the command is wrong."""

_COMPARE = """\
Score two models on the same images and say whether they differ: for each class and for the mIoU the difference
B - A with a bootstrap interval over images, and p of a permutation test that swaps the models' predictions image
by image (over the classes corrected by Holm). Writes OUTPUT and, beside it, an image of the differences.

Each PRED is a folder of label maps, of any tool (see `segkit benchmark score --help`), or the .npz file that `segkit
benchmark score --bootstrap` wrote; of two of those no TRUTH_DIR is needed."""


def score_parser() -> Parser:
    """Of `segkit benchmark score`."""
    parser = Parser("segkit benchmark score", description=_SCORE)
    add = parser.add_argument
    add("pred_dir", type=Path, help="folder of predicted label maps, searched with its folders")
    add("truth_dir", type=Path, help="folder of true ones")
    add("--metric", nargs="+", default=[DEFAULT], help=f"{ALL_METRICS}, or any of {', '.join(CONVENTIONS)}")
    _add_label_options(parser)
    _add_extra_options(parser)
    add("--limit", type=int, help="images; the result is then marked partial")
    add("--output", type=Path, default=Path("result.json"), help="result file; -2, -3, ... rather than over another")
    return parser


def compare_parser() -> Parser:
    """Of `segkit benchmark compare`."""
    parser = Parser("segkit benchmark compare", description=_COMPARE)
    add = parser.add_argument
    # A tuple of two names is for options only: of an argument by position, `--help` ends in a traceback.
    add("predicted", nargs=2, type=Path, metavar="PRED", help="the predictions of two models, A and B")
    add("truth_dir", nargs="?", type=Path, metavar="TRUTH_DIR", help="folder of true label maps")
    add("--names", nargs=2, metavar=("A", "B"), help="of the models; default: their folders'")
    _add_label_options(parser)
    add("--samples", type=int, default=1000, help="resampled data sets of the interval (default: 1000)")
    add("--permutations", type=int, default=10_000, help="swaps of the test (default: 10000)")
    add("--seed", type=int, default=0, help="of both; equal seeds give equal numbers (default: 0)")
    add("--level", type=float, default=0.95, help="of the interval (default: 0.95)")
    add("--output", type=Path, default=Path("comparison.json"), help="-2, -3, ... rather than over another file")
    return parser


def label_space(options: argparse.Namespace, manifest: Manifest | None, folder: Path) -> LabelSpace:
    """Classes, and what the raw values of the truth mean.

    Args:
        options: `labels`: "cityscapes", "ade20k", a classes.txt, "none", or None: what `segkit predict` wrote down;
            `num_classes`: with "none", K; label values are train ids then; `masks`: with a classes.txt, what the raw
            values are.
        manifest: of the predictions.
        folder: theirs, for the message.

    Raises:
        InputError: It cannot be told.
    """
    labels, num_classes = options.labels, options.num_classes
    is_file = labels not in (None, "none", *_SPACES)
    if options.masks != "ids" and not is_file:
        raise InputError(
            f"--masks {options.masks}: is for --labels classes.txt; of other data it is known what values mean"
        )
    if (labels == "none") != (num_classes is not None):
        raise InputError("--labels none and --num_classes K go together: classes without names, numbered from 0")
    if num_classes is not None:
        return numbered_space(num_classes)
    if labels in _SPACES:
        return _SPACES[labels]
    if is_file:
        return _own_space(Path(labels), options.masks)
    if manifest is None:
        raise InputError(
            f"{folder}: has no {NAME} that names the classes; give --labels cityscapes, ade20k, a classes.txt, or none"
        )
    return manifest.space


def _own_space(path: Path, masks: str) -> LabelSpace:
    path = path / "classes.txt" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--labels {path}: no such file; allowed: {', '.join(_SPACES)}, a classes.txt, or none")
    names = read_classes(path)
    table = binary_table(len(names), str(path)) if masks == "binary" else identity_table(len(names))
    return LabelSpace(names, distinct_palette(len(names)), table)


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add --labels, --num_classes, --predictions, --truth, the two endings, --allow_missing and --workers."""
    add = parser.add_argument
    ids = ("train_ids", "raw")
    add("--labels", help=f"cityscapes, ade20k, a classes.txt (or its folder), or none; default: as {NAME} says")
    add("--masks", choices=("ids", "binary"), default="ids", help="with a classes.txt: class numbers, or 0 and 255")
    add("--num_classes", type=int, help="with --labels none: classes numbered from 0, 255 ignored")
    add("--predictions", choices=ids, default="train_ids", help="what the predicted values are (raw: as in the truth)")
    add("--truth", choices=ids, default="raw", help="what the true values are: the data set's own, or train ids")
    add("--prediction_ending", default="", help="end of the file names that count, no part of the name: _labels.png")
    add("--truth_ending", default="", help="the same for the truth")
    add("--allow_missing", action=Switch, help="score what there is")
    add("--workers", type=int, help="threads; default: one a core")


def _add_extra_options(parser: argparse.ArgumentParser) -> None:
    """Add --boundary, --bootstrap and --plot."""
    add = parser.add_argument
    switch: dict[str, Any] = {"action": Switch}
    add("--boundary", **switch, help="boundary IoU, too; reads the images once more")
    add("--bootstrap", type=int, help="95 %% interval of every IoU from so many resampled sets; 1000 is usual")
    add("--plot", **switch, help="the most confused pairs, and the confusion matrix as a PNG beside the result")
