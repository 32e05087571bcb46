"""The training transform: our crop and any albumentations transforms, and the seeding that makes it reproducible."""

import random
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from segkit.arrays import UInt8Array
from segkit.data.albumentations import A
from segkit.data.crops import RandomLongSideCrop
from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX

Augmentation: TypeAlias = A.BasicTransform | A.BaseCompose  # the latter: OneOf, SomeOf, Sequential


class TrainTransform:
    """Crop, then augmentations of the crop; each call a pure function of its key.

    Args:
        crop: Reads and resamples the crop.
        augmentations: albumentations transforms of the finished crop.

    Raises:
        InputError: One of `augmentations` would paint masks with another value than 255.
    """

    def __init__(self, crop: RandomLongSideCrop, augmentations: Sequence[Augmentation] = ()) -> None:
        check_augmentations(augmentations)
        self.crop = crop
        self.augmentations = A.Compose(list(augmentations)) if augmentations else None

    def __call__(
        self, image: UInt8Array, mask: UInt8Array, key: Sequence[int], wanted_class: int = -1
    ) -> tuple[UInt8Array, UInt8Array]:
        """Transform an image.

        Args:
            image: uint8 (H, W, 3) RGB.
            mask: Train ids, uint8 (H, W).
            key: What the randomness is a function of, not negative: seed, epoch, sample index, repetition.
            wanted_class: Train id that the crop should show; -1 for any.

        Returns:
            The crop's image and mask.

        Raises:
            InputError: The augmentations made something else of uint8 images, or sizes that differ.
        """
        python = random.Random(int(_child(key, 1).generate_state(1, np.uint64)[0]))
        # albumentations gives every step a generator of its own with the same seed: flip, scale and place would be
        # one draw. Here all steps share one.
        self.crop.set_random_state(self.crop.random_generator, python)
        out = self.crop(image=image, mask=mask, wanted_class=wanted_class)
        if self.augmentations is not None:
            self.augmentations.set_random_state(np.random.default_rng(_child(key, 0)), python)
            out = self.augmentations(image=out["image"], mask=out["mask"])
        _check_result(out["image"], out["mask"])
        return out["image"], out["mask"]


def _child(key: Sequence[int], number: int) -> np.random.SeedSequence:
    """Of the seeds that `SeedSequence(key).spawn` gives."""
    return np.random.SeedSequence(tuple(key), spawn_key=(number,))


def _check_result(image: UInt8Array, mask: UInt8Array) -> None:
    for array in (image, mask):
        if getattr(array, "dtype", None) != np.uint8:
            made = getattr(array, "dtype", type(array).__name__)
            raise InputError(
                f"the augmentations made {made} of uint8 images; batches stay uint8 and are normalised on the "
                "device: leave out Normalize, ToFloat and ToTensorV2"
            )
    if image.shape[:2] != mask.shape:
        raise InputError(
            f"the augmentations made an image of {image.shape[:2]} and a mask of {mask.shape}; "
            "use transforms that treat both alike"
        )


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
