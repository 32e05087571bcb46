"""The arithmetic of scores: pixel areas of a count matrix to IoU and accuracy, by segkit's rule and by other toolkits'.

Each function below `Areas` is one convention; `segkit.evaluation.conventions` has their names, rules in words and
sources. All are functions of summed integers, never means over images or batches, and divide in float64. A score that a
toolkit does not have is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX

if TYPE_CHECKING:  # it takes seconds to import, and the names of the conventions do not need it
    from torch import Tensor

NAN = float("nan")


@dataclass(frozen=True)
class Scores:
    """Scores as fractions 0..1, float64; NaN where a division would be by zero, and where a toolkit has no such score.

    Attributes:
        class_iou: (K,) intersection over union; NaN for classes that `miou` leaves out. Where void counts as a class,
            this and `class_accuracy` are (K + 1,), void last.
        class_accuracy: (K,) share of a class's true pixels that were found (PaddleSeg: share of the predicted ones
            that are right); NaN for classes that `mean_accuracy` leaves out.
        miou: Mean of `class_iou` over the classes that have one.
        pixel_accuracy: Share of all counted pixels that are right.
        mean_accuracy: Mean of `class_accuracy` over the classes that have one.
        frequency_weighted_iou: Mean of `class_iou` weighted by true pixels.
        absent: Classes absent from truth and prediction.
        counts_void: Whether void is a class, the last one.
        left_out: Classes that `miou` and `mean_accuracy` leave out at the user's request.
    """

    class_iou: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    absent: tuple[int, ...]
    counts_void: bool = False
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class Areas:
    """Pixels of each class, int64 (K,), without those whose truth is ignored, which `void` counts.

    Attributes:
        right: Pixels of the class that are predicted as it.
        true: Pixels of the class.
        predicted: Pixels that are predicted as the class.
        missed: Pixels of the class that are predicted as no class at all; part of `true`.
        void: (K + 1,) pixels whose truth is ignored: predicted as each class, and last, as no class at all.
    """

    right: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    missed: NDArray[np.int64]
    void: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels that are of the class or predicted as it."""
        return self.true + self.predicted - self.right

    @property
    def absent(self) -> tuple[int, ...]:
        """Classes absent from truth and prediction."""
        return tuple(int(index) for index in np.flatnonzero(self.union == 0))


def areas_of(counts: Tensor | NDArray[Any]) -> Areas:
    """Areas from `segkit.evaluation.confusion.confusion_counts`, integer (K + 2, K + 1).

    Raises:
        InputError: The counts have another shape, or hold true ids that were not declared.
    """
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] + 1 or counts.shape[1] < 2:
        raise InputError(f"scores: counts have shape {tuple(counts.shape)}; allowed is (K + 2, K + 1) for K classes")
    check_declared(counts)
    num_classes = counts.shape[1] - 1
    return _areas(counts[:num_classes, :num_classes], counts[:num_classes, num_classes], counts[num_classes])


def check_declared(counts: Tensor | NDArray[Any], ignore_index: int = IGNORE_INDEX) -> None:
    """Refuse counts of true ids that are neither a class nor ignored, as scores of them would be meaningless.

    Raises:
        InputError: The last row holds such pixels.
    """
    undeclared = int(counts[-1].sum())
    if undeclared:
        raise InputError(
            f"confusion: {undeclared} pixels of the masks are neither 0..{counts.shape[1] - 2} nor "
            f"{ignore_index} (ignore); map raw label values to train ids first"
        )


def ratio(part: NDArray[Any], whole: NDArray[Any], empty: float = NAN) -> NDArray[np.float64]:
    """The quotient part / whole of shapes that broadcast; `empty` where whole is 0."""
    result = np.full(np.broadcast(part, whole).shape, empty)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def segkit(areas: Areas) -> Scores:
    """segkit's rule: means are over the classes that have a value."""
    iou, accuracy = ratio(areas.right, areas.union), ratio(areas.right, areas.true)
    return means(areas, iou, accuracy, pixel=_share(areas), weighted=_weighted(iou, areas.true))


def encoding(areas: Areas) -> Scores:
    """Add the smallest float64 step to each denominator, so that an absent class counts 0; average all K classes."""
    step = float(np.spacing(1))
    iou = areas.right / (step + areas.union)
    return means(areas, iou, pixel=float(areas.right.sum() / (step + areas.true.sum())))


def mmseg(areas: Areas) -> Scores:
    """Apply segkit's rule, without the weighted IoU."""
    return means(areas, ratio(areas.right, areas.union), ratio(areas.right, areas.true), pixel=_share(areas))


def csail(areas: Areas) -> Scores:
    """Add 1e-10 to each denominator, so that an absent class counts 0; average all K classes."""
    iou = areas.right / (areas.union + 1e-10)
    return means(areas, iou, pixel=float(areas.right.sum() / (areas.true.sum() + 1e-10)))


def cityscapes(areas: Areas) -> Scores:
    """Apply segkit's rule to the IoU; there are no accuracies."""
    return means(areas, ratio(areas.right, areas.union))


def paddleseg(areas: Areas, absent: float = 1.0) -> Scores:
    """Average all K classes; divide accuracies by predicted, not by true pixels."""
    iou = np.nan_to_num(ratio(areas.right, areas.union), nan=absent)
    accuracy = np.nan_to_num(ratio(areas.right, areas.predicted), nan=0.0)
    total = int(areas.predicted.sum())
    pixel = int(areas.right.sum()) / total if total else NAN
    return replace(means(areas, iou, accuracy, pixel=pixel), mean_accuracy=NAN)


def paddleseg_2_8(areas: Areas) -> Scores:
    """Apply PaddleSeg's rule of release 2.8.0, in which an absent class counts 0."""
    return paddleseg(areas, absent=0.0)


def detectron2(areas: Areas) -> Scores:
    """Leave out pixels predicted as no class, and classes without a true pixel."""
    true = areas.true - areas.missed
    seen = replace(areas, true=true)
    iou = np.where(true > 0, ratio(areas.right, seen.union), NAN)
    return means(areas, iou, ratio(areas.right, true), pixel=_share(seen), weighted=_weighted(iou, true))


def torchmetrics(areas: Areas) -> Scores:
    """Leave classes absent from truth and prediction out of both means; accuracy without true pixels is 0."""
    accuracy = np.nan_to_num(ratio(areas.right, areas.true), nan=0.0)
    accuracy[list(areas.absent)] = NAN
    result = means(areas, ratio(areas.right, areas.union), accuracy, pixel=_share(areas))
    return result if areas.true.any() else replace(result, pixel_accuracy=0.0, mean_accuracy=0.0)


def void_class(areas: Areas) -> Scores:
    """Count void as one more class, predicted by predicting no class; add 1e-8 to each denominator."""
    right = np.append(areas.right, areas.void[-1])  # (K + 1)
    true = np.append(areas.true, areas.void.sum())
    predicted = np.append(areas.predicted, areas.missed.sum()) + areas.void
    whole = Areas(right, true, predicted, np.zeros_like(right), np.zeros(len(right) + 1, np.int64))
    pixel = float(right.sum() / (true.sum() + 1e-8))
    found = means(whole, right / (whole.union + 1e-8), right / (true + 1e-8), pixel=pixel)
    return replace(found, counts_void=True)


def without(scores: Scores, left_out: Sequence[int]) -> Scores:
    """The scores with means over the other classes; scores of classes and of all pixels do not change."""
    if not left_out:
        return scores
    kept = np.setdiff1d(np.arange(len(scores.class_iou)), left_out)
    accuracy = scores.mean_accuracy if math.isnan(scores.mean_accuracy) else _mean(scores.class_accuracy[kept])
    return replace(scores, miou=_mean(scores.class_iou[kept]), mean_accuracy=accuracy, left_out=tuple(left_out))


def _areas(
    matrix: Tensor | NDArray[Any], missed: Tensor | NDArray[Any] | None, void: Tensor | NDArray[Any] | None = None
) -> Areas:
    counts = _as_integers(matrix)
    nowhere = np.zeros(len(counts), np.int64) if missed is None else _as_integers(missed)
    ignored = np.zeros(len(counts) + 1, np.int64) if void is None else _as_integers(void)
    return Areas(counts.diagonal(), counts.sum(axis=1) + nowhere, counts.sum(axis=0), nowhere, ignored)


def means(
    areas: Areas,
    iou: NDArray[np.float64],
    accuracy: NDArray[np.float64] | None = None,
    *,
    pixel: float = NAN,
    weighted: float = NAN,
) -> Scores:
    """The scores of a convention: means over the values that are not NaN.

    Args:
        areas: The counted areas.
        iou: (K,) IoU of each class; NaN leaves a class out of the mean.
        accuracy: (K,) accuracy of each class; None if the convention has none.
        pixel: Pixel accuracy.
        weighted: Frequency-weighted IoU.
    """
    per_class = np.full(iou.shape, NAN) if accuracy is None else accuracy
    return Scores(iou, per_class, _mean(iou), pixel, _mean(per_class), weighted, areas.absent)


def _share(areas: Areas) -> float:
    """The share of right pixels among the true ones."""
    total = int(areas.true.sum())
    return int(areas.right.sum()) / total if total else NAN


def _weighted(iou: NDArray[np.float64], true: NDArray[np.int64]) -> float:
    """Mean of `iou` weighted by true pixels."""
    total, present = int(true.sum()), true > 0  # a class without true pixels may be NaN, and 0 * NaN is NaN
    return float((true[present] / total) @ iou[present]) if total else NAN


def _as_integers(counts: Tensor | NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(counts if isinstance(counts, np.ndarray) else counts.cpu()).astype(np.int64)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN without a warning if all are."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else NAN
