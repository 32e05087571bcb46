"""Label maps that are hard for annotation formats, of drawn street scenes; and the classes for them."""

import numpy as np
from scipy.ndimage import distance_transform_edt

from segkit.arrays import UInt8Array
from segkit.data.street.scene import draw_scene
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table


def label_map(seed: int, height: int = 72, width: int = 120, classes: int = 11) -> UInt8Array:
    """Train ids (H, W) of a drawn scene, with holes, single pixels, corners that touch, and ignored pixels anywhere."""
    rng = np.random.default_rng(seed)
    raw = draw_scene(rng, height, width)[1]
    labels = CITYSCAPES.map_labels(raw, "drawn")
    labels = np.where(labels < 255, labels % classes, labels).astype(np.uint8)
    labels[10:30, 10:40] = 1
    labels[14:26, 14:36] = 255  # a hole that is of no class
    labels[18:22, 18:30] = 2  # an island in it
    labels[19, 20] = 1
    labels[40:44, 40:44] = np.indices((4, 4)).sum(0) % 2 + 3  # a chess board: regions touch at corners only
    labels[rng.integers(0, height, 20), rng.integers(0, width, 20)] = rng.choice([*range(classes), 255], 20)
    labels[0, 0], labels[-1, -1], labels[0, -1], labels[-1, 5:9] = 255, 3, 4, 0
    return labels


def space(classes: int = 11, background: bool = False) -> LabelSpace:
    """Names for these classes, of which the first may be the background."""
    names = [f"class {label}" for label in range(classes)]
    names[0] = "background" if background else names[0]
    return LabelSpace(tuple(names), distinct_palette(classes), identity_table(classes))


def classes_of(names: LabelSpace) -> dict[str, int]:
    """The train id of each class name."""
    return {name: label for label, name in enumerate(names.class_names)}


def boundary_distance(labels: UInt8Array) -> np.ndarray:
    """Pixels (H, W) from each pixel's centre to the nearest boundary of two labels (at least)."""
    near = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        edge = np.diff(labels.astype(int), axis=axis) != 0
        for pad in ((0, 1), (1, 0)):
            near |= np.pad(edge, [pad if axis == i else (0, 0) for i in (0, 1)])
    return np.asarray(distance_transform_edt(~near)) + 0.5
