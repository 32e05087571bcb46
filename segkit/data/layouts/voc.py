"""PASCAL VOC 2012, segmentation: 20 classes and background. Everingham et al., IJCV 2015.

The 10582 training images that most papers use add those of SBD (Hariharan et al., ICCV 2011) that are not in VOC's
own validation split: 1464 + 9118.
"""

import os
from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.layouts.base import Layout, Part, Split
from segkit.data.layouts.files import Source
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.voc import VOC

_LISTS = "ImageSets/Segmentation"


class VOCLayout(Layout):
    """`JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/{train,val,test}.txt`.

    `root` is VOC2012, VOCdevkit, or the folder that contains VOCdevkit. Labels of the test images are not public:
    they are scored as the validation split; predict reads them where test.txt is there, and val where it is not.

    Args:
        root: The folder.
        augmented: Train on 10582 images: those of trainaug.txt or, where that is missing, of train.txt and aug.txt.
            The images of train.txt keep VOC's own masks, the others take those of `SegmentationClassAug`, which
            lacks a part of VOC's where it was made from SBD alone.
    """

    title = "PASCAL VOC 2012"
    homes = ("", "VOC2012", "VOCdevkit/VOC2012")
    scored_as = MappingProxyType({"test": "val"})

    def __init__(self, root: str | os.PathLike[str], augmented: bool = False) -> None:
        super().__init__(root)
        self.augmented = augmented
        self.counts = {"train": 10582 if augmented else 1464, "val": 1449, "test": 1456}

    @property
    def label_space(self) -> LabelSpace:
        """21 classes, background among them; raw 255, the border of objects, is ignored."""
        return VOC

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class.

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
        """Images with VOC's masks, then those with SBD's."""
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
        return Part("JPEGImages", masks, suffixes=(".jpg",), names=names, list_file=str(self._list(split)))

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
