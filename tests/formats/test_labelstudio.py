import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_maps import classes_of, label_map, space

from segkit.errors import InputError
from segkit.formats import labelstudio
from segkit.formats.base import Labelled, rasterized
from segkit.formats.brush import decode, encode
from segkit.metadata.label_space import LabelSpace, identity_table

GOLDEN = Path(__file__).parents[1] / "goldens" / "annotations.npz"


def region(value: dict[str, Any], size: tuple[int, int] = (20, 40), **more: Any) -> dict[str, Any]:
    return {"original_height": size[0], "original_width": size[1], "image_rotation": 0, "value": value, **more}


def polygon(label: str, *points: tuple[float, float]) -> dict[str, Any]:
    return region({"points": points, "polygonlabels": [label], "closed": True})


def rectangle(label: str, x: float, y: float, width: float, height: float, rotation: float = 0) -> dict[str, Any]:
    place = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return region({**place, "rectanglelabels": [label]})


def task(*results: dict[str, Any], image: str = "/data/upload/1/0123abcd-a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"image": image}, "annotations": [{"result": list(results)}], **more}


def saved(folder: Path, tasks: Any) -> Path:
    path = folder / "export.json"
    path.write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
    return path


def mask_of(folder: Path, *results: dict[str, Any], **classes: int) -> np.ndarray:
    (image,) = labelstudio.read(saved(folder, [task(*results)])).images
    return rasterized(image, None, classes)[0]


@pytest.mark.parametrize("name", ["noise", "long"])
def test_brush_masks_are_those_of_the_sdk_to_the_byte(name: str) -> None:
    with np.load(GOLDEN) as golden:
        mask, rle = golden[f"mask_{name}"], golden[f"rle_{name}"].tolist()
    own = encode(mask)
    assert rle[: len(own)] == own and not any(rle[len(own) :])  # it may add a zero
    assert np.array_equal(decode(rle, mask.shape, "a"), mask)


def test_the_sdk_decodes_what_is_written() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk brings 34 packages")
    for seed in range(3):
        mask = label_map(seed) == seed
        assert np.array_equal(brush.decode_rle(encode(mask)).reshape(*mask.shape, 4), 255 * np.dstack([mask] * 4))


def test_rows_of_values_and_other_lengths_are_decoded() -> None:
    """2x1 pixels by hand: a row of 5 values, whose fourth is the first alpha, and 3 zeros; words of 4, counts of 2."""
    header = f"{8:032b}{3:05b}" + f"{1:04b}{2:04b}{2:04b}{2:04b}"
    runs = "0" + "01" + f"{4:03b}" + "0000" * 3 + "0001" + "0000" + "1" + "00" + f"{2:02b}" + "0000"
    bits = header + runs
    bits += "0" * (-len(bits) % 8)
    code = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode(code, (1, 2), "a").tolist() == [[True, False]]


def test_the_header_is_that_of_label_studio_itself() -> None:
    """The first bytes of a mask of 3332x2527 pixels in an export (the data set alkzar90/cell_benchmark)."""
    assert encode(np.zeros((2527, 3332), bool))[:7] == [2, 1, 233, 240, 57, 27, 255]


@pytest.mark.parametrize("background", [False, True])
def test_what_is_written_is_read_to_the_pixel(tmp_path: Path, background: bool) -> None:
    names = space(background=background)
    images = [Labelled(f"town 1/a.{seed}.jpg", label_map(seed), confidence=0.25) for seed in range(3)]
    labelstudio.write(iter(images), tmp_path / "tasks.json", names)
    read = labelstudio.read(tmp_path / "tasks.json")
    assert [image.name for image in read.images] == [image.name for image in images]
    for found, image in zip(read.images, images, strict=True):
        mask, problems = rasterized(found, None, classes_of(names))
        assert np.array_equal(mask, image.labels) or background
        assert np.array_equal(mask[image.labels != 255], image.labels[image.labels != 255]) and not problems
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [one["predictions"][0]["score"] for one in tasks] == [0.25] * 3


def test_the_interface_has_the_labels_and_tags_of_the_tasks(tmp_path: Path) -> None:
    names = LabelSpace(('a "b" <c>', "d"), ((1, 2, 255), (0, 0, 0)), identity_table(2))
    labelstudio.write([Labelled("a.jpg", np.zeros((2, 3), np.uint8))], tmp_path / "tasks.json", names)
    view = xml.etree.ElementTree.parse(tmp_path / "tasks.xml").getroot()
    (image,), (brush,) = view.findall("Image"), view.findall("BrushLabels")
    assert [label.get("value") for label in brush] == list(names.class_names)
    assert brush[0].get("background") == "#0102ff"
    ((one,),) = [one["predictions"][0]["result"] for one in json.loads((tmp_path / "tasks.json").read_text())]
    assert (one["from_name"], one["to_name"]) == (brush.get("name"), image.get("name"))


def test_no_images_are_a_list_without_tasks(tmp_path: Path) -> None:
    labelstudio.write([], tmp_path / "tasks.json", space(), 0.0)
    assert json.loads((tmp_path / "tasks.json").read_text()) == []


def test_polygons_rectangles_and_masks_later_ones_above(tmp_path: Path) -> None:
    inside = np.zeros((20, 40), bool)
    inside[0, :3] = True
    brush = region({"format": "rle", "rle": encode(inside), "brushlabels": ["sky"]})
    found = mask_of(
        tmp_path, polygon("road", (0, 0), (50, 0), (50, 100), (0, 100)), rectangle("car", 25, 50, 50, 25), brush,
        road=0, car=1, sky=2,
    )  # fmt: skip
    expected = np.full((20, 40), 255)
    expected[:, :20] = 0
    expected[10:15, 10:30] = 1
    expected[0, :3] = 2
    assert np.array_equal(found, expected)


def test_a_turned_rectangle_turns_clockwise_about_its_first_corner(tmp_path: Path) -> None:
    """4 wide and 8 high at (20, 4) of 40x20 pixels, a quarter to the right: from x = 12 to 20, y = 4 to 8."""
    found = mask_of(tmp_path, rectangle("car", 50, 20, 10, 40, rotation=90), car=1)
    expected = np.full((20, 40), 255)
    expected[4:8, 12:20] = 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/1/0123abcd-a%20b.jpg", "a b.jpg"),
        ("/data/local-files/?d=town%201/a.jpg", "town 1/a.jpg"),
        ("s3://bucket/town/0123abcd-a.jpg", "0123abcd-a.jpg"),
        ("https://example.org/a.png?X=1", "a.png"),
    ],
)
def test_the_name_of_an_image(tmp_path: Path, address: str, name: str) -> None:
    tasks = [task(rectangle("car", 0, 0, 1, 1), image=address)]
    assert [image.name for image in labelstudio.read(saved(tmp_path, tasks)).images] == [name]


def test_which_annotation_counts_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    first, last = ({"result": [rectangle(name, 0, 0, 100, 100)]} for name in ("car", "road"))
    skipped = {"result": [rectangle("sky", 0, 0, 100, 100)], "was_cancelled": True}
    ellipse = region({"x": 1, "y": 1, "radiusX": 1, "radiusY": 1, "ellipselabels": ["car"]})
    guess = {"result": [rectangle("sky", 0, 0, 100, 100)]}
    text = {"type": "choices", "value": {"choices": ["dark"]}}
    bare = {**rectangle("car", 0, 0, 50, 50), "id": "1"}
    bare["value"] = {key: value for key, value in bare["value"].items() if key != "rectanglelabels"}
    twice = [bare, rectangle("sky", 0, 0, 50, 50) | {"id": "1"}]  # Rectangle and Labels beside each other
    tasks = [
        {"data": {"image": "a.jpg"}, "annotations": [first, last, skipped]},
        {"data": {"image": "b.jpg"}, "annotations": [], "predictions": [guess]},
        {"data": {"image": "c.jpg"}, "annotations": [{"result": [ellipse, text, *twice, {**bare, "id": "2"}]}]},
    ]
    found = labelstudio.read(saved(tmp_path, tasks))
    assert [image.name for image in found.images] == ["a.jpg", "c.jpg"] and found.class_names == ("road", "sky")
    assert rasterized(found.images[0], None, {"road": 3})[0].tolist() == [[3] * 40] * 20
    assert len(found.images[1].regions) == 1
    assert found.notes == {labelstudio.UNDONE: 1, labelstudio.SEVERAL: 1, labelstudio.NO_AREA: 2}


SMALL = encode(np.zeros((2, 3), bool))
BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "damaged JSON export of Label Studio, no JSON"),
    "another export": ({"images": []}, "a JSON list is expected"),
    "minimal": ([{"image": "a.jpg", "tag": []}], "not JSON-MIN"),
    "nothing annotated": ([{"data": {"image": "a.jpg"}, "annotations": []}], "no task of it is annotated"),
    "empty": ([], "no task of it is annotated"),
    "way out": ([task(image="/data/local-files/?d=../../a.jpg")], "leads out of the folder"),
    "another size": ([task(region({"rle": SMALL, "brushlabels": ["a"]}))], "task 7: its brush mask has 24 values"),
    "cut code": ([task(region({"rle": SMALL[:-2], "brushlabels": ["a"]}, (2, 3)))], "damaged after 0 of 24"),
    "no bytes": ([task(region({"rle": [0, 300], "brushlabels": ["a"]}))], "task 7: its brush mask is no list of bytes"),
    "a number": ([task(region({"rle": 10**30, "brushlabels": ["a"]}))], "its brush mask is no list of bytes"),
    "turned": ([task({**rectangle("a", 0, 0, 1, 1), "image_rotation": 90})], "turn the file itself"),
    "two sizes": ([task(rectangle("a", 0, 0, 1, 1), region({"rle": SMALL, "x-labels": ["a"]}, (2, 3)))], "of 2 sizes"),
    "no points": ([task(polygon("a", (1, 2), (3, "x")))], "task 7"),  # type: ignore[arg-type]
    "no list": ([{"data": {"image": "a.jpg"}, "annotations": [3]}], "task 1: damaged"),
    "huge": ([task(region({"rle": [0], "brushlabels": ["a"]}, (10**6, 10**6)))], "pixels"),
    "unknown class": ([task(rectangle("lorry", 0, 0, 1, 1))], "class 'lorry' is unknown"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_with_the_file(tmp_path: Path, case: str) -> None:
    tasks, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        for image in labelstudio.read(saved(tmp_path, tasks)).images:
            rasterized(image, None, {"a": 0})
    assert "export.json" in str(caught.value) and "\n" not in str(caught.value)
