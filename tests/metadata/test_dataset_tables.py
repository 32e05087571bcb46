import hashlib
import json

import numpy as np
import pytest
import real_data
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights

from segkit.data.sets.camvid import CAMVID
from segkit.data.sets.coco_stuff import COCO_STUFF
from segkit.data.sets.mapillary import MAPILLARY
from segkit.data.sets.voc import VOC
from segkit.metadata.class_files import read_classes, read_palette
from segkit.metadata.label_space import identity_table
from segkit.metadata.pascal_context import CONTEXT_59

# space, number of classes, raw values that are ignored
SPACES = [
    pytest.param(CAMVID,      11, {11, 255}, id="camvid"),
    pytest.param(VOC,         21, {255},     id="voc"),
    pytest.param(CONTEXT_59,  59, {0},       id="pascal_context"),
    pytest.param(COCO_STUFF, 171, {255},     id="coco_stuff"),
    pytest.param(MAPILLARY,   65, {65},      id="mapillary"),
]  # fmt: skip


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@pytest.mark.parametrize("space, num_classes, ignored", SPACES)
def test_sizes_and_ignored_values(space, num_classes, ignored):
    assert space.num_classes == len(space.palette) == len(set(space.class_names)) == num_classes
    assert {raw for raw, train_id in enumerate(space.table) if train_id == 255} == ignored
    assert [train_id for train_id in space.table if train_id not in (-1, 255)] == list(range(num_classes))


@pytest.mark.parametrize("space, num_classes, ignored", SPACES)
def test_train_ids_survive_the_way_to_raw_values_and_back(space, num_classes, ignored):
    ids = np.array([[*range(num_classes), 255]], np.uint8)
    raw = space.unmap_labels(ids)
    assert np.array_equal(space.map_labels(raw, "x.png"), ids) and raw[0, -1] == min(ignored)


# SHA-256 of json.dumps([classes, palette]) of METAINFO in mmseg/datasets/*.py of the wheel mmsegmentation 1.2.2;
# MapillaryDataset_v1 without its last entry, "Unlabeled".
@pytest.mark.parametrize(
    "space, expected",
    [
        (VOC,        "3d61c831cd0012d427e887e301f8df995112339eaee3f7969f0ec3c9b0a8033f"),
        (CONTEXT_59, "393ab99eafd5609fadde524bdb9e58333e2af34a1107a1acd82a290d7020445d"),
        (COCO_STUFF, "d0aafa5b5c8d7713583f9c02c2aa2af8e85c249c09a849f16bb5041003a4babf"),
        (MAPILLARY,  "ac88285f1ad5f8bf5eb1197e5513ec87eea899db8b00d25b2b6f69e5a750cf4e"),
    ],
    ids=["voc", "pascal_context", "coco_stuff", "mapillary"],
)  # fmt: skip
def test_names_and_colours_are_mmsegmentation_s(space, expected):
    plain = space.to_dict()
    assert digest([plain["class_names"], plain["palette"]]) == expected


def test_camvid_table():
    assert CAMVID.table[:13] == (*range(11), 255, -1)
    assert CAMVID.class_names[0] == "Sky" and CAMVID.class_names[10] == "Bicyclist"
    assert CAMVID.palette[4] == (60, 40, 222)


@real_data.needs("camvid")
def test_camvid_names_and_colours_are_the_data_s():
    assert CAMVID.class_names == read_classes(real_data.FOLDER / "camvid" / "classes.txt")
    assert CAMVID.palette == read_palette(real_data.FOLDER / "camvid" / "palette.csv", CAMVID.class_names)


def test_voc_colours_follow_the_devkit_s_rule():
    """Bits 0, 3, 6 of the class number are the highest bits of red, from the top; 1, 4, 7 green; 2, 5 blue."""

    def channel(label: int, first_bit: int) -> int:
        return sum((label >> (first_bit + 3 * step) & 1) << (7 - step) for step in range(3))

    assert VOC.palette == tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(21))
    assert VOC.palette[VOC.class_names.index("aeroplane")] == (128, 0, 0)


def test_voc_names_are_torchvision_s():
    names = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert VOC.class_names == ("background", *names[1:]) and VOC.table == identity_table(21)


def test_context_table():
    assert CONTEXT_59.table[:2] == (255, 0) and CONTEXT_59.table[59] == 58 and set(CONTEXT_59.table[60:]) == {-1}
    assert "background" not in CONTEXT_59.class_names and list(CONTEXT_59.class_names) == sorted(CONTEXT_59.class_names)


def test_coco_things_are_torchvision_s_by_category_id():
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # position = category id
    assert len(categories) == 91
    for raw in range(90):
        train_id = COCO_STUFF.table[raw]
        assert categories[raw + 1] == ("N/A" if train_id == -1 else COCO_STUFF.class_names[train_id])


def test_coco_stuff_follows_in_the_order_of_the_alphabet():
    stuff = COCO_STUFF.class_names[80:]
    assert list(stuff) == sorted(stuff) and stuff[0] == "banner" and stuff[-1] == "wood"
    assert COCO_STUFF.table[90:182] == (-1, *range(80, 171))


def test_coco_table_is_mmsegmentation_s():
    assert COCO_STUFF.table[0] == 0 and COCO_STUFF.table[11] == -1 and COCO_STUFF.table[181] == 170
    # SHA-256 of json.dumps of clsID_to_trID in the wheel's coco_stuff164k.py, as 256 entries with -1 for absent keys.
    expected = "2f1267e3fe9682063ee7f4bfdec41a1483125ab9d5b27ba94185177af9b5f76b"
    assert digest(list(COCO_STUFF.table)) == expected


def test_mapillary_table():
    assert MAPILLARY.table[:65] == tuple(range(65)) and set(MAPILLARY.table[66:]) == {-1}
    assert MAPILLARY.class_names[13] == "Road" and MAPILLARY.palette[13] == (128, 64, 128)
    assert MAPILLARY.class_names[64] == "Ego Vehicle" and "Unlabeled" not in MAPILLARY.class_names
