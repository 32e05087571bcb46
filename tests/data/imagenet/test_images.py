"""The same images and classes from folders, the published tars and a zip; what is wrong with them in one line."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from class_images import CLASSES, files, jpeg, tar_of, write_folders, write_tars, write_zip
from scipy.io import savemat

from segkit.data.imagenet import images
from segkit.data.imagenet.datamodule import ImageNetDataModule
from segkit.data.imagenet.images import ImageFolders
from segkit.errors import InputError

NUMBERS = {"n02119789": 1, "n01440764": 2, "n01443537": 3}  # of the kit: in another order than the names
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def contents(found) -> list[tuple[int, bytes]]:
    return sorted((image.label, image.file.read_bytes()) for image in found)


def write_kit(root: Path, classes: list[str], packed: bool = False) -> None:
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(number, name, "a word", 0) for name, number in NUMBERS.items()] + [(1001, "n00001740", "entity", 3)]
    meta = root / "meta.mat"
    savemat(meta, {"synsets": np.array(rows, dtype=kind)[:, None]})
    truth = "".join(f"{NUMBERS[name]}\n" for name in classes)
    if packed:
        kit = {f"ILSVRC2012_devkit_t12/data/{TRUTH}": truth.encode()}
        kit["ILSVRC2012_devkit_t12/data/meta.mat"] = meta.read_bytes()
        (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar_of(kit)))
        meta.unlink()
    else:
        (root / TRUTH).write_text(truth)


@pytest.mark.parametrize("packed", [False, True])
def test_folders_tars_and_a_zip_hold_the_same(packed: bool, tmp_path: Path) -> None:
    folders = ImageFolders(write_folders(tmp_path / "folders"), 3)
    (tmp_path / "tars").mkdir()
    write_kit(tmp_path / "tars", write_tars(tmp_path / "tars"), packed)
    tars, zipped = ImageFolders(tmp_path / "tars", 3), ImageFolders(write_zip(tmp_path / "imagenet.zip"), 3)
    for part, count in (("train", 12), ("val", 6)):
        found = [contents(source.find(part)) for source in (folders, tars, zipped)]
        assert found[0] == found[1] == found[2] and len(found[0]) == count
    assert folders.class_names == tars.class_names == zipped.class_names == CLASSES
    names = [[image.name for image in source.find("train")] for source in (folders, tars, zipped)]
    assert names[0] == names[1] == names[2] and names[0][0] == "n01440764/n01440764_0"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("LOC_val_solution.csv", "{name},{word} 1 2 3 4"),
        ("val.txt", "{name}.JPEG {word}"),
        ("imagenet_2012_validation_synset_labels.txt", "{word}"),
    ],
)
def test_other_lists_of_the_validation_images(name: str, line: str, tmp_path: Path) -> None:
    words = write_tars(tmp_path)
    rows = [line.format(name=f"ILSVRC2012_val_{i + 1:08d}", word=word) for i, word in enumerate(words)]
    if "{name}" in line:
        rows = ["ImageId,PredictionString", *rows[::-1]] if name.endswith("csv") else rows[::-1]
    (tmp_path / name).write_text("\n".join(rows))
    found = ImageFolders(tmp_path, 3)
    assert [CLASSES[image.label] for image in found.find("val")] == words
    assert found.class_names == CLASSES


def test_the_validation_images_are_enough_to_test(tmp_path: Path) -> None:
    write_folders(tmp_path, files(train=0))
    data = ImageNetDataModule(tmp_path, 3, batch_size=4, crop_size=32, num_workers=0)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [len(batch["label"]) for batch in batches] == [4, 2] and data.class_names == CLASSES
    assert batches[0]["image"].shape == (4, 3, 32, 32) and batches[0]["image"].is_contiguous(
        memory_format=torch.channels_last
    )


def rename_class(root: Path) -> None:
    (root / "val" / CLASSES[2]).rename(root / "val" / "n09999999")


def lay_side_by_side(root: Path) -> None:
    for path in sorted((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    (root / "val.txt").write_text("\n".join(f"{i} {i}" for i in range(6)))


def in_tar(change: Callable[[bytes], bytes]) -> Callable[[Path], int]:
    tar = "ILSVRC2012_img_train.tar"
    return lambda root: (root / tar).write_bytes(change((root / tar).read_bytes()))


# What is done to folders, and the message.
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty class": (
        lambda root: (root / "train" / "n99999999").mkdir(),
        r"train/n99999999: no images of this class \(1 classes have none\)",
    ),
    "other classes": (rename_class, r"train/n09999999: no images of this class"),
    "no folder": (
        lambda root: (root / "train" / "stray.JPEG").write_bytes(jpeg(0, 0)),
        r"train: stray.JPEG lies in no class's folder",
    ),
    "another list": (lay_side_by_side, r"val.txt: row 1: '0' is no WordNet id"),
}
# And to the tars.
TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no truth": (
        lambda root: (root / TRUTH).unlink(),
        r"no list says what they show; put ILSVRC2012_devkit",
    ),
    "no meaning": (lambda root: (root / "meta.mat").unlink(), r"ground_truth.txt is there, but not meta.mat"),
    "wrong length": (lambda root: (root / TRUTH).write_text("1\n2\n"), r"truth.txt: 2 rows for 6 validation images"),
    "wrong number": (
        lambda root: (root / TRUTH).write_text("1\n2\n3\n1\n2\n7\n"),
        r"row 6: '7' is none of meta.mat's 3 numbers",
    ),
    "damaged": (lambda root: (root / "meta.mat").write_bytes(b"no such kind"), r"meta.mat: is not that of the dev"),
    "cut off": (in_tar(lambda data: data[: len(data) // 2]), r"train.tar.*(download it again|continue it)"),
    "compressed": (in_tar(gzip.compress), r"cannot be read as an uncompressed tar"),
    "empty class": (
        in_tar(lambda _: tar_of({"n01440764.tar": tar_of({})})),
        r"n01440764.tar in it is empty",
    ),
    "outside": (in_tar(lambda _: tar_of({"../n01440764.JPEG": jpeg(0, 0)})), r"leads out of the folder"),
}


def assert_one_line(root: Path, message: str, classes: int = 3) -> None:
    folders = ImageFolders(root, classes)
    with pytest.raises(InputError, match=message) as raised:
        folders.find("train"), folders.find("val")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_is_wrong_in_folders_is_one_line(kind: str, tmp_path: Path) -> None:
    damage, message = FOLDERS[kind]
    damage(write_folders(tmp_path))
    assert_one_line(tmp_path, message)


@pytest.mark.parametrize("kind", TARS)
def test_what_is_wrong_with_tars_is_one_line(kind: str, tmp_path: Path) -> None:
    damage, message = TARS[kind]
    write_kit(tmp_path, write_tars(tmp_path))
    damage(tmp_path)
    assert_one_line(tmp_path, message)


def test_a_class_too_few_is_one_line(tmp_path: Path) -> None:
    message = r"val: 3 classes, from n01440764 to n02119789, where 4 are expected; .*num_classes 3"
    assert_one_line(write_folders(tmp_path), message, classes=4)


def test_a_tar_is_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    write_kit(tmp_path, write_tars(tmp_path))
    first = contents(ImageFolders(tmp_path, 3).find("train"))
    (index,) = [p for p in (tmp_path / "cache" / "tars").iterdir() if "n01440764/" in p.read_text()]
    monkeypatch.setattr(images, "read_tar", None)
    assert contents(ImageFolders(tmp_path, 3).find("train")) == first
    monkeypatch.undo()
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    index.write_text("[[")
    assert contents(ImageFolders(tmp_path, 3).find("train")) == first


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    broken = tmp_path / "val" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    data = ImageNetDataModule(tmp_path, 3, batch_size=2, crop_size=32, num_workers=0)
    data.setup("validate")
    with pytest.raises(InputError, match=f"{CLASSES[1]}_0.JPEG"):
        list(data.val_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rand_augment": (2, 31)}, r"strength of 0 to 30"),
        ({"color_jitter": 2.0}, "a share of 0 to 1"),
    ],
)
def test_a_number_out_of_range_is_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        ImageNetDataModule(tmp_path, **options)
