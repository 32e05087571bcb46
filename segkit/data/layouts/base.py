"""What every data set says of itself: the parts of its splits, its classes, how a mask is read, the official counts."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal, TypeAlias

from segkit.arrays import UInt8Array
from segkit.data.layouts.files import Files, Source, fingerprint
from segkit.data.layouts.lists import NEEDED, read_names
from segkit.data.layouts.masks import find_masks, what_is_there
from segkit.errors import InputError
from segkit.io import File, read_header, read_image, read_label
from segkit.metadata.label_space import LabelSpace
from segkit.paths import IMAGE_SUFFIXES, looked_for

Split: TypeAlias = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image. `name` is its path below the split's image folder without suffix, '/' kept."""

    image: Source
    mask: Source | None
    name: str


@dataclass(frozen=True)
class Part:
    """Images of one folder and the masks that go with them; a split has one part or more.

    Attributes:
        images: Folder of the images.
        masks: Folder of their masks; None where none are published.
        image_ending: What follows the common name in an image's name, before the suffix.
        mask_ending: What follows it in a mask's name, suffix included; one of `MASK_SUFFIXES` in its place will do.
        suffixes: Of the images.
        names: Those of the folder's images that belong to the part, in this order; None for all.
        list_file: Where the names come from, for a message.
    """

    images: str
    masks: str | None = None
    image_ending: str = ""
    mask_ending: str = ".png"
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    names: tuple[str, ...] | None = None
    list_file: str = ""

    def mask_path(self, name: str) -> str:
        """Where the mask of an image of this part must be."""
        return f"{self.masks}/{name.removesuffix(self.image_ending)}{self.mask_ending}"

    @property
    def mask_stem(self) -> str:
        """`mask_ending` without suffix."""
        return self.mask_ending.rpartition(".")[0]


class Layout(ABC):
    """Where a data set's files are and what its labels mean. Nothing is read before it is asked for.

    A subclass gives `label_space` and `parts`, and in its class attributes what is fixed.

    Args:
        root: The data set's folder, or the zip file that it is published as.

    Attributes:
        title: What a message calls the data set.
        counts: Official number of images of each split, where there is one.
        archives: Names of the zip files that it is published as; they may stay packed.
        homes: Folders of those archives in which the data set begins.
        scored_as: For a split without public labels, the one that is scored in its place.
        apply_exif: Whether images are turned as their EXIF orientation says; masks never are.
    """

    title: ClassVar[str] = ""
    counts: Mapping[str, int] = MappingProxyType({})
    archives: ClassVar[Sequence[str]] = ()
    homes: ClassVar[Sequence[str]] = ("",)
    scored_as: ClassVar[Mapping[str, Split]] = MappingProxyType({})
    apply_exif: bool = False

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
        """Whether there are images of that split."""
        return all(self.files.has(part.images) for part in self.parts(split))

    def images_of(self, part: Part) -> dict[str, Source]:
        """The images of a part, by name.

        Raises:
            InputError: The folder is absent, has none, or lacks one that the part names.
        """
        found = self.files.find(part.images, part.suffixes)
        found = {name: file for name, file in found.items() if name.endswith(part.image_ending)}
        if part.masks == part.images and part.mask_stem:
            found = {name: file for name, file in found.items() if not name.endswith(part.mask_stem)}
        if not found:
            allowed = ", ".join(part.suffixes)
            raise InputError(f"{self.files.describe(part.images)}: no images here; allowed endings are {allowed}")
        if part.names is None:
            return found
        missing = [name for name in part.names if name not in found]
        if missing:
            raise InputError(
                f"{part.list_file}: no image for {missing[0]} ({len(missing)} names) in "
                f"{self.files.describe(part.images)}, which has {next(iter(found))}; correct the list: {NEEDED}"
            )
        return {name: found[name] for name in part.names}

    def masks_of(self, part: Part, names: Sequence[str]) -> dict[str, Source | None]:
        """The masks of a part's images, by name; None where there is none.

        Raises:
            InputError: There are two for one image.
        """
        assert part.masks is not None
        found = find_masks(self.files, part.masks, [part.mask_path(name) for name in names])
        return dict(zip(names, found, strict=True))

    def why_no_mask(self, part: Part, name: str) -> str:
        """What to say of an image without a mask: what lies where it should be, and what is allowed."""
        assert part.masks is not None
        return what_is_there(self.files, part.masks, part.mask_path(name))

    def read_list(self, file: Source, images: str, mask_ending: str = "") -> tuple[str, ...]:
        """The names in a list of images of the folder `images`.

        Raises:
            InputError: As `read_names`.
        """
        parts = images.split("/")
        begins = ["/".join(parts[i:]) for i in range(len(parts))]
        return read_names(file, [begin for begin in begins if not self.files.has(f"{images}/{begin}")], mask_ending)

    def find_samples(self, split: Split, with_masks: bool = True) -> list[Sample]:
        """The samples of a split, in a fixed order; the masks are None without `with_masks`.

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

    def read_mask(self, file: Source) -> UInt8Array:
        """Raw values of a mask, uint8 (H, W), for the label table.

        Raises:
            InputError: It is unreadable, or not the kind of mask that this data set has.
        """
        return read_label(file)

    def mask_key(self) -> str:
        """What shapes train ids besides the mask files and the label table; part of the key of a cache."""
        return ""

    def read(self, sample: Sample) -> tuple[UInt8Array, UInt8Array | None]:
        """Image uint8 (H, W, 3) RGB, and train ids uint8 (H, W), 255 = ignore; None where the sample has no mask.

        Raises:
            InputError: A file is unreadable, sizes disagree, or a raw label value is undeclared.
        """
        image = read_image(sample.image, self.apply_exif)
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
        """What to do about an image and a mask of different (height, width)."""
        header = read_header(image)
        if header.is_upright or (shape[1], shape[0]) != tuple(mask_shape):
            return "export both at the same size"
        if self.apply_exif:
            return "the mask lies as the image is stored, before it is turned: leave --data.exif at ignore"
        return (
            f"the mask was drawn on the image as it is shown, turned by its EXIF orientation {header.orientation}: "
            "a folder of your own reads it so by --data.exif apply"
        )

    def _samples(self, part: Part, with_masks: bool) -> list[Sample]:
        images = self.images_of(part)
        if not with_masks:
            return [Sample(file, None, name) for name, file in images.items()]
        if part.masks is None:
            raise InputError(
                f"{self.files.describe(part.images)}: these images have no public masks; choose another split"
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
    """SHA-256 of all that decoded samples depend on.

    Args:
        layout: Reads them.
        samples: Which.
        version: Of the format of what is stored under the key.
    """
    return hashlib.sha256(json.dumps([version, *sample_keys(layout, samples)]).encode()).hexdigest()


def sample_keys(layout: Layout, samples: Sequence[Sample]) -> list[str]:
    """SHA-256 of what each decoded sample depends on: its files' path, size and time of change, and the label table."""
    start = hashlib.sha256(json.dumps([layout.mask_key(), layout.label_space.table]).encode())
    keys = []
    for sample in samples:
        digest = start.copy()
        files = [fingerprint(file) for file in (sample.image, sample.mask) if file is not None]
        digest.update(json.dumps([sample.name, files]).encode())
        keys.append(digest.hexdigest())
    return keys
