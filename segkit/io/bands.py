"""Reads images of any number of bands with the values that they store: uint8, uint16 or float32.

PNG, JPEG, WebP and BMP are decoded by OpenCV, TIFF by rasterio (the optional extra `large-images`), `.npy` by NumPy.
Other integers and floats become float32.
"""

import io
import warnings
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segkit.bands import DTYPES, BandArray, Bands
from segkit.errors import InputError, install_extra, one_line
from segkit.io import File, header_of, read_bytes
from segkit.io.decoding import check_complete, read_npy, turn
from segkit.io.header import NPY_START, Header, check_pixels
from segkit.io.tiff import TIFF_STARTS

_ORDERS = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}


def read_bands(path: File, bands: Bands | None = None, apply_exif: bool = False) -> BandArray:
    """Read an image (H, W, C) with values and order as stored; alpha is a band, too.

    Args:
        path: The image.
        bands: Bands that it must have; None: any.
        apply_exif: Whether to turn the image as its EXIF orientation says.

    Raises:
        InputError: The file is missing, damaged or of another kind, rasterio is needed and missing, or the image is not
            of these bands (`Bands.checked`).
    """
    data = read_bytes(path, "image")
    header = header_of(io.BytesIO(data), path)
    check_pixels(header.width, header.height, path)
    if data.startswith(NPY_START):
        image = read_npy(data, path)
    elif data.startswith(TIFF_STARTS):
        image = _read_tiff(data, path)
    else:
        image = _decode(data, header, path)
    image = image if image.ndim == 3 else image[..., None]  # (H, W) -> (H, W, 1)
    if image.dtype.name not in DTYPES:
        if image.dtype.kind not in "iuf":
            raise InputError(f"{path}: has values of {image.dtype}; allowed are whole numbers and floats")
        image = image.astype(np.float32, order="C")
    image = turn(image, header.orientation) if apply_exif else image
    return image if bands is None else bands.checked(image, path)


def _decode(data: bytes, header: Header, path: File) -> npt.NDArray[Any]:
    check_complete(data, header, path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"{path}: not an image that can be decoded, or damaged; copy or export it again")
    order = _ORDERS.get(1 if image.ndim == 2 else image.shape[2])
    return np.asarray(image if order is None else cv2.cvtColor(image, order))


def _read_tiff(data: bytes, path: File) -> npt.NDArray[Any]:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError:
        install = install_extra("large-images")
        raise InputError(f"{path}: the bands of a TIFF are read by rasterio, which is missing: {install}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.MemoryFile(data) as file, file.open() as source:
                planes = source.read()  # (C, H, W)
        except RasterioError as error:
            raise InputError(f"{path}: truncated or damaged image ({one_line(error)}); copy it again") from error
    return np.asarray(cv2.merge(list(planes)) if planes.dtype.name in DTYPES else np.moveaxis(planes, 0, -1))
