import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_maps import classes_of, label_map, space
from PIL import Image

from segkit.errors import InputError
from segkit.formats import panoptic
from segkit.formats.base import Labelled, rasterized


@pytest.mark.parametrize(("classes", "background"), [(5, False), (11, True), (255, False)])
def test_segments_give_every_pixel_back(tmp_path: Path, classes: int, background: bool) -> None:
    path, names = tmp_path / "panoptic_val.json", space(classes, background)
    maps = [label_map(seed, 60, 90 + seed, classes) for seed in range(2)]
    maps[0][5, 5] = classes - 1
    panoptic.write((Labelled(f"town/{i}.jpg", labels) for i, labels in enumerate(maps)), path, names, 0.0)
    found = panoptic.read(path)
    assert found.class_names == names.class_names
    for number, (image, labels) in enumerate(zip(found.images, maps, strict=True)):
        mask, problems = rasterized(image, labels.shape, classes_of(names))
        assert image.name == f"town/{number}.jpg" and np.array_equal(mask, labels) and not problems


def test_files_are_as_the_format_says(tmp_path: Path) -> None:
    labels, path = label_map(1), tmp_path / "a.json"
    panoptic.write([Labelled("town/a.jpg", labels)], path, space(), 0.0)
    content = json.loads(path.read_text())
    [image], [annotation] = content["images"], content["annotations"]
    assert image == {"id": 1, "file_name": "town/a.jpg", "height": 72, "width": 120}
    assert all(category.keys() >= {"id", "name", "isthing", "color"} for category in content["categories"])
    pixels = np.asarray(Image.open(tmp_path / "a" / annotation["file_name"]).convert("RGB"), np.uint32)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2]
    assert {one["id"] for one in annotation["segments_info"]} == set(np.unique(ids)) - {0}
    assert np.array_equal(ids == 0, labels == 255)
    for one in annotation["segments_info"]:
        rows, columns = np.nonzero(ids == one["id"])
        assert one["area"] == len(rows) and one["iscrowd"] == 0
        assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def export(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda whole: None) -> Path:
    """An image of 3 x 2 with segments 70000 (car), 300 (a crowd of cars) and void."""
    ids = np.array([[70000, 70000, 0], [300, 70000, 0]])
    (folder / "a").mkdir()
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)).save(folder / "a/x.png")
    segments = [{"id": 70000, "category_id": 9, "iscrowd": 0}, {"id": 300, "category_id": 9, "iscrowd": 1}]
    whole = {
        "images": [{"id": 5, "file_name": "x.jpg", "height": 2, "width": 3}],
        "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "background"}],
        "annotations": [{"image_id": 5, "file_name": "x.png", "segments_info": segments}],
    }
    change(whole)
    path = folder / "a.json"
    path.write_text(json.dumps(whole))
    return path


def test_void_and_crowds_are_ignored_and_ids_have_three_bytes(tmp_path: Path) -> None:
    [image] = panoptic.read(export(tmp_path)).images
    mask, problems = rasterized(image, (2, 3), {"car": 0, "background": 1})
    assert mask.tolist() == [[0, 0, 255], [255, 0, 255]] and not problems


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole["annotations"][0]["segments_info"].pop(), "segments that the JSON file lacks: 300"),
        (lambda whole: whole["annotations"][0]["segments_info"][0].update(category_id=4), "category 4 is not in"),
        (lambda whole: whole["annotations"][0]["segments_info"][0].pop("id"), "'id' is missing"),
        (lambda whole: whole["annotations"][0].update(image_id=6), "6 is missing"),
        (lambda whole: whole["annotations"][0].pop("segments_info"), "'segments_info' is missing"),
        (lambda whole: whole["annotations"][0].update(file_name="../x.png"), "leads out of the folder"),
        (lambda whole: whole["annotations"][0].update(file_name="y.png"), "y.png: no such mask"),
        (lambda whole: whole["images"][0].update(file_name="/x.jpg"), "leads out of the folder"),
        (lambda whole: whole["images"][0].update(width=4), "a mask of the export is 3x2, its image 4x2"),
        (lambda whole: whole["annotations"].append(whole["annotations"][0]), "x.png occurs twice"),
    ],
)
def test_a_damaged_export_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    path = export(tmp_path, change)
    with pytest.raises(InputError) as error:
        rasterized(panoptic.read(path).images[0], None, {"car": 0})
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leads out of the folder"):
        panoptic.write([Labelled("../../a.jpg", label_map(0))], tmp_path / "b" / "a.json", space(), 0.0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
