"""Checks one image and its mask."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

from segkit.arrays import Int64Array, UInt8Array
from segkit.data.layout.base import Layout
from segkit.data.layout.files import Source
from segkit.errors import InputError
from segkit.io import File, read_header, read_image
from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED
from segkit.paths import read_file

Notes: TypeAlias = list[tuple[str, str]]  # kind (one of `report.KINDS`) and text


@dataclass(frozen=True)
class Pair:
    """An image, and its mask if it exists and is public."""

    image: Source
    mask: Source | None


class Look(NamedTuple):
    """What was found in a pair.

    Attributes:
        notes: Problems of the pair.
        counts: The mask's pixels of each raw value, int64 (256); None if it cannot be read.
        digest: BLAKE2b of the image's file; None if it cannot be read.
        outside: Share of the image's values outside the declared range; None if no range is declared.
    """

    notes: Notes
    counts: Int64Array | None = None
    digest: bytes | None = None
    outside: float | None = None


def inspect_pair(layout: Layout, pair: Pair) -> Look:
    """Check an image and its mask; errors of a decoder become notes, so that no file stops the check."""
    try:
        return _inspect(layout, pair)
    except (OSError, ValueError, MemoryError, cv2.error) as error:
        words = " ".join(str(error).split())
        return Look([("unreadable", f"{pair.image} or its mask: {type(error).__name__}: {words}")])


class _Loaded:
    """A file that is read from disk once and decoded several times."""

    def __init__(self, file: Source) -> None:
        self.file = file
        self._data: bytes | None = None

    def __str__(self) -> str:
        """The file's name, for a message."""
        return str(self.file)

    def read_bytes(self) -> bytes:
        """The file's content."""
        if self._data is None:
            self._data = read_file(self.file) if isinstance(self.file, Path) else self.file.read_bytes()
        return self._data

    @property
    def digest(self) -> bytes | None:
        """BLAKE2b of the content; None if it cannot be read."""
        try:
            return hashlib.blake2b(self.read_bytes(), digest_size=16).digest()
        except (OSError, InputError):
            return None


def _inspect(layout: Layout, pair: Pair) -> Look:
    image = _Loaded(pair.image)
    if pair.mask is None:
        return Look(_inspect_header(image, layout.reader.apply_exif), digest=image.digest)
    notes, size, outside = _inspect_image(image, layout)
    try:
        raw = layout.read_mask(pair.mask)
    except InputError as error:
        return Look([*notes, (_kind_of(pair.mask, str(error)), str(error))], digest=image.digest)
    # Masks are never turned by EXIF, and those of more than 8 bits are read without loss or refused.
    notes += [note for note in _inspect_header(pair.mask, is_turned=True) if "bits per channel" not in note[1]]
    counts = np.bincount(raw.ravel(), minlength=256)  # (256)
    if size is not None and size != raw.shape:
        text = f"{pair.image} is {size[1]}x{size[0]}, {pair.mask} is {raw.shape[1]}x{raw.shape[0]}"
        notes.append(("size", f"{text}: {layout.reader.size_cure(image, size, raw.shape)}"))
    return Look(notes + _inspect_values(layout, raw, counts, pair.mask), counts, image.digest, outside)


def _inspect_image(image: _Loaded, layout: Layout) -> tuple[Notes, tuple[int, ...] | None, float | None]:
    """Problems of an image, its (height, width) as it is read, and the share of its values outside the range."""
    try:
        values = layout.reader.image(image)
    except InputError as error:
        return [("unreadable", str(error))], None, None
    bands, shape = layout.bands, values.shape[:2]
    if bands is None:
        return _inspect_header(image, layout.reader.apply_exif), shape, None
    return [], shape, bands.clipped(values) / values.size


def _inspect_header(file: File, is_turned: bool) -> Notes:
    """Notes on the parts of a file that are not read, and on its orientation unless it `is_turned` by it."""
    try:
        header = read_header(file)
    except InputError as error:
        return [("unreadable", str(error))]
    notes = [("partly read", f"{file} {text}") for text in header.losses()]
    if not header.is_upright and not is_turned:
        notes.append(("exif", f"{file}: orientation {header.orientation}"))
    return notes


def _inspect_values(layout: Layout, raw: UInt8Array, counts: Int64Array, mask: Source) -> Notes:
    labels = {layout.label_space.table[value] for value in np.flatnonzero(counts)}
    if UNDECLARED in labels:
        try:
            layout.label_space.map_labels(raw, str(mask))
        except InputError as error:
            return [("undeclared", str(error))]
    return [("empty mask", str(mask))] if labels <= {IGNORE_INDEX} else []


def _kind_of(mask: Source, message: str) -> str:
    """The kind of problem of a mask that the layout refused: an unknown colour, another kind of file, or damage."""
    if "is not declared" in message:  # a mask of colours, which the layout maps
        return "undeclared"
    if "label map has" in message:  # it was decoded: its values, their shape or their mode are wrong
        return "mask format"
    try:
        read_image(mask)
    except InputError:
        return "unreadable"
    return "mask format"
