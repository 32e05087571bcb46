import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_maps import classes_of, label_map, space
from pycocotools import mask as rle
from pycocotools.coco import COCO

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.formats import coco
from segkit.formats.base import AnnotatedImage, Labelled, rasterized
from segkit.formats.shapes import bridged, outlines


@pytest.mark.parametrize(("classes", "background"), [(5, False), (11, False), (11, True)])
def test_run_lengths_give_every_pixel_back_here_and_in_pycocotools(
    tmp_path: Path, classes: int, background: bool
) -> None:
    path, names = tmp_path / "new" / "coco.json", space(classes, background)
    maps = [label_map(seed, 60 + seed, 90, classes) for seed in range(3)]
    coco.write((Labelled(f"town/{i}.jpg", labels) for i, labels in enumerate(maps)), path, names, 0.0)

    found = coco.read(path)
    assert found.class_names == names.class_names
    assert found.notes == ({coco.CROWDS: 3} if background else {})
    assert [image.name for image in found.images] == ["town/0.jpg", "town/1.jpg", "town/2.jpg"]
    for image, labels in zip(found.images, maps, strict=True):
        mask, problems = rasterized(image, labels.shape, classes_of(names))
        assert np.array_equal(mask, labels) and not problems

    real = COCO(path)
    for number, labels in enumerate(maps, start=1):
        theirs = np.full(labels.shape, 255, np.uint8)
        for annotation in real.loadAnns(real.getAnnIds(imgIds=number, iscrowd=False)):
            pixels = real.annToMask(annotation).astype(bool)
            theirs[pixels] = annotation["category_id"] - 1
            rows, columns = np.nonzero(pixels)
            assert annotation["area"] == pixels.sum()
            assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert np.array_equal(theirs, labels)
        crowds = real.loadAnns(real.getAnnIds(imgIds=number, iscrowd=True))
        assert len(crowds) == background
        assert all(np.array_equal(real.annToMask(crowd) == 1, labels == 255) for crowd in crowds)


def export(path: Path, annotations: list[Any], size: tuple[int, int] = (4, 6), **other: Any) -> Path:
    """A file of one image and one category."""
    images = [{"id": 7, "file_name": "a.jpg", "height": size[0], "width": size[1]}]
    whole = {"images": images, "categories": [{"id": 3, "name": "car"}], "annotations": annotations} | other
    path.write_text(json.dumps(whole))
    return path


def region(shape: Any, number: int = 1, crowd: int = 0, category: int = 3) -> dict[str, Any]:
    return {"id": number, "image_id": 7, "category_id": category, "segmentation": shape, "iscrowd": crowd}


def first(path: Path) -> AnnotatedImage:
    [image] = coco.read(path).images
    return image


def uncompressed(mask: UInt8Array) -> dict[str, Any]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


@pytest.mark.parametrize("seed", range(4))
def test_every_kind_of_annotation_is_the_mask_of_pycocotools(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (70, 110)
    masks = [(rng.random(size) < share).astype(np.uint8) for share in (0.01, 0.5, 0.99, 0, 1)]
    long = [rle.encode(np.asfortranarray(mask)) for mask in masks]
    shapes: list[Any] = [{"size": one["size"], "counts": one["counts"].decode()} for one in long]
    shapes += [uncompressed(mask) for mask in masks]
    stars = [(55 + rng.uniform(5, 80, 9) * np.cos(np.arange(9)), 35 + rng.uniform(5, 60, 9) * np.sin(np.arange(9)))]
    shapes += [[np.stack(star, 1).ravel().tolist() for star in stars], [[1, 1, 9, 1, 9, 9], [5.5, 2.5, 30, 8, 4, 40]]]
    path = export(tmp_path / "a.json", [region(shape, i) for i, shape in enumerate(shapes)], size)
    real = COCO(path)
    for number, one in enumerate(first(path).regions):
        mask, _ = rasterized(AnnotatedImage("a.jpg", size, [one]), None, {"car": 0})
        assert np.array_equal(mask == 0, real.annToMask(real.anns[number]) == 1)


def test_a_crowd_is_ignored_and_later_annotations_lie_on_top(tmp_path: Path) -> None:
    car, crowd = [[0, 0, 4, 0, 4, 4, 0, 4]], uncompressed(np.eye(4, 6, dtype=np.uint8))
    mask, problems = rasterized(
        first(export(tmp_path / "a.json", [region(car), region(crowd, 2, 1)])), None, {"car": 0}
    )
    assert mask.tolist() == [[255 if row == column or column > 3 else 0 for column in range(6)] for row in range(4)]
    assert list(problems.values()) == [4]


def test_a_file_of_crowds_alone_is_one_of_masks(tmp_path: Path) -> None:
    found = coco.read(export(tmp_path / "a.json", [region(uncompressed(np.eye(4, 6, dtype=np.uint8)), crowd=1)]))
    assert np.array_equal(rasterized(found.images[0], None, {"car": 0})[0] == 0, np.eye(4, 6))
    assert found.notes == {coco.ALL_CROWDS: 1}


def test_exact_outlines_as_polygons_give_every_pixel_back(tmp_path: Path) -> None:
    labels, names = label_map(3), space()
    found = [(value, bridged(polygon).ravel().tolist()) for value, polygon in outlines(labels) if value < 255]
    path = export(
        tmp_path / "a.json",
        [region([ring], i, category=value) for i, (value, ring) in enumerate(found)],
        labels.shape,
        categories=[{"id": label, "name": name} for label, name in enumerate(names.class_names)],
    )
    assert np.array_equal(rasterized(first(path), None, classes_of(names))[0], labels)


def test_polygons_outside_flat_or_empty_are_counted(tmp_path: Path) -> None:
    shapes = [[[-5, -5, 2, -5, 2, 2, -5, 2]], [[1, 1, 1, 3, 1, 2]], [], [[1, 1, 3, 3]]]
    mask, problems = rasterized(first(export(tmp_path / "a.json", list(map(region, shapes)))), None, {"car": 0})
    assert (mask == 0).sum() == 4
    assert sorted(problems.values()) == [1, 2]


def test_a_polygon_that_runs_to_and_fro_far_outside_takes_no_memory(tmp_path: Path) -> None:
    far = [[(-1e7, 1) if number % 2 else (1e7, 1 + number / 2000) for number in range(2000)]]
    mask, problems = rasterized(first(export(tmp_path / "a.json", [region(far)])), None, {"car": 0})
    assert mask.shape == (4, 6) and sum(problems.values()) == 1


def test_annotations_of_no_image_are_counted(tmp_path: Path) -> None:
    path = export(tmp_path / "a.json", [region([]) | {"image_id": 8}])
    assert coco.read(path).notes == {coco.LOST: 1}


def named(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda whole: whole["images"][0].update(file_name=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole.pop("categories"), "damaged, or no COCO file of instances ('categories' is missing)"),
        (lambda whole: whole["images"][0].pop("height"), "'height' is missing"),
        (lambda whole: whole.update(images=5), "no COCO file"),
        (lambda whole: whole.update(annotations=[3]), "no COCO file"),
        (lambda whole: whole["images"].append({**whole["images"][0]}), "two images have one id"),
        (lambda whole: whole["images"].append({**whole["images"][0], "id": 9}), "image a.jpg occurs twice"),
        (named("/etc/a.jpg"), "image name '/etc/a.jpg' is absolute, leads out of the folder"),
        (named("../a.jpg"), "leads out of the folder"),
        (lambda whole: whole["images"][0].update(height=-4, width=-6), "says that a.jpg is -6x-4"),
        (lambda whole: whole["images"][0].update(height=10**9, width=10**9), "million are read into memory"),
        (lambda whole: whole["annotations"][0].update(category_id=99), "annotation 1: category 99 is not in the file"),
        (lambda whole: whole["annotations"][0].pop("segmentation"), "annotation 1: damaged"),
        (lambda whole: whole["annotations"][0].update(segmentation=[[1, 2, 3]]), "a polygon is no list of pairs"),
        (lambda whole: whole["annotations"][0].update(segmentation=[["x", "y"]]), "a polygon is no list of pairs"),
        (lambda whole: whole["annotations"][0].update(segmentation=7), "annotation 1: damaged"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    path = export(tmp_path / "a.json", [region([[0, 0, 1, 0, 1, 1]])])
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))
    refused(path, words)


@pytest.mark.parametrize(
    ("size", "counts", "words"),
    [
        ([4, 6], [3, 4], "do not fill the 24 pixels"),
        ([4, 6], [30, -6], "do not fill"),
        ([4, 6], [2**62] * 4 + [24], "do not fill"),
        ([4, 6], [1.5, 22.5], "no whole numbers"),
        ([4, 6], "0", "do not fill"),
        ([4, 6], "PPP", "cut off"),
        ([4, 6], "", "damaged"),
        ([4, 6], "\u00e9", "damaged"),
        ([4, 6], "PPPPPPPPPPPPPPPP0", "beyond any image"),
        ([6, 4], [24], "run lengths of size [6, 4] in an image of [4, 6]"),
        ([10**9, 10**9], [10**18], "run lengths of size"),
    ],
)
def test_run_lengths_that_do_not_fill_the_image_are_one_line(
    tmp_path: Path, size: list[int], counts: Any, words: str
) -> None:
    refused(export(tmp_path / "a.json", [region({"size": size, "counts": counts})]), words)


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError) as error:
        rasterized(first(path), None, {"car": 0})
    assert str(error.value).startswith(str(path)) and words in str(error.value) and "\n" not in str(error.value)
