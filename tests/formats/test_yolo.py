from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml as pyyaml
from label_maps import boundary_distance, classes_of, label_map, space
from PIL import Image

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.formats import yolo
from segkit.formats.base import AnnotatedImage, Labelled, rasterized
from segkit.io import write_png


def with_images(folder: Path, maps: dict[str, UInt8Array]) -> Path:
    for name, labels in maps.items():
        write_png(folder / "images" / name, np.zeros((*labels.shape, 3), np.uint8))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("classes", [5, 11])
def test_polygons_give_the_pixels_back_within_the_tolerance(tmp_path: Path, classes: int, tolerance: float) -> None:
    names = space(classes)
    maps = {f"town/{seed}.png": label_map(seed, 70 + seed, 130, classes) for seed in range(2)}
    yolo.write((Labelled(name, labels) for name, labels in maps.items()), tmp_path, names, tolerance)
    found = yolo.read(with_images(tmp_path, maps))
    assert found.class_names == names.class_names and not found.notes
    for image, (name, labels) in zip(found.images, maps.items(), strict=True):
        mask, problems = rasterized(image, labels.shape, classes_of(names))
        assert image.name == name and not problems
        changed = mask != labels
        assert changed.any() == (tolerance > 0)
        assert boundary_distance(labels)[changed].max(initial=0) <= tolerance + 1e-9


def test_files_are_as_the_format_says(tmp_path: Path) -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 10:50], labels[15:25, 20:40] = 1, 255
    yolo.write([Labelled("a.jpg", labels)], tmp_path, space(2), 0.0)
    config = pyyaml.safe_load((tmp_path / "data.yaml").read_text())
    assert config == {"train": "images", "val": "images", "names": {0: "class 0", 1: "class 1"}}
    filled = np.full(labels.shape, 255, np.uint8)
    for line in (tmp_path / "labels" / "a.txt").read_text().splitlines():
        label, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2)
        assert points.min() >= 0 and points.max() <= 1
        # OpenCV fills to pixel centres, and draws the border too: with the corners half a pixel up, within one pixel.
        cv2.fillPoly(filled, [np.round(points * (60, 40) - 0.5).astype(np.int32)], int(label))
    assert boundary_distance(labels)[filled != labels].max(initial=0) <= 1.5
    assert filled[20, 30] == 255  # the hole is one


def folder(root: Path, text: str, config: str = "names: [car, sky]") -> Path:
    write_png(root / "images" / "a.png", np.zeros((4, 8, 3), np.uint8))
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "a.txt").write_text(text)
    (root / "data.yaml").write_text(config)
    return root


def first(root: Path) -> AnnotatedImage:
    [image] = yolo.read(root).images
    return image


def test_boxes_are_left_out_and_images_without_labels_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, "0 0.5 0.5 0.1 0.1\n\n1 0 0 0.5 0 0.5 0.5 0 0.5\n1 -1 0 0 0 0 2\n1 0 0 1 1\n")
    mask, problems = rasterized(first(root), (4, 8), {"car": 0, "sky": 1})
    assert np.argwhere(mask == 1).tolist() == [[row, column] for row in (0, 1) for column in range(4)]
    assert problems[yolo.BOXES] == 2 and sum(problems.values()) == 3
    write_png(root / "images" / "b.png", np.zeros((4, 8, 3), np.uint8))
    found = yolo.read(root / "data.yaml")
    assert found.notes == {yolo.UNDRAWN: 1}
    assert (rasterized(found.images[1], None, {"car": 0})[0] == 255).all()


def test_fractions_are_of_the_image_as_it_is_shown(tmp_path: Path) -> None:
    root = folder(tmp_path, "0 0 0 0.5 0 0.5 0.25 0 0.25")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right: shown 4 wide and 8 high
    Image.new("RGB", (8, 4)).save(root / "images" / "a.png", exif=exif)
    mask, _ = rasterized(first(root), (8, 4), {"car": 0})
    assert np.argwhere(mask == 0).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("text", "config", "words"),
    [
        ("", "names: 5", "data.yaml: damaged, or no data.yaml of YOLO's"),
        ("", "nc: 5", "'names' is missing"),
        ("", "names: {a: car}", "data.yaml: damaged"),
        ("", "[", "not valid YAML"),
        ("2 0 0 1 0 1 1", "names: [car, sky]", "labels/a.txt, line 1: class 2 is not in data.yaml (2 names)"),
        ("0 0 0 1 0 1 1 0.9", "names: [car]", "line 1: a polygon is no list of pairs"),
        ("0 0 0 1 0 1 1\n0 a b c", "names: [car]", "line 2: damaged, or no line of YOLO's"),
        ("0 nan 0 1 0 1 1", "names: [car]", "a polygon is no list of pairs"),
        ("inf 0 0 1 0 1 1", "names: [car]", "damaged, or no line of YOLO's"),
        ("0", "names: [car]", "a polygon is no list of pairs"),
        ("0 0 0 1 0 1 1", "names: [cart]", "class 'cart' is unknown"),
    ],
)
def test_damaged_labels_are_one_line(tmp_path: Path, text: str, config: str, words: str) -> None:
    root = folder(tmp_path, text, config)
    with pytest.raises(InputError) as error:
        rasterized(first(root), None, {"car": 0, "sky": 1})
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_folders_of_splits_may_lie_within_images_or_around_it(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [car]")
    with pytest.raises(InputError, match="no image in a folder `images`"):
        yolo.read(tmp_path)
    for image, labels in (("images/val/a", "labels/val/a"), ("images/images/b", "images/labels/b")):
        write_png(tmp_path / f"{image}.png", np.zeros((2, 2, 3), np.uint8))
        (tmp_path / labels).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{labels}.txt").write_text("0 0 0 1 0 1 1 0 1")
    found = yolo.read(tmp_path)
    assert [image.name for image in found.images] == ["images/b.png", "val/a.png"] and not found.notes
    assert all((rasterized(image, None, {"car": 0})[0] == 0).all() for image in found.images)


def test_two_images_of_one_name_and_labels_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    root = folder(tmp_path, "")
    (root / "labels" / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"a\.txt: damaged, or no text of YOLO's"):
        rasterized(first(root), None, {})
    write_png(root / "images" / "a.PNG.png", np.zeros((4, 8, 3), np.uint8))
    assert len(yolo.read(root).images) == 2
    (root / "images" / "a.bmp").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.(bmp|png) occurs twice"):
        yolo.read(root)


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leads out of the folder"):
        yolo.write([Labelled("../../a.jpg", label_map(0))], tmp_path / "b", space(), 0.0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
