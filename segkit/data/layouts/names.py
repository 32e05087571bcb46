"""The data sets by the names that a command line has for them."""

from segkit.data.layouts.ade20k import ADE20KLayout
from segkit.data.layouts.base import Layout
from segkit.data.layouts.camvid import CamVidLayout
from segkit.data.layouts.cityscapes import CityscapesLayout
from segkit.data.layouts.coco_stuff import CocoStuffLayout
from segkit.data.layouts.folder import FolderLayout
from segkit.data.layouts.mapillary import MapillaryLayout
from segkit.data.layouts.pascal_context import PascalContextLayout
from segkit.data.layouts.synthetic import SyntheticLayout
from segkit.data.layouts.voc import VOCLayout

# name                class of its layout; its data module is called the same, with DataModule in place of Layout
LAYOUTS: dict[str, type[Layout]] = {
    "ade20k":         ADE20KLayout,
    "cityscapes":     CityscapesLayout,
    "camvid":         CamVidLayout,
    "voc":            VOCLayout,
    "pascal-context": PascalContextLayout,
    "coco-stuff":     CocoStuffLayout,
    "mapillary":      MapillaryLayout,
    "folder":         FolderLayout,
    "synthetic":      SyntheticLayout,
}  # fmt: skip
