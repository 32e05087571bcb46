"""Reads an image file's header without decoding the image: size, bits, pages, orientation.

JPEG, PNG and TIFF are parsed here, by their specifications (ITU-T T.81, the W3C's PNG, `segkit.io.tiff`): Pillow does
not support every TIFF, rotates those it supports, and decodes a whole PNG to find its orientation. Pillow reads the
headers of all other formats.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from PIL import Image

from segkit.errors import InputError
from segkit.io.tiff import (
    MOST_PAGES,
    TIFF_STARTS,
    UPRIGHT,
    Tag,
    directories,
    exif_orientation,
    orientation_of,
    read_at,
)

MAX_PIXELS = 500_000_000  # 1.5 GB as RGB: 20,000 x 20,000 is read; a file of 109 kB that claims 30,000 x 30,000 is not
MAX_PIXELS_VARIABLE = "SEGKIT_MAX_PIXELS"
MAX_SIDE = 2**20  # pixels, even for images that are read in tiles; OpenCV's own limit

JPEG_START, PNG_START, NPY_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"

_SUBFILE, _WIDTH, _HEIGHT, _BITS = 254, 256, 257, 258  # TIFF's tags
_STRIPS, _CHANNELS, _STRIP_ROWS, _PLANES = 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _FORMAT = 322, 323, 324, 339
_SUBFILE_SMALLER, _SUBFILE_MASK = 1, 4  # flags of a page that is a preview or a mask of another page

Samples: TypeAlias = Literal["unsigned", "signed", "float"]

# What Pillow and struct raise for damaged files; Pillow has many decoders, and few of them expect damage.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
                  EOFError, NotImplementedError, struct.error, Image.DecompressionBombError)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is known before decoding.

    Attributes:
        width: Width in pixels as stored, before the EXIF orientation is applied.
        height: Height in pixels as stored.
        bits: Bits of one sample of one channel, 1..64.
        samples: What these bits represent.
        channels: Channels of a TIFF or an `.npy` file; 0 for other files.
        planes: Whether a TIFF stores each channel as a plane of its own.
        frames: Number of pages of a TIFF or frames of an animation.
        orientation: The EXIF orientation 1..8; 1 is upright.
    """

    width: int
    height: int
    bits: int = 8
    samples: Samples = "unsigned"
    channels: int = 0
    planes: bool = False
    frames: int = 1
    orientation: int = UPRIGHT

    @property
    def is_upright(self) -> bool:
        """Whether the image is shown as stored."""
        return self.orientation == UPRIGHT

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) as shown: the EXIF orientation swaps them if the image lies on its side."""
        shows_columns_as_rows = self.orientation >= 5
        return (self.height, self.width) if shows_columns_as_rows else (self.width, self.height)

    def losses(self) -> list[str]:
        """What is lost when this image is read as one uint8 RGB array, worded to follow the file's name."""
        notes = []
        if self.frames > 1:
            more = f"{MOST_PAGES} or more" if self.frames >= MOST_PAGES else self.frames
            notes.append(f"has {more} pages or frames, of which only the first is read")
        if self.bits > 8:
            notes.append(f"has {self.bits} bits per channel, of which the upper 8 are read")
        return notes


def parse_header(file: BinaryIO) -> Header:
    """Read the header of an open image file.

    Raises:
        DECODER_ERRORS: The file is not an image, or damaged.
    """
    start = file.read(8)
    if start.startswith(JPEG_START):
        header = _parse_jpeg(file)
    elif start == PNG_START:
        header = _parse_png(file)
    elif start.startswith(NPY_START):
        file.seek(0)
        header = _parse_npy(file)
    else:
        file.seek(0)
        header = _parse_tiff(file) if start.startswith(TIFF_STARTS) else _parse_other(file)
    longest = max(header.width, header.height)
    if longest > MAX_SIDE:
        raise ValueError(f"a side of {longest} pixels, more than {MAX_SIDE}")
    return header


def check_pixels(width: int, height: int, path: object) -> None:
    """Refuse an image with more pixels than allowed, before anything of its size is allocated.

    Raises:
        InputError: The image is too large, or the environment's limit is not a number.
    """
    limit = max_pixels()
    if width * height > limit:
        raise InputError(
            f"{path}: is {width} x {height}, {width * height / 1e6:.0f} million pixels; at most {limit / 1e6:g} "
            f"million are read into memory: cut or shrink it, or set {MAX_PIXELS_VARIABLE} to a larger number"
        )


def max_pixels() -> int:
    """The most pixels that an image read into memory may have: SEGKIT_MAX_PIXELS in the environment, or 500 million."""
    text = os.environ.get(MAX_PIXELS_VARIABLE, str(MAX_PIXELS))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{MAX_PIXELS_VARIABLE} is {text!r}; it must be a whole number of pixels, 1 or more")
    return int(text)


def _parse_jpeg(file: BinaryIO) -> Header:
    orientation = UPRIGHT
    file.seek(2)
    while True:
        mark, code = _exactly(file, 2)
        while code == 0xFF:  # fill bytes
            (code,) = _exactly(file, 1)
        if mark != 0xFF:
            raise ValueError(f"no JPEG marker at byte {file.tell() - 2}")
        if code == 0x01 or 0xD0 <= code <= 0xD8:  # markers without a length
            continue
        (length,) = struct.unpack(">H", _exactly(file, 2))
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a start of frame
            bits, height, width = struct.unpack(">BHH", _exactly(file, 5))
            return Header(width, height, bits, orientation=orientation)
        if code == 0xDA or length < 2:
            raise ValueError("a JPEG without a size")
        following = file.tell() + length - 2
        if code == 0xE1 and file.read(6) == b"Exif\0\0":
            orientation = exif_orientation(file.read(length - 8))
        file.seek(following)


def _parse_png(file: BinaryIO) -> Header:
    length, kind, width, height, bits = struct.unpack(">I4sIIB", _exactly(file, 17))
    if kind != b"IHDR" or length != 13 or not width or not height:
        raise ValueError("a PNG without a size")
    size = file.seek(0, io.SEEK_END)
    frames, orientation, position = 1, UPRIGHT, 33
    while len(head := read_at(file, position, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if position + 12 + length > size:  # OpenCV would allocate up to 4 GB for it
            raise ValueError("a chunk of the PNG is longer than the file")
        if kind == b"IEND":
            break
        if kind != b"IDAT":  # the decoder verifies the checksums of IDAT only, not, say, that of an orientation
            body, check_sum = file.read(length), file.read(4)
            if zlib.crc32(kind + body) != int.from_bytes(check_sum, "big"):
                raise ValueError(f"the PNG chunk at byte {position} is damaged")
            if kind == b"acTL":
                frames = int.from_bytes(body[:4], "big")
            elif kind == b"eXIf":
                orientation = exif_orientation(body)
        position += 12 + length
    return Header(width, height, bits, frames=max(1, frames), orientation=orientation)


def _parse_tiff(file: BinaryIO) -> Header:
    pages = directories(file)
    first = next(pages, {})

    def value(tag: int, default: int) -> int:
        return first[tag].value if tag in first else default

    frames = 1 + sum(not page.get(_SUBFILE, Tag(0)).value & (_SUBFILE_SMALLER | _SUBFILE_MASK) for page in pages)
    width, height, channels = value(_WIDTH, 0), value(_HEIGHT, 0), value(_CHANNELS, 1)
    planes = value(_PLANES, 1) == 2
    if not width or not height or not channels:
        raise ValueError("a TIFF without a size")
    if _TILES in first:
        wide, high, stored = value(_TILE_WIDTH, 0), value(_TILE_HEIGHT, 0), first[_TILES].many
    else:
        wide, high, stored = width, value(_STRIP_ROWS, height), first.get(_STRIPS, Tag(0, 0)).many
    if not wide or not high:
        raise ValueError("a TIFF whose strips or tiles have no size")
    needed = -(-width // wide) * -(-height // high) * (channels if planes else 1)
    if stored < needed or (stored > needed and _TILES in first):  # decoders would invent pixels, or mix up tiles
        raise ValueError(f"a TIFF with {stored} strips or tiles, while its size requires {needed}")
    kinds: dict[int, Samples] = {2: "signed", 3: "float"}
    samples = kinds.get(value(_FORMAT, 1), "unsigned")
    return Header(width, height, value(_BITS, 1), samples, channels, planes, frames, orientation_of(first))


def _parse_npy(file: BinaryIO) -> Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if len(shape) not in (2, 3) or 0 in shape or dtype.kind not in "uif":
        raise ValueError(f"an array of shape {shape} and type {dtype}, but numbers (H, W) or (H, W, C) are needed")
    samples: dict[str, Samples] = {"u": "unsigned", "i": "signed", "f": "float"}
    channels = shape[2] if len(shape) == 3 else 1
    return Header(shape[1], shape[0], 8 * dtype.itemsize, samples[dtype.kind], channels)


def _parse_other(file: BinaryIO) -> Header:
    with Image.open(file) as image:
        deep: dict[str, tuple[int, Samples]] = {"I;16": (16, "unsigned"), "I": (32, "signed"), "F": (32, "float")}
        bits, samples = deep.get(image.mode, (8, "unsigned"))
        orientation = exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
        frames = getattr(image, "n_frames", 1)
        return Header(*image.size, bits=bits, samples=samples, frames=frames, orientation=orientation)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("the file ends within its header")
    return data
