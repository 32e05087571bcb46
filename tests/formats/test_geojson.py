import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from label_maps import label_map, space
from PIL import Image
from rasterio.crs import CRS
from rasterio.features import rasterize
from shapely.geometry import shape

from segkit.formats import area_csv, geojson
from segkit.formats.base import Labelled
from segkit.formats.georeference import pixel_area, read_georeference

UTM = Affine(0.5, 0, 400000, 0, -0.5, 5800000)
TURNED = Affine.translation(400000, 5800000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.25)


def tiff(path: Path, labels: np.ndarray, crs: str | None, transform: Affine) -> Path:
    height, width = labels.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform) as file:
        file.write(np.broadcast_to(labels, (3, height, width)))
    return path


def written(folder: Path, labels: np.ndarray, image: Path | None = None, tolerance: float = 0.0) -> Any:
    known = read_georeference(image) if image else ()
    geojson.write([Labelled("town/a.b.tif", labels, None, *known)], folder, space(), tolerance)
    return json.loads((folder / "town" / "a.b.geojson").read_text())


@pytest.mark.parametrize("transform", [UTM, TURNED])
def test_polygons_of_a_georeferenced_image_give_its_labels_back(tmp_path: Path, transform: Affine) -> None:
    labels = label_map(0)
    found = written(tmp_path, labels, tiff(tmp_path / "a.tif", labels, "EPSG:32633", transform))
    assert CRS.from_user_input(found["crs"]["properties"]["name"]) == CRS.from_epsg(32633)
    shapes = [(shape(one["geometry"]), one["properties"]["id"]) for one in found["features"]]
    assert all(polygon.is_valid and polygon.exterior.is_ccw for polygon, _ in shapes)
    assert any(polygon.interiors for polygon, _ in shapes)
    assert [one["id"] for one in found["features"]] == list(range(len(shapes)))  # GDAL wants each but once
    assert np.array_equal(rasterize(shapes, labels.shape, fill=255, transform=transform, dtype="uint8"), labels)
    size = abs(transform.determinant)
    for label, name in enumerate(space().class_names):
        own = [one["properties"] for one in found["features"] if one["properties"]["class"] == name]
        assert sum(one["area"] for one in own) == (labels == label).sum()
        assert sum(one["area_m2"] for one in own) == pytest.approx((labels == label).sum() * size)
        assert {one["color"] for one in own} <= {"#{:02x}{:02x}{:02x}".format(*space().palette[label])}
    polygons = [polygon for polygon, _ in shapes]
    assert shapely.area(polygons).sum() == pytest.approx((labels != 255).sum() * size)


def test_without_georeference_coordinates_are_pixels(tmp_path: Path) -> None:
    labels = label_map(1)
    Image.fromarray(labels).save(tmp_path / "a.png")
    found = written(tmp_path, labels, tmp_path / "a.png")
    assert "crs" not in found and not any("area_m2" in one["properties"] for one in found["features"])
    shapes = [(shape(one["geometry"]), one["properties"]["id"]) for one in found["features"]]
    assert np.array_equal(rasterize(shapes, labels.shape, fill=255, dtype="uint8"), labels)


def test_with_a_tolerance_polygons_stay_valid_and_have_fewer_corners(tmp_path: Path) -> None:
    labels = label_map(2)
    counts = []
    for tolerance in (0.0, 2.0):
        shapes = [shape(one["geometry"]) for one in written(tmp_path, labels, tolerance=tolerance)["features"]]
        assert all(polygon.is_valid for polygon in shapes)
        counts.append(shapely.get_num_coordinates(shapes).sum())
    assert counts[1] < counts[0]


def test_an_image_of_no_class_has_no_features(tmp_path: Path) -> None:
    assert written(tmp_path, np.full((3, 4), 255, np.uint8))["features"] == []


@pytest.mark.parametrize(
    ("crs", "metres"), [("EPSG:32633", 0.25), ("EPSG:2263", 0.25 * 0.3048006096012192**2), ("EPSG:4326", None)]
)
def test_square_metres_of_a_pixel(crs: str, metres: float | None) -> None:
    """EPSG:2263 is in US survey feet of 1200/3937 m; a degree has no one length."""
    found = pixel_area(crs, tuple(UTM)[:6])
    assert found is None if metres is None else found == pytest.approx(metres)


def test_a_system_without_a_number_is_written_as_text(tmp_path: Path) -> None:
    system = CRS.from_proj4("+proj=laea +lat_0=51 +lon_0=9 +units=m")
    labels = np.zeros((2, 3), np.uint8)
    found = written(tmp_path, labels, tiff(tmp_path / "a.tif", labels, system.to_wkt(), UTM))
    assert CRS.from_user_input(found["crs"]["properties"]["name"]) == system
    assert found["features"][0]["properties"]["area_m2"] == pytest.approx(1.5)


def test_a_turned_or_bare_image_has_no_georeference(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", exif=turned)
    bare = tiff(tmp_path / "a.tif", np.zeros((2, 3), np.uint8), None, UTM)
    for path in (tmp_path / "a.npy", tmp_path / "a.jpg", bare):
        assert read_georeference(path) == (None, None)


def test_the_table_has_pixels_shares_and_square_metres(tmp_path: Path) -> None:
    labels = np.array([[0, 0, 2], [255, 0, 2]], np.uint8)
    images = [Labelled("a.tif", labels, None, "EPSG:32633", tuple(UTM)[:6]), Labelled("b.jpg", labels)]
    area_csv.write(images, tmp_path / "area.csv", space())
    with (tmp_path / "area.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["id"], row["class"], row["pixels"], row["m2"]) for row in rows[:3]] == [
        ("a.tif", "0", "class 0", "3", "0.75"),
        ("a.tif", "2", "class 2", "2", "0.5"),
        ("a.tif", "255", "", "1", "0.25"),
    ]
    assert [float(row["share"]) for row in rows[3:]] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert {row["m2"] for row in rows[3:]} == {""}
