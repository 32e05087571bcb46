"""The training transform: our crop and any albumentations transforms, and the seeding that makes it reproducible."""

import copy
import random
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from segkit.arrays import UInt8Array
from segkit.bands import BandArray, Bands
from segkit.data.albumentations import A
from segkit.data.crops import RandomLongSideCrop
from segkit.errors import InputError, one_line
from segkit.metadata.label_space import IGNORE_INDEX

Augmentation: TypeAlias = A.BasicTransform | A.BaseCompose  # BaseCompose: OneOf, SomeOf, Sequential


class TrainTransform:
    """Crop, then augmentations of the crop; each call is a pure function of its key.

    Args:
        crop: Reads and resamples the crop.
        augmentations: albumentations transforms of the finished crop.

    Raises:
        InputError: One of `augmentations` would fill masks with a value other than 255.
    """

    def __init__(self, crop: RandomLongSideCrop, augmentations: Sequence[Augmentation] = ()) -> None:
        check_augmentations(augmentations)
        self.crop = crop
        self.augmentations = A.Compose(list(augmentations)) if augmentations else None

    def take(self, bands: Bands) -> None:
        """Prepare for images of these bands, which are padded with the low end of each band's range.

        Raises:
            InputError: An augmentation cannot take them.
        """
        self.crop.fill = bands.low if bands.dtype == "float32" else tuple(max(0.0, low) for low in bands.low)
        if self.augmentations is not None:
            _check_bands(self.augmentations.transforms, bands, self.crop.crop_size)

    def __call__(
        self, image: BandArray, mask: UInt8Array, key: Sequence[int], wanted_class: int = -1
    ) -> tuple[BandArray, UInt8Array]:
        """Transform an image.

        Args:
            image: uint8 (H, W, 3) RGB, or the data's bands (H, W, C), uint8, uint16 or float32.
            mask: Train ids, uint8 (H, W).
            key: Non-negative numbers that determine the randomness: seed, epoch, sample index, repetition.
            wanted_class: Train id that the crop should show; -1 for any.

        Returns:
            The crop's image and mask.

        Raises:
            InputError: The augmentations changed the image's type or number of bands, or made image and mask differ in
                size.
        """
        python = random.Random(int(_child(key, 1).generate_state(1, np.uint64)[0]))
        # albumentations gives every step its own generator with the same seed, so that flip, scale and place would be
        # the same draw. Here all steps share one generator.
        self.crop.set_random_state(self.crop.random_generator, python)
        out = self.crop(image=image, mask=mask, wanted_class=wanted_class)
        if self.augmentations is not None:
            self.augmentations.set_random_state(np.random.default_rng(_child(key, 0)), python)
            out = self.augmentations(image=out["image"], mask=out["mask"])
        _check_result(image, out["image"], out["mask"])
        return out["image"], out["mask"]


def _child(key: Sequence[int], number: int) -> np.random.SeedSequence:
    """One of the seeds that `SeedSequence(key).spawn` returns."""
    return np.random.SeedSequence(tuple(key), spawn_key=(number,))


def _check_result(given: BandArray, image: BandArray, mask: UInt8Array) -> None:
    for array, dtype in ((image, given.dtype), (mask, np.dtype(np.uint8))):
        if getattr(array, "dtype", None) != dtype:
            made = getattr(array, "dtype", type(array).__name__)
            raise InputError(
                f"the augmentations made {made} of {dtype} images; batches stay {dtype} and are normalised on the "
                "device: leave out Normalize, ToFloat and ToTensorV2"
            )
    if image.shape[2:] != given.shape[2:]:
        raise InputError(
            f"the augmentations made an image of shape {image.shape} of one of {given.shape[2]} bands; use transforms "
            "that keep the bands"
        )
    if image.shape[:2] != mask.shape:
        raise InputError(
            f"the augmentations made an image of {image.shape[:2]} and a mask of {mask.shape}; "
            "use transforms that treat both alike"
        )


def _check_bands(augmentations: Iterable[Augmentation], bands: Bands, size: tuple[int, int]) -> None:
    """Try each augmentation, however deep, on an image of these bands.

    Raises:
        InputError: An augmentation cannot take them, or assumes a range of 8 bits or 0..1 that is not theirs.
    """
    image = np.broadcast_to(np.asarray(bands.low), (*size, len(bands.names))).astype(bands.dtype)
    for transform in augmentations:
        if isinstance(transform, A.BaseCompose):
            _check_bands(transform.transforms, bands, size)
            continue
        name, always = type(transform).__name__, copy.deepcopy(transform)
        always.p = 1.0
        try:
            if bands.dtype != "uint8" and isinstance(transform, A.ImageOnlyTransform):
                raise InputError("it changes values as if their range were that of the type")
            made = A.Compose([always])(image=image, mask=np.zeros(size, np.uint8))["image"]
            if made.shape[2:] != image.shape[2:] or made.dtype != image.dtype:
                raise InputError(f"it makes {made.dtype} {made.shape} of them")
        except Exception as error:  # each transform refuses in its own way
            raise InputError(
                f"augmentation {name} cannot take {bands}: {one_line(error)}; leave it out of data.augmentations, or "
                "write one that does"
            ) from error


def check_augmentations(augmentations: Iterable[Augmentation]) -> None:
    """Refuse a transform, however deep in OneOf and the like, that paints the mask with a real class.

    Raises:
        InputError: A `fill_mask` is not 255 (albumentations' default is 0, the first class).
    """
    for transform in augmentations:
        if isinstance(transform, A.BaseCompose):
            check_augmentations(transform.transforms)
            continue
        fill = getattr(transform, "fill_mask", None)  # None: the transform leaves the mask alone
        if fill is not None and not np.all(np.asarray(fill) == IGNORE_INDEX):
            name = type(transform).__name__
            raise InputError(
                f"augmentation {name} has fill_mask={fill}, which would train the class {fill} on invented pixels; "
                f"allowed is 255 (ignore): write {name}(..., fill_mask=255)"
            )
