"""YOLO's polygons: data.yaml with the names, and for images/a.jpg a text labels/a.txt with a polygon in each line.

Format: docs.ultralytics.com/datasets/segment. A line is `class x1 y1 x2 y2 ...`, in fractions of width and height. It
has no holes: they are joined to the outline by seams (`segkit.formats.shapes.bridged`). Five numbers are a box.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import yaml

from segkit.errors import InputError
from segkit.files import write_text
from segkit.formats.base import AnnotatedImage, Annotations, Labelled, Lazy, Region, check_names
from segkit.formats.files import below, parsing, ring_of
from segkit.formats.shapes import bridged, outlines
from segkit.io import image_size
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace
from segkit.paths import IMAGE_SUFFIXES, read_file, walk_files
from segkit.plain_data import read_yaml

BOXES = "boxes, which outline nothing (left out)"
UNDRAWN = "images without a file of labels (nothing is drawn on them)"

_BOX = 5  # numbers in a line


def read(path: Path) -> Annotations:
    """Read a folder, or its data.yaml: images in folders `images`, and labels at the same paths in `labels` instead.

    The names of images lack the folder `images`: images/train/a.jpg and train/images/a.jpg are train/a.jpg.

    Raises:
        InputError: data.yaml is missing or wrong, or there are no images, or two of one name. What is wrong with an
            image or its labels is raised when it is asked for.
    """
    folder, config = (path, path / "data.yaml") if path.is_dir() else (path.parent, path)
    with parsing(str(config), "data.yaml of YOLO's"):
        names = read_yaml(config)["names"]
        names = {int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    files = [file.relative_to(folder) for file in walk_files(folder, IMAGE_SUFFIXES)]
    images = [file for file in files if "images" in file.parent.parts]
    if not images:
        raise InputError(f"{folder}: no image in a folder `images`, whose sizes the labels need; put the images there")
    check_names([_without_images(image).as_posix() for image in images], str(folder))
    undrawn = sum(not _labels_of(folder, image).is_file() for image in images)
    notes = +Counter({UNDRAWN: undrawn})
    return Annotations(Lazy(partial(_image, folder, names), images), tuple(names[key] for key in sorted(names)), notes)


def _without_images(image: Path, instead: str = "") -> Path:
    """The path of an image with something else for the last folder `images`."""
    last = max(i for i, part in enumerate(image.parent.parts) if part == "images")
    return Path(*image.parts[:last], instead, *image.parts[last + 1 :])


def _labels_of(folder: Path, image: Path) -> Path:
    return folder / _without_images(image, "labels").with_suffix(".txt")


def _image(folder: Path, names: dict[int, str], image: Path) -> AnnotatedImage:
    width, height = image_size(folder / image, apply_exif=True)  # fractions are of the image as it is shown
    labels = _labels_of(folder, image)
    regions = partial(_regions, labels, names, (width, height)) if labels.is_file() else ()
    return AnnotatedImage(_without_images(image).as_posix(), (height, width), regions, str(labels))


def _regions(labels: Path, names: dict[int, str], size: tuple[int, int]) -> Sequence[Region]:
    with parsing(str(labels), "text of YOLO's"):
        lines = read_file(labels).decode("utf-8").splitlines()
    return [_region(line, names, size, f"{labels}, line {i}") for i, line in enumerate(lines, start=1) if line.strip()]


def _region(line: str, names: dict[int, str], size: tuple[int, int], source: str) -> Region:
    label, *rest = line.split()
    with parsing(source, "line of YOLO's"):
        numbers, key = [float(number) for number in rest], int(float(label))
    if key not in names:
        raise InputError(f"{source}: class {key} is not in data.yaml ({len(names)} names); add its name there")
    if 1 + len(numbers) == _BOX:
        return Region(names[key], left_out=BOXES)
    return Region(names[key], ((ring_of(numbers, source) * size,),))


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float) -> None:
    """Write label maps as labels/NAME.txt and data.yaml; put the images into images/NAME.

    Pixels of no class have no polygon; so a "background" among the classes would get them when they are read.
    """
    for image in images:
        height, width = image.labels.shape
        lines = []
        for label, polygon in outlines(image.labels, tolerance):
            if label != IGNORE_INDEX:
                points = (bridged(polygon) / (width, height)).ravel().tolist()
                lines.append(" ".join([str(label), *(f"{point:.8g}" for point in points)]) + "\n")
        write_text(below(path / "labels", image.name, ".txt"), "".join(lines))
    about = {"train": "images", "val": "images", "names": dict(enumerate(space.class_names))}
    write_text(path / "data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
