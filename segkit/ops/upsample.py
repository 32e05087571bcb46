"""From logits at the network's stride to scores or labels at a wanted size, without full-size scores of all classes.

Every resize in segkit is PyTorch's bilinear `interpolate` without antialias; this file only avoids doing all of it
at once. Letters: B batch, K classes, H W wanted size, h w logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ARGMAX_BYTES = 256 * 2**20  # 150 classes of an ADE20K picture (210 MB) still go in one piece


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of (B, K, h, w) to (B, K, H, W); the very tensor if the size is already right.

    The result has all classes at full size: for training-sized crops and pictures. For labels see `upsample_argmax`.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)  # (B, K, H, W)


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest type for labels: uint8, or int16 above 256 classes."""
    return torch.uint8 if num_classes <= 256 else torch.int16


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], align_corners: bool = True, max_bytes: int = ARGMAX_BYTES
) -> Tensor:
    """Labels of bilinearly upsampled logits: `upsample(logits.float(), ...).argmax(1)` in bounded memory.

    A few classes are resized at a time and a running maximum is kept, so that the labels are those of the full
    `interpolate` by construction (cutting rows would move the sampling phase by a rounding). Of equal scores the
    first class wins, as in `argmax`.

    Args:
        logits: float (B, K, h, w); half precision is resized in float32.
        size: (H, W) wanted.
        align_corners: as the network was trained.
        max_bytes: the classes resized at once fit in this, or are a single one: no tensor made here is larger than
            max(max_bytes, 8 B H W) bytes, however many classes there are.

    Returns:
        uint8 (B, H, W), int16 above 256 classes.
    """
    labels = best = torch.empty(0)
    for first, some in _class_pieces(logits, size, align_corners, max_bytes):
        value, index = some.max(dim=1)  # (B, k, H, W) -> (B, H, W)
        index = (index + first).to(label_dtype(logits.shape[1]))
        if first == 0:
            best, labels = value, index
            continue
        labels = torch.where(value > best, index, labels)
        best = torch.maximum(best, value)
    return labels


def upsample_argmax_confidence(
    logits: Tensor, size: tuple[int, int], align_corners: bool = True, max_bytes: int = ARGMAX_BYTES
) -> tuple[Tensor, Tensor]:
    """`upsample_argmax`, and the softmax probability of each label: float32 (B, H, W) in 0..1.

    The sum of the softmax runs along with the maximum: when a larger logit is met, it is scaled down to the new one.
    """
    labels = best = total = torch.empty(0)
    for first, some in _class_pieces(logits, size, align_corners, max_bytes):
        value, index = some.max(dim=1)  # (B, k, H, W) -> (B, H, W)
        index = (index + first).to(label_dtype(logits.shape[1]))
        terms = (some - value[:, None]).exp_().sum(dim=1)
        if first == 0:
            best, labels, total = value, index, terms
            continue
        largest = torch.maximum(best, value)
        total = total * (best - largest).exp_() + terms * (value - largest).exp_()
        labels, best = torch.where(value > best, index, labels), largest
    return labels, total.reciprocal()


def _class_pieces(
    logits: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int
) -> Iterator[tuple[int, Tensor]]:
    """(first class, float32 (B, k, H, W)) of as many classes at a time as fit into `max_bytes`, at least one."""
    at_once = max(1, max_bytes // (4 * logits.shape[0] * size[0] * size[1]))
    for first in range(0, logits.shape[1], at_once):
        yield first, upsample(logits[:, first : first + at_once].float(), size, align_corners)


class RowUpsampler:
    """Bilinear resize of any run of rows, without the rows before and after it.

    Bilinear interpolation is separable: the source rows that a strip needs are resized in width by `interpolate`,
    then each output row is the weighted mean of two of them. Positions and weights follow ATen's float32 formulas
    (aten/src/ATen/native/UpSample.h), so a strip differs from the rows of a full `interpolate` by rounding only.

    Args:
        source: (h, w) of the source.
        size: (H, W) of the full result.
        align_corners: as in `interpolate`.
        device: where the rows will lie.
    """

    def __init__(
        self, source: tuple[int, int], size: tuple[int, int], align_corners: bool, device: torch.device
    ) -> None:
        self.source, self.size, self.align_corners = source, size, align_corners
        position = _positions(source[0], size[0], align_corners)  # (H,) float32, on the CPU: `needed` asks no GPU
        lower = position.floor().clamp_(max=source[0] - 1)
        upper = torch.where(position > lower, lower + 1, lower).clamp_(max=source[0] - 1)  # none below an exact hit
        self._first, self._last = lower.long().tolist(), upper.long().tolist()
        self._lower, self._upper = lower.long().to(device), upper.long().to(device)
        self._weight = (position - lower).clamp_(0, 1)[:, None].to(device)  # (H, 1) of the upper row

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """The source rows [first, last) that output rows [start, stop) are made of."""
        return self._first[start], self._last[stop - 1] + 1

    def __call__(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """Resize the source rows `needed(start, stop)`, float32 or 64 (B, K, m, w), to (B, K, stop - start, W).

        Where nothing changes size the result may share memory with `rows`.
        """
        rows = upsample(rows, (rows.shape[2], self.size[1]), self.align_corners)  # (B, K, m, W)
        if self.source[0] == self.size[0]:
            return rows
        first = self._first[start]
        weight = self._weight[start:stop]
        above = rows.index_select(2, self._lower[start:stop] - first)  # (B, K, n, W)
        below = rows.index_select(2, self._upper[start:stop] - first)
        return below.mul_(weight).addcmul_(above, 1 - weight)


def _positions(source: int, size: int, align_corners: bool) -> Tensor:
    """Where each of `size` outputs lies among `source` samples, float32 (size,)."""
    index = torch.arange(size, dtype=torch.float32)
    if source == size:
        return index
    if align_corners:
        scale = torch.tensor(source - 1.0) / max(size - 1, 1)
        return index * scale
    scale = torch.tensor(float(source)) / size
    return ((index + 0.5) * scale - 0.5).clamp_(min=0)
