"""Reads images and label maps and writes results, with one decoder rule for the whole toolkit.

Images are decoded by OpenCV (within a tenth of the fastest decoders, and already a dependency), and so are label maps
that are 8-bit PNGs, after their checksums are verified; Pillow decodes other label maps. Nothing is decoded before its
header has been read (`segkit.io.header`): an image of more than 500 million pixels, or more than the environment's
SEGKIT_MAX_PIXELS, is refused. Files are written by `segkit.files`, so a killed run leaves no half-written file.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.files import write_bytes
from segkit.io.decoding import decode_rgb, decoder_words, read_npy, turn
from segkit.io.header import DECODER_ERRORS, JPEG_START, NPY_START, PNG_START, Header, check_pixels, parse_header
from segkit.io.tiff import TIFF_STARTS, upright_tiff
from segkit.paths import check_regular, read_file


class Stored(Protocol):
    """A file that is not on disk by itself, such as a member of an archive; its `str` is its name."""

    def read_bytes(self) -> bytes:
        """The file's content."""
        ...


File: TypeAlias = str | os.PathLike[str] | Stored

# Label maps without row filters: written and read twice as fast, and no larger. (Older OpenCV always filters.)
_LABEL_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _LABEL_PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
_AFTER_HEADER = 33  # bytes of a PNG's signature and header
_DEEP = ("I", "I;16", "I;16B", "F")  # Pillow's modes of one channel of more than 8 bits
_DESCRIBED = 1_000_000  # pixels of a refused label map that its message describes


def read_image(path: File, apply_exif: bool = False) -> UInt8Array:
    """Read any image as uint8 RGB of shape (H, W, 3).

    Grey is repeated, alpha is dropped, a palette is resolved, 16 bits are reduced to the high byte, and only the first
    of several pages or frames is read.

    Args:
        path: The image.
        apply_exif: Whether to turn the image as its EXIF orientation (or a TIFF's tag) says. Leave it off if there is
            a mask that was drawn on the image as stored.

    Raises:
        InputError: The file is missing, a folder, empty, not an image, truncated, or too large (`SEGKIT_MAX_PIXELS`);
            or its values are signed, floats, or 16-bit ones below a quarter of the range, which would turn black.
            Damage that leaves the file decodable is not found: changed bytes of a JPEG, which has no checksum, or
            bytes missing from the middle of a progressive JPEG or one with restart markers.
    """
    data = read_bytes(path, "image")
    header = header_of(io.BytesIO(data), path)
    check_pixels(header.width, header.height, path)
    image = decode_rgb(data, header, path)
    return turn(image, header.orientation) if apply_exif else image


def read_label(path: File) -> UInt8Array:
    """Read a label map as its raw uint8 values, shape (H, W); a paletted PNG gives its indices.

    A TIFF or an `.npy` file may store its values in more bits, or as floats, so long as they are whole numbers 0..255.

    Raises:
        InputError: The file is unreadable, a JPEG, not of one channel, or has other values.
    """
    data = read_bytes(path, "label map")
    fast = _decode_label_png(data, path)
    if fast is not None:
        return fast
    header = header_of(io.BytesIO(data), path)
    check_pixels(header.width, header.height, path)
    if data.startswith(NPY_START):
        return _bytes_of(read_npy(data, path), path)
    try:
        with Image.open(io.BytesIO(upright_tiff(data) if data.startswith(TIFF_STARTS) else data)) as image:
            mode, kind = image.mode, image.format
            deep = np.array(image) if kind == "TIFF" and mode in _DEEP else None
            is_readable = mode in ("L", "P", "1") and kind != "JPEG"
            values = np.array(image, np.uint8) if is_readable else None
            held = "" if is_readable else _describe_values(image)
    except DECODER_ERRORS as error:
        raise InputError(
            f"{path}: unreadable label map ({decoder_words(error)}); write it again as an 8-bit PNG"
        ) from error
    if deep is not None:
        return _bytes_of(deep, path)
    if kind == "JPEG":
        raise InputError(
            f"{path}: label map is a JPEG, which changes label values ({held}); export the labels as 8-bit PNG"
        )
    if values is None:
        raise InputError(
            f"{path}: label map has mode {mode} ({held}); allowed is one 8-bit channel (L or P): {_cure(mode)}"
        )
    return values // _grey_step(data)


def _bytes_of(values: npt.NDArray[Any], path: File) -> UInt8Array:
    """Values of any type as uint8 (H, W), provided that none changes."""
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise InputError(
            f"{path}: label map has the shape {values.shape}, values of {values.dtype}; needed is (H, W), whole numbers"
        )
    wrong = ~((values >= 0) & (values <= 255) & (values == np.floor(values)))  # of a NaN, all three are false
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), values.shape[1])
        raise InputError(
            f"{path}: label map has the value {values[row, column]} at row {row}, column {column} ({int(wrong.sum())} "
            f"such pixels, of {values.dtype}); allowed are whole numbers 0..255: give each class such a number"
        )
    return values.astype(np.uint8)


def read_header(path: File) -> Header:
    """Read an image's header without decoding the image.

    Raises:
        InputError: The file is not an image, or cannot be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        return header_of(io.BytesIO(read_bytes(path, "image")), path)
    check_regular(Path(path))
    try:
        with Path(path).open("rb") as file:
            return header_of(file, path)
    except OSError as error:
        raise InputError(f"{path}: unreadable image ({decoder_words(error)}); copy it again") from error


def image_size(path: File, apply_exif: bool = False) -> tuple[int, int]:
    """(width, height) of any image, from its header alone.

    Args:
        path: The image.
        apply_exif: Whether to apply its EXIF orientation, which swaps the two if the image lies on its side.

    Raises:
        InputError: The file is not an image, or cannot be read.
    """
    header = read_header(path)
    return header.shown_size if apply_exif else (header.width, header.height)


def read_colors(path: File) -> UInt8Array:
    """Read a mask of colours, uint8 RGB (H, W, 3); a palette is resolved, alpha dropped, grey repeated.

    Raises:
        InputError: The file is unreadable, or a JPEG, which changes colours.
    """
    if read_bytes(path, "mask").startswith(JPEG_START):
        raise InputError(f"{path}: mask is a JPEG, which changes its colours; export the masks as PNG")
    return read_image(path)


def write_png(
    path: str | os.PathLike[str],
    array: UInt8Array,
    palette: Sequence[Sequence[int]] | None = None,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 (H, W), with an optional (K, 3) palette of 0..255, or uint8 RGB (H, W, 3) as PNG, atomically.

    Args:
        path: The file.
        array: The values.
        palette: RGB colours of the values.
        text: Metadata in Latin-1, by keyword, for values (H, W) without a palette.

    Raises:
        ValueError: The array has another dtype or shape.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"write_png takes uint8 (H, W) or (H, W, 3), not {array.dtype} {array.shape}")
    if array.ndim == 2 and palette is None:
        data = cv2.imencode(".png", array, _LABEL_PNG)[1].tobytes()
        about = [_png_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in (text or {}).items()]
        write_bytes(path, b"".join([data[:_AFTER_HEADER], *about, data[_AFTER_HEADER:]]))
        return
    if palette is None:  # OpenCV takes a third of Pillow's time, for files that are a seventh larger
        write_bytes(path, cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGB2BGR))[1].tobytes())
        return
    image = Image.fromarray(np.ascontiguousarray(array))
    image.putpalette([int(value) for colour in palette for value in colour])  # L becomes P, values unchanged
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    write_bytes(path, buffer.getvalue())


def read_bytes(path: File, what: str) -> bytes:
    """The content of a file; messages call it `what`.

    Raises:
        InputError: It is missing, a folder, empty, or cannot be read.
    """
    try:
        data = read_file(Path(path)) if isinstance(path, (str, os.PathLike)) else path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; a {what} file is needed") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this {what} ({error.strerror}); check its permissions") from error
    if not data:
        raise InputError(f"{path}: empty file; copy or export this {what} again")
    return data


def header_of(file: BinaryIO, path: File) -> Header:
    """The header of an open image file; `path` names it in the message.

    Raises:
        InputError: The file is not an image, or damaged.
    """
    try:
        return parse_header(file)
    except DECODER_ERRORS as error:
        raise InputError(
            f"{path}: not an image that can be decoded, or damaged ({decoder_words(error)}); allowed are JPEG, PNG, "
            "TIFF, WebP, BMP and .npy"
        ) from error


def _decode_label_png(data: bytes, path: File) -> UInt8Array | None:
    """The values of an 8-bit grey PNG, or the indices of a paletted one; None for every other kind of file.

    OpenCV decodes without holding Python's lock, so that threads decode in parallel. It would resolve a palette, so the
    header is changed to grey and the palette left out, which changes no value.

    Raises:
        InputError: The PNG is damaged; Pillow would silently give wrong values for some damaged files.
    """
    if not data.startswith(PNG_START):
        return None
    chunks = dict[bytes, list[bytes]]()
    for kind, body in png_chunks(data, path):
        chunks.setdefault(kind, []).append(body)
    header = chunks.get(b"IHDR", [b""])[0]
    if len(header) != 13 or header[8] != 8 or header[9] not in (0, 3):  # bits; 0 grey, 3 palette
        return None
    width, height = struct.unpack(">II", header[:8])
    check_pixels(width, height, path)
    grey = [(b"IHDR", header[:9] + b"\0" + header[10:]), *((b"IDAT", body) for body in chunks.get(b"IDAT", ()))]
    png = b"".join([PNG_START, *(_png_chunk(kind, body) for kind, body in [*grey, (b"IEND", b"")])])
    try:
        values = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{path}: OpenCV cannot decode this label map ({decoder_words(error)})") from error
    if values is None or values.ndim != 2:
        raise InputError(f"{path}: damaged label map (its compressed data is wrong); write or copy it again")
    return np.asarray(values, np.uint8)


def png_chunks(data: bytes, path: File) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG up to the end marker, after verifying its checksum.

    Raises:
        InputError: A checksum is wrong, or the end is missing; `path` names the file in the message.
    """
    position = len(PNG_START)
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8].ljust(8, b"\0"))
        body = data[position + 8 : position + 8 + length]
        if data[position : position + 12 + length] != _png_chunk(kind, body):
            what = "truncated" if position + 12 + length > len(data) else "damaged"
            raise InputError(f"{path}: {what} label map (PNG chunk at byte {position}); write or copy it again")
        yield kind, body
        if kind == b"IEND":
            return
        position += 12 + length
    raise InputError(f"{path}: truncated label map (the end of the PNG is missing); write or copy it again")


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _grey_step(data: bytes) -> int:
    """The step between two raw values of 2-bit and 4-bit grey PNGs, which Pillow stretches to 0..255."""
    is_png_grey = data.startswith(PNG_START) and data[25] == 0
    return {2: 85, 4: 17}.get(data[24], 1) if is_png_grey else 1


def _describe_values(image: Image.Image) -> str:
    """How many values or colours a refused label map has, and where the first one is; of a large one, from a sample."""
    step = -(-max(image.size) // math.isqrt(_DESCRIBED))
    pixels = np.asarray(image)[::step, ::step]
    if pixels.ndim == 3:  # (H, W, C) -> (H, W): a number a colour
        first = str(tuple(pixels[0, 0].tolist()))
        pixels = pixels.astype(np.int64) @ (1 << 8 * np.arange(pixels.shape[2]))
        what = "colour"
    else:
        first, what = str(pixels[0, 0]), "value"
    count, same = len(np.unique(pixels)), int((pixels == pixels[0, 0]).sum())
    of = "" if step == 1 else f" of {pixels.size} that were looked at"
    return f"{count} {what}{'s' * (count > 1)}, {first} at row 0, column 0 and in {same} pixels{of}"


def _cure(mode: str) -> str:
    if mode.startswith(("I", "F")):
        return "save it with 8 bits per pixel, class numbers 0..255"
    return (
        "replace each colour by its class number and save one channel, or in a folder of your own set "
        "--data.masks colors (before the path of the masks, if you give one) and write the colours into palette.csv"
    )
