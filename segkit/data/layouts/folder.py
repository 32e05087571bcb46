"""A user's own data: images, masks of one of several kinds, and a list of class names."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from segkit.arrays import UInt8Array
from segkit.data.layouts.base import Layout, Part, Split
from segkit.data.layouts.files import Source
from segkit.data.layouts.masks import MASK_SUFFIXES, ending_of
from segkit.errors import InputError
from segkit.io import read_colors, read_label
from segkit.metadata.class_files import Colour, read_classes, read_colour_table, read_palette, read_table, read_text
from segkit.metadata.label_space import LabelSpace, binary_table, distinct_palette, identity_table

MaskKind: TypeAlias = Literal["ids", "binary", "colors"]
Exif: TypeAlias = Literal["ignore", "apply"]

VAL_PERCENT = 20
_AT_ONCE = 1 << 20  # pixels of a mask of colours that are looked up together: what they need stays small
_UNKNOWN = 254  # a colour of no class, in the look-up table; so masks of colours have at most 254 classes


class FolderLayout(Layout):
    """`images/`, `labels/` and `classes.txt` below `root`; `palette.csv`, `table.csv` and `splits/` if you like.

    The split comes from the first of these that exists:

    1. `splits/{train,val,test}.txt`, one name or path a line (`read_names`); images in `images/` or `images/SPLIT/`.
    2. `images/{train,val,test}/` and `labels/{train,val,test}/`.
    3. Neither: an image whose SHA-256 of its name falls in the lowest 20 of 100 bins is validation, the others are
       training; an image keeps its place when others are added.

    Without a test split, test and predict read the validation split.

    Args:
        root: The folder.
        masks: What the files in `labels/` hold. "ids": numbers, also as the indices of a palette; line i of
            classes.txt (from 0) is class i and 255 is ignored, unless table.csv says otherwise. "binary": 0 and 255,
            the two lines of classes.txt. "colors": RGB colours, those of palette.csv.
        exif: What to do with the images' EXIF orientation. "ignore": the masks fit the images as they are stored.
            "apply": they were drawn on the images as they are shown, by a tool that turns them.
        mask_ending: What follows an image's name in that of its mask: "_mask" for `a.jpg` and `a_mask.png`. Such masks
            may also lie beside the images, where there is no folder `labels`.
    """

    title = "folder"

    def __init__(
        self, root: str | os.PathLike[str], masks: MaskKind = "ids", exif: Exif = "ignore", mask_ending: str = ""
    ) -> None:
        super().__init__(root)
        if masks not in ("ids", "binary", "colors"):
            raise InputError(f"masks is {masks!r}; allowed are ids, binary and colors")
        if exif not in ("ignore", "apply"):
            raise InputError(f"exif is {exif!r}; allowed are ignore and apply")
        if "/" in mask_ending or mask_ending.lower().endswith(MASK_SUFFIXES):
            raise InputError(f"mask_ending is {mask_ending!r}; give what follows the name, without suffix: _mask")
        self.masks = masks
        self.apply_exif = exif == "apply"
        self.mask_ending = mask_ending

    @property
    def label_space(self) -> LabelSpace:
        """Classes and colours of classes.txt and palette.csv, the table of table.csv; read at first use.

        Raises:
            InputError: classes.txt is absent or wrong, or another of the files does not fit it.
        """
        return self._label_space

    @cached_property
    def _label_space(self) -> LabelSpace:
        names = read_classes(self.root / "classes.txt")
        palette_file, table_file = self.root / "palette.csv", self.root / "table.csv"
        palette = read_palette(palette_file, names) if palette_file.is_file() else distinct_palette(len(names))
        table = identity_table(len(names))
        if self.masks == "binary":
            table = binary_table(len(names), str(self.root / "classes.txt"))
        elif table_file.is_file() and self.masks == "ids":
            table = read_table(table_file, len(names))
        return LabelSpace(names, palette, table)

    def parts(self, split: Split) -> Sequence[Part]:
        """As in the base class."""
        if split == "test" and not self._is_declared("test"):
            split = "val"
        list_file = self.root / "splits" / f"{split}.txt"
        by_folder = (self.root / "images" / split).is_dir()
        part = self._part(f"/{split}" if by_folder else "", str(list_file))
        if list_file.is_file():
            return (replace(part, names=self.read_list(list_file, part.images, self.mask_ending)),)
        return (part if by_folder else replace(part, names=self._hashed(part, split)),)

    def has_split(self, split: Split) -> bool:
        """Whether there are images of that split; of test, only if they are not those of val."""
        return self.files.has("images") and (split != "test" or self._is_declared(split))

    def read_mask(self, file: Source) -> UInt8Array:
        """As in the base class; colours become train ids."""
        return self._ids_of_colors(file) if self.masks == "colors" else read_label(file)

    def mask_key(self) -> str:
        """As in the base class."""
        path = self.root / "palette.csv"
        colours = read_text(path) if self.masks == "colors" and path.is_file() else ""
        return self.masks + colours + ("exif" if self.apply_exif else "")

    def why_no_mask(self, part: Part, name: str) -> str:
        """As in the base class; and which `mask_ending` would find it."""
        found = super().why_no_mask(part, name)
        places = [] if self.mask_ending else [folder for folder in (part.masks, part.images) if folder]
        endings = (ending_of(self.files, folder, name) for folder in places)
        ending = next((ending for ending in endings if ending), None)
        return found + (f"; if {name}{ending} is its mask, set --data.mask_ending {ending}" if ending else "")

    def _part(self, folder: str, list_file: str) -> Part:
        """All images of a folder; the masks beside them where they can be told apart and have no own folder."""
        images, masks = f"images{folder}", f"labels{folder}"
        beside = self.mask_ending and not self.files.has(masks)
        return Part(images, images if beside else masks, mask_ending=f"{self.mask_ending}.png", list_file=list_file)

    def _ids_of_colors(self, file: Source) -> UInt8Array:
        colours = read_colors(file)
        height, width = colours.shape[:2]
        ids = np.empty((height, width), np.uint8)
        rows = max(1, _AT_ONCE // width)
        for start in range(0, height, rows):
            ids[start : start + rows] = self._ids_by_code[_codes(colours[start : start + rows])]
        if _UNKNOWN in ids:
            raise InputError(f"{file}: {_describe_unknown(colours, ids == _UNKNOWN)} in {self.root / 'palette.csv'}")
        return ids

    @cached_property
    def _ids_by_code(self) -> UInt8Array:
        """Train id by 24-bit colour: 16 MB, of which the few colours of a mask touch a few cache lines."""
        path = self.root / "palette.csv"
        if not path.is_file():
            raise InputError(f"{path}: no such file; masks of colours need it (columns id,name,r,g,b; 255 = ignored)")
        ids = np.full(1 << 24, _UNKNOWN, np.uint8)
        for (red, green, blue), label in self._colours(path).items():
            ids[(red << 16) | (green << 8) | blue] = label
        return ids

    def _colours(self, path: Path) -> dict[Colour, int]:
        names = self.label_space.class_names
        if len(names) > _UNKNOWN:
            raise InputError(f"{path}: {len(names)} classes; masks of colours may have {_UNKNOWN}")
        return read_colour_table(path, names)

    def _is_declared(self, split: str) -> bool:
        return (self.root / "splits" / f"{split}.txt").is_file() or (self.root / "images" / split).is_dir()

    def _hashed(self, part: Part, split: Split) -> tuple[str, ...]:
        if any(self._is_declared(other) for other in ("train", "val", "test")):
            raise InputError(
                f"{self.root}: no {split} split here, though others exist; add images/{split}/ or splits/{split}.txt"
            )
        names = list(self.images_of(part))
        chosen = tuple(name for name in names if is_validation(name) == (split == "val"))
        if not chosen:
            raise InputError(
                f"{self.root}: all {len(names)} images fell into one part of the automatic split; "
                "write splits/train.txt and splits/val.txt, one name a line"
            )
        return chosen


def is_validation(name: str) -> bool:
    """Where the automatic split puts an image: a function of its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100 < VAL_PERCENT


def _codes(colours: UInt8Array) -> npt.NDArray[np.int32]:
    """A number for each colour: (..., 3) -> (...)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return np.asarray((red << 16) | (green << 8) | blue)


def _describe_unknown(colours: UInt8Array, unknown: npt.NDArray[np.bool_]) -> str:
    row, col = divmod(int(unknown.argmax()), unknown.shape[1])
    first = colours[row, col]
    step = -(-max(unknown.shape) // math.isqrt(_AT_ONCE))
    seen = unknown[::step, ::step]  # (H, W, 3) has too many colours to sort all of them
    others = len(set(np.unique(_codes(colours[::step, ::step][seen])).tolist()) - {int(_codes(first))})
    more = f" (and {others} other undeclared colours)" if others else ""
    cause = "give it a row (a class's id, or 255 to ignore it)"
    if others > 20:
        cause = "so many suggest blended edges: draw masks without antialiasing, with the colours"
    count, name = int((colours == first).all(axis=2).sum()), tuple(first.tolist())
    return f"colour {name} is not declared: {count} pixels, first at row {row}, column {col}{more}; {cause}"
