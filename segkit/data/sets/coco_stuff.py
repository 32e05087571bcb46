"""COCO-Stuff 164k: 80 things, then 91 stuff classes, on COCO's images of 2017; raw 255 (unlabeled) is ignored.

Raw values as in the official stuffthingmaps PNGs: COCO's category id - 1. Eleven category ids of things (12, 26, 29,
30, 45, 66, 68, 69, 71, 83, 91) were withdrawn and are on no image: their raw values are undeclared.
Names, colours (17 classes share theirs with another) and train ids as in mmsegmentation 1.2.2, COCOStuffDataset and
tools/dataset_converters/coco_stuff164k.py. Caesar et al., CVPR 2018.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Sample, Split
from segkit.data.layout.masks import CONVERTED
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace
from segkit.paths import is_left_out

# fmt: off
# raw, name, colour
_CLASSES = (
    (  0, "person",           (  0, 192,  64)),
    (  1, "bicycle",          (  0, 192,  64)),
    (  2, "car",              (  0,  64,  96)),
    (  3, "motorcycle",       (128, 192, 192)),
    (  4, "airplane",         (  0,  64,  64)),
    (  5, "bus",              (  0, 192, 224)),
    (  6, "train",            (  0, 192, 192)),
    (  7, "truck",            (128, 192,  64)),
    (  8, "boat",             (  0, 192,  96)),
    (  9, "traffic light",    (128, 192,  64)),
    ( 10, "fire hydrant",     (128,  32, 192)),
    ( 12, "stop sign",        (  0,   0, 224)),
    ( 13, "parking meter",    (  0,   0,  64)),
    ( 14, "bench",            (  0, 160, 192)),
    ( 15, "bird",             (128,   0,  96)),
    ( 16, "cat",              (128,   0, 192)),
    ( 17, "dog",              (  0,  32, 192)),
    ( 18, "horse",            (128, 128, 224)),
    ( 19, "sheep",            (  0,   0, 192)),
    ( 20, "cow",              (128, 160, 192)),
    ( 21, "elephant",         (128, 128,   0)),
    ( 22, "bear",             (128,   0,  32)),
    ( 23, "zebra",            (128,  32,   0)),
    ( 24, "giraffe",          (128,   0, 128)),
    ( 26, "backpack",         ( 64, 128,  32)),
    ( 27, "umbrella",         (  0, 160,   0)),
    ( 30, "handbag",          (  0,   0,   0)),
    ( 31, "tie",              (192, 128, 160)),
    ( 32, "suitcase",         (  0,  32,   0)),
    ( 33, "frisbee",          (  0, 128, 128)),
    ( 34, "skis",             ( 64, 128, 160)),
    ( 35, "snowboard",        (128, 160,   0)),
    ( 36, "sports ball",      (  0, 128,   0)),
    ( 37, "kite",             (192, 128,  32)),
    ( 38, "baseball bat",     (128,  96, 128)),
    ( 39, "baseball glove",   (  0,   0, 128)),
    ( 40, "skateboard",       ( 64,   0,  32)),
    ( 41, "surfboard",        (  0, 224, 128)),
    ( 42, "tennis racket",    (128,   0,   0)),
    ( 43, "bottle",           (192,   0, 160)),
    ( 45, "wine glass",       (  0,  96, 128)),
    ( 46, "cup",              (128, 128, 128)),
    ( 47, "fork",             ( 64,   0, 160)),
    ( 48, "knife",            (128, 224, 128)),
    ( 49, "spoon",            (128, 128,  64)),
    ( 50, "bowl",             (192,   0,  32)),
    ( 51, "banana",           (128,  96,   0)),
    ( 52, "apple",            (128,   0, 192)),
    ( 53, "sandwich",         (  0, 128,  32)),
    ( 54, "orange",           ( 64, 224,   0)),
    ( 55, "broccoli",         (  0,   0,  64)),
    ( 56, "carrot",           (128, 128, 160)),
    ( 57, "hot dog",          ( 64,  96,   0)),
    ( 58, "pizza",            (  0, 128, 192)),
    ( 59, "donut",            (  0, 128, 160)),
    ( 60, "cake",             (192, 224,   0)),
    ( 61, "chair",            (  0, 128,  64)),
    ( 62, "couch",            (128, 128,  32)),
    ( 63, "potted plant",     (192,  32, 128)),
    ( 64, "bed",              (  0,  64, 192)),
    ( 66, "dining table",     (  0,   0,  32)),
    ( 69, "toilet",           ( 64, 160, 128)),
    ( 71, "tv",               (128,  64,  64)),
    ( 72, "laptop",           (128,   0, 160)),
    ( 73, "mouse",            ( 64,  32, 128)),
    ( 74, "remote",           (128, 192, 192)),
    ( 75, "keyboard",         (  0,   0, 160)),
    ( 76, "cell phone",       (192, 160, 128)),
    ( 77, "microwave",        (128, 192,   0)),
    ( 78, "oven",             (128,   0,  96)),
    ( 79, "toaster",          (192,  32,   0)),
    ( 80, "sink",             (128,  64, 128)),
    ( 81, "refrigerator",     ( 64, 128,  96)),
    ( 83, "book",             ( 64, 160,   0)),
    ( 84, "clock",            (  0,  64,   0)),
    ( 85, "vase",             (192, 128, 224)),
    ( 86, "scissors",         ( 64,  32,   0)),
    ( 87, "teddy bear",       (  0, 192, 128)),
    ( 88, "hair drier",       ( 64, 128, 224)),
    ( 89, "toothbrush",       (192, 160,   0)),
    ( 91, "banner",           (  0, 192,   0)),
    ( 92, "blanket",          (192, 128,  96)),
    ( 93, "branch",           (192,  96, 128)),
    ( 94, "bridge",           (  0,  64, 128)),
    ( 95, "building-other",   ( 64,   0,  96)),
    ( 96, "bush",             ( 64, 224, 128)),
    ( 97, "cabinet",          (128,  64,   0)),
    ( 98, "cage",             (192,   0, 224)),
    ( 99, "cardboard",        ( 64,  96, 128)),
    (100, "carpet",           (128, 192, 128)),
    (101, "ceiling-other",    ( 64,   0, 224)),
    (102, "ceiling-tile",     (192, 224, 128)),
    (103, "cloth",            (128, 192,  64)),
    (104, "clothes",          (192,   0,  96)),
    (105, "clouds",           (192,  96,   0)),
    (106, "counter",          (128,  64, 192)),
    (107, "cupboard",         (  0, 128,  96)),
    (108, "curtain",          (  0, 224,   0)),
    (109, "desk-stuff",       ( 64,  64,  64)),
    (110, "dirt",             (128, 128, 224)),
    (111, "door-stuff",       (  0,  96,   0)),
    (112, "fence",            ( 64, 192, 192)),
    (113, "floor-marble",     (  0, 128, 224)),
    (114, "floor-other",      (128, 224,   0)),
    (115, "floor-stone",      ( 64, 192,  64)),
    (116, "floor-tile",       (128, 128,  96)),
    (117, "floor-wood",       (128,  32, 128)),
    (118, "flower",           ( 64,   0, 192)),
    (119, "fog",              (  0,  64,  96)),
    (120, "food-other",       (  0, 160, 128)),
    (121, "fruit",            (192,   0,  64)),
    (122, "furniture-other",  (128,  64, 224)),
    (123, "grass",            (  0,  32, 128)),
    (124, "gravel",           (192, 128, 192)),
    (125, "ground-other",     (  0,  64, 224)),
    (126, "hill",             (128, 160, 128)),
    (127, "house",            (192, 128,   0)),
    (128, "leaves",           (128,  64,  32)),
    (129, "light",            (128,  32,  64)),
    (130, "mat",              (192,   0, 128)),
    (131, "metal",            ( 64, 192,  32)),
    (132, "mirror-stuff",     (  0, 160,  64)),
    (133, "moss",             ( 64,   0,   0)),
    (134, "mountain",         (192, 192, 160)),
    (135, "mud",              (  0,  32,  64)),
    (136, "napkin",           ( 64, 128, 128)),
    (137, "net",              ( 64, 192, 160)),
    (138, "paper",            (128, 160,  64)),
    (139, "pavement",         ( 64, 128,   0)),
    (140, "pillow",           (192, 192,  32)),
    (141, "plant-other",      (128,  96, 192)),
    (142, "plastic",          ( 64,   0, 128)),
    (143, "platform",         ( 64,  64,  32)),
    (144, "playingfield",     (  0, 224, 192)),
    (145, "railing",          (192,   0,   0)),
    (146, "railroad",         (192,  64, 160)),
    (147, "river",            (  0,  96, 192)),
    (148, "road",             (192, 128, 128)),
    (149, "rock",             ( 64,  64, 160)),
    (150, "roof",             (128, 224, 192)),
    (151, "rug",              (192, 128,  64)),
    (152, "salad",            (192,  64,  32)),
    (153, "sand",             (128,  96,  64)),
    (154, "sea",              (192,   0, 192)),
    (155, "shelf",            (  0, 192,  32)),
    (156, "sky-other",        ( 64, 224,  64)),
    (157, "skyscraper",       ( 64,   0,  64)),
    (158, "snow",             (128, 192, 160)),
    (159, "solid-other",      ( 64,  96,  64)),
    (160, "stairs",           ( 64, 128, 192)),
    (161, "stone",            (  0, 192, 160)),
    (162, "straw",            (192, 224,  64)),
    (163, "structural-other", ( 64, 128,  64)),
    (164, "table",            (128, 192,  32)),
    (165, "tent",             (192,  32, 192)),
    (166, "textile-other",    ( 64,  64, 192)),
    (167, "towel",            (  0,  64,  32)),
    (168, "tree",             ( 64, 160, 192)),
    (169, "vegetable",        (192,  64,  64)),
    (170, "wall-brick",       (128,  64, 160)),
    (171, "wall-concrete",    ( 64,  32, 192)),
    (172, "wall-other",       (192, 192, 192)),
    (173, "wall-panel",       (  0,  64, 160)),
    (174, "wall-stone",       (192, 160, 192)),
    (175, "wall-tile",        (192, 192,   0)),
    (176, "wall-wood",        (128,  64,  96)),
    (177, "water-other",      (192,  32,  64)),
    (178, "waterdrops",       (192,  64, 128)),
    (179, "window-blind",     ( 64, 192,  96)),
    (180, "window-other",     ( 64, 160,  64)),
    (181, "wood",             ( 64,  64,   0)),
)
# fmt: on

COCO_STUFF = LabelSpace.from_rows(_CLASSES, ignored=(255,))

_MAPS = "stuffthingmaps_trainval2017.zip"
_CONVERTED = f"{CONVERTED}.png"


class CocoStuffDataModule(SegmentationDataModule):
    """COCO-Stuff 164k, 171 classes; validation is also the test split.

    `root` holds the images in `train2017` and `val2017` and the published masks in `stuffthingmaps/train2017`, ..., or
    mmsegmentation's `images/train2017` and `annotations/train2017`, or the masks beside the images, as the published
    zip files unpack; these may stay packed.
    """

    title = "COCO-Stuff"
    folder = "coco_stuff164k"
    label_space = COCO_STUFF
    counts = MappingProxyType({"train": 118287, "val": 5000})
    archives = ("train2017.zip", "val2017.zip", _MAPS)

    def find_samples(self, split: Split, with_masks: bool = True) -> list[Sample]:
        """See base class.

        Raises:
            InputError: The only masks are those that mmsegmentation converted to train ids.
        """
        folder = _folder(split)
        if with_masks and self._only_converted(folder):
            raise InputError(
                f"{self.root}: only masks converted to train ids (*{_CONVERTED}) for {folder}; needed are the "
                f"published ones, without this ending: unpack {_MAPS} again, or put it here"
            )
        return super().find_samples(split, with_masks)

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class."""
        folder = _folder(split)
        images = f"images/{folder}" if self.files.has(f"images/{folder}") else folder
        return (Part(f"{images}/{{name}}.jpg", f"{self._masks(folder)}/{{name}}.png"),)

    def _masks(self, folder: str) -> str:
        """The folder where the masks are, or should be."""
        kinds = self._kinds(folder)
        found = next((place for place, kind in kinds.items() if kind == "raw"), None)
        return found or (folder if (self.root / _MAPS).is_file() else next(iter(kinds)))

    def _only_converted(self, folder: str) -> bool:
        kinds = self._kinds(folder).values()
        return "converted" in kinds and "raw" not in kinds and not (self.root / _MAPS).is_file()

    def _kinds(self, folder: str) -> dict[str, str]:
        places = (f"stuffthingmaps/{folder}", f"annotations/{folder}", folder)
        return {place: _kind_of_masks(self.root / place) for place in places}


def _folder(split: Split) -> str:
    return "train2017" if split == "train" else "val2017"


def _kind_of_masks(folder: Path) -> str:
    """Whether a folder has "raw" masks, only "converted" ones, or "no" masks; reading stops at the first raw one."""
    kind = "no"
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for name in (
                entry.name for entry in entries if entry.name.endswith(".png") and not is_left_out(entry.name)
            ):
                if not name.endswith(_CONVERTED):
                    return "raw"
                kind = "converted"
    return kind
