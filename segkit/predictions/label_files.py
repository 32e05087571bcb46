"""Label PNGs on the disk: what is in them, which image they are of, and the same in a benchmark's own ids."""

import io
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from segkit.errors import InputError
from segkit.io import png_chunks, read_label, write_png
from segkit.paths import walk_files
from segkit.predictions.submission_rules import Benchmark

Ids = Literal["train", "label"]

_BESIDE_LABELS = ("_color", "_overlay")  # what `segkit infer` writes beside NAME_labels.png

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "paletted", 4: "grey with alpha", 6: "RGB with alpha"}

# What the file system and Pillow raise for a damaged or truncated file; InputError is a ValueError.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error)


class IdError(InputError):
    """A label map holds ids of another kind than it was said to hold."""


@dataclass(frozen=True)
class LabelPng:
    """Pixels of each value that occurs, or the (kind, text) of why there are none."""

    pixels: Mapping[int, int] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


def inspect_label_png(read: Callable[[], bytes], size: tuple[int, int] | None) -> LabelPng:
    """Count the values of an 8-bit grey PNG.

    Args:
        read: gives the file's bytes.
        size: the (width, height) that it must have; None: any.

    Returns:
        The counts; or a problem of the kind "unreadable", "format" or "wrong size", found in the header where
        possible, so that a wrong file is not decoded.
    """
    try:
        data = read()
        problem = _header_problem(data, size)
        if problem is not None:
            return LabelPng(problem=problem)
        with Image.open(io.BytesIO(data)) as image:
            counts = image.histogram()
    except (*_READ_ERRORS, Image.DecompressionBombError) as error:
        return LabelPng(problem=("unreadable", " ".join(str(error).split())[:120] or type(error).__name__))
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
    """Whether every chunk has its check sum, up to the end marker; Pillow forgives, another reader may not."""
    try:
        return any(kind == b"IEND" for kind, _ in png_chunks(data, "PNG"))
    except InputError:
        return False


def find_predictions(folder: Path, benchmark: Benchmark) -> dict[str, list[Path]]:
    """PNGs anywhere below `folder` by the image that their names begin with; those of no image are left out.

    Raises:
        InputError: There is no such folder, or no such PNG in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that `segkit predict --output` wrote")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(folder, (".png",)):
        key = benchmark.key(path.name)
        if key is not None and not _is_colours(path):
            found[key].append(path)
    if not found:
        example = "berlin_000000_000019.png" if benchmark.name == "cityscapes" else "ADE_test_00000001.png"
        raise InputError(f"{folder}: no label map of a {benchmark.name} image here; names begin as in {example}")
    return dict(found)


def write_raw(source: Path, target: Path, benchmark: Benchmark, ids: Ids) -> set[int]:
    """Write the label map `source` as an 8-bit grey PNG of the benchmark's own ids.

    Args:
        source: a PNG that holds ids of the kind `ids`.
        target: where to.
        benchmark: whose ids.
        ids: "train": 0..K-1 and 255, which becomes an ignored id; "label": already the benchmark's own.

    Returns:
        The values that occur in `source`.

    Raises:
        InputError: The file is not a label map.
        IdError: It has a value that is no such id.
    """
    labels = read_label(source)
    counts = np.bincount(labels.ravel(), minlength=256)
    values = {int(value) for value in np.flatnonzero(counts)}
    classes = benchmark.space.num_classes
    allowed = {*range(classes), 255} if ids == "train" else {0, *benchmark.ids}
    if not values <= allowed:
        wrong = min(values - allowed)
        raise IdError(
            f"{source}: value {wrong} ({counts[wrong]} pixels) is no {ids} id of {benchmark.name} "
            + (f"(0..{classes - 1}, 255); if this is no train id but one to upload, give --ids label" if ids == "train"
               else f"(0..{max(benchmark.ids)}); if the files hold train ids, give --ids train")
        )  # fmt: skip
    write_png(target, benchmark.space.unmap_labels(labels) if ids == "train" else labels)
    return values


def _is_colours(path: Path) -> bool:
    base = next((path.stem.removesuffix(end) for end in _BESIDE_LABELS if path.stem.endswith(end)), None)
    return base is not None and path.with_name(f"{base}_labels.png").exists()
