"""COCO's instances: one JSON file of images, categories, and annotations as polygons or run lengths.

Format: cocodataset.org/#format-data. Polygons become pixels as pycocotools makes them. Run lengths are counted here:
pycocotools does not notice that they end before the image does, and then returns whatever was in memory.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segkit.arrays import BoolArray, Int64Array
from segkit.errors import InputError, import_extra
from segkit.formats.base import BACKGROUND, AnnotatedImage, Annotations, Labelled, Lazy, Region, check_names
from segkit.formats.files import parsing, read_listing, ring_of, write_listing
from segkit.formats.shapes import EXTRA
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace

CROWDS = "crowds (ignored)"
ALL_CROWDS = "crowds (read as masks, for all annotations of the file are marked so)"
LOST = "annotations of no image (left out)"

_WHAT = "COCO file of instances"
_LONGEST = 7  # characters of a run length; 35 bits
_MOST_STEPS = 2**22  # pixels along polygons, for each of which pycocotools takes 100 bytes; longer ones are GDAL's
Size = tuple[int, int]  # H, W


def read(path: Path) -> Annotations:
    """Read a JSON file of instances; what has `iscrowd` is ignored, unless all of the file has it.

    COCO marks with it what has run lengths, so that datumaro, and CVAT by it, mark every mask.

    Raises:
        InputError: It is no such file, or a name of an image leads out of its folder or occurs twice. What is wrong
            with an annotation is raised when its image's regions are asked for.
    """
    content = read_listing(path, _WHAT)
    with parsing(str(path), _WHAT):
        classes = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        of_image = defaultdict[Any, list[Any]](list)
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        crowds = [classes.get(one["category_id"]) for one in content["annotations"] if one.get("iscrowd")]
        all_are = len(crowds) == len(content["annotations"]) and any(name != BACKGROUND for name in crowds)
        found = [_image(image, of_image[key], classes, (str(path), all_are)) for key, image in images.items()]
        lost = sum(len(these) for key, these in of_image.items() if key not in images)
    if len(images) < len(content["images"]):
        raise InputError(f"{path}: two images have one id; export it again")
    check_names([image.name for image in found], str(path))
    notes = +Counter({LOST: lost, ALL_CROWDS if all_are else CROWDS: len(crowds)})
    return Annotations(found, tuple(dict.fromkeys(classes.values())), notes)


def _image(image: Any, annotations: list[Any], classes: Mapping[Any, str], file: tuple[str, bool]) -> AnnotatedImage:
    """An image of the file of this path, in which all annotations are crowds or not."""
    size, name, (path, all_are) = (int(image["height"]), int(image["width"])), str(image["file_name"]), file
    source = f"{path}: {name}"
    return AnnotatedImage(name, size, Lazy(partial(_region, size, classes, source, all_are), annotations), source)


def _region(size: Size, classes: Mapping[Any, str], source: str, all_are: bool, annotation: Any) -> Region:
    source = f"{source}, annotation {annotation.get('id')}"
    with parsing(source, _WHAT):
        category, shape = annotation["category_id"], annotation["segmentation"]
        crowd = bool(annotation.get("iscrowd")) and not all_are
        if category not in classes:
            raise InputError(f"{source}: category {category!r} is not in the file's list; add it, or export again")
        if isinstance(shape, dict):
            if tuple(shape["size"]) != size:
                raise ValueError(f"run lengths of size {shape['size']} in an image of {list(size)}")
            return Region(classes[category], mask=partial(_filled, _runs(shape["counts"]), size, source), crowd=crowd)
        polygons = tuple((ring_of(ring, source),) for ring in shape)
        steps = sum(float(np.abs(np.diff(ring, axis=0)).sum()) for (ring,) in polygons)
    return Region(classes[category], polygons, partial(_drawn, polygons, size) if steps < _MOST_STEPS else None, crowd)


def _drawn(polygons: tuple[tuple[np.ndarray], ...], size: Size) -> BoolArray:
    """The union of polygons, (H, W), as pycocotools draws it; a ring of four numbers would be a box to it."""
    rle, rings = import_extra("pycocotools.mask", EXTRA), [ring.ravel().tolist() for (ring,) in polygons]
    drawn = [ring for ring in rings if len(ring) >= 6]
    return np.asarray(rle.decode(rle.merge(rle.frPyObjects(drawn, *size))) if drawn else np.zeros(size), bool)


def _runs(counts: Any) -> Int64Array:
    """Run lengths, the first of pixels outside, from a list of them or COCO's text.

    In the text (pycocotools, maskApi.c, rleToString) a number has five bits a character, the lowest first, above 48; 32
    says that more follow, and the highest bit is the sign. From the fourth on they are differences to the last but one.
    """
    if isinstance(counts, list):
        runs = np.asarray(counts)
        if runs.dtype.kind not in "iu" or runs.ndim != 1:
            raise ValueError("run lengths that are no whole numbers")
        return runs.astype(np.int64)
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not len(ends) or codes.min() < 0 or codes.max() > 63 or ends[-1] != len(codes) - 1:
        raise ValueError("run lengths that are cut off, or no text of COCO's")
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise ValueError("a run length beyond any image")
    place = np.arange(len(codes)) - starts.repeat(lengths)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return np.asarray(runs, np.int64)


def _filled(runs: Int64Array, size: Size, source: str) -> BoolArray:
    """The pixels (H, W) of run lengths, which go down the columns."""
    total = size[0] * size[1]
    if ((runs < 0) | (runs > total)).any() or runs.sum() != total:
        raise InputError(f"{source}: its run lengths do not fill the {total} pixels of the image; export it again")
    inside: BoolArray = (np.arange(len(runs)) % 2 == 1).repeat(runs)
    return inside.reshape(size[::-1]).T


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float) -> None:
    """Write label maps as a JSON file, with one annotation of compressed run lengths for each class of an image.

    The id of a category is its train id + 1. Pixels of no class have no annotation; where the classes have a
    "background", to which `read` would count them, they are a crowd of it.
    """
    listed: list[object] = []
    categories = [{"id": 1 + label, "name": name} for label, name in enumerate(space.class_names)]
    rest = {"images": listed, "categories": categories}
    write_listing(path, "annotations", _annotations(images, space, listed), rest)


def _annotations(images: Iterable[Labelled], space: LabelSpace, listed: list[object]) -> Iterator[object]:
    rle, number = import_extra("pycocotools.mask", EXTRA), 0
    background = space.class_names.index(BACKGROUND) if BACKGROUND in space.class_names else None
    for image in images:
        height, width = image.labels.shape
        listed.append({"id": len(listed) + 1, "file_name": image.name, "height": height, "width": width})
        for value in np.unique(image.labels).tolist():
            label = background if value == IGNORE_INDEX else value
            if label is None:
                continue
            number += 1
            runs = rle.encode(np.asfortranarray(image.labels == value, np.uint8))
            yield {
                "id": number,
                "image_id": len(listed),
                "category_id": 1 + label,
                "iscrowd": int(value == IGNORE_INDEX),
                "area": int(rle.area(runs)),
                "bbox": rle.toBbox(runs).tolist(),
                "segmentation": runs | {"counts": runs["counts"].decode("ascii")},
            }
