"""Label Studio's JSON: exports with brush masks, polygons and rectangles are read, predictions are written.

After Label Studio's documentation of tasks and of the tags BrushLabels, PolygonLabels and RectangleLabels. Coordinates
are per cent of the image's sides; a later region of a task lies above an earlier one.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from segkit.arrays import Float64Array
from segkit.errors import InputError, one_line
from segkit.files import parse_json, replacing, write_text
from segkit.formats.base import AnnotatedImage, Annotations, Labelled, Lazy, Region, check_names, ring_of
from segkit.formats.brush import decode, encode
from segkit.io import read_bytes
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace
from segkit.paths import IMAGE_SUFFIXES

UNDONE = "tasks without annotation (left out)"
NO_AREA = "regions that are no brush, polygon or rectangle (left out)"
SEVERAL = "tasks with several annotations (the last one counts)"

_LOCAL = "/data/local-files/?d="  # Label Studio's address of a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


def read(path: Path) -> Annotations:
    """The annotations of an export "JSON"; its predictions, if no task of it has an annotation.

    An image's name is what `d=` gives of a local file, else the last part of its address, less what an upload adds.

    Raises:
        InputError: It is no such export, damaged, or empty.
    """
    tasks = _tasks(path)
    kind = "annotations" if any(task.get("annotations") for _, task in tasks) else "predictions"
    notes, done = Counter[str](), list[tuple[str, str, list[Any]]]()  # source, name, results
    for source, task in tasks:
        try:
            made = [one["result"] for one in task.get(kind) or () if not one.get("was_cancelled")]
            name = _name(task) if made else ""
        except _DAMAGE as error:
            raise _damaged(source, error) from error
        notes[UNDONE] += not made
        notes[SEVERAL] += len(made) > 1
        if made:
            done.append((source, name, made[-1]))
    if not done:
        raise InputError(f"{path}: no task of it is annotated; annotate at least one image, and export again")
    check_names([name for _, name, _ in done], str(path))
    names = set[str]()
    for source, _, results in done:
        labels, strange = _labels(source, results)
        names |= labels
        notes[NO_AREA] += strange
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
        for number, image in enumerate(images):
            file.write(",\n" if number else "[\n")
            json.dump(_task(image, space), file, ensure_ascii=False)
        file.write("\n]\n")
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


def _tasks(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The tasks of a file, each with its name in messages."""
    try:
        tasks = parse_json(read_bytes(path, "export of Label Studio"))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged export, no JSON ({one_line(error)}); export it again") from error
    is_list = isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks)
    if not is_list or any("data" not in task for task in tasks):
        raise InputError(
            f'{path}: is no list of tasks with "data"; export it from Label Studio as JSON (not JSON-MIN, CSV or COCO)'
        )
    return [(f"{path}: task {task.get('id', number)}", task) for number, task in enumerate(tasks, start=1)]


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


def _labels(source: str, results: Any) -> tuple[set[str], int]:
    """The labels of a task's regions, and how many of these have no area that can be read."""
    try:
        found = [(_label(one), _has_area(one["value"])) for one in results if _label(one) is not None]
    except _DAMAGE as error:
        raise _damaged(source, error) from error
    return {str(label) for label, has_area in found if has_area}, sum(not has_area for _, has_area in found)


def _label(result: Mapping[str, Any]) -> str | None:
    """The label of a region; None for what is no labelled region, such as a choice, a text, or a relation."""
    value = result.get("value") or {}
    given = [names for key, names in value.items() if key.endswith("labels") and names]
    return str(given[0][0]) if given and "original_width" in result else None


def _has_area(value: Mapping[str, Any]) -> bool:
    return "rle" in value or "points" in value or ("width" in value and "height" in value)


def _image(done: tuple[str, str, list[Any]]) -> AnnotatedImage:
    source, name, results = done
    try:
        regions = [one for one in results if _label(one) is not None and _has_area(one["value"])]
        sizes = {(int(one["original_height"]), int(one["original_width"])) for one in regions}
        if len(sizes) > 1:
            raise ValueError(f"regions on images of {len(sizes)} sizes")
        if any(one.get("image_rotation") for one in regions):
            raise ValueError("annotated on a turned image, which is not read: turn the file itself")
        size = next(iter(sizes), None)
        return AnnotatedImage(name, size, [_region(one, size, source) for one in regions if size], source)
    except InputError:
        raise
    except _DAMAGE as error:
        raise _damaged(source, error) from error


def _region(result: Mapping[str, Any], size: tuple[int, int], source: str) -> Region:
    value, name = result["value"], str(_label(result))
    if "rle" in value:
        return Region(name, mask=partial(decode, value["rle"], size, source))
    ring = ring_of(value["points"] if "points" in value else _corners(value, size), source)
    return Region(name, polygons=((ring * (size[1] / 100, size[0] / 100),),))


def _corners(value: Mapping[str, Any], size: tuple[int, int]) -> Float64Array:
    """The corners of a rectangle (4, 2) in per cent; it is turned about its first, clockwise, in pixels."""
    angle, sides = np.deg2rad(float(value.get("rotation") or 0)), np.array([size[1], size[0]]) / 100
    across = float(value["width"]) * sides[0] * np.array([np.cos(angle), np.sin(angle)])
    down = float(value["height"]) * sides[1] * np.array([-np.sin(angle), np.cos(angle)])
    first = np.array([float(value["x"]), float(value["y"])]) * sides
    return np.stack([first, first + across, first + across + down, first + down]) / sides


def _damaged(source: str, error: BaseException) -> InputError:
    return InputError(f"{source}: cannot be read ({type(error).__name__}: {one_line(error)}); export it again")
