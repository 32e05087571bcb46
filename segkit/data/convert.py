"""Converts an export of an annotation tool to images and masks of a folder, as `FolderDataModule` reads them.

A data module does not read exports itself: a mask made once is a file that every tool opens, that `segkit data check`
verifies, and that training reads in a fraction of the time which polygons take.
"""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from segkit.archives import files_of
from segkit.arrays import Int64Array, UInt8Array
from segkit.bars import Bar
from segkit.data.check.check import in_threads
from segkit.data.layout.files import Source, size_of
from segkit.errors import InputError
from segkit.files import replacing, write_bytes, write_text
from segkit.formats.base import BACKGROUND, AnnotatedImage, Annotations, rasterized
from segkit.io import read_header, read_label, write_png
from segkit.io.decoding import turn
from segkit.metadata.class_files import read_classes
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.paths import IMAGE_SUFFIXES, looked_for

EMPTY = "images without a region"
LEFT_OUT = "images without a region (left out: without a class background, all of their pixels would be ignored)"

_SPLITS = {"training": "train", "valid": "val", "validation": "val"}  # as tools call what segkit calls so
_OF_IMAGES = {"images", "JPEGImages"}
_OF_MASKS = {"segmentationclass", "segmentationobject", "labels", "masks"}  # folders whose images are no photographs
_BACK = {6: 8, 8: 6}  # EXIF orientations that undo each other; all others undo themselves


@dataclass
class Conversion:
    """What a conversion has made.

    Attributes:
        class_names: The classes; the position is the value in the masks.
        images: Images whose masks are in the folder now.
        there: Those of them that were there before.
        regions: Regions of these images.
        pixels: Pixels of each value, (256,).
        having: Images with each value, (256,).
        problems: What was wrong without being refused, counted in words.
        refused: A line on each image that could not be converted.
    """

    class_names: tuple[str, ...]
    images: int = 0
    there: int = 0
    regions: int = 0
    pixels: Int64Array = field(default_factory=lambda: np.zeros(256, np.int64))
    having: Int64Array = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


@dataclass
class _Made:
    """What became of one image; without counts of pixels it was left out."""

    problems: Counter[str]
    regions: int = 0
    pixels: Int64Array | None = None
    was_there: bool = False


def settle_classes(folder: Path, given: Path | None, declared: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a folder, from its own classes.txt or the one given, or as the export declares them.

    They are written to the folder's classes.txt if it has none.

    Raises:
        InputError: The files differ, or the names cannot be lines of such a file.
    """
    own = folder / "classes.txt"
    names = declared if given is None else read_classes(given)
    if own.is_file():
        if given is not None and read_classes(own) != names:
            raise InputError(f"{own}: differs from {given}; give another folder, or leave --classes out")
        return read_classes(own)
    lines = "\n".join(names).splitlines()
    if not names or len(names) > IGNORE_INDEX or lines != [line.strip() for line in names] or "" in lines:
        raise InputError(
            f"{own}: cannot hold these {len(names)} classes, one a line; allowed are 1 to {IGNORE_INDEX} names without "
            "line breaks and spaces at their ends: rename them in the tool, or give --classes"
        )
    write_text(own, "\n".join(names) + "\n")
    return names


class ImageFiles:
    """Finds the image files of an export by names that may lack folders and suffix.

    Args:
        place: A folder or zip that has them.
        without: A folder below it that is left out.

    Raises:
        InputError: The place is missing, or no folder and no zip.
    """

    def __init__(self, place: Path, without: Path) -> None:
        if not place.exists():
            raise InputError(f"{place}: no such folder or zip{looked_for(place)}; give that of the images")
        self.place = place
        self._by_stem = defaultdict[str, list[tuple[PurePosixPath, Source]]](list)
        for name, file in files_of(place, IMAGE_SUFFIXES).items():
            is_own = isinstance(file, Path) and file.is_relative_to(without)
            if not is_own and not _OF_MASKS & {part.lower() for part in PurePosixPath(name).parts[:-1]}:
                path = _plain(name)
                self._by_stem[path.stem].append((path, file))

    def __bool__(self) -> bool:
        """Whether the place has any image files."""
        return bool(self._by_stem)

    def of(self, name: str) -> Source:
        """The one file of this path; else of this path at its end, whatever the suffix; else of this name.

        Raises:
            InputError: There is none, or several.
        """
        path = _plain(name)
        parts, found = path.with_suffix("").parts, self._by_stem.get(path.stem, [])
        exact = [file for one, file in found if one == path]
        ending = [file for one, file in found if one.with_suffix("").parts[-len(parts) :] == parts]
        fitting = exact or ending or [file for _, file in found]
        if len(fitting) != 1:
            what = f"{len(fitting)} images have this name" if fitting else "no such image"
            raise InputError(f"{name}: {what} in {self.place}; give their folder: --images DIR")
        return fitting[0]


def _plain(name: str) -> PurePosixPath:
    """The path without the folders that only say that there are images, which formats leave out of names."""
    return PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in _OF_IMAGES))


def convert(
    annotations: Annotations, files: ImageFiles, folder: Path, conversion: Conversion, overwrite: bool = False
) -> None:
    """Write images (hard links where the disk has them, else copies) and 8-bit masks; whatever fails, the rest is done.

    What is there is kept: equal masks are counted, others refused. A conversion that was stopped so goes on.

    Args:
        annotations: The content of the export.
        files: Its images.
        folder: Gets `images/NAME` and `labels/NAME.png`.
        conversion: With the classes; filled in.
        overwrite: Whether masks that differ are replaced.
    """
    classes = {name: label for label, name in enumerate(conversion.class_names)}

    def one(index: int) -> _Made | InputError:
        try:
            return _converted(annotations.images[index], files, folder, classes, overwrite)
        except InputError as error:
            return error

    count = len(annotations.images)
    conversion.problems.update(annotations.notes)
    with Bar(total=count, desc="convert", unit="image") as bar, closing(in_threads(one, range(count), None)) as results:
        for made in results:
            bar.update()
            if isinstance(made, InputError):
                conversion.refused.append(str(made))
                continue
            conversion.problems.update(made.problems)
            if made.pixels is not None:
                conversion.images += 1
                conversion.there += made.was_there
                conversion.regions += made.regions
                conversion.pixels += made.pixels
                conversion.having += made.pixels > 0


def _converted(
    image: AnnotatedImage, files: ImageFiles, folder: Path, classes: Mapping[str, int], overwrite: bool
) -> _Made:
    problems = Counter[str]()
    regions = image.made_regions()  # once, for a function may read files
    image = replace(image, regions=regions)
    if not regions:
        problems[EMPTY if BACKGROUND in classes else LEFT_OUT] += 1
        if BACKGROUND not in classes:
            return _Made(problems)
    source = files.of(image.name)
    mask, found = _drawn(image, source, classes)
    first, *rest = PurePosixPath(image.name).parts
    name = PurePosixPath(_SPLITS.get(first, first) if rest else first, *rest)
    target = folder / "labels" / name.with_suffix(".png")
    was_there = target.exists()
    if was_there and not overwrite and not np.array_equal(read_label(target), mask):
        raise InputError(f"{target}: is there with other labels; give another folder, or --overwrite to replace it")
    suffix = PurePosixPath(source.name).suffix
    _place(source, folder / "images" / name.with_suffix(suffix))
    if not was_there or overwrite:
        write_png(target, mask)
    return _Made(+(problems + found), len(regions), np.bincount(mask.ravel(), minlength=256), was_there)


def _drawn(image: AnnotatedImage, source: Source, classes: Mapping[str, int]) -> tuple[UInt8Array, Counter[str]]:
    """The mask of an image as it is stored, where tools draw on it as it is shown, turned by its EXIF orientation.

    An export of the size that is stored, and not shown, was drawn on the image as it is stored.
    """
    header = read_header(source)
    stored, shown = (header.height, header.width), header.shown_size[::-1]
    if header.is_upright or (image.size == stored != shown):
        return rasterized(image, stored, classes)
    mask, problems = rasterized(image, shown, classes)
    turned = turn(mask[..., None], _BACK.get(header.orientation, header.orientation))  # (H, W) -> (H, W, 1)
    return np.ascontiguousarray(turned[..., 0]), problems


def _place(source: Source, target: Path) -> None:
    """Put an image at its place, if it is not there."""
    if target.exists():
        if size_of(source) != target.stat().st_size:
            raise InputError(f"{target}: is there and is another image than {source}; give another folder")
        return
    if not isinstance(source, Path):
        return write_bytes(target, source.read_bytes())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or one without links; what else it may be, copying says
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    return None
