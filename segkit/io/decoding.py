"""Decodes the bytes of an image file to uint8 RGB by OpenCV, and checks what OpenCV does not report.

OpenCV silently fills the missing part of a truncated file with grey, reads signed numbers as zeros, and 10 or 12 bits
stored in 16 as almost black.
"""

import io
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from segkit.arrays import UInt8Array
from segkit.errors import InputError, one_line
from segkit.io.header import DECODER_ERRORS, JPEG_START, NPY_START, PNG_START, Header
from segkit.io.tiff import TIFF_STARTS, upright_tiff

# OpenCV prints several lines for each damaged file, but the exception or the missing result says enough.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, OpenCV 5
_set_log_level(0)

Scalar = TypeVar("Scalar", bound=np.generic)

JPEG_END, PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
_COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_DEEP = cv2.IMREAD_UNCHANGED  # OpenCV 5.0 turns 16-bit TIFFs into garbage when asked for RGB
_LEAST_RANGE = 2**14  # values below a quarter of 16 bits: the image was stored with 10, 12 or 14 bits

_TURNS = {  # EXIF orientation -> how the image is shown upright
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: lambda image: cv2.transpose(image),
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.flip(cv2.transpose(image), -1),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def decode_rgb(data: bytes, header: Header, path: object) -> UInt8Array:
    """Decode an image as stored, whatever its EXIF orientation.

    Args:
        data: The file's bytes.
        header: The file's header.
        path: The file's name in messages.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        InputError: The file is detectably truncated or damaged, or of a kind that is not read.
    """
    if data.startswith(NPY_START):
        try:
            return np.ascontiguousarray(rgb_from_array(read_npy(data, path)))
        except InputError as error:
            raise InputError(f"{path}: {error}; or declare its bands and range: --data.range") from error
    data = upright_tiff(data) if data.startswith(TIFF_STARTS) else data
    check_complete(data, header, path)
    if header.bits > 8 or header.samples != "unsigned":
        return _decode_deep(data, header, path)
    image = _decode(data, _COLOR, path)
    if image is None and data.startswith(TIFF_STARTS):  # tiles of 16 pixels, 2 or 4 bits of grey, ...
        image = _decode_by_pillow(data)
    if image is None:
        raise InputError(f"{path}: not an image that can be decoded; allowed are JPEG, PNG, TIFF, WebP and BMP")
    if data.startswith(JPEG_START) and _ended_early(data, image, path):
        raise InputError(f"{path}: damaged image (a part of the JPEG's data is missing); copy it again")
    return np.asarray(image, np.uint8)


def turn(image: npt.NDArray[Scalar], orientation: int) -> npt.NDArray[Scalar]:
    """Turn an image (H, W, C) as its EXIF orientation 1..8 says."""
    if orientation not in _TURNS:
        return image
    turned = np.asarray(_TURNS[orientation](image), image.dtype)
    return turned if turned.ndim == 3 else turned[..., None]  # OpenCV drops a single channel's axis


def read_npy(data: bytes, path: object) -> npt.NDArray[Any]:
    """The array of an `.npy` file, (H, W) or (H, W, C), in the machine's byte order.

    Raises:
        InputError: It is damaged, has another number of axes, or holds objects, which nothing here unpickles.
    """
    try:
        array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except DECODER_ERRORS as error:
        raise InputError(f"{path}: damaged .npy file ({one_line(error)}); write it again by numpy.save") from error
    if array.ndim not in (2, 3) or not array.size:
        raise InputError(f"{path}: has the shape {array.shape}; needed is (H, W) or (H, W, C), the channels last")
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def high_byte(values: npt.NDArray[np.uint16], path: object) -> UInt8Array:
    """The upper 8 bits of an image's uint16 values.

    Raises:
        InputError: The values use less than a quarter of the range and would turn almost black.
    """
    high = (values >> 8).astype(np.uint8)
    most = int(values.max(initial=0))
    if most < _LEAST_RANGE:
        low = values & 255
        if low.any() and (low != high).any():  # otherwise made from 8 bits, by a shift or by * 257: nothing is lost
            raise InputError(
                f"{path}: 16 bits per channel with values {int(values.min())}..{most}: only the upper 8 bits are read, "
                f"which would leave {(most >> 8) + 1} of 256 levels, almost black; scale it to 0..255 and save 8 bits"
            )
    return high


def rgb_from_pillow(image: Image.Image) -> UInt8Array:
    """A Pillow image, upright, as uint8 RGB (H, W, 3).

    Raises:
        InputError: The range of its values is unknown, or its file is damaged.
    """
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return rgb_from_array(np.asarray(upright).astype(np.uint16))  # the file may be big-endian
        if upright.mode in ("I", "F"):
            raise InputError(f"a Pillow image of mode {upright.mode} has no fixed range: give it as 8 or 16 bits")
        return np.asarray(upright.convert("RGB"))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # Pillow decodes on first use
        raise InputError(f"the Pillow image cannot be decoded ({error}): is its file truncated, or closed?") from error


def rgb_from_array(array: npt.NDArray[Any]) -> UInt8Array:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of 8 or 16 bits as uint8 RGB (H, W, 3), which may be a view.

    Raises:
        InputError: It has another dtype or shape, or 16-bit values of at most 14 bits.
    """
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise InputError(
            f"an image cannot be of {array.dtype}, whose range is unknown: give uint8 in 0..255, "
            "for instance (image * 255).round().astype(np.uint8) if it is in 0..1"
        )
    if array.ndim == 2:
        array = array[..., None]  # (H, W) -> (H, W, 1)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise InputError(
            f"an image cannot have the shape {array.shape}: give (H, W) grey, (H, W, 3) RGB or (H, W, 4) with alpha, "
            "the channels last"
        )
    if array.dtype != np.uint8:
        array = high_byte(array[..., :3], "array")
    return np.broadcast_to(array[..., :3], (*array.shape[:2], 3))


def check_complete(data: bytes, header: Header, path: object) -> None:
    """Refuse a truncated file, whose missing rows OpenCV would silently fill with grey.

    A JPEG or PNG that ends with its end marker is complete, which costs nothing. Anything else (bytes after the
    marker, other formats) is decoded once by Pillow, which is strict.
    """
    if data.startswith(JPEG_START) and data.endswith(JPEG_END):
        return
    if data.startswith(PNG_START) and data.endswith(PNG_END):
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Image.DecompressionBombError:  # large for Pillow: OpenCV decides
        return
    except UnidentifiedImageError as error:
        if header.samples == "unsigned" and header.bits <= 16:  # OpenCV makes white of an unknown compression
            raise InputError(f"{path}: an image of a kind that is not read; save it as RGB with 8 bits") from error
    except DECODER_ERRORS as error:
        raise InputError(f"{path}: truncated or damaged image ({decoder_words(error)}); copy it again") from error


def decoder_words(error: BaseException) -> str:
    """A decoder's error as one line for a message."""
    if isinstance(error, UnidentifiedImageError):  # its text names an object in memory
        return "no image format"
    return one_line(error)


def _decode(data: bytes, flags: int, path: object) -> npt.NDArray[np.generic] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"{path}: OpenCV cannot decode this image ({decoder_words(error)}); save it again") from error


def _decode_by_pillow(data: bytes) -> UInt8Array | None:
    """Decode by Pillow; None if it cannot either."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except DECODER_ERRORS:
        return None


def _decode_deep(data: bytes, header: Header, path: object) -> UInt8Array:
    values = None if header.bits % 8 else _decode(data, _DEEP, path)  # of packed bits OpenCV notices no damage
    channels = 0 if values is None else 1 if values.ndim == 2 else values.shape[2]
    is_odd = header.channels > 1 and (header.planes or channels != header.channels)  # OpenCV mixes their values up
    if values is None or is_odd:
        kind = f"{header.bits} bits {header.samples}" + (f", {header.channels} channels" if header.channels else "")
        raise InputError(f"{path}: an image of this kind is not read ({kind}); save it as RGB with 8 bits per channel")
    if values.dtype != np.uint16:
        with np.errstate(invalid="ignore"):
            low, high = np.nanmin(values), np.nanmax(values)
        raise InputError(
            f"{path}: has values of {values.dtype}, here {low:g}..{high:g}, whose range is not known; scale it to "
            "0..255 and save 8 bits"
        )
    deep = np.asarray(values, np.uint16)
    if deep.ndim == 2:
        deep = deep[..., None]  # (H, W) -> (H, W, 1)
    high = high_byte(deep[..., 2::-1], path)  # grey, or BGR or BGRA -> RGB
    return np.ascontiguousarray(np.broadcast_to(high, (*high.shape[:2], 3)))


def _ended_early(data: bytes, image: npt.NDArray[np.generic], path: object) -> bool:
    """Whether the data of a JPEG ended before its last block, which libjpeg then silently fills with mid-grey.

    Bytes inserted before the end marker change the image only if the decoder still wanted some. The image is decoded
    again only if its last corner looks like that, so the check costs nothing.
    """
    if (image[-8:, -8:] != 128).any():
        return False
    end = data.rfind(JPEG_END)
    again = _decode(data[:end] + b"\x55" * 4096 + data[end:], _COLOR, path)
    return again is None or not np.array_equal(again, image)
