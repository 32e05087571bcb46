"""The confusion matrix of a data set and the scores derived from it.

One integer matrix is summed over all pictures and processes, and every score is a function of it: never a mean over
pictures or batches. The conventions are mmsegmentation's and cityscapesScripts': a class absent from truth and
prediction has no IoU and is left out of the mean; one that is predicted but absent from the truth has IoU 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX


def confusion_counts(mask: Tensor, labels: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Count every pair of true and predicted id, those outside the classes too.

    A histogram over all pixels in which ignored pixels have bins of their own: no boolean mask, which would copy all
    pixels and, on a GPU, wait for it. Integer sums do not depend on the order, so the result is deterministic.

    Args:
        mask: true ids, any integer type and shape.
        labels: predicted ids, any integer type, of that shape and on that device.
        num_classes: K.
        ignore_index: true id of pixels that do not count.

    Returns:
        int64 (K + 2, K + 1) on the device of `mask`. Rows: true class 0..K-1; ignored; outside the classes. Columns:
        predicted class 0..K-1; outside the classes.

    Raises:
        InputError: the shapes differ, or one of the two has no integer type.
    """
    if mask.shape != labels.shape:
        raise InputError(
            f"confusion: the mask has shape {tuple(mask.shape)} and the labels {tuple(labels.shape)}; "
            "predict at the mask's own size"
        )
    if mask.is_floating_point() or labels.is_floating_point():
        raise InputError(f"confusion: mask is {mask.dtype} and labels are {labels.dtype}; both must be integer ids")
    if mask.dtype == labels.dtype == torch.uint8 and num_classes <= 256:
        return _byte_counts(mask, labels, num_classes, ignore_index)
    row = _ids(mask, num_classes, outside=num_classes + 1)
    row = row.masked_fill_(mask.to(row.dtype) == ignore_index, num_classes)
    index = row.mul_(num_classes + 1).add_(_ids(labels, num_classes, outside=num_classes))
    return _histogram(index.flatten(), (num_classes + 2) * (num_classes + 1)).view(num_classes + 2, num_classes + 1)


def confusion_matrix(mask: Tensor, labels: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The int64 (K, K) part of `confusion_counts`: rows are true classes, columns predicted ones.

    Pixels whose true id is ignored or not a class are left out, and so are pixels predicted as no class at all;
    `ConfusionMatrix` refuses the former and scores the latter as missed.
    """
    return confusion_counts(mask, labels, num_classes, ignore_index)[:num_classes, :num_classes]


class ConfusionMatrix:
    """Sums the counts of many pictures; one per process, and one `all_reduce` at the end.

    Args:
        num_classes: K.
        device: where the counts lie; that of the labels, so that `update` waits for nothing.
        ignore_index: true id of pixels that do not count.

    Attributes:
        num_images: pictures seen, of all processes after `all_reduce`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", ignore_index: int = IGNORE_INDEX) -> None:
        self.num_classes, self.device, self.ignore_index = num_classes, torch.device(device), ignore_index
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._counts = torch.zeros(self.num_classes + 2, self.num_classes + 1, dtype=torch.int64, device=self.device)
        self.num_images = 0

    def update(self, mask: Tensor, labels: Tensor) -> None:
        """Add pictures: integer (B, H, W) or (H, W), truth first. Errors are those of `confusion_counts`."""
        counts = confusion_counts(mask, labels, self.num_classes, self.ignore_index)
        self._counts += counts.to(self.device)
        self.num_images += len(mask) if mask.ndim == 3 else 1

    def all_reduce(self) -> None:
        """Sum over all processes; nothing without a process group. Every process calls it, once, at the end."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        images = torch.tensor([self.num_images], dtype=torch.int64, device=self.device)
        everything = torch.cat([self._counts.flatten(), images])
        dist.all_reduce(everything)
        self._counts, self.num_images = everything[:-1].view_as(self._counts), int(everything[-1])

    @property
    def matrix(self) -> Tensor:
        """int64 (K, K): rows are true classes, columns predicted ones.

        Raises:
            InputError: some true ids were neither a class nor the ignored id, so that no score would mean anything.
        """
        undeclared = int(self._counts[-1].sum())
        if undeclared:
            raise InputError(
                f"confusion: {undeclared} pixels of the masks are neither 0..{self.num_classes - 1} nor "
                f"{self.ignore_index} (ignore); map raw label values to train ids first"
            )
        return self._counts[: self.num_classes, : self.num_classes]

    @property
    def missed(self) -> Tensor:
        """int64 (K,): pixels of each true class that were predicted as no class; false negatives of that class."""
        return self._counts[: self.num_classes, self.num_classes]

    @property
    def num_pixels(self) -> int:
        """Pixels that count: those of a true class."""
        return int(self._counts[: self.num_classes].sum())

    def scores(self) -> Scores:
        """`scores` of the matrix and the missed pixels."""
        return scores(self.matrix, self.missed)


@dataclass(frozen=True)
class Scores:
    """Scores as fractions 0..1, float64; NaN where a division would be by zero.

    Attributes:
        class_iou: (K,) intersection over union; NaN for classes absent from truth and prediction.
        class_accuracy: (K,) share of a class's true pixels that were found; NaN for classes absent from the truth.
        miou: mean of `class_iou` over the classes that have one.
        pixel_accuracy: share of all counted pixels that are right.
        mean_accuracy: mean of `class_accuracy` over the classes that have one.
        frequency_weighted_iou: mean of `class_iou` weighted by true pixels.
        absent: classes absent from truth and prediction, left out of `miou`.
    """

    class_iou: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    absent: tuple[int, ...]


def scores(matrix: Tensor | NDArray[Any], missed: Tensor | NDArray[Any] | None = None) -> Scores:
    """Derive all scores from an integer (K, K) matrix whose rows are the truth.

    Args:
        matrix: counts of pixels, true class by predicted class.
        missed: (K,) pixels of each true class predicted as no class; None = none. They count as false negatives.
    """
    counts = _as_integers(matrix)
    right = counts.diagonal()
    true = counts.sum(axis=1) + (0 if missed is None else _as_integers(missed))
    union = true + counts.sum(axis=0) - right
    iou, accuracy = _ratio(right, union), _ratio(right, true)
    total = int(true.sum())
    present = true > 0  # a class absent from the truth may have a NaN, which 0 times would keep
    return Scores(
        class_iou=iou,
        class_accuracy=accuracy,
        miou=_mean(iou),
        pixel_accuracy=int(right.sum()) / total if total else float("nan"),
        mean_accuracy=_mean(accuracy),
        frequency_weighted_iou=float((true[present] / total) @ iou[present]) if total else float("nan"),
        absent=tuple(int(index) for index in np.flatnonzero(union == 0)),
    )


def _byte_counts(mask: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """`confusion_counts` of uint8: all 256 x 256 pairs first, then sorted into classes; pixels are read only once."""
    index = mask.to(torch.int32).mul_(256).add_(labels.to(torch.int32))
    pairs = _histogram(index.flatten(), 256 * 256).view(256, 256)
    ignored = torch.zeros_like(pairs[:1])
    if 0 <= ignore_index < 256:
        ignored = pairs[ignore_index : ignore_index + 1].clone()
        pairs[ignore_index] = 0
    rows = torch.cat([pairs[:num_classes], ignored, pairs[num_classes:].sum(0, keepdim=True)])  # (K + 2, 256)
    return torch.cat([rows[:, :num_classes], rows[:, num_classes:].sum(1, keepdim=True)], dim=1)


def _ids(values: Tensor, num_classes: int, outside: int) -> Tensor:
    """int32, or int64 where the input was: ids as they are, everything that is no class replaced by `outside`."""
    wide = values.to(torch.int64 if values.dtype == torch.int64 else torch.int32, copy=True)
    return wide.masked_fill_((wide < 0) | (wide >= num_classes), outside)


def _histogram(index: Tensor, bins: int) -> Tensor:
    """How often each of 0..bins-1 occurs, int64 (bins,)."""
    if index.is_cuda:
        # bincount reads its maximum back to the host first; histc with given ends does not. With as many bins as
        # integers in [0, bins], each integer below `bins` has its own.
        return torch.histc(index.to(torch.int64), bins=bins, min=0, max=bins)
    return torch.bincount(index, minlength=bins)


def _as_integers(counts: Tensor | NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts).astype(np.int64)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN, without a warning, where nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")
