"""A user's own data: pictures, label maps that hold train ids, and a list of class names."""

import hashlib
import os
from functools import cached_property
from pathlib import Path

from segkit.data.datamodule import IMAGE_SUFFIXES, SegmentationDataModule, Split, find_pictures, pair
from segkit.data.dataset import Sample
from segkit.errors import InputError
from segkit.metadata.class_files import read_classes, read_palette, read_text
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table

VAL_PERCENT = 20


class FolderDataModule(SegmentationDataModule):
    """`images/`, `labels/` and `classes.txt` below `root`; `palette.csv` and `splits/` if you like.

    Labels are 8-bit PNGs of train ids: line i of classes.txt (from 0) is class i, 255 is ignored. The split comes from
    the first of these that exists:

    1. `splits/{train,val,test}.txt`, one name a line, without extension; pictures in `images/` or `images/SPLIT/`.
    2. `images/{train,val,test}/` and `labels/{train,val,test}/`.
    3. Neither: a picture whose SHA-256 of its name falls in the lowest 20 of 100 bins is validation, the others are
       training; a picture keeps its place when others are added.

    Without a test split, test and predict read the validation split. Arguments as in the base class.
    """

    @property
    def label_space(self) -> LabelSpace:
        """Classes and colours of classes.txt and palette.csv, read at first use.

        Raises:
            InputError: classes.txt is absent or wrong, or palette.csv does not fit it.
        """
        return self._label_space

    @cached_property
    def _label_space(self) -> LabelSpace:
        names = read_classes(self.root / "classes.txt")
        palette_file = self.root / "palette.csv"
        palette = read_palette(palette_file, names) if palette_file.is_file() else distinct_palette(len(names))
        return LabelSpace(names, palette, identity_table(len(names)))

    def find_samples(self, split: Split, with_masks: bool) -> list[Sample]:
        """As in the base class."""
        if split == "test" and not self._has_split("test"):
            split = "val"
        list_file = self.root / "splits" / f"{split}.txt"
        by_folder = (self.root / "images" / split).is_dir()
        images = find_pictures(self.root / "images" / split if by_folder else self.root / "images")
        if list_file.is_file():
            images = _select(images, list_file)
        elif not by_folder:
            images = self._hashed(images, split)
        labels = self.root / "labels" / split if by_folder else self.root / "labels"
        return pair(images, {name: labels / f"{name}.png" for name in images} if with_masks else None)

    def _has_split(self, split: Split) -> bool:
        return (self.root / "splits" / f"{split}.txt").is_file() or (self.root / "images" / split).is_dir()

    def _hashed(self, images: dict[str, Path], split: Split) -> dict[str, Path]:
        if any(self._has_split(other) for other in ("train", "val", "test")):
            raise InputError(
                f"{self.root}: no {split} split here, though others exist; add images/{split}/ or splits/{split}.txt"
            )
        chosen = {name: path for name, path in images.items() if is_validation(name) == (split == "val")}
        if not chosen:
            raise InputError(
                f"{self.root}: all {len(images)} pictures fell into one part of the automatic split; "
                "write splits/train.txt and splits/val.txt, one name a line"
            )
        return chosen


def is_validation(name: str) -> bool:
    """Where the automatic split puts a picture: a function of its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100 < VAL_PERCENT


def _select(images: dict[str, Path], list_file: Path) -> dict[str, Path]:
    """The pictures a split file names, in its order."""
    chosen: dict[str, Path] = {}
    missing: list[str] = []
    for line in read_text(list_file).split("\n"):
        name = _without_image_suffix(line.strip())
        if name in chosen:
            raise InputError(f"{list_file}: names {name} twice; every picture counts once: remove one line")
        if name in images:
            chosen[name] = images[name]
        elif name:
            missing.append(name)
    if missing:
        raise InputError(f"{list_file}: no picture for {missing[0]} ({len(missing)} names); correct the list")
    if not chosen:
        raise InputError(f"{list_file}: names no picture; write one name a line")
    return chosen


def _without_image_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name
