"""Boundary IoU: how well predicted outlines follow the true ones (Cheng et al., CVPR 2021, arXiv 2103.16562).

The boundary of a class is its pixels within d of its outline, d = 2 % of the image's diagonal, and the score is the
IoU of true and predicted boundary. Here for semantic segmentation: per class, summed over the data set, mean over
the classes that occur. Distances are those of a square window, and the image's border is an outline, as in the
authors' helper (boundary-iou-api, boundary_utils.py): d erosions by a 3 x 3 square of the mask padded by one pixel.

d erosions by 3 x 3 are one by (2d + 1) x (2d + 1), so a pixel belongs to the boundary of its own class exactly if that
window holds a pixel of another class or crosses the border. A window's lowest and highest id say whether it does, for
all classes at once: two filters of the label map replace two erosions per class.

Ignored pixels are neither inside nor outside a class: they belong to no boundary and create none. So predictions there
do not matter, a prediction that is right wherever there is truth scores 1, and the edge of an ignored area, whose other
side is unknown, earns nothing and costs nothing. Without ignored pixels the numbers are the paper's.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX

DILATION_RATIO = 0.02  # share of the image's diagonal: the helper's default

BOUNDARY_RULE = (
    "boundary IoU of Cheng et al. 2021: IoU of the pixels within 2 % of the diagonal of a class's outline, summed over "
    "images, mean over classes present in truth or prediction; ignored pixels are of no boundary and make none"
)


def boundary_areas(
    mask: UInt8Array,
    labels: UInt8Array,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
    dilation_ratio: float = DILATION_RATIO,
) -> NDArray[np.int64]:
    """Areas of the boundaries of one image; summed over images, `segkit.evaluation.statistics.class_iou` scores them.

    Truth and prediction are treated alike: exchanging them exchanges the rows 1 and 2 (where nothing is ignored).

    Args:
        mask: True ids, uint8 (H, W).
        labels: Predicted ids, uint8 (H, W).
        num_classes: K, at most 255.
        ignore_index: True id of pixels that do not count.
        dilation_ratio: Width of the boundary as a share of the image's diagonal; at least one pixel.

    Returns:
        int64 (3, K), pixels of each class as `ImageAreas` takes them: in both boundaries with this class in both maps;
        in the true boundary; in the predicted one.

    Raises:
        InputError: Shapes differ, something is not uint8 (H, W), the mask holds ids that are neither classes nor
            ignored, or the ratio is not positive.
    """
    _check(mask, labels, num_classes, ignore_index, dilation_ratio)
    ignored = mask == ignore_index
    distance = boundary_distance(mask.shape, dilation_ratio)
    true = _at_boundary(mask, ignored, distance)
    predicted = _at_boundary(labels, ignored, distance)
    areas = [
        _count(mask, true & predicted & (mask == labels), num_classes),
        _count(mask, true, num_classes),
        _count(labels, predicted, num_classes),
    ]
    return np.stack(areas)


def boundary_distance(shape: tuple[int, ...], dilation_ratio: float = DILATION_RATIO) -> int:
    """Width d of the boundary in pixels, at least 1, of an image (H, W): 46 at 1024 x 2048."""
    return max(1, round(dilation_ratio * float(np.hypot(shape[0], shape[1]))))


def _at_boundary(ids: UInt8Array, ignored: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels with a counted pixel of another class, or the image's border, within `distance` rows and columns."""
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    # 255 cannot lower a minimum and 0 cannot raise a maximum; outside the image OpenCV does likewise.
    lowest = cv2.erode(np.where(ignored, np.uint8(255), ids), window)
    highest = cv2.dilate(np.where(ignored, np.uint8(0), ids), window)
    boundary: NDArray[np.bool_] = (lowest < ids) | (highest > ids)
    boundary[:distance] = boundary[-distance:] = True
    boundary[:, :distance] = boundary[:, -distance:] = True
    return boundary & ~ignored


def _count(ids: UInt8Array, where: NDArray[np.bool_], num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class among those chosen; ids outside the classes are not counted."""
    return np.bincount(ids[where], minlength=256)[:num_classes].astype(np.int64)


def _check(mask: UInt8Array, labels: UInt8Array, num_classes: int, ignore_index: int, dilation_ratio: float) -> None:
    if mask.shape != labels.shape or mask.ndim != 2 or not mask.size:
        raise InputError(f"boundary: mask {mask.shape} and labels {labels.shape} must both be (H, W), not empty")
    if mask.dtype != np.uint8 or labels.dtype != np.uint8:
        raise InputError(f"boundary: mask is {mask.dtype} and labels are {labels.dtype}; both must be uint8 ids")
    if not dilation_ratio > 0:  # NaN too
        raise InputError(f"boundary: the dilation ratio is {dilation_ratio}; give a share above 0, 0.02 is the paper's")
    present = np.bincount(mask.ravel(), minlength=256)
    if 0 <= ignore_index < 256:
        present[ignore_index] = 0
    if present[num_classes:].any():
        value = num_classes + int(np.flatnonzero(present[num_classes:])[0])
        raise InputError(
            f"boundary: the mask holds {value}, which is neither 0..{num_classes - 1} nor {ignore_index} (ignore); "
            "map raw label values to train ids first"
        )
