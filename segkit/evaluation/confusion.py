"""The confusion matrix of a data set.

One integer matrix is summed over all images and processes, and every score is a function of it, never a mean over
images or batches. Which function is a convention: `segkit.evaluation.conventions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation.conventions import DEFAULT, convention_scores
from segkit.evaluation.scores import Scores, check_declared
from segkit.metadata.label_space import IGNORE_INDEX

Array = TypeVar("Array", Tensor, NDArray[Any])

# OpenCV returns counts in float32: integers up to this one, and their sums up to it, are exact.
_EXACT = 2**24
_BIT_7_OF_EVERY_SECOND = np.uint64(0x8000_8000_8000_8000)


def confusion_counts(mask: Tensor, labels: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Count every pair of true and predicted id, those outside the classes too.

    A histogram over all pixels in which ignored pixels have bins of their own: no boolean mask, which would copy all
    pixels and, on a GPU, wait for it. Integer sums do not depend on the order, so the result is deterministic.

    Args:
        mask: True ids, any integer type and shape.
        labels: Predicted ids, any integer type, of that shape and on that device.
        num_classes: K.
        ignore_index: True id of pixels that do not count.

    Returns:
        int64 (K + 2, K + 1) on the device of `mask`. Rows: true class 0..K-1; ignored; outside the classes. Columns:
        predicted class 0..K-1; outside the classes.

    Raises:
        InputError: The shapes differ, or one of the two has no integer type.
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


def true_ids(counts: Tensor) -> list[int]:
    """Train ids that occur in the truth of `confusion_counts`, including 255 = ignored."""
    num_classes = counts.shape[1] - 1
    pixels = counts[: num_classes + 1].sum(dim=1).tolist()
    return [label for label, count in zip([*range(num_classes), IGNORE_INDEX], pixels, strict=True) if count]


class ConfusionMatrix:
    """Sums the counts of many images; one per process, and one `all_reduce` at the end.

    Args:
        num_classes: K.
        device: The device of the counts; that of the labels, so that `update` waits for nothing.
        ignore_index: True id of pixels that do not count.

    Attributes:
        num_images: Images seen; after `all_reduce`, those of all processes.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", ignore_index: int = IGNORE_INDEX) -> None:
        self.num_classes, self.device, self.ignore_index = num_classes, torch.device(device), ignore_index
        self.reset()

    def reset(self) -> None:
        """Reset counts and number of images to zero."""
        self._counts = torch.zeros(self.num_classes + 2, self.num_classes + 1, dtype=torch.int64, device=self.device)
        self.num_images = 0

    def update(self, mask: Tensor, labels: Tensor) -> None:
        """Add images: integer (B, H, W) or (H, W), truth first. Errors are those of `confusion_counts`."""
        counts = confusion_counts(mask, labels, self.num_classes, self.ignore_index)
        self.add(counts, len(mask) if mask.ndim == 3 else 1)

    def add(self, counts: Tensor, num_images: int = 1) -> None:
        """Add counts that `confusion_counts` returned elsewhere for `num_images` images."""
        self._counts += counts.to(self.device)
        self.num_images += num_images

    def all_reduce(self) -> None:
        """Sum over all processes; does nothing without a process group. Every process calls it, once, at the end."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        images = torch.tensor([self.num_images], dtype=torch.int64, device=self.device)
        everything = torch.cat([self._counts.flatten(), images])
        dist.all_reduce(everything)
        self._counts, self.num_images = everything[:-1].view_as(self._counts), int(everything[-1])

    @property
    def counts(self) -> Tensor:
        """int64 (K + 2, K + 1), laid out as `confusion_counts` has it; the row of undeclared ids is zero.

        Raises:
            InputError: Some true ids were neither a class nor the ignored id, so that no score would mean anything.
        """
        check_declared(self._counts, self.ignore_index)
        return self._counts

    @property
    def matrix(self) -> Tensor:
        """int64 (K, K): rows are true classes, columns predicted ones; errors are those of `counts`."""
        return self.counts[: self.num_classes, : self.num_classes]

    @property
    def missed(self) -> Tensor:
        """int64 (K,): pixels of each true class that were predicted as no class; false negatives of that class."""
        return self._counts[: self.num_classes, self.num_classes]

    @property
    def num_pixels(self) -> int:
        """Pixels that count: those of a true class."""
        return int(self._counts[: self.num_classes].sum())

    def scores(self, convention: str = DEFAULT, without: Sequence[int] = ()) -> Scores:
        """Scores by a named convention, see `segkit.evaluation.conventions.convention_scores`."""
        return convention_scores(self.counts, convention, without)


def byte_pairs(true: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each pair of bytes occurs in two uint8 arrays of one shape: int64 (256, 256), the first by row.

    It suits many threads at once: OpenCV and NumPy start no threads of their own here, while torch's operations do.
    """
    pairs = np.zeros((256, 256), np.int64)
    for part in _pairs_by_part(true, predicted):
        pairs += part.astype(np.int64)
    return pairs


def _byte_counts(mask: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """`confusion_counts` of uint8: all 256 x 256 pairs first, then sorted into classes; pixels are read only once."""
    shape = num_classes + 2, num_classes + 1
    if mask.device.type != "cpu":
        index = mask.to(torch.int32).mul_(256).add_(labels.to(torch.int32))
        pairs = _histogram(index.flatten(), 256 * 256).view(256, 256)
        return _by_class(pairs, torch.zeros(shape, dtype=torch.int64, device=mask.device), num_classes, ignore_index)
    # NumPy takes half of torch's time for arrays this small, which is a tenth of the total for an image of ADE20K.
    parts = _pairs_by_part(mask.numpy(), labels.numpy())
    counts: list[NDArray[Any]] = [_by_class(p, np.zeros(shape, np.int64), num_classes, ignore_index) for p in parts]
    return torch.from_numpy(reduce(add, counts))


def _pairs_by_part(true: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """`byte_pairs` of parts so small that float32 is exact; yields at least one.

    OpenCV's two-dimensional histogram reads the bytes in place: it builds no wide index, which takes most of the time
    elsewhere. What remains is the wait for a bin's previous increment, as neighbours are mostly the same pair. So if
    the predictions leave bit 7 free, as they mostly do, every second pixel sets it and uses bins of its own, which
    saves a quarter of the time.
    """
    flat_true, flat_predicted = true.reshape(-1), predicted.reshape(-1)
    if not true.size:
        yield np.zeros((256, 256), np.float32)
    for start in range(0, true.size, _EXACT):
        part, labels = flat_true[start : start + _EXACT], flat_predicted[start : start + _EXACT]
        folds = labels.max() < 128
        if folds:
            labels = labels.copy()
            words = labels[: len(labels) // 8 * 8].view(np.uint64)
            words ^= _BIT_7_OF_EVERY_SECOND
        bins = cv2.calcHist([part[None], labels[None]], [0, 1], None, [256, 256], [0, 256, 0, 256])
        pairs = np.asarray(bins, np.float32)
        if folds:
            pairs[:, :128] += pairs[:, 128:]
            pairs[:, 128:] = 0
        yield pairs


def _by_class(pairs: Array, counts: Array, num_classes: int, ignore_index: int) -> Array:
    """Sort (256, 256) counts of pairs of bytes, which are changed, into `counts`, the zeros of `confusion_counts`."""
    if 0 <= ignore_index < 256:
        ignored = pairs[ignore_index]
        counts[num_classes, :num_classes] = ignored[:num_classes]
        counts[num_classes, num_classes] = ignored[num_classes:].sum()
        pairs[ignore_index] = 0
    counts[:num_classes, :num_classes] = pairs[:num_classes, :num_classes]
    counts[:num_classes, num_classes] = pairs[:num_classes, num_classes:].sum(1)
    undeclared = pairs[num_classes:].sum(0)
    counts[num_classes + 1, :num_classes] = undeclared[:num_classes]
    counts[num_classes + 1, num_classes] = undeclared[num_classes:].sum()
    return counts


def _ids(values: Tensor, num_classes: int, outside: int) -> Tensor:
    """Ids as int32, or int64 if the input was, with everything that is no class replaced by `outside`."""
    wide = values.to(torch.int64 if values.dtype == torch.int64 else torch.int32, copy=True)
    return wide.masked_fill_((wide < 0) | (wide >= num_classes), outside)


def _histogram(index: Tensor, bins: int) -> Tensor:
    """How often each of 0..bins-1 occurs, int64 (bins,)."""
    if index.is_cuda:
        # bincount reads its maximum back to the host first; histc with given ends does not. With as many bins as
        # integers in [0, bins], each integer below `bins` has its own.
        return torch.histc(index.to(torch.int64), bins=bins, min=0, max=bins)
    return torch.bincount(index, minlength=bins)
