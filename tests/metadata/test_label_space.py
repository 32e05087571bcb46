import json

import numpy as np
import pytest

from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.label_space import (
    IGNORE_INDEX,
    LabelSpace,
    check_same_classes,
    distinct_palette,
    identity_table,
)

THREE = LabelSpace(("a", "b", "c"), distinct_palette(3), identity_table(3))


def test_map_and_unmap_are_inverse():
    table = [-1] * 256
    table[0], table[7], table[9], table[200] = 255, 2, 0, 1
    space = LabelSpace(("a", "b", "c"), distinct_palette(3), tuple(table))
    raw = np.array([[0, 7, 9], [200, 7, 0]], np.uint8)
    ids = space.map_labels(raw, "x.png")
    assert ids.tolist() == [[255, 2, 0], [1, 2, 255]] and ids.dtype == np.uint8 and ids.flags.writeable
    assert np.array_equal(space.unmap_labels(ids), raw)
    view = np.repeat(raw, 2, 1)[:, ::2]  # not contiguous
    assert np.array_equal(space.map_labels(view, "x.png"), ids)


def test_undeclared_value_says_everything():
    raw = np.zeros((4, 6), np.uint8)
    raw[2, 3:5] = 11
    expected = r"x\.png: raw label value 11 .* 2 pixels, first at row 2, column 3;.*0\.\.2, 255"
    with pytest.raises(InputError, match=expected):
        THREE.map_labels(raw, "x.png")
    with pytest.raises(InputError, match="0/255 mask"):
        LabelSpace(("a",), distinct_palette(1), (0,) + (-1,) * 255).map_labels(np.array([[0, 255]], np.uint8), "m")


BINARY = LabelSpace(("a", "b"), distinct_palette(2), (0,) + (-1,) * 254 + (1,))
FEW = LabelSpace(("a", "b"), distinct_palette(2), (0, 1) + (-1,) * 254)


@pytest.mark.parametrize(
    ("space", "values", "value", "cause"),
    [
        (CITYSCAPES, [*range(19), 255], 255, "these look like train ids: give the files with raw ids (of Cityscapes"),
        (CITYSCAPES, [7, 255], 255, "these look like train ids"),
        (ADE20K, [0, 149, 255], 255, "these look like train ids"),
        (ADE20K, [0, 150, 255], 255, "likely a wrong class count"),  # 150 is no train id
        (ADE20K, [0, 255], 255, "a 0/255 mask: write class numbers 0 and 1"),
        (FEW, [0, 255], 255, "a 0/255 mask"),
        (FEW, [0, 1, 255], 255, "255 mostly marks pixels to ignore"),
        (BINARY, [0, 1], 1, "a 0/1 mask where 0/255 is declared: set masks to ids"),
        (THREE, [0, 1, 2, 3, 255], 3, "one class more than declared: perhaps 0 is a background to be ignored"),
        (THREE, [0, 1, 2, 3], 3, "or 3 is void: write 255, which is ignored in a truth and counts as no class"),
        (THREE, [0, 1, 2, 3], 3, "in a folder of your own, table.csv may map 3 to 255"),
        (THREE, [0, 3, 4], 3, "likely a wrong class count, or raw ids where train ids are expected"),
        (THREE, list(range(40)), 3, "so many values suggest a grey image, or labels resized with interpolation"),
    ],
)
def test_the_likely_cause_of_undeclared_values(space, values, value, cause):
    raw = np.resize(np.array(values, np.uint8), (4, 61))
    with pytest.raises(InputError) as caught:
        space.map_labels(raw, "x.png")
    row, col = np.argwhere(raw == value)[0]
    where = f"{(raw == value).sum()} pixels, first at row {row}, column {col}"
    assert str(caught.value).startswith(f"x.png: raw label value {value} is not declared: {where}")
    assert cause in str(caught.value) and "\n" not in str(caught.value)


def test_unmap_refuses_unknown_ids():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        THREE.unmap_labels(np.array([[3]], np.uint8))


def test_dict_round_trip_through_json():
    assert LabelSpace.from_dict(json.loads(json.dumps(THREE.to_dict()))) == THREE
    plain = THREE.to_dict()
    for wrong in ({}, {**plain, "extra": 1}, {**plain, "table": 5}, {**plain, "palette": [[1]] * 3}):
        with pytest.raises(InputError):
            LabelSpace.from_dict(wrong)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), (), identity_table(0)),
        (("a",), distinct_palette(2), identity_table(1)),
        (("a",), ((0, 0, 256),), identity_table(1)),
        (("a",), distinct_palette(1), (0,) * 255),
        (("a",), distinct_palette(1), (1,) * 256),
    ],
)
def test_wrong_label_spaces_are_refused(arguments):
    with pytest.raises(InputError):
        LabelSpace(*arguments)


def test_palette_is_distinct_and_stable():
    assert len(set(distinct_palette(255))) == 255
    assert distinct_palette(255)[:40] == distinct_palette(40)
    assert identity_table(2)[:3] == (0, 1, -1) and identity_table(2)[255] == IGNORE_INDEX


@pytest.mark.parametrize(
    "names, words",
    [
        (("road", "car", "sky"), "trained on 3 classes (road, car, sky, ...), data has 2: it has one class more"),
        (("road",), "data has 2: it was trained on another data set"),
        (("car", "road"), "in another order (class 0 is 'car', in the data 'road')"),
    ],
)
def test_a_model_of_other_classes_is_refused(names, words):
    with pytest.raises(InputError) as caught:
        check_same_classes(names, ("road", "car"), "m.ckpt", "data")
    assert str(caught.value).startswith("m.ckpt: ") and words in str(caught.value)


def test_other_spellings_of_classes_pass():
    check_same_classes(("road", "car"), ("road", "car"), "m", "data")
    check_same_classes(("class 0", "class 1"), ("road", "car"), "m", "data")
