"""Reads the tags of a TIFF's pages, as TIFF 6.0 and BigTIFF define them; an EXIF block is a TIFF without an image."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeAlias

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little-endian and big-endian; "+" is BigTIFF
MOST_PAGES = 10_000  # the most that are read; a longer chain of directories is damage or malice

ORIENTATION = 274  # the tag; its values are EXIF's
UPRIGHT = 1  # the orientation of an image that need not be turned; 2..8 are the others

_SHORT = 3  # the type of a 16-bit integer
_INTEGERS = {1: "B", _SHORT: "H", 4: "I", 16: "Q"}  # types of values, and struct's format characters for them


class Tag(NamedTuple):
    """An entry of a directory: its first value, its number of values, and the byte offset of the entry itself."""

    value: int
    many: int = 1
    position: int = 0


Tags: TypeAlias = dict[int, Tag]


@dataclass(frozen=True)
class _Form:
    """How a TIFF encodes numbers: `order` is struct's byte order, `number` the struct format of an offset."""

    order: str
    is_big: bool

    @classmethod
    def of(cls, start: bytes) -> "_Form":
        if not start.startswith(TIFF_STARTS):
            raise ValueError("no TIFF header")
        return cls("<" if start.startswith(b"II") else ">", b"+" in start[2:4])

    @property
    def number(self) -> str:
        return self.order + ("Q" if self.is_big else "I")

    @property
    def inline(self) -> int:
        """Size in bytes of an offset, and of the values that an entry holds inline."""
        return 8 if self.is_big else 4

    @property
    def counter(self) -> str:
        """The struct format of a directory's number of entries."""
        return self.order + ("Q" if self.is_big else "H")


def directories(file: BinaryIO) -> Iterator[Tags]:
    """Yield the integer tags of each page; a damaged chain of pages ends where the damage is.

    Raises:
        ValueError: The file does not start with a TIFF header.
        struct.error: The file ends within its header.
    """
    start = file.read(16)
    form = _Form.of(start)
    (position,) = struct.unpack_from(form.number, start, form.inline)
    seen: set[int] = set()
    while position and position not in seen and len(seen) < MOST_PAGES:
        seen.add(position)
        counted = read_at(file, position, struct.calcsize(form.counter))
        if len(counted) < struct.calcsize(form.counter):
            return
        (count,) = struct.unpack(form.counter, counted)
        begin, length = position + len(counted), (4 + 2 * form.inline) * count
        if length > 20 * 65_536:  # more tags than exist
            return
        yield _entries(file, form, begin, read_at(file, begin, length))
        following = read_at(file, begin + length, form.inline)
        position = struct.unpack(form.number, following)[0] if len(following) == form.inline else 0


def orientation_of(tags: Tags) -> int:
    """The orientation 1..8; upright if it is missing or out of range."""
    value = tags.get(ORIENTATION, Tag(UPRIGHT)).value
    return value if 1 <= value <= 8 else UPRIGHT


def exif_orientation(block: bytes) -> int:
    """The orientation in an EXIF block; upright if the block is damaged, as every reader assumes."""
    try:
        return orientation_of(next(directories(io.BytesIO(block)), {}))
    except (ValueError, OverflowError, struct.error):
        return UPRIGHT


def upright_tiff(data: bytes) -> bytes:
    """The same TIFF marked as upright: OpenCV and Pillow rotate a TIFF by its tag even when told not to."""
    tag = next(directories(io.BytesIO(data)), {}).get(ORIENTATION)
    if tag is None or tag.value == UPRIGHT:
        return data
    form = _Form.of(data)
    entry = struct.pack(f"{form.order}HH", ORIENTATION, _SHORT) + struct.pack(form.number, 1)
    entry += struct.pack(f"{form.order}H", UPRIGHT)
    return data[: tag.position] + entry + data[tag.position + len(entry) :]


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Read up to `count` bytes from a position."""
    file.seek(position)
    return file.read(count)


def _entries(file: BinaryIO, form: _Form, begin: int, table: bytes) -> Tags:
    tags: Tags = {}
    size = 4 + 2 * form.inline
    for at in range(0, len(table) - size + 1, size):
        tag, kind = struct.unpack_from(f"{form.order}HH", table, at)
        (many,) = struct.unpack_from(form.number, table, at + 4)
        letter = _INTEGERS.get(kind)
        if letter is None or not many:
            continue
        width, value = struct.calcsize("=" + letter), table[at + size - form.inline : at + size]
        if many * width > form.inline:
            value = read_at(file, struct.unpack(form.number, value)[0], width)
        if len(value) >= width:
            tags[tag] = Tag(struct.unpack_from(form.order + letter, value)[0], many, begin + at)
    return tags
