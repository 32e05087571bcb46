"""Reading pictures and label maps, writing results: one decoder rule for the whole toolkit.

Pictures are decoded by OpenCV (within a tenth of the fastest decoders, and already a dependency), and so are label maps
that are 8-bit PNGs, after their check sums are looked at; other label maps by Pillow. Files are written by
`segkit.files`: a killed run leaves no half file.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from segkit.errors import InputError
from segkit.files import write_bytes

UInt8Array = npt.NDArray[np.uint8]


class Stored(Protocol):
    """A file that is not on the disk by itself, such as a member of an archive; `str` of it is its name."""

    def read_bytes(self) -> bytes:
        """Its content."""
        ...


File: TypeAlias = str | os.PathLike[str] | Stored

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Label maps without row filters: written and read twice as fast, and no larger. (Older OpenCV always filters.)
_LABEL_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _LABEL_PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def read_image(path: File, apply_exif: bool = False) -> UInt8Array:
    """Read any picture as uint8 RGB of shape (H, W, 3).

    Grey is repeated, alpha dropped, a palette resolved, of 16 bits the high byte kept.

    Args:
        path: The picture.
        apply_exif: Turn the picture as its EXIF tag says. Leave it off where a mask exists: masks carry no tag.

    Raises:
        InputError: The file is absent, a folder, empty, not a picture, or truncated.
    """
    data = _read_bytes(path, "picture")
    _check_complete(data, path)
    flags = cv2.IMREAD_COLOR_RGB if apply_exif else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"{path}: OpenCV cannot decode this picture ({_one_line(error)}); save it again") from error
    if image is None:
        raise InputError(f"{path}: not a picture that can be decoded; allowed are JPEG, PNG, TIFF, WebP and BMP")
    return np.asarray(image, np.uint8)


def read_label(path: File) -> UInt8Array:
    """Read a label map as its raw uint8 values, shape (H, W); a paletted PNG gives its indices.

    Raises:
        InputError: The file is unreadable, a JPEG, or has another mode than one 8-bit channel (RGB, 16-bit, ...).
    """
    data = _read_bytes(path, "label map")
    fast = _decode_label_png(data, path)
    if fast is not None:
        return fast
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            mode, kind = picture.mode, picture.format
            values = np.array(picture, np.uint8) if mode in ("L", "P", "1") else None
            held = _describe_values(picture) if values is None or kind == "JPEG" else ""
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: unreadable label map ({_one_line(error)}); write it again as an 8-bit PNG"
        ) from error
    if kind == "JPEG":
        raise InputError(
            f"{path}: label map is a JPEG, which changes label values ({held}); export the labels as 8-bit PNG"
        )
    if values is None:
        raise InputError(
            f"{path}: label map has mode {mode} ({held}); allowed is one 8-bit channel (L or P): {_cure(mode)}"
        )
    return values // _grey_step(data)


def picture_size(path: File) -> tuple[int, int]:
    """(width, height) of any picture, from its header alone; EXIF orientation is not applied.

    Raises:
        InputError: It is no picture, or cannot be read.
    """
    on_disk = isinstance(path, (str, os.PathLike))
    try:
        with Image.open(path if on_disk else io.BytesIO(_read_bytes(path, "picture"))) as picture:  # type: ignore[arg-type]
            return picture.size
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: unreadable picture ({_one_line(error)}); copy it again") from error


def read_colors(path: File) -> UInt8Array:
    """Read a mask of colours, uint8 RGB (H, W, 3); a palette is resolved, alpha dropped, grey repeated.

    Raises:
        InputError: The file is unreadable, or a JPEG, which changes colours.
    """
    if _read_bytes(path, "mask").startswith(_JPEG_START):
        raise InputError(f"{path}: mask is a JPEG, which changes its colours; export the masks as PNG")
    return read_image(path)


def write_png(path: str | os.PathLike[str], array: UInt8Array, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write uint8 (H, W), with an optional (K, 3) palette of 0..255, or uint8 RGB (H, W, 3) as PNG, atomically.

    Raises:
        ValueError: The array has another dtype or shape.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"write_png takes uint8 (H, W) or (H, W, 3), not {array.dtype} {array.shape}")
    if array.ndim == 2 and palette is None:
        write_bytes(path, cv2.imencode(".png", array, _LABEL_PNG)[1].tobytes())
        return
    picture = Image.fromarray(np.ascontiguousarray(array))
    if palette is not None:
        picture.putpalette([int(value) for colour in palette for value in colour])  # L becomes P, values unchanged
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    write_bytes(path, buffer.getvalue())


def _read_bytes(path: File, what: str) -> bytes:
    try:
        data = (Path(path) if isinstance(path, (str, os.PathLike)) else path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; a {what} file is needed") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this {what} ({error.strerror}); check its permissions") from error
    if not data:
        raise InputError(f"{path}: empty file; copy or export this {what} again")
    return data


def _check_complete(data: bytes, path: File) -> None:
    """Refuse a truncated file, whose missing rows OpenCV would fill with grey without a word.

    A JPEG or PNG that ends with its end marker is complete, which costs nothing. Anything else (bytes after the
    marker, other formats) is decoded once by Pillow, which is strict.
    """
    if data.startswith(_JPEG_START) and data.endswith(_JPEG_END):
        return
    if data.startswith(_PNG_START) and data.endswith(_PNG_END):
        return
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        # Pillow does not know the format, or finds it large: OpenCV decides.
        return
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: truncated or damaged picture ({_one_line(error)}); copy it again") from error


def _decode_label_png(data: bytes, path: File) -> UInt8Array | None:
    """The values of an 8-bit grey PNG, or the indices of a paletted one; None for every other kind of file.

    OpenCV decodes without holding Python's lock, so that threads decode at the same time. It would resolve a palette:
    the header is made to say grey, and the palette is left out, which changes no value.

    Raises:
        InputError: the file is a PNG and is damaged. Pillow would give some damaged files' values wrongly, in silence.
    """
    if not data.startswith(_PNG_START):
        return None
    chunks = dict[bytes, list[bytes]]()
    for kind, body in png_chunks(data, path):
        chunks.setdefault(kind, []).append(body)
    header = chunks.get(b"IHDR", [b""])[0]
    if len(header) != 13 or header[8] != 8 or header[9] not in (0, 3):  # bits; 0 grey, 3 palette
        return None
    grey = [(b"IHDR", header[:9] + b"\0" + header[10:]), *((b"IDAT", body) for body in chunks.get(b"IDAT", ()))]
    png = b"".join([_PNG_START, *(_png_chunk(kind, body) for kind, body in [*grey, (b"IEND", b"")])])
    try:
        values = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{path}: OpenCV cannot decode this label map ({_one_line(error)})") from error
    if values is None or values.ndim != 2:
        raise InputError(f"{path}: damaged label map (its compressed data is wrong); write or copy it again")
    return np.asarray(values, np.uint8)


def png_chunks(data: bytes, path: File) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG, up to the end marker, once its check sum is found right.

    Raises:
        InputError: A check sum is wrong, or the end is missing; `path` is what the message calls the file.
    """
    position = len(_PNG_START)
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
    """Pillow stretches 2-bit and 4-bit grey PNGs to 0..255: the step between two raw values."""
    is_png_grey = data.startswith(_PNG_START) and data[25] == 0
    return {2: 85, 4: 17}.get(data[24], 1) if is_png_grey else 1


def _describe_values(picture: Image.Image) -> str:
    """How many values or colours a refused label map has, and where the first one is."""
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        count, same = len(np.unique(pixels)), int((pixels == pixels[0, 0]).sum())
        return f"{count} value{'s' * (count > 1)}, {pixels[0, 0]} at row 0, column 0 and in {same} pixels"
    codes = pixels.astype(np.int64) @ (1 << 8 * np.arange(pixels.shape[2]))  # (H, W, C) -> (H, W): a number a colour
    count, same = len(np.unique(codes)), int((codes == codes[0, 0]).sum())
    return f"{count} colour{'s' * (count > 1)}, {tuple(pixels[0, 0].tolist())} at row 0, column 0 and in {same} pixels"


def _cure(mode: str) -> str:
    if mode.startswith(("I", "F")):
        return "save it with 8 bits per pixel, class numbers 0..255"
    return (
        "replace each colour by its class number and save one channel, or in a folder of one's own set masks=colors "
        "(--data.masks colors; `segkit data`: --option masks=colors) and write the colours into palette.csv"
    )


def _one_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text names an object in memory
        return "no picture format"
    return " ".join(str(error).split())[:120]
