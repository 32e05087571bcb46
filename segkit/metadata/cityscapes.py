"""Cityscapes: the raw label ids 0..33 of *_gtFine_labelIds.png and the 19 evaluated classes.

Facts as in cityscapesScripts, helpers/labels.py (a test compares). Its "license plate" has id -1, which no PNG holds.
Cordts et al., CVPR 2016.
"""

from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

# fmt: off
# raw id, train id (255 = ignored), name, colour
LABELS = (
    ( 0, 255, "unlabeled",            (  0,   0,   0)),
    ( 1, 255, "ego vehicle",          (  0,   0,   0)),
    ( 2, 255, "rectification border", (  0,   0,   0)),
    ( 3, 255, "out of roi",           (  0,   0,   0)),
    ( 4, 255, "static",               (  0,   0,   0)),
    ( 5, 255, "dynamic",              (111,  74,   0)),
    ( 6, 255, "ground",               ( 81,   0,  81)),
    ( 7,   0, "road",                 (128,  64, 128)),
    ( 8,   1, "sidewalk",             (244,  35, 232)),
    ( 9, 255, "parking",              (250, 170, 160)),
    (10, 255, "rail track",           (230, 150, 140)),
    (11,   2, "building",             ( 70,  70,  70)),
    (12,   3, "wall",                 (102, 102, 156)),
    (13,   4, "fence",                (190, 153, 153)),
    (14, 255, "guard rail",           (180, 165, 180)),
    (15, 255, "bridge",               (150, 100, 100)),
    (16, 255, "tunnel",               (150, 120,  90)),
    (17,   5, "pole",                 (153, 153, 153)),
    (18, 255, "polegroup",            (153, 153, 153)),
    (19,   6, "traffic light",        (250, 170,  30)),
    (20,   7, "traffic sign",         (220, 220,   0)),
    (21,   8, "vegetation",           (107, 142,  35)),
    (22,   9, "terrain",              (152, 251, 152)),
    (23,  10, "sky",                  ( 70, 130, 180)),
    (24,  11, "person",               (220,  20,  60)),
    (25,  12, "rider",                (255,   0,   0)),
    (26,  13, "car",                  (  0,   0, 142)),
    (27,  14, "truck",                (  0,   0,  70)),
    (28,  15, "bus",                  (  0,  60, 100)),
    (29, 255, "caravan",              (  0,   0,  90)),
    (30, 255, "trailer",              (  0,   0, 110)),
    (31,  16, "train",                (  0,  80, 100)),
    (32,  17, "motorcycle",           (  0,   0, 230)),
    (33,  18, "bicycle",              (119,  11,  32)),
)
# fmt: on

_EVALUATED = tuple(label for label in LABELS if label[1] != IGNORE_INDEX)
_TRAIN_IDS = {raw: train_id for raw, train_id, _, _ in LABELS}

CITYSCAPES = LabelSpace(
    class_names=tuple(name for _, _, name, _ in _EVALUATED),
    palette=tuple(colour for _, _, _, colour in _EVALUATED),
    table=tuple(_TRAIN_IDS.get(raw, UNDECLARED) for raw in range(256)),
)
