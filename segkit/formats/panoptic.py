"""COCO's panoptic format: a JSON file, and beside it a folder of its name with a PNG of segment ids for each image.

Format: cocodataset.org/#format-data; an id is R + 256 G + 65536 B, and 0 is void (panopticapi, utils.py, rgb2id).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segkit.arrays import BoolArray, Int64Array
from segkit.errors import InputError
from segkit.formats.base import AnnotatedImage, Annotations, Labelled, Region, check_names
from segkit.formats.files import below, parsing, read_json, write_listing
from segkit.io import read_colors, write_png
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace
from segkit.text import listed

_WHAT = "COCO panoptic file"
_LISTED = 5  # ids in a message


def read(path: Path) -> Annotations:
    """Read the JSON file; a PNG is read when its image's regions are asked for. Void pixels and crowds are ignored.

    Raises:
        InputError: It is no such file, or a name leads out of its folder or occurs twice.
    """
    content = read_json(path, _WHAT)
    with parsing(str(path), _WHAT):
        classes = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        found = [_image(images[one["image_id"]], one, classes, path) for one in content["annotations"]]
        check_names([str(one["file_name"]) for one in content["annotations"]], str(path))
    check_names([image.name for image in found], str(path))
    return Annotations(found, tuple(dict.fromkeys(classes.values())))


def _image(image: Any, annotation: Any, classes: Mapping[Any, str], path: Path) -> AnnotatedImage:
    name, source = str(image["file_name"]), f"{path}: {image['file_name']}"
    png = path.with_suffix("") / str(annotation["file_name"])
    regions = partial(_regions, png, annotation["segments_info"], classes, source)
    return AnnotatedImage(name, (int(image["height"]), int(image["width"])), regions, source)


def _regions(png: Path, segments: Any, classes: Mapping[Any, str], source: str) -> Sequence[Region]:
    ids = read_colors(png).astype(np.int64) @ (1, 256, 65536)  # (H, W, 3) -> (H, W)
    with parsing(source, _WHAT):
        unknown = sorted({one["category_id"] for one in segments} - classes.keys())
        found = [
            Region(
                classes.get(one["category_id"], ""), mask=partial(_is, ids, int(one["id"])), crowd=one["iscrowd"] == 1
            )
            for one in segments
        ]
        lost = np.setdiff1d(ids, [0, *(int(one["id"]) for one in segments)]).tolist()
    if unknown:
        raise InputError(f"{source}: category {unknown[0]!r} is not in the file's list; add it, or export again")
    if lost:
        ids_lost = listed(list(map(str, lost)), _LISTED)
        raise InputError(f"{source}: {png} has segments that the JSON file lacks: {ids_lost}; export both again")
    return [Region("", mask=partial(_is, ids, 0), crowd=True), *found]


def _is(ids: Int64Array, segment: int) -> BoolArray:
    return np.asarray(ids == segment, bool)


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float) -> None:
    """Write label maps as a JSON file and PNGs, with one segment for each class of an image; 255 is void.

    Ids of segments and categories are train ids + 1.
    """
    listed_images: list[object] = []
    rows = enumerate(zip(space.class_names, space.palette, strict=True))
    categories = [{"id": 1 + label, "name": name, "isthing": 0, "color": colour} for label, (name, colour) in rows]
    rest = {"images": listed_images, "categories": categories}
    write_listing(path, "annotations", _annotations(images, path.with_suffix(""), listed_images), rest)


def _annotations(images: Iterable[Labelled], folder: Path, listed_images: list[object]) -> Iterator[object]:
    for number, image in enumerate(images, start=1):
        height, width = image.labels.shape
        listed_images.append({"id": number, "file_name": image.name, "height": height, "width": width})
        png = below(folder, image.name, ".png")
        ids = np.zeros((height, width, 3), np.uint8)
        ids[..., 0] = image.labels + np.uint8(1)  # 255 becomes 0, which is void
        write_png(png, ids)
        labels = [label for label in np.unique(image.labels).tolist() if label != IGNORE_INDEX]
        segments = [_segment(np.asarray(image.labels == label), 1 + label) for label in labels]
        yield {"image_id": number, "file_name": png.relative_to(folder).as_posix(), "segments_info": segments}


def _segment(mask: BoolArray, number: int) -> dict[str, object]:
    rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {"id": number, "category_id": number, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
