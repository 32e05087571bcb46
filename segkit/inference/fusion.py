"""Fuses the network's outputs for several views into scores, one strip of output rows at a time.

The logits stay at the network's stride. For each strip, only the rows that it needs are upsampled, averaged over
windows, resized to the output size and summed over views, so that memory depends on the strip and not on the
image. Letters: B batch, K classes, H W output size, h w logits, m rows of a view behind n rows of the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.inference.protocols import Fusion, Protocol
from segkit.inference.views import Grid
from segkit.ops.upsample import RowUpsampler

EXP_LIMIT = 80.0  # exp(80) = 5.5e34: float32 (3.4e38) still holds the sum of 6000 such window and scale terms


@dataclass(frozen=True)
class View:
    """The network's output for the image at one scale.

    Attributes:
        grid: The windows that the network saw.
        logits: For each window of the grid, (B, K, h, w) at the network's stride, in the dtype it emitted;
            float32 if a flipped window is already added.
    """

    grid: Grid
    logits: Sequence[Tensor]


class StripFusion:
    """Scores by strips of rows, as `Protocol` defines them.

    All arithmetic is float32. exp_sum stays finite: if the largest logit of an image exceeds `EXP_LIMIT`, all its
    logits are lowered by the excess, which multiplies all scores of that image by one constant, and the batch is
    fused in float64, in which pixels with logits 800 lower still have an order. Below the limit nothing is changed
    and the scores are the authors'.

    Args:
        views: One or more views of the same batch and classes.
        size: (H, W) of the output.
        protocol: The resolved protocol, with `align_corners` set.
        forwards: How many network outputs each pixel's mean has (logit_mean, softmax_mean).
        strip_bytes: Bytes of the largest float tensor to make. A strip has at least one row; if the rows behind it
            do not fit, B K (s + 5) max(W, W of the view) floats are made, for s = max(1, scale).
    """

    def __init__(
        self, views: Sequence[View], size: tuple[int, int], protocol: Protocol, forwards: int, strip_bytes: int
    ) -> None:
        self.size, self.fusion, self.forwards = size, protocol.fusion, forwards
        self.batch, self.num_classes = views[0].logits[0].shape[:2]
        shift = _exp_shift(views) if protocol.fusion == "exp_sum" else None
        self._dtype = torch.float64 if shift is not None and bool(shift.any()) else torch.float32
        self._views = [_ViewRows(view, size, protocol, shift, self._dtype) for view in views]
        self._strip_rows = self._rows_within(strip_bytes)

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        """Top to bottom: (start, stop) rows of a strip and their scores, float (B, K, stop - start, W)."""
        for start in range(0, self.size[0], self._strip_rows):
            stop = min(start + self._strip_rows, self.size[0])
            yield start, stop, self._fused(start, stop)

    def _fused(self, start: int, stop: int) -> Tensor:
        shape = (self.batch, self.num_classes, stop - start, self.size[1])
        total = self._views[0].logits[0].new_zeros(shape, dtype=self._dtype)
        for view in self._views:
            rows = view.rows(start, stop)  # (B, K, n, W)
            total += rows.softmax(dim=1) if self.fusion == "softmax_mean" else rows
        return total if self.fusion == "exp_sum" else total.div_(self.forwards)

    def _rows_within(self, strip_bytes: int) -> int:
        """How many output rows fit: n of them are made of at most n * scale + 3 rows, or 5 with the cells' border."""
        floats = strip_bytes // (self._dtype.itemsize * self.batch * self.num_classes)
        fitting = [
            (floats / max(view.widest, self.size[1]) - 5) / max(1.0, view.image[0] / self.size[0])
            for view in self._views
        ]
        return min(max(1, int(min(fitting))), self.size[0])


class _ViewRows:
    """Rows of one view at the output size, before the views are fused."""

    def __init__(
        self, view: View, size: tuple[int, int], protocol: Protocol, shift: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.grid, self.logits, self.shift, self.dtype = view.grid, view.logits, shift, dtype
        once = protocol.upsample_to == "output"  # then the view has the output's size, and its second resize is none
        seen, self.image = (size, size) if once else (view.grid.shape, view.grid.image)
        device, align = view.logits[0].device, bool(protocol.align_corners)
        self.widest = max(seen[1], self.image[1])
        cells = (view.logits[0].shape[-2], view.logits[0].shape[-1])
        self._to_window = RowUpsampler(cells, seen, align, device)
        self._to_output = RowUpsampler(self.image, size, align, device)
        self._down, self._across = view.grid.counts(device)

    def rows(self, start: int, stop: int) -> Tensor:
        """Output rows [start, stop), (B, K, n, W); not to be written to."""
        first, last = self._to_output.needed(start, stop)
        return self._to_output(self._averaged(first, last), start, stop)

    def _averaged(self, start: int, stop: int) -> Tensor:
        """Rows of the scaled image: the mean over its windows, (B, K, m, W of the view)."""
        if len(self.logits) == 1:
            return self._window_rows(self.logits[0], start, stop)[..., : self.image[1]]
        shape = (*self.logits[0].shape[:2], stop - start, self.grid.image[1])
        total = self.logits[0].new_zeros(shape, dtype=self.dtype)
        for window, logits in zip(self.grid.windows, self.logits, strict=True):
            first, last = max(start, window.top), min(stop, window.top + window.height)
            if first >= last:
                continue
            rows = self._window_rows(logits, first - window.top, last - window.top)[..., : window.width]
            total[:, :, first - start : last - start, window.left : window.left + window.width] += rows
        return total.div_(self._down[start:stop] * self._across)

    def _window_rows(self, logits: Tensor, start: int, stop: int) -> Tensor:
        """Rows of one window at its own size, (B, K, m, window); exp of them for exp_sum."""
        first, last = self._to_window.needed(start, stop)
        rows = self._to_window(logits[:, :, first:last].float(), start, stop)
        return rows if self.shift is None else (rows - self.shift).to(self.dtype).exp_()


def best_of(scores: Tensor, fusion: Fusion, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The class with the largest score, and its fused probability: the fused views' confidence.

    Args:
        scores: Fused scores of `StripFusion`, float (B, K, n, W).
        fusion: How they were fused. `"softmax_mean"`: they are probabilities already. `"logit_mean"`: their softmax
            is taken. `"exp_sum"`: they are divided by their sum; if all are 0, each class gets 1 / K.
        temperature: T of temperature scaling (Guo et al., ICML 2017, section 4.2) of the fused probabilities p:
            p^(1/T), divided by their sum; of one view, this is softmax(logits / T). It changes no label.

    Returns:
        int64 labels (B, n, W), the lowest of equals, and float32 confidence (B, n, W) in 0..1.
    """
    best, labels = scores.max(dim=1)  # (B, K, n, W) -> (B, n, W)
    if fusion == "exp_sum" and temperature == 1:
        total = scores.sum(dim=1)
        best = torch.where(total > 0, best / total, 1 / scores.shape[1])
    elif fusion == "logit_mean" or temperature != 1:
        best = _relative(scores, best[:, None], fusion, temperature).sum(dim=1).reciprocal_()
    return labels, best.float().clamp_(max=1)  # a mean of rounded probabilities may exceed 1 by rounding


def probabilities(scores: Tensor, fusion: Fusion, temperature: float = 1.0) -> Tensor:
    """The fused probability of each class, float32 (B, K, n, W), which sum to 1; arguments are those of `best_of`."""
    if fusion == "softmax_mean" and temperature == 1:
        return scores.clamp(max=1)
    relative = _relative(scores, scores.amax(dim=1, keepdim=True), fusion, temperature)
    return relative.div_(relative.sum(dim=1, keepdim=True)).float()


def log_probabilities(scores: Tensor, fusion: Fusion) -> Tensor:
    """Finite logarithms of the fused probabilities, but for a constant in each pixel, float (B, K, n, W)."""
    return scores if fusion == "logit_mean" else scores.clamp(min=torch.finfo(torch.float32).tiny).log_()


def _relative(scores: Tensor, best: Tensor, fusion: Fusion, temperature: float) -> Tensor:
    """The probability of each class divided by that of the best, whose score is `best`; 1 where all scores are 0."""
    if fusion == "logit_mean":
        return (scores - best).mul_(1 / temperature).exp_()
    relative = torch.where(best > 0, scores / best, 1)
    return relative if temperature == 1 else relative.pow_(1 / temperature)


def _exp_shift(views: Sequence[View]) -> Tensor:
    """What to subtract from each image's logits, float32 (B, 1, 1, 1): bilinear values never exceed the largest."""
    largest = torch.stack([logits.float().amax(dim=(1, 2, 3)) for view in views for logits in view.logits])
    return (largest.amax(dim=0) - EXP_LIMIT).clamp_(min=0).view(-1, 1, 1, 1)
