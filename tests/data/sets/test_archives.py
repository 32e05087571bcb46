"""Data sets in the zip files that they are published as: the same as unpacked, and damage is said in one line."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from segkit.archives import ZipMember
from segkit.data.dataset import SegmentationDataset, collate
from segkit.data.layout.base import Layout
from segkit.data.layout.files import fingerprint, size_of
from segkit.data.sets.ade20k import ADE20KDataModule
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.coco_stuff import CocoStuffDataModule

SPLITS: Any = ("train", "val", "test")
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


@dataclass(frozen=True)
class Published:
    """A data set's files below its root, and which folders are in which zip, below which home."""

    layout: type[Layout]
    files: dict[str, Any]
    archives: dict[str, tuple[list[str], str]]


def names(pattern: str, values: Any, *parts: str) -> dict[str, Any]:
    return {pattern.format(part): values for part in parts}


ADE = names("images/training/ADE_train_{}.jpg", None, "1", "2", "10") | names(
    "annotations/training/ADE_train_{}.png", [0, 1, 150], "1", "2", "10"
)
ADE |= {"images/validation/ADE_val_1.jpg": None, "annotations/validation/ADE_val_1.png": [3]}
CITY = names("leftImg8bit/{0}_000000_000019_leftImg8bit.png", None, "train/bonn/bonn", "train/ulm/ulm", "val/jena/jena")
CITY |= names("gtFine/{0}_000000_000019_gtFine_labelIds.png", [0, 7, 33], "train/bonn/bonn", "train/ulm/ulm")
CITY |= {
    "gtFine/val/jena/jena_000000_000019_gtFine_labelIds.png": [8],
    "leftImg8bit/test/kiel/kiel_000000_000019_leftImg8bit.png": None,
}
COCO = names("train2017/{}.jpg", None, "000000000025", "000000000009") | {"val2017/000000000139.jpg": None}
COCO |= names("maps/train2017/{}.png", [0, 91, 255], "000000000025", "000000000009")
COCO |= {"maps/val2017/000000000139.png": [181]}

SETS = {
    "ade20k": Published(
        ADE20KDataModule,
        ADE,
        {"ADEChallengeData2016.zip": (["images", "annotations"], "ADEChallengeData2016/")},
    ),
    "ade20k without home": Published(
        ADE20KDataModule, ADE, {"ADEChallengeData2016.zip": (["images", "annotations"], "")}
    ),
    "cityscapes": Published(
        CityscapesDataModule,
        CITY,
        {
            "leftImg8bit_trainvaltest.zip": (["leftImg8bit"], ""),
            "gtFine_trainvaltest.zip": (["gtFine"], ""),
        },
    ),
    "coco-stuff": Published(
        CocoStuffDataModule,
        COCO,
        {
            "train2017.zip": (["train2017"], ""),
            "val2017.zip": (["val2017"], ""),
            "stuffthingmaps_trainval2017.zip": (["maps"], ""),
        },
    ),
}


@pytest.fixture(params=SETS)
def published(request: pytest.FixtureRequest) -> Published:
    return SETS[request.param]


@pytest.fixture
def unpacked(published: Published, tmp_path: Path, plant: Any) -> Path:
    """The folder. COCO's masks lie in `maps` until they are zipped, because they share their folders' names."""
    return plant(tmp_path / "unpacked", published.files)


@pytest.fixture(params=METHODS)
def zips(published: Published, unpacked: Path, tmp_path: Path, pack: Any, request: pytest.FixtureRequest) -> Path:
    """The folder of the zip files alone."""
    for name, (folders, home) in published.archives.items():
        base = unpacked / "maps" if folders == ["maps"] else unpacked
        inside = ["train2017", "val2017"] if folders == ["maps"] else folders
        pack(tmp_path / "zips" / name, base, inside, METHODS[request.param], home)
    if (unpacked / "maps").is_dir():
        (unpacked / "maps").rename(unpacked / "stuffthingmaps")
    return tmp_path / "zips"


def read_all(layout: Layout) -> list[tuple[str, Any, Any]]:
    samples = [s for split in SPLITS for s in layout.find_samples(split)]
    return [(sample.name, *layout.read(sample)) for sample in samples]


def test_zips_give_what_the_folder_gives(published: Published, unpacked: Path, zips: Path) -> None:
    packed, folder = published.layout(zips), published.layout(unpacked)
    expected = read_all(folder)
    assert [name for name, *_ in read_all(packed)] == [name for name, *_ in expected] and expected
    for (name, image, mask), (_, true_image, true_mask) in zip(read_all(packed), expected, strict=True):
        np.testing.assert_array_equal(image, true_image, err_msg=name)
        np.testing.assert_array_equal(mask, true_mask, err_msg=name)
    assert all(packed.has_split(split) == folder.has_split(split) for split in SPLITS)
    for split in SPLITS:
        found = packed.find_samples(split, with_masks=False)
        assert [s.name for s in found] == [s.name for s in folder.find_samples(split, with_masks=False)]
        assert all(isinstance(s.image, ZipMember) for s in found)


def test_what_is_unpacked_goes_first_and_the_rest_comes_from_the_zips(
    published: Published, unpacked: Path, zips: Path
) -> None:
    for folder in ("images", "leftImg8bit", "train2017"):
        if (unpacked / folder).is_dir():
            shutil.copytree(unpacked / folder, zips / folder)
    sample = published.layout(zips).find_samples("train")[0]
    assert isinstance(sample.image, Path) and isinstance(sample.mask, ZipMember)


def test_a_zip_may_be_the_root(tmp_path: Path, plant: Any, pack: Any) -> None:
    plant(tmp_path / "a", ADE)
    archive = pack(tmp_path / "any name.ZIP", tmp_path / "a", ["images", "annotations"], zipfile.ZIP_STORED)
    assert [sample.name for sample in ADE20KDataModule(archive).find_samples("train")] == [
        "ADE_train_1",
        "ADE_train_10",
        "ADE_train_2",
    ]


@pytest.mark.slow
def test_members_travel_to_a_worker(published: Published, zips: Path) -> None:
    layout = published.layout(zips)
    samples = layout.find_samples("train")
    assert pickle.loads(pickle.dumps(samples)) == samples
    loader = DataLoader(SegmentationDataset(samples, layout.read), num_workers=1, collate_fn=collate)
    batches = list(loader)
    assert [batch["name"] for batch in batches] == [[sample.name] for sample in samples]
    for batch, sample in zip(batches, samples, strict=True):
        image, mask = layout.read(sample)
        np.testing.assert_array_equal(batch["image"][0].permute(1, 2, 0), image)
        np.testing.assert_array_equal(batch["mask"][0], mask)


def test_what_tells_members_apart(published: Published, zips: Path) -> None:
    sample = published.layout(zips).find_samples("train")[0]
    assert isinstance(sample.image, ZipMember)
    assert size_of(sample.image) == len(sample.image.read_bytes())
    assert fingerprint(sample.image)[0] == f"{sample.image.archive.absolute()}/{sample.image.name}"


def flip(member: ZipMember, count: int = 8) -> None:
    """Change bytes in the middle of the member's content."""
    data = bytearray(member.archive.read_bytes())
    middle = member.offset + 30 + len(member.name) + member.packed // 2
    for place in range(middle, middle + count):
        data[place] ^= 0xFF
    member.archive.write_bytes(data)


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_damaged_member_is_named(published: Published, zips: Path, which: str, refused: Any) -> None:
    layout = published.layout(zips)
    first, other, *_ = layout.find_samples("train")
    member = getattr(first, which)
    flip(member)
    refused(
        lambda: layout.read(first),
        f"{member.archive}/{member.name}",
        "damaged",
        f"download {member.archive.name}",
    )
    layout.read(other)


def test_what_is_no_zip_is_named(published: Published, zips: Path, refused: Any) -> None:
    broken = zips / next(iter(published.archives))
    broken.write_bytes(broken.read_bytes()[:-40])
    layout = published.layout(zips)
    refused(lambda: layout.find_samples("train"), str(broken), "cannot be read as a zip file", "download it again")


def test_a_missing_zip_is_named(published: Published, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "empty").mkdir()
    layout = published.layout(tmp_path / "empty")
    refused(lambda: layout.find_samples("train"), "no such folder", *published.archives)


def test_unusual_members_are_refused(tmp_path: Path, plant: Any, pack: Callable[..., Path], refused: Any) -> None:
    plant(tmp_path / "a", ADE)
    archive = pack(tmp_path / "ADEChallengeData2016.zip", tmp_path / "a", ["images", "annotations"], zipfile.ZIP_LZMA)
    refused(lambda: ADE20KDataModule(archive).find_samples("train"), str(archive), "unpack it")
    pack(archive, tmp_path / "a", ["images", "annotations"], zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the directory says that the last member is encrypted
    archive.write_bytes(data)
    refused(lambda: ADE20KDataModule(archive).find_samples("train"), str(archive), "encrypted", "unpack it")


def test_coco_masks_unpacked_beside_the_packed_images(tmp_path: Path, plant: Any, pack: Any) -> None:
    """Both zips of COCO-Stuff have a folder train2017: the unpacked one must not hide the other."""
    plant(tmp_path, {"train2017/1.jpg": None})
    pack(tmp_path / "train2017.zip", tmp_path, ["train2017"], zipfile.ZIP_STORED)
    (tmp_path / "train2017/1.jpg").unlink()
    plant(tmp_path, {"train2017/1.png": [91]})
    (sample,) = CocoStuffDataModule(tmp_path).find_samples("train")
    assert isinstance(sample.image, ZipMember) and isinstance(sample.mask, Path)
