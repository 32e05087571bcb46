"""`segkit data convert`: an export and its images become a folder that `segkit data check` and training read."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segkit.cli import main
from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.formats.base import Labelled
from segkit.formats.names import FORMATS, writer_of
from segkit.metadata.label_space import numbered_space

SIZE = (30, 40)
NAMES = ("a.jpg", "b.jpg", "deep/c.png", "empty.jpg")


def polygon(*numbers: float) -> dict[str, Any]:
    return {"segmentation": [list(numbers)], "iscrowd": 0}


CROWD = {"segmentation": {"size": list(SIZE), "counts": [0, 60, 1140]}, "iscrowd": 1}  # two columns at the left
DRAWN = {
    "a.jpg": [(1, polygon(5, 5, 30, 5, 30, 20, 5, 20)), (2, polygon(20, 10, 39, 10, 39, 29, 20, 29))],
    "b.jpg": [(2, polygon(-8, 4, 12, 4, 12, 25, -8, 25)), (1, CROWD)],
    "deep/c.png": [(1, polygon(0, 0, 40, 0, 40, 30, 0, 30))],
}


def write_export(path: Path, drawn: dict[str, list[tuple[int, dict[str, Any]]]]) -> Path:
    images = [{"id": i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in enumerate(NAMES, start=1)]
    regions = [(NAMES.index(name) + 1, category, shape) for name, found in drawn.items() for category, shape in found]
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "area": 1, "bbox": [0, 0, 1, 1]} | shape
        for i, (image, category, shape) in enumerate(regions, start=1)
    ]
    categories = [{"id": 1, "name": "road"}, {"id": 2, "name": "tree"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture
def export(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    return write_export(tmp_path / "instances.json", DRAWN)


def convert(export: Path, *options: object) -> int:
    arguments = ["--images", export.parent / "photos", "-o", export.parent / "made", *options]
    return main(["data", "convert", *map(str, (export, *arguments))])


def mask(export: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open((export.parent / "made/labels" / name).with_suffix(".png")))


def test_the_folder_has_pycocotools_masks_and_its_counts(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(export) == 0
    printed, made = capsys.readouterr().out, export.parent / "made"
    coco = COCO(export)
    for image in coco.dataset["images"][:3]:
        expected = np.full(SIZE, 255, np.uint8)
        for one in coco.imgToAnns[image["id"]]:
            expected[coco.annToMask(one) == 1] = 255 if one["iscrowd"] else one["category_id"] - 1
        assert (mask(export, image["file_name"]) == expected).all()
        assert (made / "images" / image["file_name"]).samefile(export.parent / "photos" / image["file_name"])
    assert (made / "classes.txt").read_text() == "road\ntree\n"
    assert "3 images, 5 regions" in printed
    pixels = sum(int((mask(export, name) == 1).sum()) for name in NAMES[:3])
    assert f"1 tree {pixels} " in " ".join(printed.split())
    for words in ("pixels in regions of two classes", "1 polygons that reach outside", "1 images without a region"):
        assert words in printed
    (made / "splits").mkdir()
    (made / "splits/train.txt").write_text("a\nb\n")
    (made / "splits/val.txt").write_text("deep/c\n")
    assert main(["data", "check", "folder", str(made)]) == 0
    assert f" tree {pixels} " in " ".join(capsys.readouterr().out.split())


def test_a_second_run_goes_on_and_overwrites_nothing(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(export) == 0
    before = {path: path.stat().st_mtime_ns for path in (export.parent / "made").rglob("*.*")}
    (export.parent / "made/labels/b.png").unlink()
    assert convert(export) == 0
    assert "3 images (2 were there)" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (export.parent / "made").rglob("*.*")}
    assert {path for path in after if after[path] != before[path]} == {export.parent / "made/labels/b.png"}
    write_export(export, DRAWN | {"a.jpg": DRAWN["a.jpg"][:1]})  # corrected
    old = mask(export, "a.jpg")
    assert convert(export) == 1
    assert "a.png: is there with other labels" in capsys.readouterr().out
    assert (mask(export, "a.jpg") == old).all()
    assert convert(export, "--overwrite") == 0
    assert (mask(export, "a.jpg") != old).any()
    cv2.imwrite(str(export.parent / "photos/a.jpg.png"), np.zeros((3, 3, 3), np.uint8))
    (export.parent / "photos/a.jpg").unlink()
    Image.new("RGB", SIZE[::-1]).save(export.parent / "photos/a.jpg")
    assert convert(export) == 1
    assert "is there and is another image" in capsys.readouterr().out


def test_what_cannot_be_converted_is_named_and_the_rest_is_done(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (export.parent / "photos/deep/c.png").unlink()
    (export.parent / "names.txt").write_text("road\n")
    assert convert(export, "--classes", export.parent / "names.txt") == 1
    printed = capsys.readouterr().out
    assert printed.count("refused: ") == 3 and "deep/c.png: no such image in" in printed
    assert "class 'tree' is unknown" in printed
    write_export(export, {"a.jpg": DRAWN["a.jpg"][:1]})
    assert convert(export) == 0  # with the folder's own classes.txt
    shutil.rmtree(export.parent / "made/images")
    (export.parent / "made/images").touch()
    assert convert(export) == 1
    assert "made/images/a.jpg: cannot be written: a part of this path is a file" in capsys.readouterr().out
    export.with_name("names.txt").write_text("tree\nroad\n")
    assert convert(export, "--classes", export.parent / "names.txt") == 2
    assert convert(export, "--images", export.parent / "absent") == 2
    error = capsys.readouterr().err
    assert "classes.txt: differs from" in error and "absent: no such folder or zip" in error


def test_a_background_is_what_is_left_and_turned_images_fit(tmp_path: Path, export: Path) -> None:
    (export.parent / "names.txt").write_text("background\nroad\ntree\n")
    tags = Image.Exif()
    tags[0x0112] = 6  # shown turned by a quarter to the right
    stored = np.zeros((*SIZE[::-1], 3), np.uint8)
    stored[:10] = 255  # the upper rows, which are the columns at the right of what is shown
    Image.fromarray(stored).save(export.parent / "photos/b.jpg", exif=tags)
    write_export(export, {"b.jpg": [(2, polygon(30, 0, 40, 0, 40, 30, 30, 30))]} | {"a.jpg": []})
    shutil.rmtree(export.parent / "made", ignore_errors=True)
    assert convert(export, "--classes", export.parent / "names.txt") == 0
    assert not mask(export, "a.jpg").any() and not mask(export, "empty.jpg").any()
    turned = mask(export, "b.jpg")
    assert turned.shape == SIZE[::-1] and (turned[:10] == 2).mean() > 0.9 and not turned[11:].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ("not json", "looks like no export that is known"),
        ('{"images": [], "annotations": [], "categories": []}', "without images"),
    ],
)
def test_no_export_is_one_line(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "export.json").write_text(content)
    assert convert(tmp_path / "export.json") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_nothing_annotated_is_one_line(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_export(export, {})
    assert convert(export) == 2
    assert "no region in its 4 images" in capsys.readouterr().err


def test_data_check_names_the_command(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([str(export)], ["folder", str(export)]):
        assert main(["data", "check", *given]) == 2
        error = capsys.readouterr().err
        assert f"an export (coco), not a data set: `segkit data convert {export} -o FOLDER`" in error
    with pytest.raises(InputError, match="an export"):  # as `segkit fit` asks
        _ = FolderDataModule(export).label_space


def test_names_are_found_whatever_their_folders_and_suffixes_and_never_guessed_of_two(export: Path) -> None:
    photos = export.parent / "photos"
    (photos / "x").mkdir()
    shutil.move(photos / "a.jpg", photos / "x/a.webp")
    shutil.copy(photos / "b.jpg", photos / "x/b.png")  # b.jpg itself is there
    shutil.copy(photos / "deep/c.png", photos / "x/c.png")
    (photos / "labels").mkdir()
    shutil.copy(photos / "b.jpg", photos / "labels/a.png")
    assert convert(export) == 0
    made = {
        p.relative_to(export.parent / "made/images").as_posix() for p in (export.parent / "made/images").rglob("*.*")
    }
    assert made == {"a.webp", "b.jpg", "deep/c.png"}
    (photos / "y").mkdir()
    shutil.copy(photos / "x/a.webp", photos / "y/a.webp")
    shutil.rmtree(export.parent / "made")
    assert convert(export) == 1


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_zipped_list_is_read_as_the_list_is(export: Path, is_zip: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """As CVAT's "COCO 1.0" has it, with its images or without, and the folder that it is unpacked to."""
    assert convert(export) == 0
    expected = {name: mask(export, name) for name in DRAWN}
    shutil.rmtree(export.parent / "made")
    whole = export.parent / "whole"
    shutil.copytree(export.parent / "photos", whole / "images/default")
    (whole / "annotations").mkdir()
    shutil.move(export, whole / "annotations/instances_default.json")
    given = Path(shutil.make_archive(str(whole), "zip", whole)) if is_zip else whole
    assert main(["data", "convert", str(given), "-o", str(export.parent / "made")]) == 0
    assert all(np.array_equal(mask(export, name), labels) for name, labels in expected.items())
    assert (export.parent / "made/images/a.jpg").read_bytes() == (export.parent / "photos/a.jpg").read_bytes()
    shutil.copy(whole / "annotations/instances_default.json", whole / "annotations/instances_more.json")
    given = Path(shutil.make_archive(str(whole), "zip", whole)) if is_zip else whole
    capsys.readouterr()
    assert convert(given, "--format", "coco") == 2
    assert "2 JSON files where one is needed; unpack it, and give one after another" in capsys.readouterr().err


LABELS = np.random.default_rng(1).integers(0, 2, (6, 8), np.uint8).repeat(5, 0).repeat(5, 1)  # (30, 40)


WRITTEN = {
    "coco": "e.json",
    "panoptic": "e.json",
    "cvat": "e.zip",
    "labelstudio": "e.json",
    "labelme": "e",
    "yolo": "e",
}


def test_all_formats_that_are_read_are_recognised() -> None:
    assert {name for name, one in FORMATS.items() if one.reads} == {*WRITTEN, "voc"}


def test_yolos_splits_stay_splits(export: Path) -> None:
    yolo = export.parent / "yolo"
    for split, corner in (("train", 0.5), ("valid", 1.0)):
        for folder in ("images", "labels"):
            (yolo / split / folder).mkdir(parents=True)
        shutil.copy(export.parent / f"photos/{'ab'[split == 'valid']}.jpg", yolo / split / "images/a.jpg")
        (yolo / split / "labels/a.txt").write_text(f"0 0 0 {corner} 0 {corner} 1 0 1\n")
    (yolo / "data.yaml").write_text("train: train/images\nval: valid/images\nnames: [road]\n")
    assert main(["data", "convert", str(yolo), "-o", str(export.parent / "made")]) == 0
    assert ((mask(export, "train/a.jpg") == 0) == (np.arange(40) < 20)).all() and not mask(export, "val/a.jpg").any()
    for split, theirs in (("train", "train"), ("val", "valid")):
        made = export.parent / f"made/images/{split}/a.jpg"
        assert made.samefile(yolo / theirs / "images/a.jpg")
    assert main(["data", "check", "folder", str(export.parent / "made")]) == 0


def test_vocs_folders_are_read_with_void_ignored(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc = export.parent / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (voc / folder).mkdir(parents=True)
    values = LABELS * 15  # 0 background, 15 person
    values[3:6] = 255
    for folder in ("SegmentationClass", "SegmentationObject"):
        image = Image.fromarray(values)
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        image.save(voc / folder / "a.png")
    Image.new("RGB", SIZE[::-1]).save(voc / "JPEGImages/a.jpg")
    assert main(["data", "convert", str(voc), "-o", str(export.parent / "made")]) == 0
    assert (mask(export, "a.png") == values).all()
    assert (export.parent / "made/classes.txt").read_text().split()[15] == "person"
    (voc / "classes.txt").write_text("background\nroad\n")
    assert main(["data", "convert", str(voc), "-o", str(export.parent / "other")]) == 1
    assert "a.png: value 15 is of no class" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file"), WRITTEN.items())
def test_what_segkit_writes_is_recognised_and_comes_back_to_the_pixel(export: Path, kind: str, file: str) -> None:
    space = numbered_space(2)
    written = export.parent / kind / file
    written.parent.mkdir()
    writer_of(kind)([Labelled("a.jpg", LABELS), Labelled("deep/c.png", 1 - LABELS)], written, space, 0.0)
    if kind == "cvat":  # with images in it, as CVAT exports them on demand
        with zipfile.ZipFile(written, "a") as archive:
            archive.write(export.parent / "photos/a.jpg", "JPEGImages/a.jpg")
            archive.write(export.parent / "photos/deep/c.png", "JPEGImages/deep/c.png")
    (export.parent / "names.txt").write_text("\n".join(space.class_names))
    images = [] if kind in ("cvat", "yolo") else ["--images", export.parent / "photos"]
    if kind == "yolo":  # which has its images by definition
        for name in ("a.jpg", "deep/c.png"):
            (written / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(export.parent / "photos" / name, written / "images" / name)
    command = ["data", "convert", written, "-o", export.parent / "made", "--classes", export.parent / "names.txt"]
    assert main([*map(str, command + images)]) == 0
    assert (mask(export, "a.jpg") == LABELS).all() and (mask(export, "deep/c.png") == 1 - LABELS).all()
    assert (export.parent / "made/images/a.jpg").read_bytes() == (export.parent / "photos/a.jpg").read_bytes()
