"""Result files and tables: scores with everything they depend on, and the most confused pairs of classes.

`result_dict` gives plain JSON data: protocol, images, every class, the matrix, versions, command and date.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from segkit import __version__
from segkit.arrays import Int64Array
from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.conventions import CONVENTIONS, DEFAULT, convention
from segkit.evaluation.scores import Scores, ratio
from segkit.text import RULE, aligned, percent

_PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "opencv-python-headless"),
    *("pytorch-lightning", "timm", "albumentations"),
)


def result_dict(
    confusion: ConfusionMatrix,
    class_names: Sequence[str],
    protocol: Mapping[str, Any],
    *,
    dataset: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    partial: bool = False,
    metric: str = DEFAULT,
    note: str | None = None,
    without: Sequence[int] = (),
) -> dict[str, Any]:
    """Everything about one evaluation, as plain data whose NaNs are None.

    Args:
        confusion: The matrix of the whole split, after `all_reduce`.
        class_names: K names by train id.
        protocol: Fields of the protocol that really ran (`segkit.inference.engine.resolve` fills in those that depend
            on the network).
        dataset: Plain data that names data set and split.
        weights: Plain data that identifies the weights, above all their "sha256".
        partial: Whether only a part of the split was seen, so that the scores are not those of the split.
        metric: The convention of "scores" and "classes"; "conventions" has the means by all of them.
        note: A remark for readers of the scores, such as `LabelSpace.note_of_absence` of the truth.
        without: Classes that all means leave out.

    Raises:
        InputError: There are not K names, the masks held undeclared ids, or there is no such convention.
    """
    scores, matrix = confusion.scores(metric, without), confusion.matrix.cpu()
    names, missed = row_names(class_names, scores), confusion.missed.cpu()
    pixels = confusion.counts.sum(dim=1)[: len(names)].tolist()  # includes void if it has a row
    return {
        "segkit": __version__,
        "date": now(),
        "command": command_line(),
        "protocol": dict(protocol),
        "precision": None,  # form and type in which the network ran, if one ran
        "dataset": dict(dataset or {}),
        "weights": dict(weights or {}),
        "partial": partial,
        "note": note,
        "num_images": confusion.num_images,
        "num_pixels": confusion.num_pixels,
        "metric": metric,
        "rule": convention(metric).rule,
        "without": [names[i] for i in scores.left_out],
        "scores": _means(scores) | {"frequency_weighted_IoU": number_or_null(scores.frequency_weighted_iou)},
        "classes": _class_rows(names, scores, pixels),
        "absent_classes": [names[i] for i in scores.absent],
        "conventions": {name: _means(confusion.scores(name, without)) for name in CONVENTIONS},
        "confusion_matrix": matrix.tolist(),
        "missed": missed.tolist(),
        "void": confusion.counts[confusion.num_classes].tolist(),
        "versions": versions(),
    }


def format_table(scores: Scores, class_names: Sequence[str], heading: str = "IoU") -> str:
    """An aligned text table: IoU and accuracy of each class in percent, then the means.

    Args:
        scores: The scores of a convention.
        class_names: K names.
        heading: The convention's name for the score of a class.

    Raises:
        InputError: There are not K names.
    """
    class_names = row_names(class_names, scores)
    classes = zip(class_names, map(percent, scores.class_iou), map(percent, scores.class_accuracy), strict=True)
    rows = [
        ("class", heading, "accuracy"),
        RULE,
        *classes,
        RULE,
        (f"mean{without_words(class_names, scores.left_out)}", percent(scores.miou), percent(scores.mean_accuracy)),
        ("pixel accuracy", "", percent(scores.pixel_accuracy)),
        ("frequency-weighted IoU", percent(scores.frequency_weighted_iou)),
    ]
    return "\n".join([aligned(rows), *_absences(scores, class_names, heading)])


def without_words(class_names: Sequence[str], left_out: Sequence[int]) -> str:
    """The suffix of a mean's heading if classes are left out: " without background"; otherwise ""."""
    return f" without {', '.join(class_names[i] for i in left_out)}" if left_out else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, and the GPU if there is one."""
    found = {"segkit": __version__, "python": platform.python_version(), "platform": platform.system()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}
    return found


def _class_rows(names: Sequence[str], scores: Scores, pixels: Sequence[int]) -> list[dict[str, Any]]:
    values = zip(names, scores.class_iou, scores.class_accuracy, pixels, strict=True)
    return [
        {"id": i, "name": name, "IoU": number_or_null(iou), "accuracy": number_or_null(accuracy), "pixels": count}
        for i, (name, iou, accuracy, count) in enumerate(values)
    ]


def _means(scores: Scores) -> dict[str, float | None]:
    return {
        "mIoU": number_or_null(scores.miou),
        "pixel_accuracy": number_or_null(scores.pixel_accuracy),
        "mean_accuracy": number_or_null(scores.mean_accuracy),
    }


def _absences(scores: Scores, class_names: Sequence[str], heading: str) -> list[str]:
    """Lines that name the classes whose absence the mean depends on."""
    left_out, counted = [], []
    for i, (name, iou) in enumerate(zip(class_names, scores.class_iou, strict=True)):
        if math.isnan(iou):
            left_out.append(name)
        elif i in scores.absent:
            counted.append(name)
    lines = []
    if left_out:
        both = len(left_out) == len(scores.absent)  # otherwise they are absent from the truth alone
        where = "truth and prediction" if both else "the truth"
        lines.append(f"left out of the mean {heading}, absent from {where}: {', '.join(left_out)}")
    if counted:
        value = scores.class_iou[scores.absent[0]]
        lines.append(
            f"counted as {value:.0f} in the mean {heading}, absent from truth and prediction: {', '.join(counted)}"
        )
    return lines


def images_scored(count: int, expected: int, partial: bool) -> str:
    """`500 images`, or `20 of 500 images (partial)`."""
    return f"{count} of {expected} images (partial)" if partial else f"{count} images"


def command_line() -> str:
    """The command that started this process, as a user would type it."""
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])


def now() -> str:
    """The current time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def row_names(class_names: Sequence[str], scores: Scores) -> tuple[str, ...]:
    """Names of the rows of `scores`: the classes, and "void" if the convention counts it as one.

    Raises:
        InputError: There are not K names.
    """
    rows = len(scores.class_iou)
    names = (*class_names, *(["void"] if scores.counts_void else []))
    if len(names) != rows:
        raise InputError(f"results: {len(class_names)} class names for {rows} classes; give one name per class")
    return names


def number_or_null(value: float) -> float | None:
    """The number, or None for NaN and infinity, which JSON does not have."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class ConfusedPair:
    """Pixels of one class that were predicted as another.

    Attributes:
        true, predicted: Names of the classes.
        pixels: Number of these pixels.
        share: Share of the true class's pixels, 0..1.
    """

    true: str
    predicted: str
    pixels: int
    share: float


def most_confused_pairs(
    matrix: NDArray[np.int64], class_names: Sequence[str], n: int = 10, by: Literal["pixels", "share"] = "pixels"
) -> list[ConfusedPair]:
    """The n largest cells off the diagonal.

    Args:
        matrix: int64 (K, K), rows are true classes.
        class_names: K names.
        n: Pairs at most; pairs that never occur are left out.
        by: `pixels` finds the errors that cost pixel accuracy, `share` (of the true class) those that cost the mIoU of
            small classes.

    Raises:
        InputError: The matrix is not (K, K) of K names.
    """
    check_matrix(matrix, class_names)
    share = true_shares(matrix)
    wrong = (matrix if by == "pixels" else share) * ~np.eye(len(matrix), dtype=bool)
    first = np.argsort(-wrong, axis=None, kind="stable")[: min(n, int((wrong > 0).sum()))]
    cells = zip(*np.unravel_index(first, matrix.shape), strict=True)
    return [ConfusedPair(class_names[t], class_names[p], int(matrix[t, p]), float(share[t, p])) for t, p in cells]


def confused_both_ways(matrix: Int64Array, class_names: Sequence[str]) -> dict[str, list[ConfusedPair]]:
    """The 10 most confused pairs in each order: "pixels" and "share"; arguments as of `most_confused_pairs`."""
    return {
        "pixels": most_confused_pairs(matrix, class_names, by="pixels"),
        "share": most_confused_pairs(matrix, class_names, by="share"),
    }


def pairs_table(pairs: Sequence[ConfusedPair]) -> str:
    """An aligned text table: true class, predicted class, pixels, percent of the true class."""
    header = ("true", "predicted as", "pixels", "% of true")
    rows = [(p.true, p.predicted, f"{p.pixels:,}", percent(p.share, 1)) for p in pairs]
    return aligned([header, RULE, *rows], left=(0, 1))


def check_matrix(matrix: NDArray[Any], class_names: Sequence[str]) -> None:
    """Refuse a matrix that is not (K, K) of K names."""
    if matrix.shape != (len(class_names), len(class_names)):
        raise InputError(f"confusion matrix {matrix.shape} with {len(class_names)} class names; (K, K) and K needed")


def true_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows of a (K, K) matrix as shares of their true class; zeros for classes without truth."""
    return ratio(matrix, matrix.sum(axis=1, keepdims=True), 0.0)
