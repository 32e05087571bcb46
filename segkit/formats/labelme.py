"""LabelMe: a JSON file beside each image, of its name, with polygons, rectangles, circles and masks.

Format: github.com/wkentaro/labelme, label_file.py and shape.py. It has no holes: they are joined to the outline by
seams (`segkit.formats.shapes.bridged`). What is drawn on pixels to be ignored has the flag "crowd".
"""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segkit.arrays import BoolArray, Float64Array
from segkit.errors import InputError
from segkit.files import write_json
from segkit.formats.base import BACKGROUND, AnnotatedImage, Annotations, Labelled, Lazy, Region, check_names
from segkit.formats.files import below, parsing, read_json, ring_of
from segkit.formats.shapes import bridged, outlines
from segkit.io import read_label
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace
from segkit.paths import walk_files

_WHAT = "file of LabelMe"
_CROWD = "crowd"  # the flag
_AREAS = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")
_FLATTER = 0.02  # pixels by which a circle's polygon may lie inside it


def read(path: Path) -> Annotations:
    """Read all JSON files below a folder; points and lines, which have no pixels, are left out and counted.

    An image's name is the path of its JSON file with the suffix of `imagePath`, which may lead anywhere.

    Raises:
        InputError: There is none. What is wrong with one is raised when its image is asked for.
    """
    files = walk_files(path, (".json",))
    if not files:
        raise InputError(f"{path}: no JSON file here; give the folder in which LabelMe saved")
    check_names([file.relative_to(path).as_posix() for file in files], str(path))
    return Annotations(Lazy(partial(_image, path), files), tuple(sorted(set().union(*map(_labels, files)))))


def _labels(file: Path) -> set[str]:
    """The labels in a file; none if it is damaged, which is said when its image is asked for."""
    try:
        with parsing(str(file), _WHAT):
            return {str(shape["label"]) for shape in read_json(file, _WHAT)["shapes"]}
    except InputError:
        return set()


def _image(folder: Path, file: Path) -> AnnotatedImage:
    content, source = read_json(file, _WHAT), str(file)
    with parsing(source, _WHAT):
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        suffix = PurePosixPath(str(content["imagePath"]).replace("\\", "/")).suffix
        regions = [_region(shape, size, f"{source}, shape {i}") for i, shape in enumerate(content["shapes"], start=1)]
    return AnnotatedImage(file.relative_to(folder).with_suffix(suffix).as_posix(), size, regions, source)


def _region(shape: Any, size: tuple[int, int], source: str) -> Region:
    label, kind = str(shape["label"]), str(shape.get("shape_type") or "polygon")
    crowd = bool((shape.get("flags") or {}).get(_CROWD))
    if kind not in _AREAS:
        return Region(label, left_out=f"shapes of the kind {kind} (left out)")
    points = ring_of(shape["points"], source)
    if kind == "mask":
        return Region(label, mask=partial(_mask, _Embedded(shape["mask"], source), points[0], size), crowd=crowd)
    return Region(label, ((_ring(kind, points),),), crowd=crowd)


@dataclass(frozen=True)
class _Embedded:
    """A file inside a JSON file, in base64."""

    text: str
    source: str

    def __str__(self) -> str:
        return self.source

    def read_bytes(self) -> bytes:
        """Its content; damaged base64 is an `InputError`."""
        with parsing(self.source, _WHAT):
            return base64.b64decode(self.text)


def _mask(png: _Embedded, corner: Float64Array, size: tuple[int, int]) -> BoolArray:
    """A mask that is stored as the part of the image from this upper left corner on."""
    part, mask = read_label(png), np.zeros(size, bool)
    left, top = corner.astype(int).tolist()
    if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise InputError(f"{png}: a mask that reaches outside the image; draw it again")
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part > 0
    return mask


def _ring(kind: str, points: Float64Array) -> Float64Array:
    """The outline of a shape: a rectangle has two opposite corners, a circle its centre and a point on it."""
    if kind in ("polygon", "oriented_rectangle"):
        return points
    (x, y), (other_x, other_y) = points.tolist()
    if kind == "rectangle":
        return np.array([(x, y), (other_x, y), (other_x, other_y), (x, other_y)])
    radius = math.hypot(other_x - x, other_y - y)
    angles = np.linspace(0, 2 * np.pi, max(8, math.ceil(np.pi * math.sqrt(radius / 2 / _FLATTER))), endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float) -> None:
    """Write label maps as NAME.json, a polygon for each region, without the images; LabelMe finds those beside.

    Pixels of no class have no polygon; where the classes have a "background", to which `read` would count them, they
    have polygons of it with the flag "crowd".
    """
    for image in images:
        height, width = image.labels.shape
        about = {"imagePath": PurePosixPath(image.name).name, "imageData": None}
        size = {"imageHeight": height, "imageWidth": width}
        content = {"version": "5.5.0", "flags": {}, "shapes": _shapes(image, space, tolerance)} | about | size
        write_json(below(path, image.name, ".json"), content)


def _shapes(image: Labelled, space: LabelSpace, tolerance: float) -> Sequence[object]:
    has_background = BACKGROUND in space.class_names
    return [
        {
            "label": BACKGROUND if label == IGNORE_INDEX else space.class_names[label],
            "points": bridged(polygon).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {_CROWD: True} if label == IGNORE_INDEX else {},
        }
        for label, polygon in outlines(image.labels, tolerance)
        if label != IGNORE_INDEX or has_background
    ]
