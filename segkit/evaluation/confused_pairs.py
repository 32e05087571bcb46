"""The most confused pairs of classes: where the errors are, in an order that can be read without a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segkit.errors import InputError
from segkit.text import RULE, aligned, percent


@dataclass(frozen=True)
class ConfusedPair:
    """Pixels of one class that were predicted as another.

    Attributes:
        true, predicted: names of the classes.
        pixels: how many.
        share: of the true class's pixels, 0..1.
    """

    true: str
    predicted: str
    pixels: int
    share: float


def most_confused_pairs(
    matrix: NDArray[np.int64], class_names: Sequence[str], n: int = 10, by: Literal["pixels", "share"] = "pixels"
) -> list[ConfusedPair]:
    """The n largest cells beside the diagonal.

    Args:
        matrix: int64 (K, K), rows are true classes.
        class_names: K names.
        n: pairs at most; pairs that never occur are left out.
        by: `pixels` finds what costs pixel accuracy, `share` of the true class what costs the mIoU of small classes.

    Raises:
        InputError: the matrix is not (K, K) of K names.
    """
    check_matrix(matrix, class_names)
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    wrong = (matrix if by == "pixels" else share) * ~np.eye(len(matrix), dtype=bool)
    first = np.argsort(-wrong, axis=None, kind="stable")[: min(n, int((wrong > 0).sum()))]
    cells = zip(*np.unravel_index(first, matrix.shape), strict=True)
    return [ConfusedPair(class_names[t], class_names[p], int(matrix[t, p]), float(share[t, p])) for t, p in cells]


def pairs_table(pairs: Sequence[ConfusedPair]) -> str:
    """An aligned text table: true class, predicted class, pixels, percent of the true class."""
    header = ("true", "predicted as", "pixels", "% of true")
    rows = [(p.true, p.predicted, f"{p.pixels:,}", percent(p.share, 1)) for p in pairs]
    return aligned([header, RULE, *rows], left=(0, 1))


def check_matrix(matrix: NDArray[Any], class_names: Sequence[str]) -> None:
    """Refuse a matrix that is not (K, K) of K names."""
    if matrix.shape != (len(class_names), len(class_names)):
        raise InputError(f"confusion matrix {matrix.shape} with {len(class_names)} class names; (K, K) and K needed")
