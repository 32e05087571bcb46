"""PASCAL VOC 2012: 20 object classes and background, which is a class; raw 255, the border of objects, is ignored.

Names and colours: the VOC devkit's; its rule for colours spreads the bits of the class number over R, G and B (a test
recomputes them). Everingham et al., IJCV 2010 and 2015.
"""

from segkit.metadata.label_space import LabelSpace, identity_table

# fmt: off
# raw, name, colour
_CLASSES = (
    ( 0, "background",  (  0,   0,   0)),
    ( 1, "aeroplane",   (128,   0,   0)),
    ( 2, "bicycle",     (  0, 128,   0)),
    ( 3, "bird",        (128, 128,   0)),
    ( 4, "boat",        (  0,   0, 128)),
    ( 5, "bottle",      (128,   0, 128)),
    ( 6, "bus",         (  0, 128, 128)),
    ( 7, "car",         (128, 128, 128)),
    ( 8, "cat",         ( 64,   0,   0)),
    ( 9, "chair",       (192,   0,   0)),
    (10, "cow",         ( 64, 128,   0)),
    (11, "diningtable", (192, 128,   0)),
    (12, "dog",         ( 64,   0, 128)),
    (13, "horse",       (192,   0, 128)),
    (14, "motorbike",   ( 64, 128, 128)),
    (15, "person",      (192, 128, 128)),
    (16, "pottedplant", (  0,  64,   0)),
    (17, "sheep",       (128,  64,   0)),
    (18, "sofa",        (  0, 192,   0)),
    (19, "train",       (128, 192,   0)),
    (20, "tvmonitor",   (  0,  64, 128)),
)
# fmt: on

VOC = LabelSpace(
    class_names=tuple(name for _, name, _ in _CLASSES),
    palette=tuple(colour for _, _, colour in _CLASSES),
    table=identity_table(len(_CLASSES)),
)
