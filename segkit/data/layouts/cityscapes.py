"""Cityscapes: 19 classes, 2975 training and 500 validation images of 2048x1024. Cordts et al., CVPR 2016."""

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

from segkit.data.layouts.base import Layout, Part, Split
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.label_space import LabelSpace

_COARSE = 19998  # images of train_extra


class CityscapesLayout(Layout):
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`.

    Labels of the test images are not public: they are scored as the validation split; predict reads them where they
    are there, and val where they are not.

    Args:
        root: The folder of these folders, or of the published zip files, or of both.
        coarse: Also train on the 19998 images of `leftImg8bit/train_extra` with the labels of `gtCoarse`.
        label_space: Of the `labelIds` values; another one for other images in this layout.
    """

    title = "Cityscapes"
    archives: ClassVar[Sequence[str]] = (
        "leftImg8bit_trainvaltest.zip",
        "gtFine_trainvaltest.zip",
        "leftImg8bit_trainextra.zip",
        "gtCoarse.zip",
    )
    scored_as = MappingProxyType({"test": "val"})

    def __init__(
        self, root: str | os.PathLike[str], coarse: bool = False, label_space: LabelSpace = CITYSCAPES
    ) -> None:
        super().__init__(root)
        self.coarse = coarse
        self._label_space = label_space
        self.counts = {"train": 2975 + _COARSE * coarse, "val": 500, "test": 1525}

    @property
    def label_space(self) -> LabelSpace:
        """19 classes; raw values are label ids, not train ids."""
        return self._label_space

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class."""
        if split == "test" and not self.files.has("leftImg8bit/test"):
            return self.parts("val")
        ending, suffixes = "_leftImg8bit", (".png",)
        fine = Part(f"leftImg8bit/{split}", f"gtFine/{split}", ending, "_gtFine_labelIds.png", suffixes)
        if split != "train" or not self.coarse:
            return (fine,)
        extra = ("leftImg8bit/train_extra", "gtCoarse/train_extra")
        return (fine, Part(*extra, ending, "_gtCoarse_labelIds.png", suffixes))
