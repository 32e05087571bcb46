"""`segkit infer --output_kinds --tolerance --uncertain`: files that agree with the labels, and with other tools."""

import csv
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from checkpoints import write_checkpoint
from PIL import Image
from pycocotools.coco import COCO
from rasterio.crs import CRS
from rasterio.features import rasterize
from shapely.geometry import shape

from segkit.cli.infer import main
from segkit.formats.base import rasterized
from segkit.formats.names import read_annotations
from segkit.inference import annotation_files
from segkit.inference.kinds import ANNOTATIONS, KINDS
from segkit.inference.segmenter import load
from segkit.metadata.label_space import numbered_space
from segkit.models.segmentation import FCN

NAMES = ("a", "town/b", "c")
GRID = Affine(0.5, 0, 400000, 0, -0.5, 5800000)
CLASSES = {name: label for label, name in enumerate(numbered_space(5).class_names)}
EXACT = ("coco", "cvat", "labelstudio", "labelme", "panoptic")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=5, output_stride=16)
    network.head[-1].weight.data *= 300  # many classes, and confidences of all sizes
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "five.ckpt", network, numbered_space(5))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, and a drawn aerial one that is georeferenced."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "town").mkdir()
    rng = np.random.default_rng(0)
    for name, size in ((NAMES[0], (61, 45)), (NAMES[1], (40, 72))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
    profile = {"driver": "GTiff", "width": 64, "height": 48, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / f"{NAMES[2]}.tif", "w", **profile, crs="EPSG:32633", transform=GRID) as file:
        file.write(rng.integers(0, 256, (3, 48, 64), np.uint8))
    return folder


def run(checkpoint: Path, images: Path, out: Path, *more: str) -> int:
    given = [images, "--checkpoint", checkpoint, "--output", out, "--device", "cpu"]
    return main([*map(str, given), *more])


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def masks_of(kind: str, path: Path) -> dict[str, np.ndarray]:
    found = read_annotations(ANNOTATIONS[kind].format, path).images
    return {image.name.rpartition(".")[0]: rasterized(image, image.size, CLASSES)[0] for image in found}


@pytest.fixture(scope="module")
def everything(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("everything")
    assert run(checkpoint, images, out, "--output_kinds", *KINDS, "--threshold", "0.6") == 0
    return out


def test_every_kind_is_where_it_is_said(everything: Path) -> None:
    files = tree(everything)
    ends = ("_area.json", "_color.png", "_labels.png", "_overlay.png", "_side_by_side.png", ".geojson")
    assert {f"{name}{end}" for name in NAMES for end in ends} <= set(files)
    targets = {kind.target for kind in ANNOTATIONS.values()} - {"."}
    assert all((everything / target).exists() for target in targets)
    assert not any(".tmp" in name for name in files)


@pytest.mark.parametrize("kind", EXACT)
def test_masks_from_exact_kinds_equal_the_labels(everything: Path, kind: str) -> None:
    masks = masks_of(kind, everything / ANNOTATIONS[kind].target)
    assert sorted(masks) == sorted(NAMES)
    for name in NAMES:
        labels = read(everything / f"{name}_labels.png")
        assert np.array_equal(masks[name], labels) and (labels == 255).any() and (labels < 5).any()


def test_pycocotools_reads_the_labels(everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(everything / "coco.json")
    capsys.readouterr()
    for image in coco.loadImgs(coco.getImgIds()):
        labels = read(everything / f"{image['file_name'].rpartition('.')[0]}_labels.png")
        found = np.full(labels.shape, 255)
        for one in coco.loadAnns(coco.getAnnIds(image["id"])):
            name = coco.loadCats(one["category_id"])[0]["name"]
            found[coco.annToMask(one) == 1] = CLASSES[name]
        assert np.array_equal(found, labels)


def features(path: Path) -> tuple[Any, list[tuple[Any, int]]]:
    found = json.loads(path.read_text())
    return found, [(shape(one["geometry"]), one["properties"]["id"]) for one in found["features"]]


def test_geojson_has_the_reference_system_and_the_labels(everything: Path) -> None:
    for name in NAMES:
        found, shapes = features(everything / f"{name}.geojson")
        labels, is_placed = read(everything / f"{name}_labels.png"), name == NAMES[2]
        where = {"transform": GRID} if is_placed else {}
        assert np.array_equal(rasterize(shapes, labels.shape, fill=255, dtype="uint8", **where), labels)
        assert ("crs" in found) == is_placed
    assert CRS.from_user_input(found["crs"]["properties"]["name"]) == CRS.from_epsg(32633)


def test_the_table_of_areas_counts_the_labels_in_square_metres_where_known(everything: Path) -> None:
    with (everything / "area.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, ending in zip(NAMES, (".png", ".png", ".tif"), strict=True):
        labels = read(everything / f"{name}_labels.png")
        own = [row for row in rows if row["image"] == name + ending]
        assert {int(row["id"]): int(row["pixels"]) for row in own} == {
            value: (labels == value).sum() for value in np.unique(labels)
        }
        for row in own:
            assert row["m2"] == (str(int(row["pixels"]) * 0.25) if ending == ".tif" else "")


def test_side_by_side_has_the_image_and_the_overlay(everything: Path, images: Path) -> None:
    image = read(images / "town/b.png")
    both, overlay = read(everything / "town/b_side_by_side.png"), read(everything / "town/b_overlay.png")
    factor = both.shape[1] // (2 * 72 + 8)  # small ones are enlarged
    assert np.array_equal(both[: 40 * factor : factor, : 72 * factor : factor], image)
    step = overlay.shape[1] // 72
    right = both[: 40 * factor : factor, 80 * factor : 152 * factor : factor]
    assert np.array_equal(right, overlay[: 40 * step : step, : 72 * step : step])


def test_polygons_are_simplified_within_the_tolerance(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    corners = []
    for tolerance in ("0", "2"):
        out = tmp_path / tolerance
        assert run(checkpoint, images, out, "--output_kinds", "geojson", "--tolerance", tolerance) == 0
        assert tree(out) == sorted(f"{name}.geojson" for name in NAMES)
        corners.append((out / "a.geojson").read_text().count("["))
    assert corners[1] < corners[0]


def test_the_least_certain_images_alone_are_written(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    kinds = ("--output_kinds", "cvat", "labelstudio", "area.csv", "labels", "--uncertain", "2")
    assert run(checkpoint, images, tmp_path, *kinds) == 0
    made = load(checkpoint, "cpu")
    paths = [images / f"{name}{end}" for name, end in zip(NAMES, (".png", ".png", ".tif"), strict=True)]
    mean = {path: made.predict(path, with_confidence=True)[1].mean() for path in paths}
    chosen = sorted(paths, key=lambda path: mean[path])[:2]
    assert (tmp_path / annotation_files.LIST).read_text().splitlines() == [str(path) for path in chosen]
    stems = {path.relative_to(images).with_suffix("").as_posix() for path in chosen}
    assert set(masks_of("cvat", tmp_path / "cvat.zip")) == stems
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    assert [task["predictions"][0]["score"] for task in tasks] == pytest.approx([mean[p] for p in chosen], abs=1e-4)
    with (tmp_path / "area.csv").open(newline="") as file:
        assert len({row["image"] for row in csv.DictReader(file)}) == 3
    assert sum(name.endswith("_labels.png") for name in tree(tmp_path)) == 3


def test_an_unreadable_image_costs_one_line_and_the_files_have_the_others(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    out = tmp_path / "out"
    given = [bad, images / "a.png", "--checkpoint", checkpoint, "--output", out, "--device", "cpu"]
    assert main([*map(str, given), "--output_kinds", "cvat"]) == 1
    assert set(masks_of("cvat", out / "cvat.zip")) == {"a"} and tree(out) == ["cvat.zip"]
    assert capsys.readouterr().err.count("error:") == 1


def test_pages_have_names_of_their_own_and_no_georeference(checkpoint: Path, tmp_path: Path) -> None:
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)) for i in range(2)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    kinds = ("--pages", "--output_kinds", "labels", "cvat", "geojson", "area.csv", "coco")
    assert run(checkpoint, tmp_path / "scan.tif", tmp_path / "out", *kinds) == 0
    masks = masks_of("coco", tmp_path / "out" / "coco.json")
    assert sorted(masks) == sorted(masks_of("cvat", tmp_path / "out" / "cvat.zip")) == ["scan_p0001", "scan_p0002"]
    for name, mask in masks.items():
        assert np.array_equal(mask, read(tmp_path / "out" / f"{name}_labels.png"))
        assert "crs" not in features(tmp_path / "out" / f"{name}.geojson")[0]
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["scan_p0001.tif", "scan_p0002.tif"]


def test_several_processes_cannot_choose_among_all_images(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert run(checkpoint, images, tmp_path / "out", "--output_kinds", "geojson", "--uncertain", "1") == 2
    assert "--uncertain: chooses among all images" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_costs_one_line_and_the_others_are(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cvat.zip").mkdir()
    assert run(checkpoint, images, tmp_path, "--output_kinds", "cvat", "labelstudio") == 1
    assert len(masks_of("labelstudio", tmp_path / "labelstudio.json")) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "cvat.zip" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tolerance", "1"], "--tolerance simplifies polygons"),
        (["--tolerance", "1", "--output_kinds", "cvat"], "--tolerance simplifies polygons"),
        (["--uncertain", "1"], "--uncertain chooses images for annotation files"),
        (["--uncertain", "1", "--output_kinds", "area.csv"], "--uncertain chooses images for annotation files"),
    ],
)
def test_an_option_without_effect_is_refused(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run(checkpoint, images, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line_before_any_work(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    assert run(checkpoint, images, tmp_path / "out", "--output_kinds", "geojson") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'segkit-torch[annotations]'" in line and not (tmp_path / "out").exists()


def test_labels_wait_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    files = annotation_files.AnnotationFiles(tmp_path, ["cvat"], 0.0, None)
    maps = {tmp_path / f"{i}.jpg": np.full((5 + i, 4), i, np.uint8) for i in range(3)}
    for path, labels in maps.items():
        packed = annotation_files.Packed()
        for row in labels:
            packed.take(row[None])
        files.add(path, path.with_suffix(""), packed)
    assert tree(tmp_path) == []  # the file that holds them has no name
    files.write(maps, numbered_space(5), lambda path, error: pytest.fail(str(error)))
    masks = masks_of("cvat", tmp_path / "cvat.zip")
    assert all(np.array_equal(masks[path.stem], labels) for path, labels in maps.items())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    labels, count = np.zeros((500, 500), np.uint8), 60
    tracemalloc.start()
    try:
        files = annotation_files.AnnotationFiles(tmp_path, ["cvat", "coco"], 0.0, None)
        paths = [tmp_path / f"{i}.jpg" for i in range(count)]
        for path in paths:
            files.add(path, path.with_suffix(""), annotation_files.Packed(labels))
        files.write(paths, numbered_space(5), lambda path, error: pytest.fail(str(error)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * labels.nbytes / 3


@pytest.mark.slow
def test_large_images_are_in_the_files_of_all(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "2000")  # all three are read in tiles
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8)).save(tmp_path / "large.png")
    given = [tmp_path / "large.png", images / "c.tif", "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    kinds = ("--output_kinds", "cvat", "geojson", "overlay")
    assert main([*map(str, given), "--device", "cpu", "--memory", "2GB", *kinds]) == 0
    expected = ["c.geojson", "c_labels.tif", "c_overlay.png", "cvat.zip"]
    expected += ["large.geojson", "large_labels.tif", "large_overlay.png"]
    assert tree(tmp_path / "out") == expected
    monkeypatch.delenv("SEGKIT_MAX_PIXELS")
    masks = masks_of("cvat", tmp_path / "out" / "cvat.zip")
    for name, where in (("large", {}), ("c", {"transform": GRID})):
        with rasterio.open(tmp_path / "out" / f"{name}_labels.tif") as file:
            labels = file.read(1)
        assert np.array_equal(masks[name], labels)
        shapes = features(tmp_path / "out" / f"{name}.geojson")[1]
        assert np.array_equal(rasterize(shapes, labels.shape, fill=255, dtype="uint8", **where), labels)


def test_annotation_kinds_need_no_pytorch() -> None:
    code = (
        "import sys, segkit.inference.annotation_files, segkit.inference.results, segkit.formats.cvat, "
        "segkit.formats.labelstudio, segkit.formats.geojson, segkit.formats.area_csv; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
