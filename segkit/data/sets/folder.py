"""A user's own data: images, masks of one of several kinds, and a list of class names."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pytorch_lightning.utilities import rank_zero_info

from segkit.bands import Bands, bands_of
from segkit.data.band_statistics import band_statistics
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import SPLITS, PairReader, Part, PathTemplate, Split
from segkit.data.layout.colors import ColorMasks
from segkit.data.layout.files import Source
from segkit.data.layout.guess import guess_paths
from segkit.errors import InputError
from segkit.formats.guess import refuse_export
from segkit.io import read_label
from segkit.io.bands import read_bands
from segkit.metadata.class_files import read_classes, read_palette, read_table, read_text
from segkit.metadata.label_space import LabelSpace, binary_table, distinct_palette, identity_table

MaskKind: TypeAlias = Literal["ids", "binary", "colors"]
Exif: TypeAlias = Literal["ignore", "apply"]

VAL_PERCENT = 20


class FolderDataModule(SegmentationDataModule):
    """Your own images and masks, below one folder, and a list of class names.

    The split of an image comes from the first of these that exists:

    1. `splits/{train,val,test}.txt`, one name or path a line (`read_names`).
    2. Folders: `{split}` in `images`; without `images`, the folders `images/{train,val,test}`.
    3. Neither: an image whose SHA-256 of its name falls in the lowest 20 of 100 bins is validation, the others are
       training; an image keeps its place when others are added.

    Without a test split, test and predict read the validation split.

    Args:
        root: The folder.
        masks: The kind of the masks, their paths, or both: `binary gt/{name}_mask.png`. The kind "ids" are class
            numbers, also as the indices of a palette; line i of classes.txt (from 0) is class i and 255 is ignored,
            unless table.csv says otherwise. "binary" are 0 and 255, the two lines of classes.txt. "colors" are the RGB
            colours of palette.csv. The default paths are `labels/{name}.png`, or `labels/{split}/{name}.png` if the
            images have such folders; `{split}` is train, val or test, and `.tif` or `.npy` is found, too.
        images: Paths of the images: `img/{name}.jpg`. Without a suffix, any image is found. None:
            `images/{split}/{name}` or `images/{name}`, whichever exists.
        classes: The file of class names; None: classes.txt in the folder. palette.csv and table.csv are beside it.
        exif: What to do with the images' EXIF orientation. "ignore": the masks fit the images as they are stored.
            "apply": the masks were drawn on the images as they are shown, turned by the tool.
        bands: Names of the images' channels, or their number; what a file stores is kept, up to float32. None: RGB of
            8 bits, or with a `range` the channels that the first image has.
        range: The values that become 0 and 1, two numbers for all bands or for each; others are clipped. 8 bits need
            none. "percentile": the 2nd and 98th percentile of each band over the training split, computed once.
        **options: The arguments of `SegmentationDataModule`.

    Raises:
        InputError: An option has a wrong value, or a path lacks `{name}`.
    """

    title = "folder"

    def __init__(
        self,
        root: str | os.PathLike[str],
        masks: str = "ids",
        images: str | None = None,
        classes: str | os.PathLike[str] | None = None,
        exif: Exif = "ignore",
        bands: int | list[str] | None = None,
        range: Literal["percentile"] | tuple[float, float] | list[tuple[float, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if bands is not None and not (bands if isinstance(bands, list) else bands > 0):
            raise InputError(f"bands is {bands}; give the names of the images' channels, or their number, from 1")
        self.declared_bands, self.range = bands, range
        if exif not in get_args(Exif):
            raise InputError(f"exif is {exif!r}; allowed are ignore and apply")
        self.masks, self.mask_paths = _kind_and_paths(masks)
        self.image_paths = images
        for paths in (self.mask_paths, self.image_paths):
            if paths is not None:
                PathTemplate(paths)  # raises if it is no template
        self.classes = self.root / "classes.txt" if classes is None else Path(classes)
        self.exif = exif

    @cached_property
    def label_space(self) -> LabelSpace:
        """Classes from classes.txt, colours from palette.csv and the table from table.csv; read at first use.

        Raises:
            InputError: classes.txt is absent or wrong, or another of the files does not fit it.
        """
        if not self.classes.is_file():
            refuse_export(self.root)
        names = read_classes(self.classes)
        table_file = self.classes.with_name("table.csv")
        palette = read_palette(self._palette, names) if self._palette.is_file() else distinct_palette(len(names))
        table = identity_table(len(names))
        if self.masks == "colors":
            _ = ColorMasks(self._palette, names).ids  # an error in palette.csv is one of every mask
        elif self.masks == "binary":
            table = binary_table(len(names), str(self.classes))
        elif table_file.is_file():
            table = read_table(table_file, len(names))
        return LabelSpace(names, palette, table)

    @property
    def reader(self) -> PairReader:
        """See base class; masks of colours are read as train ids."""
        read_mask = self._color_masks if self.masks == "colors" else read_label
        return PairReader(self.label_space, read_mask, self.exif == "apply", self.bands)

    @cached_property
    def bands(self) -> Bands | None:
        """See base class; a range of "percentile" is computed at first use.

        Raises:
            InputError: The images have other bands than declared, or their range is missing or wrong.
        """
        kind = self.kind_of_bands
        if kind is None:
            return None
        if self.range != "percentile":
            return bands_of(kind.names, kind.dtype, self.range)
        return band_statistics(self, kind, None, say=rank_zero_info)[0]

    @cached_property
    def kind_of_bands(self) -> Bands | None:
        """See base class; the type, and without names the number, are taken from the first image."""
        if self.declared_bands is None and self.range is None:
            return None
        first = self.find_samples("train" if self.has_split("train") else "val", with_masks=False)[0].image
        image = read_bands(first)
        kind = bands_of(self.declared_bands or image.shape[2], image.dtype.name, (0, 1))
        kind.checked(image, first)
        return kind

    @cached_property
    def _color_masks(self) -> ColorMasks:
        return ColorMasks(self._palette, read_classes(self.classes))  # the names before any are merged or dropped

    @property
    def _palette(self) -> Path:
        return self.classes.with_name("palette.csv")

    def parts(self, split: Split) -> Sequence[Part]:
        """See base class."""
        if split == "test" and not self._is_declared("test"):
            split = "val"
        list_file = self.root / "splits" / f"{split}.txt"
        part = replace(self._part(split), list_file=str(list_file))
        if list_file.is_file():
            ending = part.mask.ending
            return (replace(part, names=self.read_list(list_file, part.image.folder, ending)),)
        return (part if self._folder_of(split) is not None else replace(part, names=self._hashed(part, split)),)

    def has_split(self, split: Split) -> bool:
        """Whether the split has images; a test split that only repeats val does not count."""
        if split == "test" and not self._is_declared(split):
            return False
        return self.files.has(self._part(split).image.folder)

    def mask_key(self) -> str:
        """See base class."""
        colours = read_text(self._palette) if self.masks == "colors" and self._palette.is_file() else ""
        bands = "" if self.kind_of_bands is None else str(self.kind_of_bands)
        return self.masks + colours + ("exif" if self.exif == "apply" else "") + bands

    def images_of(self, part: Part) -> dict[str, Source]:
        """See base class; if there are none, the error names options that would find them.

        Raises:
            InputError: See base class.
        """
        try:
            return super().images_of(part)
        except InputError as error:
            raise InputError(f"{error}{self._advice()}") from error

    def why_no_mask(self, part: Part, name: str) -> str:
        """See base class; it also names options that would find the masks."""
        return super().why_no_mask(part, name) + self._advice()

    def _advice(self) -> str:
        """The options that would find images and masks, if they differ from those given."""
        paths = guess_paths(self.files)
        if paths is None or _same(paths, self._paths("train")):
            return ""
        masks = paths[1] if self.masks == "ids" else f"{self.masks} {paths[1]}"
        return f"; if {paths[1]} are the masks of {paths[0]}: set --data.images '{paths[0]}' --data.masks '{masks}'"

    def _folder_of(self, split: Split) -> str | None:
        """The folder that holds only this split's images; None if there is none."""
        paths = "images/{split}/{name}" if self.image_paths is None else self.image_paths
        folder = PathTemplate(paths.replace("{split}", split)).folder
        return folder if "{split}" in paths and self.files.has(folder) else None

    def _part(self, split: Split) -> Part:
        images, masks = (path.replace("{split}", split) for path in self._paths(split))
        return Part(images, masks)

    def _paths(self, split: Split) -> tuple[str, str]:
        """Templates of images and masks."""
        own = "images/{split}/{name}" if self._folder_of(split) is not None else "images/{name}"
        images = self.image_paths or own
        return images, self.mask_paths or f"labels/{'{split}/' if '{split}' in images else ''}{{name}}.png"

    def _is_declared(self, split: Split) -> bool:
        return (self.root / "splits" / f"{split}.txt").is_file() or self._folder_of(split) is not None

    def _hashed(self, part: Part, split: Split) -> tuple[str, ...]:
        if any(self._is_declared(other) for other in SPLITS):
            raise InputError(
                f"{self.root}: no {split} split here, though others exist; add its folder of images, or "
                f"splits/{split}.txt"
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
    """Whether the automatic split puts an image into validation, which depends on its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100 < VAL_PERCENT


def _kind_and_paths(masks: str) -> tuple[str, str | None]:
    """The kind and the paths of `binary gt/{name}.png`; each may be left out."""
    kind, _, paths = masks.partition(" ") if masks.split(" ")[0] in get_args(MaskKind) else ("ids", "", masks)
    if paths and "{name}" not in paths:
        raise InputError(
            f"masks is {masks!r}; allowed are ids, binary and colors, a path of the masks (gt/{{name}}_mask.png), or "
            "both: 'binary gt/{name}_mask.png'"
        )
    return kind, paths.strip() or None


def _same(paths: tuple[str, str], others: tuple[str, str]) -> bool:
    """Whether both pairs of templates find the same files, ignoring suffixes."""
    stems = [[path.removesuffix(PathTemplate(path).suffix) for path in pair] for pair in (paths, others)]
    return stems[0] == stems[1]
