"""Mapillary Vistas: the 65 classes of version 1.2. Neuhold et al., ICCV 2017."""

from collections.abc import Sequence
from types import MappingProxyType

from segkit.data.layouts.base import Layout, Part, Split
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.mapillary import MAPILLARY

_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


class MapillaryLayout(Layout):
    """`{training,validation}/images` and `labels` of v1.2, or `v1.2/labels` as the archive of v2.0 has them.

    Labels of the images in `testing/images` are not public: they are scored as the validation split; predict reads
    them where they are there, and val where they are not.
    """

    title = "Mapillary Vistas"
    counts = MappingProxyType({"train": 18000, "val": 2000, "test": 5000})
    scored_as = MappingProxyType({"test": "val"})

    @property
    def label_space(self) -> LabelSpace:
        """65 classes; raw 65, "Unlabeled", is ignored."""
        return MAPILLARY

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class."""
        folder = _FOLDERS[split]
        if split == "test":
            has_images = self.files.has("testing/images")
            return (Part("testing/images", suffixes=(".jpg",)),) if has_images else self.parts("val")
        masks = f"{folder}/labels" if self.files.has(f"{folder}/labels") else f"{folder}/v1.2/labels"
        return (Part(f"{folder}/images", masks, suffixes=(".jpg",)),)
