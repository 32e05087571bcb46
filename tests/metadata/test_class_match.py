"""Which class of a data set each class of a model is."""

import pytest

from segkit.data.sets.coco_stuff import COCO_STUFF
from segkit.errors import InputError
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES, LABELS
from segkit.metadata.class_match import ModelClasses, match_classes
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table

NAMES = ("road", "traffic light", "sky, heaven", "boat")
SPACE = LabelSpace(NAMES, distinct_palette(4), identity_table(4))


def table_of(names: tuple[str, ...], count: int | None = None, given: object = None) -> tuple[int, ...]:
    return match_classes(ModelClasses.of("m", names, count), SPACE, "d", given).table


def test_of_cityscapes_34_labels_19_count() -> None:
    names = tuple(name for _, _, name, _ in LABELS)
    found = match_classes(ModelClasses("m", names, len(names)), CITYSCAPES, "Cityscapes")
    unnamed = match_classes(ModelClasses("m", (), len(names)), CITYSCAPES, "Cityscapes")
    assert found.table == unnamed.table == tuple(train_id for _, train_id, _, _ in LABELS)
    assert found.note is not None and "matched by name: 19 of 34 classes; not in the data: unlabeled" in found.note
    assert unnamed.note is not None and "raw values" in unnamed.note


def test_of_ade20k_151_the_first_is_other() -> None:
    expected = (255, *range(150))
    assert match_classes(ModelClasses.of("m", ("other", *ADE20K.class_names), None), ADE20K, "d").table == expected
    assert match_classes(ModelClasses.of("m", (), 151), ADE20K, "d").table == expected
    labels = tuple(f"LABEL_{i}" for i in range(151))
    assert match_classes(ModelClasses.of("m", labels, None), ADE20K, "d").table == expected


@pytest.mark.parametrize(
    "names, table, words",
    [
        (NAMES, (0, 1, 2, 3), None),
        (("road", "lights", "sky", "ship"), (0, 1, 2, 3), "other names, in order: lights for traffic light"),
        (("boat", "road", "sky", "traffic_light"), (3, 0, 2, 1), "matched by name: 4 of 4"),
        (("Road", "TrafficLight", "heaven", "boat", "void"), (0, 1, 2, 3, 255), "not in the data: void"),
        (("sky", "road"), (2, 0), "never predicted: traffic light, boat"),
    ],
)  # fmt: skip
def test_by_name(names: tuple[str, ...], table: tuple[int, ...], words: str | None) -> None:
    found = match_classes(ModelClasses.of("m", names, None), SPACE, "d")
    assert found.table == table
    assert found.note is None if words is None else words in (found.note or "")


def test_corrections_of_the_user() -> None:
    names = ("street", "sky", "lamp", "boat", "ship")
    given = {"street": "road", 2: "traffic light", "ship": "boat", "sky": None}
    assert table_of(names, given=given) == (0, 255, 1, 3, 3)
    assert table_of((), 6, {5: "road", 0: "boat"}) == (3, 255, 255, 255, 255, 0)
    assert table_of((), 4, {0: None}) == (255, 1, 2, 3)


@pytest.mark.parametrize(
    "names, count, given, words",
    [
        (("cat", "dog", "road"), None, None, r"has 3 classes \(cat, dog, road, ...\), d has 4; they cannot be matched"),
        ((), 9, None, "m: has 9 classes, d has 4; they cannot be matched: its classes have no names; .*--classes FILE"),
        (("road", "sky"), None, {"rod": "road"}, "m has no class 'rod'; did you mean road?"),
        (("road", "sky"), None, {2: "road"}, r"m has no class 2; allowed are its names, or 0..1"),
        (("road", "sky"), None, {"sky": "boot"}, "the data has no class 'boot'; did you mean boat?"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_is_one_line(names: tuple[str, ...], count: int, given: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        table_of(names, count, given)


def test_of_coco_stuffs_182_numbers_171_are_classes() -> None:
    space = COCO_STUFF
    table = match_classes(ModelClasses("m", (), 182), space, "COCO-Stuff").table
    assert len(table) == 182 and [entry for entry in table if entry != 255] == list(range(171))
    named = ("unlabeled", *space.class_names[::-1])
    assert match_classes(ModelClasses("m", named, 172), space, "d").table == (255, *reversed(range(171)))
