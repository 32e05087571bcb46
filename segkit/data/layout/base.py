"""What every data set declares: its classes, where the images and masks of its splits are, and how they are read."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import ClassVar, Literal, TypeAlias

from segkit.arrays import UInt8Array
from segkit.bands import RGB, BandArray, Bands
from segkit.data.layout.files import Files, Source, fingerprint
from segkit.data.layout.lists import NEEDED, read_names
from segkit.data.layout.masks import find_masks, what_is_there
from segkit.errors import InputError
from segkit.io import File, read_header, read_image, read_label
from segkit.io.bands import read_bands
from segkit.metadata.label_space import LabelSpace
from segkit.paths import IMAGE_SUFFIXES, leads_outside, looked_for

Split: TypeAlias = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image and its mask; `name` is the image's path below the split's folder without suffix, '/' kept."""

    image: Source
    mask: Source | None
    name: str


@dataclass(frozen=True)
class PathTemplate:
    """Paths below a data set's root that differ only in an image's name: `gt/{name}_mask.png`.

    Args:
        text: The path, with `{name}` once. `{name}` may include folders: `town/a`.

    Raises:
        InputError: `{name}` is absent or occurs twice, or the path leads out of the root.
    """

    text: str

    def __post_init__(self) -> None:
        """Refuse a text that is not such a path."""
        if self.text.count("{name}") != 1 or leads_outside(self.text):
            raise InputError(
                f"{self.text!r} is no path of images or masks; needed is a path below the root with {{name}} once, "
                "as gt/{name}_mask.png"
            )

    @property
    def folder(self) -> str:
        """The folder that holds all of these paths."""
        return self.text.partition("{name}")[0].rpartition("/")[0]

    @property
    def prefix(self) -> str:
        """The text between the folder and the name."""
        return self.text.partition("{name}")[0].rpartition("/")[2]

    @property
    def ending(self) -> str:
        """The text between the name and the suffix."""
        return self.text.partition("{name}")[2].removesuffix(self.suffix)

    @property
    def suffix(self) -> str:
        """The suffix (".png"), or nothing if any is allowed."""
        found = PurePosixPath(self.text).suffix
        return found if found.lower() in IMAGE_SUFFIXES else ""

    @property
    def is_bare(self) -> bool:
        """Whether the name stands alone between folder and suffix."""
        return not self.prefix + self.ending

    def matches(self, stem: str) -> bool:
        """Whether a path below the folder, without suffix, fits the template."""
        return (
            len(stem) > len(self.prefix + self.ending) and stem.startswith(self.prefix) and stem.endswith(self.ending)
        )

    def name_in(self, stem: str) -> str:
        """The name in such a path."""
        return stem.removeprefix(self.prefix).removesuffix(self.ending)

    def path_of(self, name: str) -> str:
        """The whole path of a name; a PNG if any suffix is allowed."""
        return self.text.replace("{name}", name) + ("" if self.suffix else ".png")


@dataclass(frozen=True)
class Part:
    """Images and their masks; a split has one part or more.

    Attributes:
        images: Where the images are: `images/train/{name}.jpg`. Without a suffix, any of `IMAGE_SUFFIXES` is found.
        masks: Where their masks are: `labels/train/{name}.png`; any of `MASK_SUFFIXES` in its place is found, too.
            None if the masks are not public.
        names: Names of the images that belong to the part, in this order; None: all. A name is the path below the
            folder of the images, without suffix.
        list_file: The file that the names come from, for messages.
    """

    images: str
    masks: str | None = None
    names: tuple[str, ...] | None = None
    list_file: str = ""

    @cached_property
    def image(self) -> PathTemplate:
        """Template of the images' paths."""
        return PathTemplate(self.images)

    @cached_property
    def mask(self) -> PathTemplate:
        """Template of the masks' paths; only if masks are published."""
        assert self.masks is not None
        return PathTemplate(self.masks)

    def mask_path(self, name: str) -> str:
        """The path at which the mask of an image of this part must be."""
        return self.mask.path_of(self.image.name_in(name))

    def is_image(self, name: str, file: Source) -> bool:
        """Whether a file in the folder of the images is an image, not a mask that is kept there, too."""
        if not self.image.matches(name):
            return False
        if self.masks is None or self.mask.folder != self.image.folder or not self.mask.matches(name):
            return True
        image, mask = self.image.prefix + self.image.ending, self.mask.prefix + self.mask.ending
        suffix = PurePosixPath(str(file)).suffix.lower()
        return suffix != self.mask.suffix.lower() if image == mask else len(image) > len(mask)


@dataclass(frozen=True)
class PairReader:
    """Reads image and mask of a sample. A loader's worker processes receive nothing else of a data set.

    Attributes:
        label_space: Classes and label table.
        read_mask: Returns a mask's raw values, uint8 (H, W), for the label table.
        apply_exif: Whether images are turned by their EXIF orientation; masks never are.
        bands: Bands that the images must have; None: images are read as uint8 RGB.
    """

    label_space: LabelSpace
    read_mask: Callable[[File], UInt8Array] = read_label
    apply_exif: bool = False
    bands: Bands | None = None

    def image(self, file: File) -> BandArray:
        """An image, read as by `__call__`."""
        if self.bands is None:
            return read_image(file, self.apply_exif)
        return read_bands(file, self.bands, self.apply_exif)

    def __call__(self, sample: Sample) -> tuple[BandArray, UInt8Array | None]:
        """Image uint8 (H, W, 3) RGB, or (H, W, C) of the bands, and train ids uint8 (H, W), 255 = ignore.

        The mask is None where the sample has none.

        Raises:
            InputError: A file is unreadable or has other bands, sizes disagree, or a raw label value is undeclared.
        """
        image = self.image(sample.image)
        if sample.mask is None:
            return image, None
        mask = self.label_space.map_labels(self.read_mask(sample.mask), str(sample.mask))
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"{sample.image} is {image.shape[1]}x{image.shape[0]} but its mask {sample.mask} is "
                f"{mask.shape[1]}x{mask.shape[0]}; {self.size_cure(sample.image, image.shape, mask.shape)}"
            )
        return image, mask

    def size_cure(self, image: File, shape: Sequence[int], mask_shape: Sequence[int]) -> str:
        """Advice on an image and a mask of different (height, width)."""
        header = read_header(image)
        if header.is_upright or (shape[1], shape[0]) != tuple(mask_shape):
            return "export both at the same size"
        if self.apply_exif:
            return "the mask lies as the image is stored, before it is turned: leave --data.exif at ignore"
        return (
            f"the mask was drawn on the image as it is shown, turned by its EXIF orientation {header.orientation}: "
            "a folder of your own reads it so by --data.exif apply"
        )


class Layout(ABC):
    """Where a data set's files are and what its labels mean. Nothing is read before it is needed.

    A data set defines `label_space` and `parts`, and sets the class attributes that differ from these.

    Args:
        root: The data set's folder, or the zip file that it is published as.

    Attributes:
        title: The data set's name in messages.
        folder: Its folder below `datasets`, as in the recipes.
        counts: Official number of images of each split, if there is one.
        archives: Names of the zip files that it is published as; they may stay packed.
        homes: Folders in those archives that may be the data set's root.
        scored_as: For a split without public labels, the split that is scored in its place.
    """

    title: ClassVar[str] = ""
    folder: ClassVar[str] = ""
    counts: Mapping[str, int] = MappingProxyType({})
    archives: ClassVar[Sequence[str]] = ()
    homes: ClassVar[Sequence[str]] = ("",)
    scored_as: ClassVar[Mapping[str, Split]] = MappingProxyType({})

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.files = Files(self.root, self.archives, self.homes)

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """Classes, colours and label table."""

    @abstractmethod
    def parts(self, split: Split) -> Sequence[Part]:
        """The parts of a split.

        Raises:
            InputError: The root holds another data set, or a list of names is wrong.
        """

    def has_split(self, split: Split) -> bool:
        """Whether the split has images."""
        return all(self.files.has(part.image.folder) for part in self.parts(split))

    def images_of(self, part: Part) -> dict[str, Source]:
        """The images of a part, by name.

        Raises:
            InputError: The folder is absent, has none, or lacks one that the part names.
        """
        template, found = part.image, dict[str, Source]()
        suffixes = (template.suffix.lower(),) if template.suffix else IMAGE_SUFFIXES
        for relative, file in self.files.below(template.folder, suffixes):
            name = relative.with_suffix("").as_posix()
            if not part.is_image(name, file):
                continue
            if name in found:
                raise InputError(f"{found[name]} and {file} have the same name; rename or remove one of them")
            found[name] = file
        if not found:
            where = self.files.describe(template.folder if template.is_bare else part.images)
            raise InputError(f"{where}: no images here; allowed endings are {', '.join(suffixes)}")
        if part.names is None:
            return found
        missing = [name for name in part.names if name not in found]
        if missing:
            raise InputError(
                f"{part.list_file}: no image for {missing[0]} ({len(missing)} names) in "
                f"{self.files.describe(template.folder)}, which has {next(iter(found))}; correct the list: {NEEDED}"
            )
        return {name: found[name] for name in part.names}

    def masks_of(self, part: Part, names: Sequence[str]) -> dict[str, Source | None]:
        """The masks of a part's images, by name; None for an image without a mask.

        Raises:
            InputError: An image has two masks.
        """
        found = find_masks(self.files, part.mask.folder, [part.mask_path(name) for name in names])
        return dict(zip(names, found, strict=True))

    def why_no_mask(self, part: Part, name: str) -> str:
        """Words on an image without a mask: the files where it should be, and the allowed ones."""
        return what_is_there(self.files, part.mask.folder, part.mask_path(name))

    def read_list(self, file: Source, images: str, mask_ending: str = "") -> tuple[str, ...]:
        """The names in a list of images of the folder `images`.

        Raises:
            InputError: See `read_names`.
        """
        parts = images.split("/")
        begins = ["/".join(parts[i:]) for i in range(len(parts))]
        return read_names(file, [begin for begin in begins if not self.files.has(f"{images}/{begin}")], mask_ending)

    def find_samples(self, split: Split, with_masks: bool = True) -> list[Sample]:
        """The samples of a split in a fixed order; without `with_masks` their masks are None.

        Raises:
            InputError: Folders or masks are absent, or there is no image.
        """
        if not self.root.exists():
            raise InputError(
                f"{self.root}: no such data folder{looked_for(self.root)}; correct --data.root, or ROOT of "
                "`segkit data` (layouts: datasets/README.md)"
            )
        if with_masks:
            split = self.scored_as.get(split, split)
        return [sample for part in self.parts(split) for sample in self._samples(part, with_masks)]

    @property
    def reader(self) -> PairReader:
        """The function that reads image and mask of a sample."""
        return PairReader(self.label_space)

    @cached_property
    def bands(self) -> Bands | None:
        """Bands of the images; None: they are read as uint8 RGB. They may be set to a checkpoint's bands."""
        return None

    def take_bands(self, bands: Bands | None, source: str) -> None:
        """Read images by a checkpoint's range, if the data have its bands.

        Args:
            bands: The checkpoint's bands.
            source: The checkpoint's name, for the message.

        Raises:
            InputError: The data have other bands.
        """
        own = self.kind_of_bands
        if not (own is bands if own is None else own.same_kind(bands)):
            raise InputError(
                f"{source}: is of {bands or 'RGB of 8 bits'}, but {self.title} has {own or 'RGB of 8 bits'}; declare "
                "the same: --data.bands and --data.range, or train anew without --ckpt_path"
            )
        self.bands = bands

    @property
    def kind_of_bands(self) -> Bands | None:
        """The bands with a placeholder for their range; None: uint8 RGB."""
        return None

    @property
    def num_channels(self) -> int:
        """The number of channels, C."""
        return len(RGB if self.kind_of_bands is None else self.kind_of_bands.names)

    def read(self, sample: Sample) -> tuple[BandArray, UInt8Array | None]:
        """Image and train ids of a sample; see `PairReader`."""
        return self.reader(sample)

    def read_mask(self, file: Source) -> UInt8Array:
        """Raw values of a mask, uint8 (H, W), for the label table.

        Raises:
            InputError: It is unreadable, or not the kind of mask that this data set has.
        """
        return self.reader.read_mask(file)

    def mask_key(self) -> str:
        """Everything besides the mask files and the label table that train ids depend on; part of a cache's key."""
        return ""

    def _samples(self, part: Part, with_masks: bool) -> list[Sample]:
        images = self.images_of(part)
        if not with_masks:
            return [Sample(file, None, name) for name, file in images.items()]
        if part.masks is None:
            raise InputError(
                f"{self.files.describe(part.image.folder)}: these images have no public masks; choose another split"
            )
        masks = self.masks_of(part, list(images))
        missing = [name for name, mask in masks.items() if mask is None]
        if missing:
            raise InputError(
                f"{self.files.describe(part.mask_path(missing[0]))}: no mask for image {images[missing[0]]} "
                f"({len(missing)} of {len(images)} images lack theirs); {self.why_no_mask(part, missing[0])}; add the "
                "masks or remove the images"
            )
        return [Sample(images[name], mask, name) for name, mask in masks.items()]


def samples_key(layout: Layout, samples: Sequence[Sample], version: int) -> str:
    """SHA-256 of everything that decoded samples depend on.

    Args:
        layout: The layout that reads them.
        samples: The samples.
        version: Version of the format that is stored under the key.
    """
    return hashlib.sha256(json.dumps([version, *sample_keys(layout, samples)]).encode()).hexdigest()


def sample_keys(layout: Layout, samples: Sequence[Sample]) -> list[str]:
    """SHA-256 for each decoded sample of its files' paths, sizes and modification times, and the label table."""
    start = hashlib.sha256(json.dumps([layout.mask_key(), layout.label_space.table]).encode())
    keys = []
    for sample in samples:
        digest = start.copy()
        files = [fingerprint(file) for file in (sample.image, sample.mask) if file is not None]
        digest.update(json.dumps([sample.name, files]).encode())
        keys.append(digest.hexdigest())
    return keys
