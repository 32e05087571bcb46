"""Label PNGs: what the test servers of Cityscapes and ADE20K require, and checks of the files on disk.

Cityscapes (cityscapesScripts, evalPixelLevelSemanticLabeling.getPrediction): 8-bit PNGs of label ids, found anywhere in
the archive by `<city>_<6 digits>_<6 digits>*.png`. ADE20K (development kit of the scene parsing challenge 2016): PNGs
of 1..150 with the name of the image.
"""

import io
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from segkit.errors import InputError, one_line
from segkit.io import png_chunks, read_label, write_png
from segkit.io.confidence import is_confidence
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES, LABELS
from segkit.metadata.label_space import LabelSpace
from segkit.paths import walk_files

Ids = Literal["train", "raw"]  # kinds of ids in label maps: train ids, or the data set's own
WidthHeight = tuple[int, int]  # width, height

_BESIDE_LABELS = ("_color", "_overlay")  # files that `segkit infer` writes beside NAME_labels.png

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "paletted", 4: "grey with alpha", 6: "RGB with alpha"}

# Errors of the file system and Pillow for a damaged or truncated file; InputError is a ValueError.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error)


@dataclass(frozen=True)
class Server:
    """The requirements of one test server.

    Attributes:
        space: Classes; `space.unmap_labels` turns train ids into the uploaded ids.
        ids: The values that a pixel may have.
        image: Matches the image's name at the start of a file's name.
        file: Matches allowed file names.
        ending: Ending of the names that segkit gives.
        flat: Whether files must be at the top of the archive.
        size: Width and height of every image, or None if they differ.
        counts: Number of images of each split.
        folders: Folders below the data root that may hold the images of each split; the first that exists is used.
    """

    name: str
    space: LabelSpace
    ids: range
    image: re.Pattern[str]
    file: re.Pattern[str]
    ending: str
    flat: bool
    size: WidthHeight | None
    counts: Mapping[str, int]
    folders: Mapping[str, Sequence[str]]

    def key(self, file_name: str) -> str | None:
        """Name of the image that a file (name or path) belongs to, or None."""
        match = self.image.match(file_name.rsplit("/", 1)[-1])
        return match.group(0) if match else None

    def holds_train_ids(self, values: set[int]) -> bool:
        """Whether these values of a label map are train ids: all are valid train ids, but not all are uploaded ids."""
        classes = self.space.num_classes
        evaluated = {raw for raw, train_id in enumerate(self.space.table) if 0 <= train_id < classes}
        return values <= {*range(classes), 255} and not values <= evaluated


_CITYSCAPES_NAME = r"[^_/]+_\d{6}_\d{6}(?!\d)"
_ADE20K_NAME = r"ADE_(?:test|val|train)_\d{8}(?!\d)"

SERVERS = {
    "cityscapes": Server(
        name="cityscapes",
        space=CITYSCAPES,
        ids=range(len(LABELS)),
        image=re.compile(_CITYSCAPES_NAME),
        file=re.compile(_CITYSCAPES_NAME + r"[^/]*\.png"),
        ending="_pred_labelIds.png",
        flat=False,
        size=(2048, 1024),
        counts={"val": 500, "test": 1525},
        folders={"val": ("leftImg8bit/val",), "test": ("leftImg8bit/test",)},
    ),
    "ade20k": Server(
        name="ade20k",
        space=ADE20K,
        ids=range(1, 151),
        image=re.compile(_ADE20K_NAME),
        file=re.compile(_ADE20K_NAME + r"\.png"),
        ending=".png",
        flat=True,
        size=None,
        counts={"val": 2000, "test": 3352},  # test: release_test.zip, as the field counts it
        folders={
            "val": ("images/validation", "ADEChallengeData2016/images/validation"),
            "test": ("images/testing", "ADEChallengeData2016/images/testing", "release_test/testing", "testing"),
        },
    ),
}


class IdError(InputError):
    """A label map holds ids of a different kind than declared."""


@dataclass(frozen=True)
class LabelPng:
    """The number of pixels of each value that occurs, or the kind and text of the problem."""

    pixels: Mapping[int, int] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


def inspect_label_png(read: Callable[[], bytes], size: tuple[int, int] | None) -> LabelPng:
    """Count the values of an 8-bit grey PNG.

    Args:
        read: Returns the file's bytes.
        size: The (width, height) that it must have; None: any.

    Returns:
        The counts; or a problem of the kind "unreadable", "format" or "wrong size", found in the header if possible, so
        that a wrong file is not decoded.
    """
    try:
        data = read()
        problem = _header_problem(data, size)
        if problem is not None:
            return LabelPng(problem=problem)
        with Image.open(io.BytesIO(data)) as image:
            counts = image.histogram()
    except (*_READ_ERRORS, Image.DecompressionBombError) as error:
        return LabelPng(problem=("unreadable", one_line(error)))
    return LabelPng(pixels={value: count for value, count in enumerate(counts) if count})


def _header_problem(data: bytes, size: tuple[int, int] | None) -> tuple[str, str] | None:
    if not data:
        return "unreadable", "empty file"
    if not data.startswith(_SIGNATURE):
        return "format", "a JPEG, which changes label values" if data.startswith(b"\xff\xd8\xff") else "not a PNG"
    if len(data) < 33:
        return "unreadable", "truncated in its header"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if (depth, colour) != (8, 0):
        return "format", f"{depth} bits a channel, {_COLOUR_TYPES.get(colour, 'unknown colours')}"
    if size is not None and (width, height) != size:
        return "wrong size", f"{width}x{height}, its image is {size[0]}x{size[1]}"
    return None if _is_whole(data) else ("unreadable", "truncated or damaged")


def _is_whole(data: bytes) -> bool:
    """Whether every chunk up to the end marker has a right checksum; Pillow does not mind, other readers may."""
    try:
        return any(kind == b"IEND" for kind, _ in png_chunks(data, "PNG"))
    except InputError:
        return False


def find_predictions(folder: Path, server: Server) -> dict[str, list[Path]]:
    """PNGs anywhere below `folder` by the image name with which theirs begin; other files are left out.

    Raises:
        InputError: There is no such folder, or no such PNG in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that `segkit predict --output` wrote")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(folder, (".png",)):
        key = server.key(path.name)
        if key is not None and not _is_colours(path) and not is_confidence(path):
            found[key].append(path)
    if not found:
        example = "berlin_000000_000019.png" if server.name == "cityscapes" else "ADE_test_00000001.png"
        raise InputError(f"{folder}: no label map of a {server.name} image here; names begin as in {example}")
    return dict(found)


def write_raw(source: Path, target: Path, server: Server, ids: Ids) -> set[int]:
    """Write the label map `source` as an 8-bit grey PNG of the server's ids.

    Args:
        source: A PNG that holds ids of the kind `ids`.
        target: The file to write.
        server: The server whose ids are written.
        ids: "train": 0..K-1 and 255, which becomes an ignored id; "raw": already the server's own.

    Returns:
        The values that occur in `source`.

    Raises:
        InputError: The file is not a label map.
        IdError: It has a value that is not such an id.
    """
    labels = read_label(source)
    counts = np.bincount(labels.ravel(), minlength=256)
    values = {int(value) for value in np.flatnonzero(counts)}
    classes = server.space.num_classes
    allowed = {*range(classes), 255} if ids == "train" else {0, *server.ids}
    if not values <= allowed:
        wrong = min(values - allowed)
        hint = f"(0..{max(server.ids)}); if the files hold train ids, give --prediction_ids train"
        if ids == "train":
            hint = f"(0..{classes - 1}, 255); if this is no train id but one to upload, give --prediction_ids raw"
        raise IdError(f"{source}: value {wrong} ({counts[wrong]} pixels) is no {ids} id of {server.name} {hint}")
    write_png(target, server.space.unmap_labels(labels) if ids == "train" else labels)
    return values


def _is_colours(path: Path) -> bool:
    base = next((path.stem.removesuffix(end) for end in _BESIDE_LABELS if path.stem.endswith(end)), None)
    return base is not None and path.with_name(f"{base}_labels.png").exists()
