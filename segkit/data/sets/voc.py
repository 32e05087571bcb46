"""PASCAL VOC 2012: 20 classes and background, which is a class; raw 255, the border of objects, is ignored.

Names and colours: the VOC devkit's; its rule for colours spreads the bits of the class number over R, G and B (a test
recomputes them). Everingham et al., IJCV 2010 and 2015. The 10582 training images that most papers use add those of SBD
(Hariharan et al., ICCV 2011) that are not in VOC's own validation split: 1464 + 9118.
"""

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Split
from segkit.data.layout.files import Source
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace

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

VOC = LabelSpace.from_rows(_CLASSES, ignored=(255,))

_LISTS = "ImageSets/Segmentation"


class VOCDataModule(SegmentationDataModule):
    """PASCAL VOC 2012, 21 classes; test is scored on the validation split, predict reads the test images.

    Labels of the test images are not public; where test.txt is absent, predict reads the validation split.

    Args:
        root: VOC2012, VOCdevkit, or the folder that contains VOCdevkit.
        augmented: Train on 10582 images: those of trainaug.txt or, where that is missing, of train.txt and aug.txt.
            The images of train.txt keep VOC's own masks, the others take those of `SegmentationClassAug`, which
            lacks some of VOC's if it was made from SBD alone.
        **options: The arguments of `SegmentationDataModule`.
    """

    title = "PASCAL VOC 2012"
    folder = "VOCdevkit"
    label_space = VOC
    homes = ("", "VOC2012", "VOCdevkit/VOC2012")
    scored_as = MappingProxyType({"test": "val"})

    def __init__(self, root: str | os.PathLike[str], augmented: bool = False, **options: Any) -> None:
        super().__init__(root, **options)
        self.augmented = augmented
        self.counts = {"train": 10582 if augmented else 1464, "val": 1449, "test": 1456}

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class.

        Raises:
            InputError: A list of names or the additional masks are missing, or a list is wrong.
        """
        if split == "test":
            has_list = self._list("test") is not None
            return (self._part("test", None, self._names("test")),) if has_list else self.parts("val")
        if split == "train" and self.augmented:
            return self._augmented_parts()
        return (self._part(split, "SegmentationClass", self._names(split)),)

    def _augmented_parts(self) -> Sequence[Part]:
        """Images with VOC's masks, then images with SBD's masks."""
        if not self.files.has("SegmentationClassAug"):
            raise InputError(
                f"{self.root}: no folder SegmentationClassAug beside SegmentationClass, the masks of SBD; add it, or "
                "set --data.augmented false (datasets/README.md)"
            )
        own, more = dict.fromkeys(self._names("train")), "aug"
        if self._list("trainaug") is not None:
            more = "trainaug"
            wanted = set(self._names(more))
            own = {name: None for name in own if name in wanted}
        added = tuple(name for name in self._names(more) if name not in own)
        parts = [self._part("train", "SegmentationClass", tuple(own)), self._part(more, "SegmentationClassAug", added)]
        return [part for part in parts if part.names]

    def _part(self, split: str, masks: str | None, names: tuple[str, ...]) -> Part:
        masks = None if masks is None else f"{masks}/{{name}}.png"
        return Part("JPEGImages/{name}.jpg", masks, names, str(self._list(split)))

    def _names(self, split: str) -> tuple[str, ...]:
        file = self._list(split)
        if file is None:
            lists = "trainaug.txt, nor aug.txt" if split == "aug" else f"{split}.txt"
            raise InputError(
                f"{self.root}: no {_LISTS}/{lists}, nor in VOC2012 or VOCdevkit/VOC2012 below; check --data.root and "
                "the layout (datasets/README.md)"
            )
        return self.read_list(file, "JPEGImages")

    def _list(self, split: str) -> Source | None:
        return self.files.file(f"{_LISTS}/{split}.txt")
