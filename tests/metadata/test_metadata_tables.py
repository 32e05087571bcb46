from collections import Counter

import real_data
from cityscapesscripts.helpers.labels import labels as official

from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES, LABELS

OBJECT_INFO = "ade20k_samples/sceneparsing/objectInfo150.txt"


def test_cityscapes_equals_the_official_table():
    ours = [(name, raw, train_id, colour) for raw, train_id, name, colour in LABELS]
    assert ours == [(label.name, label.id, label.trainId, label.color) for label in official if label.id >= 0]
    assert CITYSCAPES.table[:34] == tuple(label.trainId for label in official if label.id >= 0)
    assert set(CITYSCAPES.table[34:]) == {-1}
    evaluated = sorted((label for label in official if label.trainId in range(19)), key=lambda label: label.trainId)
    assert CITYSCAPES.class_names == tuple(label.name for label in evaluated)
    assert CITYSCAPES.palette == tuple(label.color for label in evaluated)


def test_ade20k_table():
    assert ADE20K.num_classes == len(ADE20K.palette) == len(set(ADE20K.class_names)) == 150
    assert ADE20K.table[0] == 255 and ADE20K.table[1] == 0 and ADE20K.table[150] == 149 and ADE20K.table[151] == -1
    twice = [colour for colour, count in Counter(ADE20K.palette).items() if count > 1]
    assert twice == [(140, 140, 140)]
    shared = [name for name, colour in zip(ADE20K.class_names, ADE20K.palette, strict=True) if colour == twice[0]]
    assert shared == ["road", "skyscraper"]


@real_data.needs(OBJECT_INFO)
def test_ade20k_names_are_the_benchmark_s():
    rows = (real_data.FOLDER / OBJECT_INFO).read_text().splitlines()[1:]
    assert ADE20K.class_names == tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows)
