"""Images as networks need them, of any kind that a user may give."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from segkit.bands import Bands
from segkit.errors import InputError
from segkit.io import File, read_header, read_image
from segkit.io.bands import read_bands
from segkit.io.decoding import rgb_from_array, rgb_from_pillow
from segkit.io.header import max_pixels

ImageLike = np.ndarray | Image.Image | str | Path

IMAGE_BYTES = 40  # per pixel, of an image that is read whole: it, its labels, colours and overlay

_HELD = 0.5  # of the budget: an image that takes more is put aside
_BANDS = 4  # times the bytes that a pixel takes in the file beyond those of RGB: decoded, stacked and as floats


def as_rgb(image: ImageLike) -> np.ndarray:
    """Convert any image that `Segmenter.predict` accepts to contiguous, writable uint8 `(H, W, 3)` RGB.

    Raises:
        InputError: See `Segmenter.predict`.
    """
    if isinstance(image, str | Path) and "\0" not in str(image):
        array = read_image(Path(image), apply_exif=True)
    elif isinstance(image, Image.Image):
        array = rgb_from_pillow(image)
    elif isinstance(image, np.ndarray):
        array = rgb_from_array(image)
    else:
        kind = "path with a null byte" if isinstance(image, str | Path) else type(image).__name__
        raise InputError(f"an image cannot be a {kind}: give a path, a Pillow image or a uint8 array (H, W, 3)")
    return np.require(array, np.uint8, ["C", "W"])


def as_bands(image: ImageLike, bands: Bands) -> np.ndarray:
    """An image `(H, W, C)` of these bands, with the values that it stores.

    Raises:
        InputError: See `Segmenter.predict`.
    """
    if isinstance(image, str | Path) and "\0" not in str(image):
        return read_bands(Path(image), bands, apply_exif=True)
    array = np.asarray(ImageOps.exif_transpose(image)) if isinstance(image, Image.Image) else image
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or not array.size:
        raise InputError(f"an image must be a path or an array (H, W, C) of {bands}, the channels last")
    array = array if array.ndim == 3 else array[..., None]  # (H, W) -> (H, W, 1)
    if bands.dtype == "float32" and array.dtype.kind in "if":
        array = array.astype(np.float32)
    return np.require(bands.checked(array, "array"), requirements=["C", "W"])


def is_large(path: File, memory: int, pixel_bytes: int = IMAGE_BYTES) -> bool:
    """Whether an image is not read whole: it has too many pixels to read at once, or takes half the budget alone.

    Args:
        path: The image.
        memory: The budget in bytes.
        pixel_bytes: Bytes that a pixel of RGB takes.
    """
    try:
        header = read_header(path)
    except InputError:
        return False  # the reader reports the error
    pixels = header.width * header.height
    more = _BANDS * max(0, header.channels * header.bits // 8 - 3)
    return pixels > max_pixels() or pixels * (pixel_bytes + more) > _HELD * memory
