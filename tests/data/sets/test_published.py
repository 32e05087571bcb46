"""Every published data set, in a tree of its true layout: what is found, in which order, and what its labels become."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segkit.cli.lightning import SHORT_NAMES
from segkit.data.layout.base import Layout
from segkit.data.names import data_sets
from segkit.data.sets.ade20k import ADE20KDataModule
from segkit.data.sets.camvid import CamVidDataModule
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.coco_stuff import CocoStuffDataModule
from segkit.data.sets.mapillary import MapillaryDataModule
from segkit.data.sets.pascal_context import PascalContextDataModule
from segkit.data.sets.voc import VOCDataModule

VOC_LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"
CONTEXT = "VOCdevkit/VOC2010"
CONTEXT_LISTS = f"{CONTEXT}/ImageSets/SegmentationContext"


@dataclass(frozen=True)
class Case:
    """A data set: its files, the raw values of every mask with the train ids they must become, the names by split."""

    layout: type[Layout]
    files: dict[str, Any]
    ids: dict[int, int]
    names: dict[str, list[str]]
    counts: dict[str, int]
    predicted: list[str] = field(default_factory=list)  # where the test split has images without masks
    options: dict[str, Any] = field(default_factory=dict)


def pairs(images: str, masks: str, names: list[str]) -> dict[str, Any]:
    """Path patterns with {} for the name -> an image, and a mask whose raw values come from the case."""
    return {images.format(name): None for name in names} | {masks.format(name): "mask" for name in names}


def voc(names: list[str], masks: str = "SegmentationClass") -> dict[str, Any]:
    home = "VOCdevkit/VOC2012"
    return pairs(f"{home}/JPEGImages/{{}}.jpg", f"{home}/{masks}/{{}}.png", names)


def city(split: str, kind: str = "gtFine") -> dict[str, Any]:
    base = f"{split}/bonn/bonn_000000_00001{len(split)}"
    return {f"leftImg8bit/{base}_leftImg8bit.png": None} | (
        {} if split == "test" else {f"{kind}/{base}_{kind}_labelIds.png": "mask"}
    )


def coco(images: str, masks: str) -> dict[str, Any]:
    train = pairs(f"{images}train2017/{{}}.jpg", f"{masks}train2017/{{}}.png", ["000000000009", "000000000025"])
    return train | pairs(f"{images}val2017/{{}}.jpg", f"{masks}val2017/{{}}.png", ["000000000139"])


def vistas(masks: str) -> dict[str, Any]:
    train = pairs("training/images/{}.jpg", f"training/{masks}/{{}}.png", ["_b", "a"])
    return train | pairs("validation/images/{}.jpg", f"validation/{masks}/{{}}.png", ["c"])


VOC_FILES = voc(["2007_2", "2007_1", "2007_3"]) | {
    f"{VOC_LISTS}/train.txt": "2007_2\n2007_1\n",
    f"{VOC_LISTS}/val.txt": "2007_3\n",
}
VOC_NAMES = {"train": ["2007_2", "2007_1"], "val": ["2007_3"], "test": ["2007_3"]}
VOC_IDS = {0: 0, 1: 1, 20: 20, 255: 255}
VOC_COUNTS = {"train": 1464, "val": 1449, "test": 1456}
# SBD has no mask of 2007_1, which came to VOC later; its mask of 2007_2 is there and not taken
SBD_FILES = VOC_FILES | voc(["2008_9", "2008_8"], "SegmentationClassAug")
SBD_FILES |= {"VOCdevkit/VOC2012/SegmentationClassAug/2007_2.png": [3]}
SBD_NAMES = VOC_NAMES | {"train": ["2007_2", "2007_1", "2008_9", "2008_8"]}
CITY_FILES = city("train") | city("val") | city("test")
CITY_NAMES = {split: [f"bonn/bonn_000000_00001{len(split)}_leftImg8bit"] for split in ("train", "val", "test")}
CITY_SCORED = CITY_NAMES | {"test": CITY_NAMES["val"]}
CITY_IDS = {0: 255, 7: 0, 8: 1, 33: 18}
COCO_IDS = {0: 0, 10: 10, 12: 11, 89: 79, 91: 80, 181: 170, 255: 255}
COCO_NAMES = {
    "train": ["000000000009", "000000000025"],
    "val": ["000000000139"],
    "test": ["000000000139"],
}
COCO_COUNTS = {"train": 118287, "val": 5000}
VISTAS_IDS = {0: 0, 64: 64, 65: 255}
VISTAS_NAMES = {"train": ["_b", "a"], "val": ["c"], "test": ["c"]}
VISTAS_COUNTS = {"train": 18000, "val": 2000, "test": 5000}

CASES = {
    "ade20k": Case(
        ADE20KDataModule,
        pairs("images/training/{}.jpg", "annotations/training/{}.png", ["ADE_train_2", "ADE_train_1"])
        | pairs("images/validation/{}.jpg", "annotations/validation/{}.png", ["ADE_val_1"]),
        {0: 255, 1: 0, 150: 149},
        {"train": ["ADE_train_1", "ADE_train_2"], "val": ["ADE_val_1"], "test": ["ADE_val_1"]},
        {"train": 20210, "val": 2000},
    ),
    "cityscapes": Case(
        CityscapesDataModule,
        CITY_FILES,
        CITY_IDS,
        CITY_SCORED,
        {"train": 2975, "val": 500, "test": 1525},
        CITY_NAMES["test"],
    ),
    "cityscapes coarse": Case(
        CityscapesDataModule,
        CITY_FILES | city("train_extra", "gtCoarse"),
        CITY_IDS,
        CITY_SCORED | {"train": [*CITY_NAMES["train"], "bonn/bonn_000000_0000111_leftImg8bit"]},
        {"train": 2975 + 19998, "val": 500, "test": 1525},
        CITY_NAMES["test"],
        {"coarse": True},
    ),
    "camvid": Case(
        CamVidDataModule,
        pairs("CamVid/train/{}.png", "CamVid/trainannot/{}.png", ["0001TP_2", "0001TP_1"])
        | pairs("CamVid/val/{}.png", "CamVid/valannot/{}.png", ["0016E5_1"])
        | pairs("CamVid/test/{}.png", "CamVid/testannot/{}.png", ["Seq05VD_1"]),
        {0: 0, 10: 10, 11: 255, 255: 255},
        {"train": ["0001TP_1", "0001TP_2"], "val": ["0016E5_1"], "test": ["Seq05VD_1"]},
        {"train": 367, "val": 101, "test": 233},
    ),
    "voc": Case(VOCDataModule, VOC_FILES, VOC_IDS, VOC_NAMES, VOC_COUNTS),
    "voc with test images": Case(
        VOCDataModule,
        VOC_FILES | {"VOCdevkit/VOC2012/JPEGImages/2008_5.jpg": None, f"{VOC_LISTS}/test.txt": "2008_5\n"},
        VOC_IDS,
        VOC_NAMES,
        VOC_COUNTS,
        ["2008_5"],
    ),
    "voc trainaug.txt": Case(
        VOCDataModule,
        SBD_FILES
        | {f"{VOC_LISTS}/trainaug.txt": "2008_9\n2007_1\n2008_8\n2007_2\n", f"{VOC_LISTS}/aug.txt": "not read"},
        VOC_IDS,
        SBD_NAMES,
        VOC_COUNTS | {"train": 10582},
        options={"augmented": True},
    ),
    "voc aug.txt": Case(
        VOCDataModule,
        SBD_FILES | {f"{VOC_LISTS}/aug.txt": "2008_9\n2008_8\n"},
        VOC_IDS,
        SBD_NAMES,
        VOC_COUNTS | {"train": 10582},
        options={"augmented": True},
    ),
    "pascal-context": Case(
        PascalContextDataModule,
        pairs(f"{CONTEXT}/JPEGImages/{{}}.jpg", f"{CONTEXT}/SegmentationClassContext/{{}}.png", ["1", "2", "3"])
        | {f"{CONTEXT_LISTS}/train.txt": "2\n1\n", f"{CONTEXT_LISTS}/val.txt": "3\n"},
        {0: 255, 1: 0, 59: 58},
        {"train": ["2", "1"], "val": ["3"], "test": ["3"]},
        {"train": 4998, "val": 5105},
    ),
    "coco-stuff": Case(CocoStuffDataModule, coco("", "stuffthingmaps/"), COCO_IDS, COCO_NAMES, COCO_COUNTS),
    "coco-stuff unpacked in one place": Case(CocoStuffDataModule, coco("", ""), COCO_IDS, COCO_NAMES, COCO_COUNTS),
    "coco-stuff of mmseg": Case(
        CocoStuffDataModule,
        coco("images/", "annotations/") | {"annotations/train2017/000000000009_labelTrainIds.png": [5]},
        COCO_IDS,
        COCO_NAMES,
        COCO_COUNTS,
    ),
    "mapillary v1.2": Case(MapillaryDataModule, vistas("labels"), VISTAS_IDS, VISTAS_NAMES, VISTAS_COUNTS),
    "mapillary v2.0": Case(
        MapillaryDataModule,
        vistas("v1.2/labels") | {"training/v2.0/labels/a.png": [123], "testing/images/z.jpg": None},
        VISTAS_IDS,
        VISTAS_NAMES,
        VISTAS_COUNTS,
        ["z"],
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def root(case: Case, tmp_path: Path, plant: Callable[..., Path]) -> Path:
    raws = sorted(case.ids)
    return plant(tmp_path, {path: raws if content == "mask" else content for path, content in case.files.items()})


def found(layout: Layout, split: Any, with_masks: bool = True) -> list[str]:
    return [sample.name for sample in layout.find_samples(split, with_masks)]


def test_every_split_has_its_images_in_order(case: Case, root: Path) -> None:
    layout = case.layout(root, **case.options)
    assert {split: found(layout, split) for split in case.names} == case.names
    assert dict(layout.counts) == case.counts
    assert found(layout, "test", with_masks=False) == (case.predicted or case.names["test"])
    own_test = layout.has_split("test") and layout.parts("test") != layout.parts("val")
    assert own_test == bool(case.predicted or case.names["test"] != case.names["val"])


def test_labels_become_the_right_classes(case: Case, root: Path) -> None:
    layout = case.layout(root, **case.options)
    expected = np.resize(np.array([case.ids[raw] for raw in sorted(case.ids)], np.uint8), (6, 8))
    for split in case.names:
        for sample in layout.find_samples(split):
            image, mask = layout.read(sample)
            assert image.shape == (6, 8, 3)
            np.testing.assert_array_equal(mask, expected, err_msg=str(sample.mask))
    declared = {raw for raw, label in enumerate(layout.label_space.table) if label >= 0}
    assert set(case.ids) <= declared


def test_images_without_masks_are_predicted_and_not_scored(case: Case, root: Path, refused: Any) -> None:
    layout = case.layout(root, **case.options)
    samples = layout.find_samples("test", with_masks=False)
    assert all(sample.mask is None and layout.read(sample)[1] is None for sample in samples)
    for part in layout.parts("test"):
        if part.masks is None:
            refused(lambda part=part: layout._samples(part, True), "no public masks")


def test_predict_reads_val_where_there_are_no_test_images(case: Case, root: Path) -> None:
    for folder in ("leftImg8bit/test", "testing"):
        shutil.rmtree(root / folder, ignore_errors=True)
    (root / VOC_LISTS / "test.txt").unlink(missing_ok=True)
    layout = case.layout(root, **case.options)
    has_public_test = case.layout is CamVidDataModule
    assert found(layout, "test", with_masks=False) == case.names["test" if has_public_test else "val"]
    assert found(layout, "test") == case.names["test"]


def test_a_missing_mask_is_named(case: Case, root: Path, refused: Any) -> None:
    layout = case.layout(root, **case.options)
    mask = layout.find_samples("train")[-1].mask
    assert isinstance(mask, Path)
    mask.unlink()
    refused(lambda: layout.find_samples("train"), mask.name, "no mask for image", "1 of")


def test_a_wrong_root_is_named_in_one_line(case: Case, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "other").mkdir()
    layout = case.layout(tmp_path / "other", **case.options)
    refused(lambda: layout.find_samples("train"), str(tmp_path / "other"), "datasets/README.md")
    refused(lambda: case.layout(tmp_path / "nowhere").find_samples("train"), "nowhere", "no such data folder")


@pytest.mark.parametrize("home", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_roots_of_voc(tmp_path: Path, plant: Any, home: str) -> None:
    plant(tmp_path, {path: [0] if content == "mask" else content for path, content in VOC_FILES.items()})
    assert found(VOCDataModule(tmp_path / home), "train") == VOC_NAMES["train"]


def test_what_is_missing_for_the_augmented_voc(tmp_path: Path, plant: Any, refused: Any) -> None:
    plant(tmp_path, {path: [0] if content == "mask" else content for path, content in SBD_FILES.items()})
    layout = VOCDataModule(tmp_path, augmented=True)
    refused(lambda: layout.find_samples("train"), "no ImageSets/Segmentation/trainaug.txt, nor aug.txt")
    assert found(layout, "val") == ["2007_3"]
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2012/SegmentationClassAug")
    refused(lambda: layout.find_samples("train"), "no folder SegmentationClassAug")
    (tmp_path / VOC_LISTS / "train.txt").write_text("2007_2\n2007_77\n")
    refused(lambda: VOCDataModule(tmp_path).find_samples("train"), "train.txt", "2007_77")
    (tmp_path / VOC_LISTS / "train.txt").write_text("2007_2\n2007_2\n")
    refused(lambda: VOCDataModule(tmp_path).find_samples("train"), "train.txt", "2007_2 twice")


def test_converted_masks_of_coco_stuff_are_refused(tmp_path: Path, plant: Any, refused: Any) -> None:
    plant(tmp_path, {"images/train2017/1.jpg": None, "annotations/train2017/1_labelTrainIds.png": [5]})
    layout = CocoStuffDataModule(tmp_path)
    refused(lambda: layout.find_samples("train"), "_labelTrainIds.png", "stuffthingmaps_trainval2017.zip")
    assert [sample.name for sample in layout.find_samples("train", with_masks=False)] == ["1"]
    shutil.rmtree(tmp_path / "annotations")
    refused(lambda: layout.find_samples("train"), "stuffthingmaps/train2017/1.png", "1 of 1")


def test_labels_of_vistas_2_are_not_taken_for_those_of_1_2(tmp_path: Path, plant: Any, refused: Any) -> None:
    plant(tmp_path, {"training/images/a.jpg": None, "training/v2.0/labels/a.png": [1]})
    refused(lambda: MapillaryDataModule(tmp_path).find_samples("train"), "training/v1.2/labels/a.png")


def test_every_file_of_the_folder_is_a_data_set_that_a_config_may_name() -> None:
    names = [
        "ade20k",
        "camvid",
        "cityscapes",
        "coco-stuff",
        "folder",
        "mapillary",
        "pascal-context",
        "synthetic",
        "voc",
    ]
    assert list(data_sets()) == names
    assert data_sets()["voc"] is VOCDataModule and set(data_sets().values()) < set(SHORT_NAMES)
