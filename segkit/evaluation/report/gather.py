"""Sums the images of an evaluation for its report, and chooses the few that are shown; memory does not grow with them.

What is kept of an image is a line of facts and its areas, so the images that are chosen at the end are read once more.
Sums are integers and ties go by name: the result depends neither on the order of the images nor on threads.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from segkit.arrays import Int64Array, UInt8Array
from segkit.evaluation.calibration import Reliability
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.report.content import LONGEST, Example, Group, Reason
from segkit.evaluation.report.measure import DISTANCES, NUM_ROWS, SIZES, Facts, Measured
from segkit.evaluation.statistics import ImageAreas, class_iou, mean_iou

SHOWN = 20  # images for each reason

_SIZE_RULE = (
    "an object is a connected part of one class in the truth; its pixels, and what is predicted there, count in the "
    "row of its area (COCO's bounds)"
)
_BAND_RULE = (
    "distance of a pixel, in rows or columns, whichever is more, to the nearest boundary between two classes of the "
    "truth; the edge of an ignored area is none"
)


@dataclass(frozen=True)
class ReadImage:
    """An image that is shown, as read: RGB uint8 (H, W, 3) or None, and the arrays of `Example` at full size."""

    image: UInt8Array | None
    truth: UInt8Array | None
    labels: UInt8Array
    confidence: UInt8Array | None


class Gatherer:
    """Sums what `measure` finds in each image.

    Args:
        num_classes: K.

    Attributes:
        confusion: The counts of all images with a truth.
        facts: Of each image.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = ConfusionMatrix(num_classes)
        self.facts: list[Facts] = []
        self._areas: list[tuple[str, Int64Array]] = []
        self._rows = np.zeros((NUM_ROWS, 3, num_classes), np.int64)
        self._sure = np.zeros((2, 256), np.int64)

    def add(self, image: Measured) -> None:
        """Add an image."""
        self.facts.append(image.facts)
        if image.counts is None or image.areas is None or image.rows is None:
            return
        self.confusion.add(image.counts)
        self._areas.append((image.facts.name, image.areas))
        self._rows += image.rows
        if image.sure is not None:
            self._sure += image.sure

    @property
    def areas(self) -> ImageAreas | None:
        """Areas of the images with a truth; None if there are none."""
        return ImageAreas.from_areas(self._areas) if self._areas else None

    @property
    def reliability(self) -> Reliability | None:
        """Calibration of the images with truth and confidence; None if there are none."""
        return Reliability.from_bytes(self._sure) if self._sure.any() else None

    @property
    def image_miou(self) -> tuple[tuple[str, float], ...]:
        """`Subject.image_miou`, by name."""
        return tuple(sorted((facts.name, facts.miou) for facts in self.facts if facts.miou is not None))

    def groups(self) -> tuple[Group, ...]:
        """IoU by object size and by distance to the boundary; () without truth."""
        if not self._areas:
            return ()
        rows = self._rows.reshape(len(SIZES) + 1, -1, *self._rows.shape[1:])  # (sizes, bands, 3, K)
        sizes = ("below 32 x 32 pixels", "32 x 32 to 96 x 96", "above 96 x 96")
        ends = pairwise((-1, *DISTANCES))
        bands = (*(f"{low + 1} to {high} pixels" for low, high in ends), f"above {DISTANCES[-1]}")
        return (
            Group("IoU by object size", _SIZE_RULE, _rows(sizes, rows.sum(axis=1))),
            Group("IoU by distance to the boundary", _BAND_RULE, _rows(bands, rows.sum(axis=0))),
        )

    def chosen(self, most: int = SHOWN) -> dict[str, tuple[Reason, ...]]:
        """Names of the images to show, with the reasons: at most `most` for each, the first ones first.

        The random ones depend on the names alone, so that two models show the same.
        """
        facts = self.facts
        first: dict[Reason, Iterable[tuple[float | str, str]]] = {
            "worst": ((f.miou, f.name) for f in facts if f.miou is not None),
            "uncertain": ((f.confidence_mean, f.name) for f in facts if f.confidence_mean is not None),
            "random": ((hashlib.sha256(f.name.encode()).hexdigest(), f.name) for f in facts),
            "mislabelled": ((-f.piece.share, f.name) for f in facts if f.piece is not None),
        }
        found = defaultdict[str, list[Reason]](list)
        for reason, keys in first.items():
            for _, name in sorted(keys)[:most]:
                found[name].append(reason)
        return {name: tuple(reasons) for name, reasons in found.items()}


def example(facts: Facts, reasons: tuple[Reason, ...], read: ReadImage) -> Example:
    """Reduce an image to at most `LONGEST` pixels a side; its image must have the labels' size."""
    height, width = read.labels.shape
    scale = min(1.0, LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    box = None
    if facts.piece is not None and "mislabelled" in reasons:
        top, left, bottom, right = (scale * end for end in facts.piece.box)
        box = math.floor(top), math.floor(left), min(size[1], math.ceil(bottom)), min(size[0], math.ceil(right))
    return Example(
        facts.name,
        reasons,
        facts.words,
        facts.miou,
        facts.confidence_mean,
        _reduced(read.image, size, cv2.INTER_AREA),
        _reduced(read.truth, size),
        np.asarray(_reduced(read.labels, size)),
        _reduced(read.confidence, size),
        box,
    )


def _reduced(
    array: UInt8Array | None, size: tuple[int, int], interpolation: int = cv2.INTER_NEAREST
) -> UInt8Array | None:
    return None if array is None else np.asarray(cv2.resize(array, size, interpolation=interpolation), np.uint8)


def _rows(labels: tuple[str, ...], areas: Int64Array) -> tuple[tuple[str, float | None, int], ...]:
    """`Group.rows` of areas (rows, 3, K)."""
    iou = mean_iou(class_iou(areas.astype(np.float64))).tolist()
    pixels = areas[:, 1].sum(axis=1).tolist()
    return tuple((label, None if math.isnan(v) else v, n) for label, v, n in zip(labels, iou, pixels, strict=True))
