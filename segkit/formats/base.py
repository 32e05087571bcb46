"""What every annotation format is read to and written from: images with regions, and the mask that regions make.

Coordinates are those of `segkit.formats.shapes`. Names of images are paths with '/' that lead out of no folder.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from segkit.arrays import BoolArray, UInt8Array
from segkit.errors import InputError, did_you_mean, printable
from segkit.formats.shapes import Box, Polygon, filled
from segkit.io.header import check_pixels
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.paths import leads_outside
from segkit.text import listed

BACKGROUND = "background"  # the class of pixels without a region, where there is one of this name
OVERLAP = "pixels in regions of two classes (the later region counts)"
OUTSIDE = "polygons that reach outside the image (cut at its border)"
FLAT = "polygons without area (left out)"

_LISTED = 8  # class names in a message
_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that is of one class.

    Attributes:
        class_name: The class.
        polygons: Polygons whose union it is; overlaps of them are harmless.
        mask: Its pixels (H, W), instead of the polygons' own where both are given; or a function that makes them, so
            that one mask at a time is in memory.
        crowd: Whether it is of many things without exact outlines; its pixels are ignored, and its class is not asked.
        order: Its place in depth: higher ones lie on top; of equal ones, the later.
        left_out: Why it has no pixels, in words that are counted: "boxes (left out)"; empty if it has.
    """

    class_name: str
    polygons: tuple[Polygon, ...] | None = None
    mask: BoolArray | Callable[[], BoolArray] | None = None
    crowd: bool = False
    order: int = 0
    left_out: str = ""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image of an export.

    Attributes:
        name: Its path as the format has it, with a suffix if the format has one.
        size: (H, W), or None if the format does not say.
        regions: Its regions; a `Lazy` sequence, or a function that makes them, if that takes time or may fail.
        source: Where they stand, for messages; the name if empty.
    """

    name: str
    size: tuple[int, int] | None
    regions: Sequence[Region] | Callable[[], Sequence[Region]]
    source: str = ""

    def made_regions(self) -> Sequence[Region]:
        """Its regions; those of a function are made anew each time."""
        return self.regions() if callable(self.regions) else self.regions


@dataclass(frozen=True, eq=False)
class Annotations:
    """The content of an export.

    Attributes:
        images: Its images; a `Lazy` sequence if each is in a file of its own, where indexing raises that file's error.
        class_names: The classes that it declares, or else those that occur, in a fixed order.
        notes: What was left out, counted in words.
    """

    images: Sequence[AnnotatedImage]
    class_names: tuple[str, ...]
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make names printable: they become lines of a file."""
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))


class Labelled(NamedTuple):
    """A labelled image to be written.

    Attributes:
        name: The image's path below its folder, with its suffix.
        labels: Train ids uint8 (H, W); 255 is no class.
        image: uint8 RGB (H, W, 3), for formats that hold it.
        crs: Its coordinate reference system as WKT or "EPSG:...", if georeferenced.
        transform: (a, b, c, d, e, f): pixel (x, y) is at (ax + by + c, dx + ey + f) in the system.
        confidence: Its mean confidence 0..1, where it is known.
    """

    name: str
    labels: UInt8Array
    image: UInt8Array | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    confidence: float | None = None


class Lazy(Sequence[_Made]):
    """A sequence whose elements are made from items, each time they are asked for."""

    def __init__(self, make: Callable[[Any], _Made], items: Sequence[Any]) -> None:
        self._make, self._items = make, items

    def __len__(self) -> int:
        """How many elements there are; none is made."""
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> _Made: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy[_Made]": ...
    def __getitem__(self, index: int | slice) -> "_Made | Lazy[_Made]":
        """Make one; a slice makes none."""
        item = self._items[index]
        return Lazy(self._make, item) if isinstance(index, slice) else self._make(item)


def rasterized(
    image: AnnotatedImage, size: tuple[int, int] | None, classes: Mapping[str, int]
) -> tuple[UInt8Array, Counter[str]]:
    """The mask that an image's regions make.

    Regions are painted by their order, and in the order of the file where it is equal, later ones over earlier ones. A
    crowd is ignored (255). Pixels without a region are of the class "background" if there is one, else ignored.

    Args:
        image: The image with its regions.
        size: (H, W) of the image file; None: as the export says.
        classes: Train id of each class name.

    Returns:
        The mask, uint8 (H, W), and how often something was wrong with it, in words.

    Raises:
        InputError: A region's class is unknown, a size disagrees, is unknown or too large, or the regions are damaged.
    """
    source = image.source or image.name
    height, width = _checked_size(image, size)
    mask = np.full((height, width), classes.get(BACKGROUND, IGNORE_INDEX), np.uint8)
    covered = np.zeros((height, width), bool)
    problems = Counter[str]()
    for region in sorted(image.made_regions(), key=lambda region: region.order):
        if region.left_out:
            problems[region.left_out] += 1
            continue
        label = IGNORE_INDEX if region.crowd else _class_of(region.class_name, classes, source)
        problems.update(_problems(region.polygons or (), (height, width)))
        for box, inside in _pieces(region, (height, width), source):
            below = covered[box] & inside & (mask[box] != label)
            problems[OVERLAP] += int(below.sum())
            mask[box][inside] = label
            covered[box] |= inside
    return mask, +problems


def _checked_size(image: AnnotatedImage, size: tuple[int, int] | None) -> tuple[int, int]:
    """The one size of the image, before anything of it is allocated."""
    source, declared = image.source or image.name, image.size
    if size is None and declared is None:
        raise InputError(f"{source}: does not say how large {image.name} is; give the image beside it")
    if size is not None and declared is not None and tuple(size) != tuple(declared):
        raise InputError(
            f"{source}: says that {image.name} is {declared[1]}x{declared[0]}, but the image is {size[1]}x{size[0]}; "
            "give the images that were annotated"
        )
    height, width = declared or size or (0, 0)
    if min(height, width) < 1:
        raise InputError(f"{source}: says that {image.name} is {width}x{height}; export it again")
    check_pixels(width, height, source)
    return height, width


def _class_of(name: str, classes: Mapping[str, int], source: str) -> int:
    if name not in classes:
        near = did_you_mean(name, classes)
        raise InputError(
            f"{source}: class {printable(name)!r} is unknown; {near}known are {listed(list(classes), _LISTED)}: add it "
            "to the classes, or rename it in the tool"
        )
    return classes[name]


def _pieces(region: Region, size: tuple[int, int], source: str) -> Iterator[tuple[Box, BoolArray]]:
    """Boxes of the image, and which of their pixels the region covers."""
    if region.mask is None:
        yield from (filled(polygon, size) for polygon in region.polygons or ())
        return
    mask = region.mask if isinstance(region.mask, np.ndarray) else region.mask()
    if mask.shape != size:
        raise InputError(
            f"{source}: a mask of {region.class_name or 'the export'} is {mask.shape[1]}x{mask.shape[0]}, its image "
            f"{size[1]}x{size[0]}; export it again"
        )
    yield (slice(0, size[0]), slice(0, size[1])), mask


def _problems(polygons: Sequence[Polygon], size: tuple[int, int]) -> Iterator[str]:
    for polygon in polygons:
        points = np.concatenate(polygon)
        if np.linalg.matrix_rank(polygon[0] - polygon[0][0]) < 2:  # all corners are on a line
            yield FLAT
        elif (points < 0).any() or (points > size[::-1]).any():
            yield OUTSIDE


def check_names(names: Sequence[str], source: str) -> None:
    """Refuse names that lead out of their folder or hide, and two of one image: those that differ in the suffix only.

    Raises:
        InputError: There is such a name; names the first.
    """
    for name in names:
        if not name.strip("./") or leads_outside(name) or printable(name) != name:
            raise InputError(
                f"{source}: image name {name!r} is absolute, leads out of the folder, or cannot be printed; allowed "
                "are paths below it: correct it in the file, or export it again"
            )
    stems = Counter(PurePosixPath(name).with_suffix("") for name in names)
    twice = next((name for name in names if stems[PurePosixPath(name).with_suffix("")] > 1), None)
    if twice is not None:
        raise InputError(f"{source}: image {twice} occurs twice, or with two suffixes; merge its annotations or rename")
