"""Label maps as polygons with holes, and polygons as pixels.

Coordinates are (x, y) in pixels with whole numbers at the corners of pixels: the image spans 0..W and 0..H. Outlines
follow the pixels' edges (GDAL's polygonize, by rasterio, 4-connected, so that polygons are valid) and are simplified
together, so that neighbours keep touching (GEOS' coverage simplification, Visvalingam and Whyatt 1993, by shapely). A
polygon covers the pixels whose centres it contains.
"""

from typing import Any, TypeAlias

import cv2
import numpy as np

from segkit.arrays import BoolArray, Float64Array, UInt8Array
from segkit.errors import import_extra

Polygon: TypeAlias = tuple[Float64Array, ...]  # rings (n, 2) of (x, y), outer first, then holes; not closed
Box: TypeAlias = tuple[slice, slice]  # rows, columns

EXTRA = "annotations"


def outlines(labels: UInt8Array, tolerance: float = 0.0) -> list[tuple[int, Polygon]]:
    """The polygons of all 4-connected regions of a label map (H, W), with their values; together they tile the image.

    Args:
        labels: Values 0..255, each of which is a region, 255 too.
        tolerance: Pixels; 0 is exact. With more, `filled` gives back all pixels but some whose centres are at most this
            far from a boundary. Regions are never opened or closed at the image's border.

    Raises:
        InputError: rasterio or shapely is not installed.
    """
    features, shapely = import_extra("rasterio.features", EXTRA), import_extra("shapely", EXTRA)
    found = [(int(value), shape["coordinates"]) for shape, value in features.shapes(labels, connectivity=4)]
    values = [value for value, _ in found]
    exact = [shapely.Polygon(rings[0], rings[1:]) for _, rings in found]
    simple = _simplified(exact, values, labels, tolerance) if tolerance > 0 else exact
    rings = [() if shape.is_empty else (shape.exterior, *shape.interiors) for shape in simple]
    open_rings = [tuple(_without_steps(np.array(ring.coords)[:-1], labels.shape) for ring in one) for one in rings]
    return [(value, polygon) for value, polygon in zip(values, open_rings, strict=True) if polygon]


def _without_steps(ring: Float64Array, size: tuple[int, ...]) -> Float64Array:
    """A ring without the corners that follow one another along the image's border, which simplification keeps."""
    at_side = np.hstack([ring == 0, ring == size[::-1]])  # (n, 4)
    is_step = (at_side & np.roll(at_side, 1, 0) & np.roll(at_side, -1, 0)).any(1)
    return np.asarray(ring[~is_step], np.float64)


def _simplified(exact: list[Any], values: list[int], labels: UInt8Array, tolerance: float) -> list[Any]:
    """Polygons with fewer corners that change only pixels near a boundary, which is verified."""
    features, shapely = import_extra("rasterio.features", EXTRA), import_extra("shapely", EXTRA)
    # A corner at every pixel: neighbours then have the same corners, as a coverage must. GEOS divides with rounding.
    coverage = shapely.transform(shapely.segmentize(np.array(exact), 1.0), np.round)
    simple = shapely.coverage_simplify(coverage, tolerance, simplify_boundary=False)
    shapes = [(shape, value) for shape, value in zip(simple, values, strict=True) if not shape.is_empty]
    changed = features.rasterize(shapes, labels.shape, dtype="uint8") != labels
    is_near = not changed.any() or _to_boundary(labels)[changed].max() <= tolerance
    return list(simple) if is_near and shapely.is_valid(simple).all() else exact  # exact has never been seen needed


def _to_boundary(labels: UInt8Array) -> Float64Array:
    """Distance of each pixel's centre to the nearest edge between two values, (H, W); at least its exact value."""
    inner = np.ones(labels.shape, np.uint8)
    rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    for sides, edges in (((inner[1:], inner[:-1]), rows), ((inner[:, 1:], inner[:, :-1]), columns)):
        for side in sides:
            side[edges] = 0
    return np.asarray(cv2.distanceTransform(inner, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float64) + 0.5


def filled(polygon: Polygon, size: tuple[int, int]) -> tuple[Box, BoolArray]:
    """The pixels of an image of (H, W) whose centres a polygon contains.

    Rings are filled by the even-odd rule, so that a ring with seams to its holes (`bridged`) has these holes.

    Returns:
        The polygon's box within the image, and which of its pixels are covered.

    Raises:
        InputError: rasterio is not installed.
    """
    points = np.concatenate(polygon)
    limits = np.array(size[::-1], np.float64)
    low = np.clip(np.floor(points.min(0)), 0, limits).astype(int)
    high = np.clip(np.ceil(points.max(0)), 0, limits).astype(int)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    box, shape = (slice(top, bottom), slice(left, right)), (bottom - top, right - left)
    rings = [ring - low for ring in polygon if len(ring) >= 3]
    if not rings or 0 in shape:
        return box, np.zeros(shape, bool)
    geometry = {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings]}
    inside = import_extra("rasterio.features", EXTRA).rasterize([(geometry, 1)], shape, dtype="uint8")
    return box, inside.astype(bool)


def bridged(polygon: Polygon) -> Float64Array:
    """One ring (n, 2) for formats without holes: each hole is joined by a seam that is walked there and back.

    The seam leads from the hole's first corner to the nearest corner of the ring so far. By the even-odd rule, which
    OpenCV, Pillow, Qt and GDAL fill by, it covers nothing.
    """
    ring = polygon[0]
    for hole in polygon[1:]:
        nearest = int(((ring - hole[0]) ** 2).sum(1).argmin())
        ring = np.concatenate([ring[: nearest + 1], hole, hole[:1], ring[nearest:]])
    return ring
