"""PASCAL Context on the images of VOC 2010, its 59 most frequent classes. Mottaghi et al., CVPR 2014.

The label table is in `segkit.metadata.pascal_context`, where the authors' files find it too, which read no data set.
"""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Split
from segkit.errors import InputError
from segkit.metadata.pascal_context import CONTEXT_59


class PascalContextDataModule(SegmentationDataModule):
    """PASCAL Context, 59 classes; validation is also the test split.

    `root` is VOC2010, VOCdevkit, or the folder that contains VOCdevkit. `SegmentationClassContext` and the lists in
    `ImageSets/SegmentationContext` are those that mmsegmentation's converter writes.
    """

    title = "PASCAL Context"
    folder = "VOCdevkit"
    label_space = CONTEXT_59
    counts = MappingProxyType({"train": 4998, "val": 5105})
    homes = ("", "VOC2010", "VOCdevkit/VOC2010")

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class.

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
        return (Part("JPEGImages/{name}.jpg", "SegmentationClassContext/{name}.png", names, str(file)),)
