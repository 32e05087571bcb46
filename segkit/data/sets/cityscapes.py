"""Cityscapes: 19 classes, 2975 training and 500 validation images of 2048x1024. Cordts et al., CVPR 2016.

The label table is in `segkit.metadata.cityscapes`, because submissions and official scores need it without reading a
data set.
"""

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Split
from segkit.metadata.cityscapes import CITYSCAPES

_COARSE = 19998  # images of train_extra


def fine_part(split: Split) -> Part:
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`."""
    return Part(f"leftImg8bit/{split}/{{name}}_leftImg8bit.png", f"gtFine/{split}/{{name}}_gtFine_labelIds.png")


class CityscapesDataModule(SegmentationDataModule):
    """Cityscapes, 19 classes; test is scored on the validation split, predict reads the test images.

    Labels of the test images are not public; where the images are absent, predict reads the validation split.

    Args:
        root: The folder of leftImg8bit and gtFine, or of their zip files, or of both.
        coarse: Also train on the 19998 images of `leftImg8bit/train_extra` with the labels of `gtCoarse`.
        **options: The arguments of `SegmentationDataModule`.
    """

    title = "Cityscapes"
    folder = "cityscapes"
    label_space = CITYSCAPES
    archives = (
        "leftImg8bit_trainvaltest.zip",
        "gtFine_trainvaltest.zip",
        "leftImg8bit_trainextra.zip",
        "gtCoarse.zip",
    )
    scored_as = MappingProxyType({"test": "val"})
    own_base_size = 2048  # the sizes of the authors' group for this data set
    own_crop_size = 768

    def __init__(self, root: str | os.PathLike[str], coarse: bool = False, **options: Any) -> None:
        super().__init__(root, **options)
        self.coarse = coarse
        self.counts = {"train": 2975 + _COARSE * coarse, "val": 500, "test": 1525}

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class."""
        if split == "test" and not self.files.has("leftImg8bit/test"):
            return self.parts("val")
        if split != "train" or not self.coarse:
            return (fine_part(split),)
        images, masks = (
            "leftImg8bit/train_extra/{name}_leftImg8bit.png",
            "gtCoarse/train_extra/{name}_gtCoarse_labelIds.png",
        )
        return (fine_part(split), Part(images, masks))
