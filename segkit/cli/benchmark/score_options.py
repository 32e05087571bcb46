"""Options of the commands that score folders of label maps: which files, and what their values mean."""

import argparse
from pathlib import Path

from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.class_files import read_classes
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table, numbered_space
from segkit.predictions.manifest import NAME, Manifest

_SPACES = {"cityscapes": CITYSCAPES, "ade20k": ADE20K}


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add --labels, --num_classes, --predictions, --truth, the two endings, --allow_missing and --workers."""
    add = parser.add_argument
    ids = ("train_ids", "raw")
    add("--labels", help=f"cityscapes, ade20k, a classes.txt (or its folder), or none; default: as {NAME} says")
    add("--num_classes", type=int, help="with --labels none: classes numbered from 0, 255 ignored")
    add("--predictions", choices=ids, default="train_ids", help="what the predicted values are (raw: as in the truth)")
    add("--truth", choices=ids, default="raw", help="what the true values are: the data set's own, or train ids")
    add("--prediction_ending", default="", help="end of the file names that count, no part of the name: _labels.png")
    add("--truth_ending", default="", help="the same for the truth")
    add("--allow_missing", nargs="?", type=true_or_false, const=True, default=False, help="score what there is")
    add("--workers", type=int, help="threads; default: one a core")


def label_space(labels: str | None, num_classes: int | None, manifest: Manifest | None, folder: Path) -> LabelSpace:
    """Classes, and what the raw values of the truth mean.

    Args:
        labels: "cityscapes", "ade20k", a classes.txt, "none", or None: what `segkit predict` wrote down.
        num_classes: with "none", K; label values are train ids then.
        manifest: of the predictions.
        folder: theirs, for the message.

    Raises:
        InputError: It cannot be told.
    """
    if (labels == "none") != (num_classes is not None):
        raise InputError("--labels none and --num_classes K go together: classes without names, numbered from 0")
    if num_classes is not None:
        return numbered_space(num_classes)
    if labels in _SPACES:
        return _SPACES[labels]
    if labels is not None:
        return _own_space(Path(labels))
    if manifest is None:
        raise InputError(
            f"{folder}: has no {NAME} that names the classes; give --labels cityscapes, ade20k, a classes.txt, or none"
        )
    return manifest.space


def _own_space(path: Path) -> LabelSpace:
    path = path / "classes.txt" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--labels {path}: no such file; allowed: {', '.join(_SPACES)}, a classes.txt, or none")
    names = read_classes(path)
    return LabelSpace(names, distinct_palette(len(names)), identity_table(len(names)))


def true_or_false(text: str) -> bool:
    """The value of a switch: `--plot`, `--plot true`, `--plot false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
