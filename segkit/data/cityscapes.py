"""Cityscapes, fine annotations: 19 classes, 2975 training and 500 validation pictures of 2048x1024."""

import os
from pathlib import Path

from segkit.data.datamodule import SegmentationDataModule, Split, find_pictures, pair
from segkit.data.dataset import Sample
from segkit.data.transforms import Augmentation
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.label_space import LabelSpace


class CityscapesDataModule(SegmentationDataModule):
    """Cityscapes, read from `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/.../*_gtFine_labelIds.png`.

    Labels of the test pictures are not public: test reads the validation split, predict the pictures of
    `predict_split`, test by default. Sizes default to those of the authors' group for this data set.
    Arguments as in the base class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 16,
        base_size: int = 2048,
        crop_size: int = 768,
        num_workers: int | None = None,
        augmentations: list[Augmentation] | None = None,
        scale_range: tuple[float, float] = (0.5, 2.0),
        seed: int = 0,
        predict_split: Split = "test",
    ) -> None:
        super().__init__(
            root, batch_size, base_size, crop_size, num_workers, augmentations, scale_range, seed, predict_split
        )

    @property
    def label_space(self) -> LabelSpace:
        """19 classes; raw values are label ids, not train ids."""
        return CITYSCAPES

    def find_samples(self, split: Split, with_masks: bool) -> list[Sample]:
        """As in the base class."""
        return find_cityscapes(self.root, "val" if split == "test" and with_masks else split, with_masks)


def find_cityscapes(root: Path, split: Split, with_masks: bool) -> list[Sample]:
    """The samples of a split in the Cityscapes layout.

    Raises:
        InputError: Folders, pictures or masks are absent.
    """
    images = find_pictures(root / "leftImg8bit" / split, (".png",))
    ending = "_gtFine_labelIds.png"
    masks = {name: root / "gtFine" / split / (name.removesuffix("_leftImg8bit") + ending) for name in images}
    return pair(images, masks if with_masks else None)
