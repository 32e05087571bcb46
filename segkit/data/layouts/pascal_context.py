"""PASCAL Context on the images of VOC 2010: its 59 most frequent classes. Mottaghi et al., CVPR 2014."""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.layouts.base import Layout, Part, Split
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.pascal_context import CONTEXT_59


class PascalContextLayout(Layout):
    """`JPEGImages`, `SegmentationClassContext` and `ImageSets/SegmentationContext/{train,val}.txt`.

    Masks and lists are those that mmsegmentation's converter writes. `root` is VOC2010, VOCdevkit, or the folder that
    contains VOCdevkit. There is no test split: test and predict read the validation split.
    """

    title = "PASCAL Context"
    counts = MappingProxyType({"train": 4998, "val": 5105})
    homes = ("", "VOC2010", "VOCdevkit/VOC2010")

    @property
    def label_space(self) -> LabelSpace:
        """59 classes; raw 0, background and all rarer classes, is ignored."""
        return CONTEXT_59

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class.

        Raises:
            InputError: A list of names is missing or wrong.
        """
        path = f"ImageSets/SegmentationContext/{'train' if split == 'train' else 'val'}.txt"
        file = self.files.file(path)
        if file is None:
            raise InputError(
                f"{self.root}: no {path}, nor in VOC2010 or VOCdevkit/VOC2010 below; check --data.root, and convert "
                "the annotations (datasets/README.md)"
            )
        names = self.read_list(file, "JPEGImages")
        return (Part("JPEGImages", "SegmentationClassContext", suffixes=(".jpg",), names=names, list_file=str(file)),)
