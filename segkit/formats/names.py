"""The annotation formats by name: a new one is its file in this folder and a line here.

A format's file has `read(path: Path) -> Annotations`, or `write(images: Iterable[Labelled], path: Path, space:
LabelSpace, tolerance: float) -> None`, or both. `write` takes the images one by one; polygons are simplified by at most
`tolerance` pixels (`segkit.formats.shapes.outlines`), while masks and run lengths are exact at any. Both raise an
`InputError` for what cannot be read or written, for names that lead out of their folder, and for a missing package.
Names and words need no NumPy, so that a command's help can list them; a file is imported when its format is used.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Format:
    """What segkit does with a format, and what it is in words."""

    reads: bool
    writes: bool
    about: str


# name, which is its file's   reads   writes
FORMATS = {
    "coco":        Format(True, True, "COCO instances, a JSON file; written with run lengths"),
    "panoptic":    Format(True, True, "COCO panoptic, a JSON file and a folder of PNGs of its name"),
    "cvat":        Format(True, True, 'CVAT "Segmentation mask 1.1", a zip'),
    "labelstudio": Format(True, True, "Label Studio JSON: brush masks; polygons and rectangles are read, too"),
    "labelme":     Format(True, True, "LabelMe, a folder with a JSON file for each image"),
    "yolo":        Format(True, True, "YOLO's polygons, a folder with data.yaml, images and labels"),
    "voc":         Format(True, False, "Pascal VOC's folders, and those like them with a classes.txt"),
    "geojson":     Format(False, True, "GeoJSON: polygons in the image's coordinate reference system"),
    "area_csv":    Format(False, True, "CSV: pixels, share and m2 of each class of each image"),
}  # fmt: skip


def read_annotations(name: str, path: Path) -> Any:
    """The `Annotations` of a file or folder in the named format.

    Raises:
        InputError: There is no such format, it is only written, or its file is wrong.
    """
    return _module(name, "reads").read(path)


def writer_of(name: str) -> Any:
    """The `write` of the named format.

    Raises:
        InputError: There is no such format, or it is only read.
    """
    return _module(name, "writes").write


def _module(name: str, does: str) -> Any:
    able = [known for known, one in FORMATS.items() if getattr(one, does)]
    if name not in able:
        why = f"segkit {does} {', '.join(able)}"
        raise InputError(f"{name!r} is no format for this: {did_you_mean(name, able)}{why}")
    return importlib.import_module(f"segkit.formats.{name}")
