"""GeoJSON: a file of polygons with holes for each image, with class, id, colour and area, for QGIS and other maps.

After RFC 7946, but for its reference system: coordinates are in the image's own, which the member "crs" names as the
2008 specification and QGIS have it, since turning them to WGS84 would move corners. An image without georeference has
pixels, (x, y) from its upper left corner, y down, and no "crs".
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from segkit.errors import import_extra
from segkit.files import replacing
from segkit.formats.base import Labelled
from segkit.formats.files import below, json_list
from segkit.formats.georeference import pixel_area
from segkit.formats.shapes import EXTRA, outlines
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace


def write(images: Iterable[Labelled], path: Path, space: LabelSpace, tolerance: float = 0.0) -> None:
    """Write NAME.geojson for each image NAME.jpg: a feature for each 4-connected region; 255 has none.

    "area" is in pixels, "area_m2" in square metres where the system's unit of length is known.

    Args:
        images: The label maps.
        path: The folder.
        space: Classes and colours.
        tolerance: Pixels, as `outlines` has it; 0 is exact.

    Raises:
        InputError: rasterio or shapely is not installed, or a file cannot be written.
    """
    for image in images:
        head: dict[str, Any] = {"type": "FeatureCollection", "name": PurePosixPath(image.name).stem}
        if image.crs is not None:
            head |= {"crs": {"type": "name", "properties": {"name": _name(image.crs)}}}
        with replacing(below(path, image.name, ".geojson")) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "features": ')
            # GDAL would take the class's id for the feature's, of which it wants each but once.
            found = enumerate(_features(image, space, tolerance))
            file.writelines(json_list({"type": "Feature", "id": number, **feature} for number, feature in found))
            file.write("}\n")


def _name(crs: str) -> str:
    """A system as GDAL reads it: urn:ogc:def:crs:EPSG::32633, or its WKT."""
    authority, colon, code = crs.partition(":")
    return f"urn:ogc:def:crs:{authority}::{code}" if colon and code.isalnum() else crs


def _features(image: Labelled, space: LabelSpace, tolerance: float) -> Iterator[dict[str, Any]]:
    shapely, affinity = import_extra("shapely", EXTRA), import_extra("shapely.affinity", EXTRA)
    orient = import_extra("shapely.geometry.polygon", EXTRA).orient
    pixel = pixel_area(image.crs, image.transform)
    for label, rings in outlines(image.labels, tolerance):
        if label == IGNORE_INDEX:
            continue
        polygon = shapely.Polygon(rings[0], rings[1:])
        color = f"#{bytes(space.palette[label]).hex()}"
        properties = {"class": space.class_names[label], "id": label, "color": color, "area": polygon.area}
        if pixel is not None:
            properties["area_m2"] = polygon.area * pixel
        if image.transform is not None:
            a, b, c, d, e, f = image.transform
            polygon = affinity.affine_transform(polygon, (a, b, d, e, c, f))
        geometry = {"type": "Polygon", "coordinates": _coordinates(orient(polygon))}
        yield {"properties": properties, "geometry": geometry}


def _coordinates(polygon: Any) -> list[list[list[float]]]:
    """Closed rings, the outer one counterclockwise and holes clockwise in the system's axes, as RFC 7946 asks."""
    return [[list(point) for point in ring.coords] for ring in (polygon.exterior, *polygon.interiors)]
