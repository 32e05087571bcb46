"""Upsamples logits from the network's stride to a wanted size, all rows or some.

Every resize in segkit is PyTorch's bilinear `interpolate` without antialias. Letters: B batch, K classes, H W wanted
size, h w logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_BYTES = 4 * 2**20  # of upsampled logits at once: a core's cache holds them
GPU_BYTES = 256 * 2**20  # enough rows to fill a GPU


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize (B, K, h, w) bilinearly to (B, K, H, W); returns the same tensor if the size is already right.

    The result has all classes at full size, which suits crops and images of training size. For labels, see
    `segkit.ops.upsample_argmax`.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)  # (B, K, H, W)


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest type for labels: uint8, or int16 above 256 classes."""
    return torch.uint8 if num_classes <= 256 else torch.int16


class RowUpsampler:
    """Bilinear resize of any run of rows, without the rows before and after it.

    Bilinear interpolation is separable: the source rows that a strip needs are resized in width by `interpolate`,
    then each output row is the weighted mean of two of them. Positions and weights follow ATen's float32 formulas
    (aten/src/ATen/native/UpSample.h), so a strip differs from the rows of a full `interpolate` by rounding only.

    Args:
        source: (h, w) of the source.
        size: (H, W) of the full result.
        align_corners: As in `interpolate`.
        device: The device of the rows.
    """

    def __init__(
        self, source: tuple[int, int], size: tuple[int, int], align_corners: bool, device: torch.device
    ) -> None:
        self.source, self.size, self.align_corners = source, size, align_corners
        lower, upper, weight = neighbours(source[0], size[0], align_corners)
        self._first, self._last = lower.tolist(), upper.tolist()  # on the CPU: `needed` asks no GPU
        self._lower, self._upper = (index.to(device, non_blocking=True) for index in (lower, upper))
        self._weights = weight.tolist()  # of the upper row
        self._weight = weight[:, None].to(device, non_blocking=True)  # (H, 1)

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """The source rows [first, last) from which output rows [start, stop) are computed."""
        return self._first[start], self._last[stop - 1] + 1

    def __call__(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """Resize the source rows `needed(start, stop)`, float32 or 64 (B, K, m, w), to (B, K, stop - start, W).

        If no size changes, the result may share memory with `rows`.
        """
        rows = upsample(rows, (rows.shape[2], self.size[1]), self.align_corners)  # (B, K, m, W)
        if self.source[0] == self.size[0]:
            return rows
        first = self._first[start]
        if rows.device.type == "cpu":
            return self._row_by_row(rows, start, stop)
        weight = self._weight[start:stop]
        above = rows.index_select(2, self._lower[start:stop] - first)  # (B, K, n, W)
        below = rows.index_select(2, self._upper[start:stop] - first)
        return below.mul_(weight).addcmul_(above, 1 - weight)

    def _row_by_row(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """The same without a copy of the rows above and below, twice as fast where launching an operation is cheap."""
        result = rows.new_empty(*rows.shape[:2], stop - start, rows.shape[3])  # (B, K, n, W)
        first = self._first[start]
        for i in range(start, stop):
            below, above, weight = self._last[i] - first, self._first[i] - first, self._weights[i]
            torch.mul(rows[:, :, below], weight, out=result[:, :, i - start])
            result[:, :, i - start].add_(rows[:, :, above], alpha=1 - weight)
        return result


def neighbours(source: int, size: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find the two of `source` samples that each of `size` outputs interpolates along one axis, on the CPU.

    Returns:
        int64 (size,), the lower sample; int64 (size,), the upper one, equal to the lower one if the output lies on it;
        float32 (size,), the weight in 0..1 of the upper one.
    """
    position = _positions(source, size, align_corners)
    lower = position.floor().clamp_(max=source - 1)
    upper = torch.where(position > lower, lower + 1, lower).clamp_(max=source - 1)
    return lower.long(), upper.long(), (position - lower).clamp_(0, 1)


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


class Piece(NamedTuple):
    """A few rows of the full size, and how they are made."""

    rows: slice  # n
    source: slice  # m of the logits' h rows
    matrix: Tensor  # (n, m)


class UpsampledRows:
    """Bilinearly upsampled logits, a piece of one crop at a time.

    Args:
        logits: float32 or float64 (B, K, h, w).
        size: (H, W) wanted.
        align_corners: As in `interpolate`.
        max_bytes: Bytes of a piece's scores, which has at least one row; None means what suits the device.
    """

    def __init__(self, logits: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int | None) -> None:
        if max_bytes is None:
            max_bytes = GPU_BYTES if logits.is_cuda else CPU_BYTES
        self.logits = logits
        self.across = _matrix(logits.shape[3], size[1], align_corners, logits)  # (W, w)
        down = _matrix(logits.shape[2], size[0], align_corners, logits)  # (H, h)
        rows = max(1, max_bytes // (logits.shape[1] * size[1] * logits.element_size()))
        used = _matrix(logits.shape[2], size[0], align_corners, torch.empty(0, dtype=logits.dtype))  # waits for no GPU
        self.pieces = [_piece(start, used[start : start + rows], down) for start in range(0, size[0], rows)]

    def wide(self, crop: int) -> Tensor:
        """One crop's logits, resized across: (K, h, W)."""
        return self.logits[crop] @ self.across.T


def _matrix(source: int, size: int, align_corners: bool, like: Tensor) -> Tensor:
    """Bilinear interpolation of one direction, (size, source): PyTorch's weights, found by resizing unit vectors."""
    units = torch.eye(source, dtype=like.dtype, device=like.device)[None]  # (1, source, source)
    return F.interpolate(units, size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def _piece(start: int, used: Tensor, down: Tensor) -> Piece:
    """Rows from `start` on; `used` (n, h) on the CPU is what is cut out of `down` (H, h)."""
    columns = used.any(0).nonzero()
    rows, source = slice(start, start + len(used)), slice(int(columns[0]), int(columns[-1]) + 1)
    return Piece(rows, source, down[rows, source])
