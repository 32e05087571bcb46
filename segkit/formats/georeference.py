"""Where an image lies on the ground: its reference system and grid, as GDAL knows them, and how large a pixel is."""

import warnings
from pathlib import Path
from typing import TypeAlias

from segkit.errors import import_extra
from segkit.formats.shapes import EXTRA
from segkit.io import read_header

# A coordinate reference system, "EPSG:32633" or WKT, and (a, b, c, d, e, f) by which pixel (x, y) is at
# (ax + by + c, dx + ey + f) in it.
Georeference: TypeAlias = tuple[str, tuple[float, ...]] | tuple[None, None]
NOWHERE: Georeference = (None, None)


def read_georeference(path: Path) -> Georeference:
    """The georeference of an image file; `NOWHERE` if it has none, or if its orientation turns it.

    Raises:
        InputError: rasterio is not installed, or the file is no image.
    """
    rasterio, errors = import_extra("rasterio", EXTRA), import_extra("rasterio.errors", EXTRA)
    if not read_header(path).is_upright:
        return NOWHERE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as source:
                crs, transform = source.crs, source.transform
        except errors.RasterioError:  # not a format of GDAL's, such as .npy
            return NOWHERE
    if crs is None or transform.is_identity:
        return NOWHERE
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.to_wkt(), tuple(transform)[:6]


def pixel_area(crs: str | None, transform: tuple[float, ...] | None) -> float | None:
    """Square metres of a pixel; None where they are not known, as in degrees, whose metres depend on the place.

    Raises:
        InputError: rasterio is not installed.
    """
    if crs is None or transform is None:
        return None
    system = import_extra("rasterio.crs", EXTRA).CRS.from_user_input(crs)
    if not system.is_projected:
        return None
    a, b, _, d, e, _ = transform
    return float(abs(a * e - b * d) * system.linear_units_factor[1] ** 2)
