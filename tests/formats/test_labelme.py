import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_maps import boundary_distance, classes_of, label_map, space
from PIL import Image, ImageDraw

from segkit.errors import InputError
from segkit.formats import labelme
from segkit.formats.base import AnnotatedImage, Labelled, rasterized


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.0, 2.0])
@pytest.mark.parametrize(("classes", "background"), [(5, False), (11, True)])
def test_polygons_give_the_pixels_back_within_the_tolerance(
    tmp_path: Path, classes: int, background: bool, tolerance: float
) -> None:
    names = space(classes, background)
    maps = {f"town/{seed}.jpg": label_map(seed, 70 + seed, 130, classes) for seed in range(2)}
    labelme.write((Labelled(name, labels) for name, labels in maps.items()), tmp_path, names, tolerance)
    found = labelme.read(tmp_path)
    assert set(found.class_names) <= set(names.class_names)
    for image, (name, labels) in zip(found.images, maps.items(), strict=True):
        mask, problems = rasterized(image, labels.shape, classes_of(names))
        changed = mask != labels
        assert image.name == name and not problems
        assert changed.any() == (tolerance > 0)
        assert boundary_distance(labels)[changed].max(initial=0) <= tolerance


def test_files_are_as_the_tool_writes_them(tmp_path: Path) -> None:
    labelme.write([Labelled("town/a.jpg", label_map(0))], tmp_path, space(), 0.0)
    content = json.loads((tmp_path / "town" / "a.json").read_text())
    assert content.keys() == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("a.jpg", 72, 120)
    for shape in content["shapes"]:
        assert shape.keys() == {"label", "points", "group_id", "description", "shape_type", "flags"}
        assert len(shape["points"]) >= 3 and all(len(point) == 2 for point in shape["points"])


def export(folder: Path, *shapes: dict[str, Any], **other: Any) -> Path:
    about = {"imagePath": "..\\photos\\a.JPG", "imageData": "AAAA", "imageHeight": 60, "imageWidth": 80}
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes} | about | other
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def shape(points: Any, kind: str | None = "polygon", **other: Any) -> dict[str, Any]:
    return {"label": "car", "points": points, "shape_type": kind, "flags": {}} | other


def first(folder: Path) -> AnnotatedImage:
    [image] = labelme.read(folder).images
    return image


def test_the_name_is_that_of_the_json_file_wherever_the_image_was(tmp_path: Path) -> None:
    assert first(export(tmp_path, imagePath="/home/me/../x.TIF")).name == "a.TIF"
    assert first(export(tmp_path)).name == "a.JPG"


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("rectangle", [[60.7, 40.2], [20, 10]]),
        ("circle", [[40.2, 30.4], [40.2, 51.6]]),
        (None, [[3, 3], [70, 9], [9, 50]]),
        ("oriented_rectangle", [[30, 5.3], [60, 25.3], [40, 55.3], [10, 35.3]]),
    ],
)
def test_shapes_cover_what_pillow_draws(tmp_path: Path, kind: str | None, points: list[list[float]]) -> None:
    mask, problems = rasterized(first(export(tmp_path, shape(points, kind))), (60, 80), {"car": 0})
    canvas = Image.new("L", (800, 600), 255)  # ten times as large, of which the centres are looked at
    (x, y), (other_x, other_y) = np.array(points[:2]) * 10
    if kind == "rectangle":
        ImageDraw.Draw(canvas).rectangle((other_x, other_y, x - 1, y - 1), 0)
    elif kind == "circle":
        radius = np.hypot(x - other_x, y - other_y)
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius - 1, y + radius - 1), 0)
    else:
        ImageDraw.Draw(canvas).polygon([(10 * a, 10 * b) for a, b in points], 0)
    drawn = np.asarray(canvas)[5::10, 5::10]
    assert not problems and (mask == 0).sum() > 500
    assert (mask != drawn).sum() <= 12  # of those that the boundary all but meets
    assert boundary_distance(drawn)[mask != drawn].max(initial=0) <= 0.5


def test_points_and_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    kinds = ("point", "linestrip", "linestrip", "line", "points")
    shapes = [shape([[1, 1]], kind) for kind in kinds]
    mask, problems = rasterized(first(export(tmp_path, *shapes)), None, {})
    assert (mask == 255).all()
    assert problems["shapes of the kind linestrip (left out)"] == 2 and sum(problems.values()) == 5


def embedded(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_mask_lies_from_its_corner_on(tmp_path: Path) -> None:
    part = np.eye(5, 7)
    export(tmp_path, shape([[20, 10], [26, 14]], "mask", mask=embedded(part)))
    mask = rasterized(first(tmp_path), None, {"car": 0})[0]
    assert np.array_equal(mask[10:15, 20:27] == 0, part) and (mask == 0).sum() == 5


def test_a_damaged_file_leaves_the_others_readable(tmp_path: Path) -> None:
    export(tmp_path, shape([[0, 0], [9, 0], [9, 9]]))
    (tmp_path / "b.json").write_text("{")
    found = labelme.read(tmp_path)
    assert found.class_names == ("car",)
    assert found.images[0].name == "a.JPG"
    with pytest.raises(InputError, match=r"b\.json: damaged"):
        _ = found.images[1]


@pytest.mark.parametrize(
    ("shapes", "other", "words"),
    [
        ([shape([[1, 2], [3]])], {}, "shape 1: a polygon is no list of pairs"),
        ([shape([[1, 1], [2, 2]]), shape([[1, 1]], "circle")], {}, "damaged, or no file of LabelMe"),
        ([{"points": []}], {}, "'label' is missing"),
        ([shape([[1, 1], [9, 9]], "mask")], {}, "'mask' is missing"),
        ([shape([[1, 1], [9, 9]], "mask", mask=5)], {}, "shape 1: damaged"),
        ([shape([[1, 1], [9, 9]], "mask", mask="AAAA")], {}, "shape 1: not an image"),
        ([shape([[78, 1], [90, 9]], "mask", mask=embedded(np.eye(5)))], {}, "shape 1: a mask that reaches outside"),
        ([3], {}, "damaged, or no file of LabelMe"),
        ([], {"imageHeight": None}, "damaged, or no file of LabelMe"),
        ([], {"imageHeight": 10**9, "imageWidth": 10**9}, "million are read into memory"),
        ([shape([[0, 0], [9, 0], [9, 9]], label="cart")], {}, "class 'cart' is unknown; did you mean car?"),
    ],
)
def test_damaged_content_is_one_line(tmp_path: Path, shapes: list[Any], other: dict[str, Any], words: str) -> None:
    export(tmp_path, *shapes, **other)
    with pytest.raises(InputError) as error:
        rasterized(first(tmp_path), None, {"car": 0})
    assert str(error.value).startswith(str(tmp_path / "a.json")) and words in str(error.value)


def test_an_empty_folder_and_a_name_that_leads_out_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no JSON file here"):
        labelme.read(tmp_path)
    with pytest.raises(InputError, match="leads out of the folder"):
        labelme.write([Labelled("../../a.jpg", label_map(0))], tmp_path / "b", space(), 0.0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
