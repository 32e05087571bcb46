"""CVAT's "Segmentation mask 1.1": a zip of masks of colours, laid out as Pascal VOC, with its classes in labelmap.txt.

After CVAT's documentation of the format, which CVAT itself reads and writes by datumaro's plugin `voc`. Black is no
label; labelmap.txt calls it `background`.
"""

import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segkit.archives import files_of
from segkit.arrays import UInt8Array
from segkit.errors import InputError, printable
from segkit.files import replacing
from segkit.formats.base import BACKGROUND, AnnotatedImage, Annotations, Labelled, Lazy, Region, check_names
from segkit.io import File, read_bytes, read_colors, read_label
from segkit.io.header import PNG_START
from segkit.metadata.label_space import LabelSpace
from segkit.text import listed

Colour: TypeAlias = tuple[int, int, int]
Numbers: TypeAlias = npt.NDArray[np.int16]

LABELMAP, MASKS, OBJECTS, LISTS = "labelmap.txt", "SegmentationClass/", "SegmentationObject/", "ImageSets/Segmentation/"
UNDRAWN = "images of the list without a mask (left out: nothing is drawn on them)"

_BLACK = (0, 0, 0)
_UNDRAWN, _WRONG = np.int16(-1), np.int16(-2)  # numbers of no label
_WEIGHTS = np.array([1 << 16, 1 << 8, 1])  # of a colour's channels in its code
_COLOUR_TYPE = 25  # byte of a PNG that tells grey, 0, from colours
_SHOWN = 8  # names in a message


def read(path: Path) -> Annotations:
    """The masks of an export, a zip or the folder that it was unpacked to; each is read when its image is asked for.

    Raises:
        InputError: It is no such export, damaged, hostile or without masks, or labelmap.txt is wrong.
    """
    files = files_of(path)
    found = sorted(name for name in files if PurePosixPath(name).name == LABELMAP)
    if len(found) != 1:
        raise InputError(
            f'{path}: {len(found)} files {LABELMAP} in it, where one is needed; export as "Segmentation mask 1.1"'
        )
    top = found[0].removesuffix(LABELMAP)
    labels = _read_labelmap(files[found[0]])
    masks = {name.removeprefix(top + MASKS): file for name, file in files.items() if name.startswith(top + MASKS)}
    masks = {name: file for name, file in sorted(masks.items()) if name.endswith(".png")}
    if not masks:
        raise InputError(f"{path}: no masks in {MASKS}; annotate at least one image, and export again")
    check_names(list(masks), str(path))
    lists = [file for name, file in files.items() if name.startswith(top + LISTS) and name.endswith(".txt")]
    named = {line.strip() for file in lists for line in _text(file).splitlines() if line.strip()}
    undrawn = len(named - {name.removesuffix(".png") for name in masks})
    images = Lazy(partial(_image, labels), list(masks.items()))
    return Annotations(images, tuple(labels), {UNDRAWN: undrawn} if undrawn else {})


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float = 0.0) -> None:
    """Write label maps as a zip that CVAT imports, each class of an image as one object; exact to the pixel.

    Ids of 255 and those of a class `background` become black. A colour that two classes share, or black, is replaced.

    Args:
        images: The label maps.
        path: The zip.
        space: Classes and colours.
        tolerance: Of no effect, for these are masks.

    Raises:
        InputError: A class's name cannot stand in labelmap.txt, or the file cannot be written.
    """
    colours = _distinct_colours(space)
    classes, objects = np.zeros((256, 3), np.uint8), np.zeros((256, 3), np.uint8)
    for label, (name, colour) in enumerate(zip(space.class_names, colours, strict=True)):
        classes[label] = colour
        objects[label] = _BLACK if name == BACKGROUND else _voc_colour(label + 1)
    rows = {BACKGROUND: _BLACK} | dict(zip(space.class_names, colours, strict=True))
    lines = ["# label:color_rgb:parts:actions", *(f"{n}:{r},{g},{b}::" for n, (r, g, b) in rows.items())]
    stems = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, LABELMAP, "\n".join(lines) + "\n")
        for image in images:
            check_names([image.name], str(path))
            stems.append(PurePosixPath(image.name).with_suffix("").as_posix())
            _add(archive, f"{MASKS}{stems[-1]}.png", _png(classes[image.labels]))
            _add(archive, f"{OBJECTS}{stems[-1]}.png", _png(objects[image.labels]))
        _add(archive, f"{LISTS}default.txt", "".join(f"{stem}\n" for stem in stems))


def _text(file: File) -> str:
    try:
        return read_bytes(file, "list").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 ({error.reason}); export it again") from error


def _read_labelmap(file: File) -> dict[str, Colour]:
    """The colour of each label, in the order of the file; Pascal VOC's colours where it gives none."""
    rows = [line.strip() for line in _text(file).splitlines()]
    labels = dict[str, Colour]()
    for number, row in enumerate(rows, start=1):
        if not row or row.startswith("#"):
            continue
        name, colour, *_ = [*row.split(":"), ""]
        try:
            values = tuple(int(value) for value in colour.split(",")) if colour else _voc_colour(len(labels))
        except ValueError:
            values = ()
        if len(values) != 3 or not all(0 <= value <= 255 for value in values) or name in labels:
            raise InputError(
                f"{file}: line {number}, {row!r}, is not name:red,green,blue:: with a name and three numbers 0..255 "
                "of its own; export it again"
            )
        labels[name] = (values[0], values[1], values[2])
    if len(set(labels.values())) < len(labels):
        raise InputError(f"{file}: two labels have one colour; give each its own in CVAT, and export again")
    if not labels.keys() - {BACKGROUND}:
        raise InputError(f"{file}: no labels in it; export it again")
    return labels


def _image(labels: Mapping[str, Colour], mask: tuple[str, File]) -> AnnotatedImage:
    name, file = mask
    numbers = _read_mask(file, labels)
    drawn = {i: name for i, name in enumerate(labels) if name != BACKGROUND}
    present = [i for i in np.unique(numbers).tolist() if i in drawn]
    regions = [Region(drawn[i], mask=partial(np.equal, numbers, i)) for i in present]
    return AnnotatedImage(name, (numbers.shape[0], numbers.shape[1]), regions, str(file))


def _read_mask(file: File, labels: Mapping[str, Colour]) -> Numbers:
    """The number of each pixel's label in labelmap.txt, (H, W); `_UNDRAWN` for a black pixel that has none there."""
    data = read_bytes(file, "mask")
    is_grey = data.startswith(PNG_START) and data[_COLOUR_TYPE : _COLOUR_TYPE + 1] == b"\0"
    values = read_label(file) if is_grey else read_colors(file)  # (H, W) or (H, W, 3)
    numbers = np.where(values < len(labels), values.astype(np.int16), _WRONG) if is_grey else _numbers(values, labels)
    wrong = numbers == _WRONG
    if not wrong.any():
        return numbers
    row, column = divmod(int(wrong.argmax()), wrong.shape[1])
    what = f"{'value' if is_grey else 'colour'} {values[row, column].tolist()}"
    raise InputError(
        f"{file}: {what} is of no label: {int(wrong.sum())} such pixels, first at row {row}, column {column}; "
        f"{LABELMAP} has {listed(list(labels), _SHOWN)}: export masks and labels together again"
    )


def _numbers(colours: UInt8Array, labels: Mapping[str, Colour]) -> Numbers:
    """The numbers of the labels whose colours these are, (H, W, 3) -> (H, W), row by row to save memory."""
    known = np.array(list(labels.values())) @ _WEIGHTS
    order = known.argsort()
    numbers = np.empty(colours.shape[:2], np.int16)
    for row, codes in zip(numbers, (line @ _WEIGHTS for line in colours), strict=True):
        nearest = order[np.searchsorted(known[order], codes).clip(max=len(known) - 1)]
        row[:] = np.where(known[nearest] == codes, nearest, np.where(codes == 0, _UNDRAWN, _WRONG))
    return numbers


def _distinct_colours(space: LabelSpace) -> list[Colour]:
    """The palette, but black for `background` alone, and no colour twice."""
    spare = (colour for colour in map(_voc_colour, range(1, 256)) if colour not in space.palette)
    colours, taken = list[Colour](), {_BLACK}
    for name, colour in zip(space.class_names, space.palette, strict=True):
        if ":" in name or name.startswith("#") or name != name.strip() or not name:
            raise InputError(
                f"class {printable(name)!r} cannot be written to {LABELMAP}, where ':' ends a name and '#' starts a "
                "comment; rename the class"
            )
        colours.append(_BLACK if name == BACKGROUND else next(spare) if colour in taken else colour)
        taken.add(colours[-1])
    return colours


def _voc_colour(index: int) -> Colour:
    """Pascal VOC's colour of a class or object, 0..255: the bits of the number, dealt out to the channels in turn."""
    red, green, blue = (sum((index >> (3 * i + channel) & 1) << (7 - i) for i in range(3)) for channel in range(3))
    return red, green, blue


def _png(colours: UInt8Array) -> bytes:
    return cv2.imencode(".png", colours[..., ::-1])[1].tobytes()


def _add(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    """Add a file with zip's first date, so that equal contents give equal archives."""
    archive.writestr(zipfile.ZipInfo(name), content)
