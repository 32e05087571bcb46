"""Label Studio's JSON: exports with brush masks, polygons and rectangles are read, predictions are written.

After Label Studio's documentation of tasks and of the tags BrushLabels, PolygonLabels and RectangleLabels. Coordinates
are per cent of the image's sides; a later region of a task lies above an earlier one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from segkit.arrays import Float64Array
from segkit.errors import InputError
from segkit.files import replacing, write_text
from segkit.formats.base import AnnotatedImage, Annotations, Labelled, Lazy, Region, check_names
from segkit.formats.brush import decode, encode
from segkit.formats.files import json_list, parsing, read_listing, ring_of
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace
from segkit.paths import IMAGE_SUFFIXES

UNDONE = "tasks without annotation (left out)"
NO_AREA = "regions without a label, or that are no brush, polygon or rectangle (left out)"
SEVERAL = "tasks with several annotations (the last one counts)"

_LOCAL = "/data/local-files/?d="  # Label Studio's address of a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_WHAT = "JSON export of Label Studio"
_SHAPES = {"rle", "points", "vertices", "x"}  # keys of a region's value; ellipses and key points have x, too

_Task: TypeAlias = tuple[str, str, list[Any]]  # its name in messages, its image's name, its regions


def read(path: Path) -> Annotations:
    """The annotations of an export "JSON"; its predictions, if no task of it has an annotation.

    An image's name is what `d=` gives of a local file, else the last part of its address, less what an upload adds.

    Raises:
        InputError: It is no such export, damaged, or empty.
    """
    tasks = read_listing(path, _WHAT, list)
    if not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise InputError(f'{path}: not all tasks have "data"; export it as JSON, not JSON-MIN')
    kind = "annotations" if any(task.get("annotations") for task in tasks) else "predictions"
    notes, names, done = Counter[str](), set[str](), list[_Task]()
    for number, task in enumerate(tasks, start=1):
        source = f"{path}: task {task.get('id', number)}"
        with parsing(source, _WHAT):
            made = [one["result"] for one in task.get(kind) or () if not one.get("was_cancelled")]
            notes += Counter({UNDONE: not made, SEVERAL: len(made) > 1})
            if made:
                regions, left_out = _regions(made[-1])
                done.append((source, _name(task), regions))
                names.update(_label(one) for one in regions)
                notes[NO_AREA] += left_out
    if not done:
        raise InputError(f"{path}: no task of it is annotated; annotate at least one image, and export again")
    check_names([name for _, name, _ in done], str(path))
    return Annotations(Lazy(_image, done), tuple(sorted(names)), +notes)


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float = 0.0) -> None:
    """Write label maps as tasks with predictions, a brush mask for each class; exact to the pixel.

    Beside them, the same name with .xml is the labelling interface to which they fit. The address of an image is that
    of a local file; its score is its mean confidence, where that is known.

    Args:
        images: The label maps.
        path: The JSON file.
        space: Classes and colours.
        tolerance: Of no effect, for these are masks.

    Raises:
        InputError: The files cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json_list(_task(image, space) for image in images))
        file.write("\n")
    labels = [
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>'
        for name, colour in zip(space.class_names, space.palette, strict=True)
    ]
    view = ["<View>", '  <Image name="image" value="$image"/>', '  <BrushLabels name="tag" toName="image">']
    write_text(path.with_suffix(".xml"), "\n".join([*view, *labels, "  </BrushLabels>", "</View>", ""]))


def _task(image: Labelled, space: LabelSpace) -> dict[str, Any]:
    height, width = image.labels.shape
    results = [
        {
            "id": f"class-{label}",
            "type": "brushlabels",
            "from_name": "tag",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode(image.labels == label), "brushlabels": [space.class_names[label]]},
        }
        for label in np.unique(image.labels).tolist()
        if label != IGNORE_INDEX
    ]
    known = {} if image.confidence is None else {"score": round(image.confidence, 6)}
    prediction = {"model_version": "segkit", **known, "result": results}
    return {"data": {"image": _LOCAL + quote(image.name)}, "predictions": [prediction]}


def _name(task: Mapping[str, Any]) -> str:
    """The name of a task's image."""
    data = task["data"]
    texts = [data["image"]] if "image" in data else [text for text in data.values() if isinstance(text, str)]
    address = urlsplit(next((text for text in texts if text.lower().endswith(IMAGE_SUFFIXES)), texts[0]))
    local = parse_qs(address.query).get("d")
    if local:
        return local[0].replace("\\", "/").lstrip("/")
    name = PurePosixPath(unquote(address.path)).name
    return _UPLOADED.sub("", name, count=1) if "/upload/" in address.path and _UPLOADED.match(name) else name


def _regions(results: Any) -> tuple[list[Any], int]:
    """The regions with a label and an area, of all results of a task, and how many regions lack one of them.

    A region may have several results of one id: a brush without its label, the same with it, a choice, a text.
    """
    drawn = {number: one for number, one in enumerate(results) if _SHAPES & (one.get("value") or {}).keys()}
    good = {number: one for number, one in drawn.items() if _label(one) and _has_area(one["value"])}
    known = {one.get("id", number) for number, one in good.items()}
    return list(good.values()), len({one.get("id", number) for number, one in drawn.items()} - known)


def _has_area(value: Mapping[str, Any]) -> bool:
    return bool({"rle", "points"} & value.keys()) or {"width", "height"} <= value.keys()


def _label(result: Mapping[str, Any]) -> str:
    """The label of a region; "" if it has none."""
    given = [names for key, names in result["value"].items() if key.endswith("labels") and names]
    return str(given[0][0]) if given else ""


def _image(done: _Task) -> AnnotatedImage:
    source, name, results = done
    with parsing(source, _WHAT):
        sizes = {(int(one["original_height"]), int(one["original_width"])) for one in results}
        if len(sizes) > 1:
            raise ValueError(f"regions on images of {len(sizes)} sizes")
        if any(one.get("image_rotation") for one in results):
            raise InputError(f"{source}: was annotated on a turned image, which is not read; turn the file itself")
        size = next(iter(sizes), None)
        return AnnotatedImage(name, size, [_region(one, size, source) for one in results if size], source)


def _region(result: Mapping[str, Any], size: tuple[int, int], source: str) -> Region:
    value, name = result["value"], _label(result)
    if "rle" in value:
        return Region(name, mask=partial(decode, value["rle"], size, source))
    ring = ring_of(value["points"] if "points" in value else _corners(value, size), source)
    return Region(name, polygons=((ring * (size[1] / 100, size[0] / 100),),))


def _corners(value: Mapping[str, Any], size: tuple[int, int]) -> Float64Array:
    """The corners of a rectangle (4, 2) in per cent; it is turned about its first, clockwise, in pixels."""
    sides = np.array([size[1], size[0]]) / 100
    first, (across, down) = (
        np.array([value["x"], value["y"]], float),
        np.array([value["width"], value["height"]], float) * sides,
    )
    angle = np.deg2rad(float(value.get("rotation") or 0))
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])  # of (1, 0) and (0, 1)
    return np.asarray(first + np.array([(0, 0), (across, 0), (across, down), (0, down)]) @ turn / sides)
