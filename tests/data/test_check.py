"""What a check of a data set finds: each fault alone gives its kind, and none hides another."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from segkit.data.check.check import check, splits_of
from segkit.data.check.report import KINDS, NOTES, PROBLEMS, WARNINGS, Report, rows_of
from segkit.data.layout.base import Layout, Part
from segkit.data.sets.ade20k import ADE20KDataModule
from segkit.data.sets.camvid import CamVidDataModule
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.io import write_png

SIZE = (6, 8)


def image(path, size=SIZE):
    write_png(path, np.random.default_rng(zlib.crc32(os.fsencode(path))).integers(0, 256, (*size, 3), np.uint8))


def mask(path, values=(0, 1, 2, 255), size=SIZE):
    write_png(path, np.resize(np.array(values, np.uint8), size))


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image(tmp_path / f"images/{split}/{i}.png")
            mask(tmp_path / f"labels/{split}/{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    return tmp_path


def checked(layout: Layout, **options) -> Report:
    report = Report(layout)
    check(report, splits_of(layout), **options)
    json.dumps(report.to_dict())
    return report


def found(report: Report) -> dict[str, list[str]]:
    return dict(report.findings.found)


def test_nothing_wrong(root):
    report = checked(FolderDataModule(root))
    assert found(report) == {}
    assert [(s.split, s.images, s.masks, s.opened) for s in report.splits] == [("train", 4, 4, 4), ("val", 2, 2, 2)]
    train = report.splits[0]
    assert train.pixels[[0, 1, 2, 255]].tolist() == [48] * 4 and train.having[255] == 4
    assert train.valid_share(report.layout.label_space.table) == 0.75
    rows = [(row.raw, row.train_id, row.name, row.pixels) for row in rows_of(train, report.layout.label_space)]
    assert rows == [(0, 0, "a", 48), (1, 1, "b", 48), (2, 2, "c", 48), (255, 255, "ignored", 48)]


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def jpeg(path):
    Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), SIZE)).save(path, "JPEG")


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path.with_suffix(".jpg"), exif=exif)
    path.unlink()


def deep(path, most):
    Image.fromarray((np.arange(48).reshape(SIZE) * most // 47).astype(np.uint16)).save(path)


def paged(path):
    Image.open(path).save(path, save_all=True, append_images=[Image.open(path)])


FAULTS: dict[str, tuple[Callable, str, str]] = {
    "no mask": (lambda r: (r / "labels/train/1.png").unlink(), "no mask", "1.png: expected is "),
    "no image": (lambda r: (r / "images/train/1.png").unlink(), "no image", "labels/train/1.png"),
    "size": (lambda r: mask(r / "labels/train/1.png", size=(6, 9)), "size", "is 8x6, "),
    "truncated image": (lambda r: cut(r / "images/train/1.png"), "unreadable", "images/train/1.png"),
    "truncated mask": (lambda r: cut(r / "labels/train/1.png"), "unreadable", "labels/train/1.png"),
    "no image at all": (lambda r: (r / "images/train/1.png").write_text("hello"), "unreadable", "images/train/1"),
    "empty file": (lambda r: (r / "labels/train/1.png").write_bytes(b""), "unreadable", "empty file"),
    "JPEG mask": (lambda r: jpeg(r / "labels/train/1.png"), "mask format", "is a JPEG"),
    "RGB mask": (lambda r: image(r / "labels/train/1.png"), "mask format", "mode RGB"),
    "undeclared": (lambda r: mask(r / "labels/train/1.png", (0, 3)), "undeclared", "value 3 is not declared"),
    "empty mask": (lambda r: mask(r / "labels/train/1.png", (255,)), "empty mask", "labels/train/1.png"),
    "EXIF": (lambda r: rotated(r / "images/train/1.png"), "exif", "1.jpg: orientation 6"),
    "12 bits in 16": (lambda r: deep(r / "images/train/1.png", 4095), "unreadable", "values 0..4095: only the upper 8"),
    "16 bits": (lambda r: deep(r / "images/train/1.png", 65535), "partly read", "has 16 bits per channel"),
    "two frames": (lambda r: paged(r / "images/train/1.png"), "partly read", "1.png has 2 pages or frames"),
    "two masks": (lambda r: paged(r / "labels/train/1.png"), "partly read", "labels/train/1.png has 2 pages or frames"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(root, fault):
    spoil, kind, words = FAULTS[fault]
    spoil(root)
    report = checked(FolderDataModule(root), workers=2)
    assert list(found(report)) == [kind]
    (text,) = found(report)[kind]
    assert words in text and "\n" not in text
    assert report.splits[1].opened == 2


def test_what_is_no_file_stops_nothing(root):
    os.mkfifo(root / "images/train/pipe.png")  # to open it would wait for ever
    mask(root / "labels/train/pipe.png")
    (root / "images/train/gone.png").symlink_to(root / "nowhere.png")
    mask(root / "labels/train/gone.png")
    image(root / "images/train/a.png")
    os.mkfifo(root / "labels/train/a.png")
    report = checked(FolderDataModule(root))
    texts = sorted(text.removeprefix(f"{root}/") for text in found(report)["unreadable"])
    assert [text.partition(",")[0] for text in texts] == [
        f"images/train/gone.png: is a link to {root}/nowhere.png",
        "images/train/pipe.png: is a named pipe",
        "labels/train/a.png: is a named pipe",
    ]
    assert report.splits[0].opened == 7


def test_a_list_of_classes_that_is_a_pipe(root):
    (root / "classes.txt").unlink()
    os.mkfifo(root / "classes.txt")
    (text,) = found(checked(FolderDataModule(root)))["data set"]
    assert "classes.txt: is a named pipe" in text


def test_a_name_that_is_not_utf8_is_one_problem(root):
    image(root / "images/train" / os.fsdecode(b"caf\xe9.png"))
    report = checked(FolderDataModule(root))
    assert [text for text in found(report)["data set"] if r"caf\xe9.png: this name is not UTF-8; rename it" in text]
    assert report.splits[1].opened == 2


def test_all_faults_at_once_hide_none(root):
    for i, (spoil, _, _) in enumerate(FAULTS.values()):
        one = root / f"part{i}"
        image(one / "images/train/1.png")
        mask(one / "labels/train/1.png")
        spoil(one)
        for kind in ("images", "labels"):
            for path in (one / kind / "train").iterdir():
                path.rename(root / kind / "train" / f"{i}-{path.name}")
    report = checked(FolderDataModule(root))
    counts = {kind: len(texts) for kind, texts in found(report).items()}
    wanted = {kind: sum(k == kind for _, k, _ in FAULTS.values()) for _, kind, _ in FAULTS.values()}
    assert counts == wanted
    assert report.findings.count(WARNINGS) == 5 and report.findings.count(PROBLEMS) == len(FAULTS) - 5


def test_absent_classes_are_a_note(root):
    for path in (root / "labels/val").iterdir():
        mask(path, (0, 2))
    report = checked(FolderDataModule(root))
    assert found(report) == {"absent class": ["val (2 masks): b"]} and not report.findings.count(PROBLEMS | WARNINGS)


def test_masks_that_cannot_be_read_are_not_said_to_lack_classes(root):
    for path in (root / "labels/val").iterdir():
        image(path)
    assert set(found(checked(FolderDataModule(root)))) == {"mask format"}


def test_undeclared_values_are_in_the_table(root):
    mask(root / "labels/train/1.png", (0, 9))
    rows = rows_of(checked(FolderDataModule(root)).splits[0], FolderDataModule(root).label_space)
    assert (rows[-1].raw, rows[-1].name, rows[-1].pixels, rows[-1].masks) == (9, "undeclared", 24, 1)


def test_lists_share_a_folder(tmp_path):
    for name in "abcd":
        image(tmp_path / f"images/{name}.png")
        mask(tmp_path / f"labels/{name}.png")
    mask(tmp_path / "labels/lone.png")
    mask(tmp_path / "labels/a_labelTrainIds.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("a\nb\ngone\n")
    (tmp_path / "splits/val.txt").write_text("c\n")
    report = checked(FolderDataModule(tmp_path))
    assert found(report) == {
        "not found": [f"{tmp_path / 'splits/train.txt'}: gone"],
        # Once; and neither d, which has an image, nor what was made from a mask.
        "no image": [str(tmp_path / "labels/lone.png")],
    }
    assert [split.images for split in report.splits] == [2, 1]


def test_colours_that_are_not_declared(root):
    for path in (root / "labels").rglob("*.png"):
        write_png(path, np.zeros((*SIZE, 3), np.uint8))
    write_png(root / "labels/train/1.png", np.full((*SIZE, 3), 7, np.uint8))
    jpeg(root / "labels/train/2.png")
    (root / "palette.csv").write_text("id,r,g,b\n0,0,0,0\n1,1,1,1\n2,2,2,2\n")
    report = checked(FolderDataModule(root, "colors"))
    assert "colour (7, 7, 7) is not declared" in found(report)["undeclared"][0]
    assert "JPEG" in found(report)["mask format"][0]


def test_wrong_tables_are_one_problem(root):
    (root / "classes.txt").write_text("a\na\n")
    assert list(found(checked(FolderDataModule(root)))) == ["data set"]


def test_a_split_that_is_not_there_does_not_stop_the_other(root):
    for path in (root / "images/val").iterdir():
        path.unlink()
    (root / "images/val").rmdir()
    report = checked(FolderDataModule(root))
    assert list(found(report)) == ["data set", "no image"] or list(found(report)) == ["data set"]
    assert report.splits[0].opened == 4 and report.splits[1].images == 0


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such data folder"):
        checked(CamVidDataModule(tmp_path / "no"))
    for layout in (
        CamVidDataModule(tmp_path),
        CityscapesDataModule(tmp_path),
        ADE20KDataModule(tmp_path),
        FolderDataModule(tmp_path),
    ):
        with pytest.raises(InputError, match="no such folder"):
            checked(layout)


def test_official_counts(tmp_path):
    for split in ("training", "validation"):
        image(tmp_path / f"images/{split}/a.jpg")
        mask(tmp_path / f"annotations/{split}/a.png", range(48))
    report = checked(ADE20KDataModule(tmp_path))
    assert found(report)["count"] == ["train: 1 images; ADE20K has 20210", "val: 1 images; ADE20K has 2000"]
    assert [split.split for split in report.splits] == ["train", "val"]  # its test split is val


def test_the_wrong_ade20k_archive_is_the_only_problem(tmp_path):
    image(tmp_path / "images/ADE/training/urban/street/ADE_train_00000001.jpg")
    mask(tmp_path / "images/ADE/training/urban/street/ADE_train_00000001_seg.png")
    report = checked(ADE20KDataModule(tmp_path))
    assert list(found(report)) == ["data set"]
    (text,) = found(report)["data set"]
    assert "this is the full ADE20K archive" in text and "ADEChallengeData2016" in text


@pytest.fixture
def cityscapes(tmp_path):
    for split in ("train", "val", "test"):
        stem = f"{split}/town/town_000000_000019"
        image(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
        mask(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", range(34))
        mask(tmp_path / f"gtFine/{stem}_gtFine_labelTrainIds.png", range(19))  # is not asked for, and no lone mask
    return tmp_path


def test_masks_that_are_not_public_are_not_opened(cityscapes):
    (cityscapes / "gtFine/test/town/town_000000_000019_gtFine_labelIds.png").write_text("no PNG")
    report = checked(CityscapesDataModule(cityscapes))
    assert list(found(report)) == ["count"] and found(report)["count"][2] == "test: 1 images; Cityscapes has 1525"
    test = report.splits[2]
    assert (test.images, test.opened, test.masks, test.is_labelled) == (1, 1, 0, False)
    (cityscapes / "leftImg8bit/test/town/town_000000_000019_leftImg8bit.png").write_text("no PNG")
    assert "town_000000_000019" in found(checked(CityscapesDataModule(cityscapes)))["unreadable"][0]


def test_train_ids_for_label_ids(cityscapes):
    path = cityscapes / "gtFine/train/town/town_000000_000019_gtFine_labelIds.png"
    mask(path, (255, *range(19)))
    (text,) = found(checked(CityscapesDataModule(cityscapes)))["undeclared"]
    assert text == (
        f"{path}: raw label value 255 is not declared: 3 pixels, first at row 0, column 0; these look like train ids: "
        "give the files with raw ids (of Cityscapes *_labelIds.png); allowed raw values: 0..33"
    )


def test_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for split in ("train", "val"):
            for i in range(2):
                image(tmp_path / "i.png")
                mask(tmp_path / "l.png", (0, 11, 12 * i))
                archive.write(tmp_path / "i.png", f"CamVid/{split}/{i}.png")
                archive.write(tmp_path / "l.png", f"CamVid/{split}annot/{i}.png")
    report = checked(CamVidDataModule(tmp_path / "c.zip"))
    texts = found(report)["undeclared"]
    assert len(texts) == 2 and all("c.zip/CamVid/" in text and "value 12" in text for text in texts)


def test_a_limit_is_spread_evenly(root):
    mask(root / "labels/train/2.png", (9,))
    report = checked(FolderDataModule(root), limit=2)
    assert [(split.images, split.opened) for split in report.splits] == [(4, 2), (2, 2)]
    assert len(found(report)["undeclared"]) == 1  # images 0 and 2


def test_what_a_decoder_throws_stops_nothing(root):
    class Odd(FolderDataModule):
        def read_mask(self, file):
            if file.name == "1.png":
                raise OSError(5, "Input/output\nerror")
            return super().read_mask(file)

    report = checked(Odd(root))
    assert len(found(report)["unreadable"]) == 2 and report.splits[0].opened == 4
    assert all("\n" not in text for text in found(report)["unreadable"])


def test_an_interruption_keeps_what_was_found(root):
    class Stopped(FolderDataModule):
        reads = 0

        def read_mask(self, file):
            self.reads += 1
            if self.reads == 3:
                raise KeyboardInterrupt
            return super().read_mask(file)

    mask(root / "labels/train/0.png", (9,))
    report = Report(Stopped(root))
    with pytest.raises(KeyboardInterrupt):
        check(report, ["train", "val"], workers=1)
    assert len(found(report)["undeclared"]) == 1 and report.splits[0].opened == 2 and report.splits[0].wanted == 4


def test_masks_of_several_parts(tmp_path):
    class Two(FolderDataModule):
        def parts(self, split):
            own = Part(f"images/{split}/{{name}}", f"labels/{split}/{{name}}.png")
            return [own, Part("extra/{name}_im", "extra_labels/{name}_ids.png")][: 2 if split == "train" else 1]

    for split in ("train", "val"):
        image(tmp_path / f"images/{split}/a.png")
        mask(tmp_path / f"labels/{split}/a.png")
    image(tmp_path / "extra/b_im.png")
    mask(tmp_path / "extra_labels/b_ids.png")
    mask(tmp_path / "extra_labels/c_ids.png")
    mask(tmp_path / "extra_labels/c_other.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    report = checked(Two(tmp_path))
    assert found(report) == {"no image": [str(tmp_path / "extra_labels/c_ids.png")]}
    assert report.splits[0].masks == 2


def test_kinds_are_told_apart():
    assert set(KINDS) == set(PROBLEMS) | set(WARNINGS) | set(NOTES)
    assert len(KINDS) == len(PROBLEMS) + len(WARNINGS) + len(NOTES)


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ((0, 255), "0/255 masks", "only the values 0 and 255 occur, and 255 is ignored; never: b, c; masks of 0/255"),
        ((255,), "0/255 masks", "only the value 255 occurs, which is ignored; never: a, b, c; masks of 0/255"),
        ((1, 255), "one class", "only one class occurs, b; never: a, c"),
        ((0,), "one class", "only one class occurs, a; never: b, c"),
    ],
)
def test_a_split_of_one_class_or_none(root, values, kind, words):
    for path in (root / "labels/train").iterdir():
        mask(path, values)
    report = checked(FolderDataModule(root))
    (text,) = found(report)[kind]
    assert text.startswith(f"train (4 masks): {words}")
    assert report.findings.count(PROBLEMS) == (kind == "0/255 masks")
    assert "absent class" not in found(report) and ("--data.masks binary" in text) == (kind == "0/255 masks")


def test_images_of_two_splits_are_said_once_each_by_content(root):
    """Also where a copy has another name; images that are twice in one split are that split's own affair."""
    twin = root / "images/train/3.png"
    twin.write_bytes((root / "images/train/0.png").read_bytes())
    assert found(checked(FolderDataModule(root))) == {}
    copy = root / "images/val/1.png"
    copy.write_bytes(twin.read_bytes())
    report = checked(FolderDataModule(root))
    assert found(report) == {"two splits": [f"{copy} of val: the same as {root / 'images/train/0.png'} of train"]}
    assert report.findings.count(PROBLEMS) == 0
    for split in ("train", "val"):
        (root / "splits").mkdir(exist_ok=True)
        (root / f"splits/{split}.txt").write_text("0\n2\n")
    same = checked(FolderDataModule(root, images="images/train/{name}", masks="labels/train/{name}"))
    assert found(same)["two splits"] == [f"{root}/images/train/{i}.png of val: also in train" for i in (0, 2)]


@pytest.mark.parametrize(
    ("palette", "said"),
    [
        (None, "palette.csv: no such file; masks of colours need it"),
        ("id,name,r,g,b\n0,a,1,1,1\n1,b,1,1,1\n2,c,2,2,2\n", "line 3 gives 1 the colour (1, 1, 1) of 0"),
    ],
)
def test_what_is_wrong_with_a_palette_is_said_once(root, palette, said):
    if palette is not None:
        (root / "palette.csv").write_text(palette)
    (problem,) = found(checked(FolderDataModule(root, masks="colors")))["data set"]
    assert said in problem


def test_masks_of_other_files_than_png(root):
    """TIFF of 16 bits and .npy, found beside PNGs and checked without a warning."""
    (root / "labels/train/0.png").unlink()
    (root / "labels/train/1.png").unlink()
    values = np.resize(np.array([0, 1, 2, 255]), SIZE)
    Image.fromarray(values.astype(np.uint16)).save(root / "labels/train/0.tif")
    np.save(root / "labels/train/1.npy", values.astype(np.int64))
    report = checked(FolderDataModule(root))
    assert found(report) == {} and report.splits[0].having[255] == 4
    values = np.where(values == 2, 0.5, values)
    Image.fromarray(values.astype(np.float32)).save(root / "labels/train/0.tif")
    np.save(root / "labels/train/1.npy", values)
    problems = found(checked(FolderDataModule(root)))
    assert problems.keys() == {"mask format"}  # they are read, and what is in them is wrong
    for problem, name, kind in zip(problems["mask format"], ("0.tif", "1.npy"), ("float32", "float64"), strict=True):
        assert f"{name}: label map has the value 0.5 at row 0, column 2 " in problem
        assert f"({int((values == 0.5).sum())} such pixels, of {kind})" in problem
