"""COCO-Stuff 164k: 171 classes on COCO's images of 2017, 118287 for training and 5000 for validation.

Caesar et al., CVPR 2018.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from segkit.data.layouts.base import Layout, Part, Sample, Split
from segkit.data.layouts.masks import CONVERTED
from segkit.errors import InputError
from segkit.metadata.coco_stuff import COCO_STUFF
from segkit.metadata.label_space import LabelSpace
from segkit.paths import is_left_out

_MAPS = "stuffthingmaps_trainval2017.zip"
_CONVERTED = f"{CONVERTED}.png"


class CocoStuffLayout(Layout):
    """Images in `train2017`, `val2017`; published masks in `stuffthingmaps/train2017`, ...

    Or in mmsegmentation's `images/train2017` and `annotations/train2017`, or the masks beside the images, as the
    published zip files unpack; these may stay packed. `root` is the folder of all of them. There is no test split with
    stuff labels: test and predict read the validation split.
    """

    title = "COCO-Stuff"
    counts = MappingProxyType({"train": 118287, "val": 5000})
    archives = ("train2017.zip", "val2017.zip", _MAPS)

    @property
    def label_space(self) -> LabelSpace:
        """171 classes; raw 255 is ignored."""
        return COCO_STUFF

    def find_samples(self, split: Split, with_masks: bool = True) -> list[Sample]:
        """As in the base class.

        Raises:
            InputError: There are only masks that mmsegmentation has converted to train ids, too.
        """
        folder = _folder(split)
        if with_masks and self._only_converted(folder):
            raise InputError(
                f"{self.root}: only masks converted to train ids (*{_CONVERTED}) for {folder}; needed are the "
                f"published ones, without this ending: unpack {_MAPS} again, or put it here"
            )
        return super().find_samples(split, with_masks)

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class."""
        folder = _folder(split)
        images = f"images/{folder}" if self.files.has(f"images/{folder}") else folder
        return (Part(images, self._masks(folder), suffixes=(".jpg",)),)

    def _masks(self, folder: str) -> str:
        """Where the masks are, or ought to be."""
        kinds = self._kinds(folder)
        found = next((place for place, kind in kinds.items() if kind == "raw"), None)
        return found or (folder if (self.root / _MAPS).is_file() else next(iter(kinds)))

    def _only_converted(self, folder: str) -> bool:
        kinds = self._kinds(folder).values()
        return "converted" in kinds and "raw" not in kinds and not (self.root / _MAPS).is_file()

    def _kinds(self, folder: str) -> dict[str, str]:
        places = (f"stuffthingmaps/{folder}", f"annotations/{folder}", folder)
        return {place: _kind_of_masks(self.root / place) for place in places}


def _folder(split: Split) -> str:
    return "train2017" if split == "train" else "val2017"


def _kind_of_masks(folder: Path) -> str:
    """Whether a folder has "raw" masks, only "converted" ones, or "no" masks; it is read up to the first raw one."""
    kind = "no"
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for name in (
                entry.name for entry in entries if entry.name.endswith(".png") and not is_left_out(entry.name)
            ):
                if not name.endswith(_CONVERTED):
                    return "raw"
                kind = "converted"
    return kind
