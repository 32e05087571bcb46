"""Calibration: is a pixel predicted with confidence 0.8 right 8 times in 10?

Confidence is the probability of the predicted class. Pixels are sorted by it into bins of equal width, and in each bin
the mean confidence is compared with the share of right pixels: their differences, weighted by pixels, are the expected
calibration error, the largest is the maximum one (Guo et al., ICML 2017, arXiv 1706.04599, section 2: 15 bins, each
open below and closed above). Memory is constant, and so is the result in any order of images and processes.

With the number of classes it also counts their pixels by confidence, for the mIoU of those that a threshold keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation import scores
from segkit.evaluation.results import number_or_null
from segkit.evaluation.scores import Areas, ratio
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.text import RULE, aligned, percent

NUM_BINS = 15
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

_ONE = 2**24  # confidences are summed as multiples of 2**-24, a float32's last place below 1: exactly, in any order


class Calibration:
    """Sums pixels, right pixels and confidence per bin; one per process, and one `all_reduce` at the end.

    Args:
        device: The device of the sums; that of the labels, so that `update` waits for nothing.
        num_bins: Number of bins of equal width over 0..1.
        ignore_index: True id of pixels that do not count.
        num_classes: K, for scores at `THRESHOLDS`; 0: none.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        num_bins: int = NUM_BINS,
        ignore_index: int = IGNORE_INDEX,
        num_classes: int = 0,
    ) -> None:
        if num_bins < 1:
            raise InputError(f"calibration: {num_bins} bins; 1 or more are needed")
        self.num_bins, self.ignore_index, self.num_classes = num_bins, ignore_index, num_classes
        parts = 3 * (num_bins + 2), 3 * (len(THRESHOLDS) * num_classes + 1)
        self._all = torch.zeros(sum(parts), dtype=torch.int64, device=device)
        sums, areas = self._all.split(parts)
        # Rows: pixels, right pixels, confidence in units of 1 / _ONE. Columns: the bins, ignored, no probability.
        self._sums = sums.view(3, -1)
        # Rows: right, true and predicted pixels. Columns: the classes, of each threshold up to the next; no class.
        self._areas = areas.view(3, -1)
        self._thresholds = torch.tensor(THRESHOLDS, device=device)

    def update(self, mask: Tensor, labels: Tensor, confidence: Tensor) -> None:
        """Add images.

        Args:
            mask: True ids, integers of any shape.
            labels: Predicted ids, of that shape.
            confidence: float 0..1 of that shape, the probability of `labels`.

        Raises:
            InputError: The shapes differ, or `confidence` is not floating point.
        """
        if not mask.shape == labels.shape == confidence.shape:
            shapes = ", ".join(str(tuple(t.shape)) for t in (mask, labels, confidence))
            raise InputError(f"calibration: mask, labels and confidence have the shapes {shapes}; they must be equal")
        if not confidence.is_floating_point():
            raise InputError(f"calibration: the confidence is {confidence.dtype}; it must be float, 0..1")
        share = confidence.flatten().float()
        strange = ~((share >= 0) & (share <= 1 + 1e-4))  # NaN too; rounding may exceed 1 by a little
        share = share.clamp(0, 1).masked_fill(strange, 0)
        upper = torch.linspace(0, 1, self.num_bins + 1, device=share.device)[1:-1]
        index = torch.bucketize(share, upper).masked_fill_(strange, self.num_bins + 1)
        index = index.masked_fill_((mask == self.ignore_index).flatten(), self.num_bins)
        right = (mask == labels).flatten()
        rows = (torch.ones_like(index), right.to(torch.int64), (share.double() * _ONE).round().to(torch.int64))
        for total, values in zip(self._sums, rows, strict=True):
            total.index_add_(0, index.to(total.device), values.to(total.device))
        if self.num_classes:
            self._count(mask.flatten().long(), labels.flatten().long(), share, index < self.num_bins)

    def _count(self, true: Tensor, found: Tensor, share: Tensor, counted: Tensor) -> None:
        """Add pixels (N,) to the areas, by the last threshold that their confidence reaches."""
        first = (torch.bucketize(share, self._thresholds, right=True) - 1) * self.num_classes
        kinds = (found, counted & (true == found)), (true, counted), (found, counted)
        for total, (ids, counts) in zip(self._areas, kinds, strict=True):
            index = torch.where(counts & (ids < self.num_classes), first + ids, total.numel() - 1)
            total.index_add_(0, index, torch.ones_like(index))

    def all_reduce(self) -> None:
        """Sum over all processes; does nothing without a process group. Every process calls it, once, at the end."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._all)

    def result(self, without: Sequence[int] = ()) -> Reliability:
        """The calibration of all images added so far; the mIoUs leave out the classes `without`.

        Raises:
            InputError: Some confidences were not probabilities.
        """
        pixels, right, confidence = self._sums.cpu().numpy()
        if pixels[-1]:
            raise InputError(
                f"calibration: the confidence of {pixels[-1]} pixels is not within 0..1; give probabilities, not logits"
            )
        bins = slice(0, self.num_bins)
        accuracy, mean = ratio(right[bins], pixels[bins]), ratio(confidence[bins] / _ONE, pixels[bins])
        return Reliability(pixels[bins], accuracy, mean, self._kept(without) if self.num_classes else [])

    def _kept(self, without: Sequence[int]) -> list[dict[str, float | None]]:
        by_class = self._areas[:, :-1].cpu().numpy().reshape(3, len(THRESHOLDS), self.num_classes)
        above = by_class[:, ::-1].cumsum(axis=1)[:, ::-1]
        none = np.zeros(self.num_classes + 1, np.int64)
        rows = []
        for threshold, right, true, predicted in zip(THRESHOLDS, *above, strict=True):
            miou = scores.without(scores.segkit(Areas(right, true, predicted, none[1:], none)), without).miou
            coverage = float(ratio(true.sum(), above[1, 0].sum()))
            rows.append({"threshold": threshold, "coverage": number_or_null(coverage), "mIoU": number_or_null(miou)})
        return rows


@dataclass(frozen=True)
class Reliability:
    """Accuracy against confidence, bin by bin.

    Attributes:
        pixels: int64 (bins,), pixels of each bin.
        accuracy: float64 (bins,), share of right pixels; NaN in empty bins.
        confidence: float64 (bins,), mean confidence; NaN in empty bins.
        thresholds: Of the pixels that have at least the confidence "threshold", their share of all, "coverage", and
            "mIoU"; [] where the number of classes was not given.
    """

    pixels: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    thresholds: Sequence[Mapping[str, float | None]] = ()

    @classmethod
    def from_bytes(cls, pixels: NDArray[np.int64], num_bins: int = NUM_BINS) -> Reliability:
        """From numbers of wrong and of right pixels, int64 (2, 256), for each confidence times 255."""
        values = np.arange(256)
        index = np.maximum(-(-values * num_bins // 255) - 1, 0)  # (low, high], in integers
        rows = (pixels.sum(axis=0), pixels[1], values * pixels.sum(axis=0))
        total, right, confidence = (np.array([row[index == i].sum() for i in range(num_bins)]) for row in rows)
        return cls(total, ratio(right, total), ratio(confidence / 255, total))

    @property
    def gaps(self) -> NDArray[np.float64]:
        """float64 (bins,): accuracy minus confidence; negative where the network is overconfident."""
        return self.accuracy - self.confidence

    @property
    def expected_error(self) -> float:
        """Expected calibration error, 0..1: the gaps' sizes, weighted by pixels; NaN without pixels."""
        filled = self.pixels > 0
        return float(np.average(abs(self.gaps[filled]), weights=self.pixels[filled])) if filled.any() else float("nan")

    @property
    def maximum_error(self) -> float:
        """Maximum calibration error, 0..1: the largest gap of a bin that is not empty; NaN without pixels."""
        filled = self.pixels > 0
        return float(abs(self.gaps[filled]).max()) if filled.any() else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file, in which NaN is None."""
        edges = np.linspace(0, 1, len(self.pixels) + 1).tolist()
        bins = zip(edges, edges[1:], self.pixels.tolist(), self.accuracy, self.confidence, strict=False)
        return {
            "expected_calibration_error": number_or_null(self.expected_error),
            "maximum_calibration_error": number_or_null(self.maximum_error),
            "rule": "top-1 confidence in bins of equal width, (low, high]; ignored pixels not counted",
            "bins": [
                {"low": low, "high": high, "pixels": n, "accuracy": number_or_null(a), "confidence": number_or_null(c)}
                for low, high, n, a, c in bins
            ],
            **({"thresholds": self.thresholds} if self.thresholds else {}),
        }

    def table(self) -> str:
        """Coverage and mIoU at each threshold, in percent."""
        rows = [(f"{row['threshold']:.2f}", percent(row["coverage"]), percent(row["mIoU"])) for row in self.thresholds]
        return aligned([("confidence >=", "pixels kept, %", "mIoU, %"), RULE, *rows])
