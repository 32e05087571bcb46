"""One image of a report: what it adds to every sum, and what is wrong with it, in words.

Objects are connected parts (4 neighbours) of one class in the truth, as a semantic truth has no instances. Distances to
a boundary are the trimap rule's (Kohli et al., IJCV 2009), counted as in `segkit.evaluation.boundary`: by a square
window, and ignored pixels make no boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from segkit.arrays import Int64Array, UInt8Array
from segkit.evaluation.confusion import byte_pairs, confusion_counts
from segkit.evaluation.statistics import class_iou, image_areas, mean_iou
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.text import percent

SIZES = (32**2, 96**2 + 1)  # pixels at which an object is medium, and large: COCO's
DISTANCES = (2, 5, 10, 20)  # last pixel of each band along a boundary; a last row has the rest
SURE = 0.9  # confidence from which a wrong piece looks mislabelled ...
PIECE = 0.01  # ... if it has at least this share of the image

_BANDS = len(DISTANCES) + 1
NUM_ROWS = (len(SIZES) + 1) * _BANDS  # of every size and band


@dataclass(frozen=True)
class Piece:
    """A connected piece that is surely predicted as another class: its box as of `Example`, and its share of pixels."""

    box: tuple[int, int, int, int]
    share: float


@dataclass(frozen=True)
class Facts:
    """What is kept of each image: `name`, `words`, `miou` and `confidence_mean` are as of `Example`."""

    name: str
    words: str
    miou: float | None
    confidence_mean: float | None
    piece: Piece | None


@dataclass(frozen=True)
class Measured:
    """What one image adds to the sums.

    Attributes:
        facts: What is kept of it.
        counts: int64 (K + 2, K + 1), as of `confusion_counts`; None without truth, like the next two.
        areas: int64 (3, K), as of `ImageAreas`.
        rows: int64 (NUM_ROWS, 3, K), these areas by object size and, within each, by distance to a boundary.
        sure: int64 (2, 256), wrong and right pixels by confidence times 255; None without confidence or truth.
    """

    facts: Facts
    counts: Tensor | None = None
    areas: Int64Array | None = None
    rows: Int64Array | None = None
    sure: Int64Array | None = None


def measure(
    name: str,
    truth: UInt8Array | None,
    labels: UInt8Array,
    confidence: UInt8Array | None,
    class_names: Sequence[str],
) -> Measured:
    """Measure one image; it suits many threads at once.

    Args:
        name: Its name.
        truth: Train ids, uint8 (H, W), 255 = ignored.
        labels: Predicted ones, 255 = no class.
        confidence: uint8 (H, W), confidence times 255.
        class_names: K names.

    Raises:
        InputError: The shapes differ, or the truth holds ids that are no class.
    """
    mean = None if confidence is None else cv2.mean(confidence)[0] / 255
    if truth is None:
        return Measured(Facts(name, "", None, mean, None))
    counts = confusion_counts(torch.from_numpy(truth), torch.from_numpy(labels), len(class_names))
    areas = image_areas(counts, name)
    miou = float(mean_iou(class_iou(areas.astype(np.float64))))
    # One code a pixel says its row and whether it is wrong; below 128, which is the quickest for `byte_pairs`.
    wrong = truth != labels
    code = object_sizes(truth) * np.uint8(_BANDS) + boundary_bands(truth) + wrong * np.uint8(NUM_ROWS)
    code[truth == IGNORE_INDEX] = 2 * NUM_ROWS
    of_truth, of_labels = (_sums(ids, code)[:, : len(class_names)] for ids in (truth, labels))
    rows = np.stack(
        [of_truth[:NUM_ROWS], *(part.reshape(2, NUM_ROWS, -1).sum(axis=0) for part in (of_truth, of_labels))], 1
    )
    words, piece, sure = [_confused(counts.numpy(), class_names)], None, None
    if confidence is not None:
        sure = _sums(confidence, code).reshape(2, NUM_ROWS, -1).sum(axis=1)[::-1]
        piece, of_piece = _mislabelled(truth, labels, confidence, class_names)
        words += [of_piece] if piece is not None else []
    facts = Facts(name, "; ".join(words), None if math.isnan(miou) else miou, mean, piece)
    return Measured(facts, counts, areas, rows, sure)


def object_sizes(truth: UInt8Array) -> UInt8Array:
    """The size of the object that each pixel of train ids (H, W) belongs to: 0, 1 or 2, uint8 (H, W).

    Connected are runs of a class within a row that touch: an image has a hundredth as many of them as pixels.
    """
    starts = np.ones(truth.shape, bool)
    np.not_equal(truth[:, 1:], truth[:, :-1], out=starts[:, 1:])
    first = np.flatnonzero(starts)  # (R)
    meet = np.flatnonzero((truth[1:] == truth[:-1]) & (starts[1:] | starts[:-1]))  # once for each two runs that touch
    above, below = (np.searchsorted(first, meet + step, side="right") - 1 for step in (0, truth.shape[1]))
    links = coo_matrix((np.ones(len(meet), bool), (above, below)), (len(first), len(first)))
    part, lengths = connected_components(links, directed=False)[1], np.diff(first, append=truth.size)
    row = np.searchsorted(SIZES, np.bincount(part, lengths), side="right").astype(np.uint8)
    return np.repeat(row[part], lengths).reshape(truth.shape)


def boundary_bands(truth: UInt8Array) -> UInt8Array:
    """The band of `DISTANCES` that each pixel of train ids (H, W) lies in, uint8 (H, W); a last one has the rest."""
    ignored, cross = truth == IGNORE_INDEX, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    # Ignored pixels cannot lower a minimum as 255, nor raise a maximum as 0; outside the image OpenCV does likewise.
    lowest, highest = cv2.erode(truth, cross), cv2.dilate(np.where(ignored, np.uint8(0), truth), cross)
    near = ((lowest != highest) & ~ignored).view(np.uint8)
    band = np.full(truth.shape, len(DISTANCES), np.uint8)
    for before, distance in pairwise((0, *DISTANCES)):
        near = np.asarray(cv2.dilate(near, np.ones((2 * (distance - before) + 1,) * 2, np.uint8)))
        band -= near
    return band


def _sums(ids: UInt8Array, code: UInt8Array) -> Int64Array:
    """Pixels by code and id, int64 (2 * NUM_ROWS, 256), the right ones first."""
    return byte_pairs(ids, code)[:, : 2 * NUM_ROWS].T


def _confused(counts: Int64Array, class_names: Sequence[str]) -> str:
    """The largest confusion, in words; "" where no pixel has a class."""
    num_classes = len(class_names)
    wrong = counts[:num_classes].copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return "every pixel is right" if counts[:num_classes].any() else ""
    true, predicted = divmod(int(wrong.argmax()), wrong.shape[1])
    taken = f"taken for {class_names[predicted]}" if predicted < num_classes else "of no class in the prediction"
    share = _share(wrong[true, predicted] / counts[true].sum())
    return f"{class_names[true]} {taken}: {share} of its pixels"


def _mislabelled(
    truth: UInt8Array, labels: UInt8Array, confidence: UInt8Array, class_names: Sequence[str]
) -> tuple[Piece | None, str]:
    """The largest piece of one class that is surely predicted as one other, and words about it."""
    classes, least = len(class_names), PIECE * truth.size
    sure = (confidence >= math.ceil(255 * SURE)) & (truth != labels) & (truth != IGNORE_INDEX) & (labels < classes)
    if np.count_nonzero(sure) < least:
        return None, ""
    pairs, found, words = byte_pairs(truth[sure], labels[sure]), Piece((0, 0, 0, 0), 0.0), ""
    for true, predicted in np.argwhere(pairs >= least).tolist():
        mask = (sure & (truth == true) & (labels == predicted)).astype(np.uint8)
        stats = np.asarray(cv2.connectedComponentsWithStats(mask, connectivity=4)[2])[1:]
        left, top, width, height, area = stats[stats[:, cv2.CC_STAT_AREA].argmax()].tolist()
        if area >= least and area / truth.size > found.share:
            found = Piece((top, left, top + height, left + width), area / truth.size)
            words = (
                f"labelled {class_names[true]}, surely predicted {class_names[predicted]} in one piece of "
                f"{_share(found.share)} of the image"
            )
    return (found, words) if words else (None, "")


def _share(share: float) -> str:
    return f"{percent(share, 0)} %" if share >= 0.01 else "below 1 %"
