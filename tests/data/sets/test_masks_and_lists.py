"""Where masks and lists of one's own data are not as the book has it: what is plain is read, the rest says the cure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segkit.cli import main
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.folder import FolderDataModule
from segkit.data.sets.voc import VOCDataModule

CLASSES = {"classes.txt": "road\ntree\n"}


def names(root: Path, split: Any = "train", **options: Any) -> list[str]:
    """Of the samples, each of which is read."""
    layout = FolderDataModule(root, **options)
    samples = layout.find_samples(split)
    for sample in samples:
        assert layout.read(sample)[1] is not None
    return [sample.name for sample in samples]


def checked(capsys: pytest.CaptureFixture[str], root: Path, *options: str) -> tuple[int, str]:
    code = main(["data", "check", "folder", str(root), *options])
    return code, capsys.readouterr().out


def tiff(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array([0, 1, 255], np.uint8), (6, 8))).save(path, "TIFF")


def test_masks_in_capitals_and_in_tiff(tmp_path: Path, plant: Any, capsys: Any) -> None:
    for split in ("train", "val"):
        images = {f"images/{split}/{name}": None for name in ("a.JPG", "b.jpeg", "town/c.png", "d.png")}
        plant(tmp_path, CLASSES | images | {f"labels/{split}/a.PNG": [0, 1], f"labels/{split}/d.png": [1]})
        tiff(tmp_path / f"labels/{split}/b.tif")
        tiff(tmp_path / f"labels/{split}/town/c.TIFF")
    assert names(tmp_path) == ["a", "b", "d", "town/c"]
    assert checked(capsys, tmp_path)[0] == 0


def test_two_masks_of_one_image(tmp_path: Path, plant: Any, refused: Any, capsys: Any) -> None:
    plant(tmp_path, CLASSES | {"images/train/a.jpg": None, "images/val/a.jpg": None, "labels/val/a.png": [0, 1]})
    tiff(tmp_path / "labels/train/a.tif")
    plant(tmp_path, {"labels/train/a.PNG": [0]})
    refused(lambda: names(tmp_path), "labels/train/a.PNG and ", "labels/train/a.tif are masks of one image")
    code, out = checked(capsys, tmp_path)
    assert code == 1 and "a.tif are masks of one image" in out


def test_cityscapes_masks_in_capitals(tmp_path: Path, plant: Any) -> None:
    stem = "train/bonn/bonn_000000_000019"
    plant(tmp_path, {f"leftImg8bit/{stem}_leftImg8bit.png": None, f"gtFine/{stem}_gtFine_labelIds.PNG": [7]})
    assert len(CityscapesDataModule(tmp_path).find_samples("train")) == 1


def test_a_missing_mask_says_what_is_there_and_what_is_allowed(tmp_path: Path, plant: Any, refused: Any) -> None:
    plant(tmp_path, CLASSES | {"images/train/a.jpg": None, "images/train/b.jpg": None, "labels/train/b.png": [0]})
    allowed = "allowed are a.png, a.tif, a.tiff"
    refused(lambda: names(tmp_path), "labels/train/a.png: no mask", "1 of 2 images", "holds b.png", allowed)
    plant(tmp_path, {"labels/train/a.jpg": None})
    refused(lambda: names(tmp_path), "that folder holds a.jpg; allowed")
    for path in (tmp_path / "labels/train").iterdir():
        path.unlink()
    refused(lambda: names(tmp_path), "that folder is empty", "2 of 2 images")
    (tmp_path / "labels/train").rmdir()
    refused(lambda: names(tmp_path), f"there is no folder {tmp_path}/labels/train")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["labels", "images"])
def test_masks_whose_names_end_otherwise(tmp_path: Path, plant: Any, refused: Any, capsys: Any, place: str) -> None:
    files: dict[str, Any] = dict(CLASSES)
    for split in ("train", "val"):
        for name in ("a", "b"):
            files |= {f"images/{split}/{name}.png": None, f"{place}/{split}/{name}_mask.png": [0, 1]}
    plant(tmp_path, files)
    images, masks = "images/{split}/{name}.png", f"{place}/{{split}}/{{name}}_mask.png"
    cure = f"set --data.images '{images}' --data.masks '{masks}'"
    refused(lambda: names(tmp_path), cure)
    code, out = checked(capsys, tmp_path)
    assert code == 1 and cure in out
    assert place == "images" or "no image (4)" in out  # the files are not hidden
    assert names(tmp_path, images=images, masks=masks) == names(tmp_path, masks=masks) == ["a", "b"]
    code, out = checked(capsys, tmp_path, "--data.masks", masks)
    assert code == 0 and "2 images, 2 masks" in out
    plant(tmp_path, {f"{place}/train/c_mask.png": [0]})
    code, out = checked(capsys, tmp_path, f"--data.masks={masks}")
    assert code == 1 and "no image (1)" in out and f"{place}/train/c_mask.png" in out


TREES = [
    ("img/{name}.jpg", "gt/{name}_mask.png"),
    ("photos/{split}/{name}.jpg", "truth/{split}/{name}.png"),
    ("data/img_{name}.png", "data/mask_{name}.png"),
    ("{name}_rgb.png", "{name}_seg.tif"),
    ("{name}.jpg", "{name}.png"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("images", "masks"), TREES)
def test_a_check_names_the_options_that_read_the_data(
    tmp_path: Path, plant: Any, capsys: Any, images: str, masks: str
) -> None:
    plant(tmp_path, CLASSES)
    for i in range(30):
        for template, content in ((images, None), (masks, [0, 1])):
            path = template.format(name=f"street_{i}", split="val" if i % 5 == 0 else "train")
            tiff(tmp_path / path) if path.endswith("tif") else plant(tmp_path, {path: content})
    assert main(["data", "check", "folder", str(tmp_path)]) == 2
    assert f"set --data.images '{images}' --data.masks '{masks}'" in capsys.readouterr().err
    code, out = checked(capsys, tmp_path, "--data.images", images, "--data.masks", masks)
    assert code == 0, out


def test_paths_of_images_and_masks(tmp_path: Path, plant: Any) -> None:
    files = {f"img/town/{i}.JPG": None for i in range(20)} | {f"gt/town/{i}_mask.png": [0, 255] for i in range(20)}
    plant(tmp_path, CLASSES | files)
    options = {"images": "img/{name}.jpg", "masks": "binary gt/{name}_mask.png"}
    splits: list[Any] = ["train", "val"]
    found = [name for split in splits for name in names(tmp_path, split, **options)]
    assert sorted(found) == sorted(f"town/{i}" for i in range(20))
    (sample, *_) = FolderDataModule(tmp_path, **options).find_samples("val")
    assert set(np.unique(FolderDataModule(tmp_path, **options).read(sample)[1])) == {0, 1}
    plant(tmp_path, {"splits/train.txt": "img/town/3.JPG gt/town/3_mask.png\n", "splits/val.txt": "town/4\n"})
    assert names(tmp_path, **options) == ["town/3"]


def test_masks_beside_the_images_without_splits(tmp_path: Path, plant: Any) -> None:
    files = {f"images/{i}.png": None for i in range(20)} | {f"images/{i}_mask.png": [0, 1] for i in range(20)}
    plant(tmp_path, CLASSES | files)
    splits: list[Any] = ["train", "val"]
    found = [name for split in splits for name in names(tmp_path, split, masks="images/{name}_mask.png")]
    assert sorted(found, key=int) == [str(i) for i in range(20)]


def test_paths_that_are_none(tmp_path: Path, refused: Any) -> None:
    for masks in ("_mask", "gray", "binary gt", "gt/{nam}.png"):
        refused(lambda masks=masks: FolderDataModule(tmp_path, masks=masks), repr(masks), "ids, binary and colors")
    for path in ("img/{name}/{name}.jpg", "../{name}.jpg", "img"):
        refused(lambda path=path: FolderDataModule(tmp_path, images=path), repr(path), "{name} once")


@pytest.fixture
def listed(tmp_path: Path, plant: Any) -> Path:
    files: dict[str, Any] = {f"images/{name}.jpg": None for name in ("a", "my b", "town/c", "2024-01-01 12:30")}
    files |= {f"labels/{name}.png": [0, 1] for name in ("a", "my b", "town/c", "2024-01-01 12:30")}
    return plant(tmp_path, CLASSES | files)


LINES = {
    "names": ("a\nmy b\ntown/c\n", ["a", "my b", "town/c"]),
    "Windows": ("\ufeffa\r\n\r\nmy b\r\n", ["a", "my b"]),
    "suffixes": ("a.jpg\nmy b.JPG\ntown/c.jpeg\n", ["a", "my b", "town/c"]),
    "paths": ("images/a.jpg\n./images/town/c.jpg\nimages/my b\n", ["a", "town/c", "my b"]),
    "two columns": ("images/a.jpg labels/a.png\nimages/my b.jpg\tlabels/my b.png\n", ["a", "my b"]),
    "commas": ("a.jpg,a.png\ntown/c.jpg; town/c.png\n", ["a", "town/c"]),
    "two columns without suffix": ("images/a labels/a\ntown/c town/c\n", ["a", "town/c"]),
    "an hour is no drive": ("2024-01-01 12:30\n", ["2024-01-01 12:30"]),
}


@pytest.mark.parametrize("kind", LINES)
def test_lists_whose_meaning_is_plain(listed: Path, plant: Any, kind: str) -> None:
    text, expected = LINES[kind]
    plant(listed, {"splits/train.txt": text, "splits/val.txt": "a\n"})
    assert names(listed) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n../../etc/passwd\n", ("line 2 is '../../etc/passwd'", "leads out")),
        ("/home/me/a.jpg\n", ("line 1 is '/home/me/a.jpg'", "leads out")),
        ("C:\\data\\a.jpg\n", ("line 1", "leads out")),
        ("images\\a.jpg\n", ("line 1", "leads out")),
        ("images/../../a.jpg\n", ("line 1", "leads out")),
        (
            "images/a.jpg labels/other.png\n",
            ("line 1", "not named like its image", "--data.masks 'labels/{name}_mask.png'"),
        ),
        ("a 1\n", ("no image for a 1 (1 names)", "images, which has 2024-01-01 12:30")),
        ("x,y,label\n", ("no image for x,y,label", "a line is an image's path below its folder, without suffix")),
        ("a\nmy b\nimages/a.jpg\n", ("names a twice, in lines 1 and 3",)),
        ("a\x1b[31m\n../\x1b[31m\n", (r"line 2 is '../\\x1b[31m'",)),
        ("\n\n", ("names no image", "a line is")),
    ],
)
def test_other_lines_are_shown(listed: Path, plant: Any, refused: Any, text: str, words: Any) -> None:
    plant(listed, {"splits/train.txt": text, "splits/val.txt": "a\n"})
    refused(lambda: names(listed), str(listed / "splits/train.txt"), *words)


def test_lists_of_folders_of_splits(tmp_path: Path, plant: Any) -> None:
    files: dict[str, Any] = {f"images/train/{name}.jpg": None for name in ("a", "train/b")}
    files |= {f"labels/train/{name}.png": [0] for name in ("a", "train/b")}
    plant(tmp_path, CLASSES | files | {"splits/train.txt": "images/train/a.jpg\ntrain/b\n"})
    assert names(tmp_path) == ["a", "train/b"]  # the folder train in images/train is a part of the name


def test_the_lists_of_deeplab_for_voc(tmp_path: Path, plant: Any) -> None:
    stems = ("2007_1", "2008_2")
    files: dict[str, Any] = {f"JPEGImages/{stem}.jpg": None for stem in stems}
    files |= {f"SegmentationClassAug/{stem}.png": [0] for stem in stems} | {"SegmentationClass/2007_1.png": [0]}
    lines = "".join(f"/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png\n" for stem in stems)
    lists = {"ImageSets/Segmentation/train.txt": "2007_1\n", "ImageSets/Segmentation/trainaug.txt": lines}
    plant(tmp_path, files | lists)
    samples = VOCDataModule(tmp_path, augmented=True).find_samples("train")
    assert [(s.name, s.mask.parent.name) for s in samples if isinstance(s.mask, Path)] == [
        ("2007_1", "SegmentationClass"),
        ("2008_2", "SegmentationClassAug"),
    ]


def test_linked_and_foreign_folders(tmp_path: Path, plant: Any, capsys: Any) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for split in ("train", "val"):
        plant(root, CLASSES | {f"images/{split}/a.jpg": None, f"labels/{split}/a.png": [0, 1]})
        plant(elsewhere, {f"images/{split}/1.jpg": None, f"masks/{split}/1.png": [0, 1]})
        (root / f"images/{split}/bonn").symlink_to(elsewhere / f"images/{split}")
        (root / f"labels/{split}/bonn").symlink_to(elsewhere / f"masks/{split}")
        (root / f"images/{split}/loop").symlink_to(root / "images")
        plant(root, {f"images/{split}/{folder}/a-copy.jpg": None for folder in (".ipynb_checkpoints", "@eaDir")})
        plant(root, {f"labels/{split}/.ipynb_checkpoints/b.png": [0]})
    assert names(root) == ["a", "bonn/1"]
    code, out = checked(capsys, root)
    assert code == 0 and out.count("2 images, 2 masks") == 2


def test_linked_cities(tmp_path: Path, plant: Any) -> None:
    for city in ("bonn", "ulm"):
        stem = f"{city}_000000_000019"
        plant(tmp_path / "disk", {f"images/{city}/{stem}_leftImg8bit.png": None})
        plant(tmp_path / "disk", {f"masks/{city}/{stem}_gtFine_labelIds.png": [7]})
        for kind, folder in (("leftImg8bit", "images"), ("gtFine", "masks")):
            (tmp_path / "root" / kind / "train").mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / kind / "train" / city).symlink_to(tmp_path / "disk" / folder / city)
    found = [sample.name for sample in CityscapesDataModule(tmp_path / "root").find_samples("train")]
    assert found == ["bonn/bonn_000000_000019_leftImg8bit", "ulm/ulm_000000_000019_leftImg8bit"]
