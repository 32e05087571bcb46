"""The authors' training transform as an albumentations pipeline, and the seeding that makes it reproducible.

Follows PyTorch-Encoding, encoding/datasets/base.py (`_sync_transform`): flip, random long side, pad right and bottom,
random crop. Changed: scale, padding and crop are one transform that resamples only the pixels of the crop, with the
same resampler and on the same grid: its result is that of the three steps (the mask exactly, the image but for
rounding; tests compare) without ever building the enlarged picture. The mask is padded with 255, because it holds
train ids already.
"""

import os
import random
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX

# Without it albumentations 2.0.8 asks PyPI for a newer version on every import, in every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2

UInt8Array = npt.NDArray[np.uint8]
Augmentation: TypeAlias = A.BasicTransform | A.BaseCompose  # the latter: OneOf, SomeOf, Sequential
Pipeline: TypeAlias = A.Compose

_MARGIN = 4  # source pixels around the crop: the antialiasing kernel at ratio 0.5 reaches 2


class RandomLongSideCrop(A.DualTransform):  # type: ignore[misc]
    """Scale so that the long side is a random number of pixels, then cut a random square, padded if need be.

    The long side is a uniform integer of [int(ratio[0] * base_size), int(ratio[1] * base_size)], both ends included;
    the other side follows as int(other * long / longside + 0.5). The image is resampled by antialiased bilinear
    interpolation, the mask by nearest. Where the scaled picture is smaller than the crop, right and bottom are
    filled with black and the mask with 255. uint8 (H, W, 3) and (H, W) in, crop_size x crop_size out.

    Args:
        base_size: Pixels of the long side at ratio 1.
        crop_size: Pixels, height and width.
        ratio: Smallest and largest factor of `base_size`.
    """

    _targets = (A.core.transforms_interface.Targets.IMAGE, A.core.transforms_interface.Targets.MASK)

    def __init__(self, base_size: int, crop_size: int, ratio: tuple[float, float] = (0.5, 2.0)) -> None:
        super().__init__(p=1.0)
        self.base_size = base_size
        self.crop_size = crop_size
        self.ratio = ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the long side, then the crop's left and top edge, in the scaled picture's pixels."""
        low, high = (int(factor * self.base_size) for factor in self.ratio)
        size = scaled_size(params["shape"][:2], self.py_random.randint(low, high))
        left = self.py_random.randint(0, max(size[1] - self.crop_size, 0))
        top = self.py_random.randint(0, max(size[0] - self.crop_size, 0))
        return {"size": size, "top": top, "left": left}

    def apply(self, img: UInt8Array, size: tuple[int, int], top: int, left: int, **params: Any) -> UInt8Array:
        """Cut the image."""
        rows, cols = min(size[0], self.crop_size), min(size[1], self.crop_size)
        out = np.zeros((self.crop_size, self.crop_size, img.shape[2]), np.uint8)
        out[:rows, :cols] = resize_crop(img, size, (top, left), (rows, cols))
        return out

    def apply_to_mask(self, mask: UInt8Array, size: tuple[int, int], top: int, left: int, **params: Any) -> UInt8Array:
        """Cut the mask."""
        rows = nearest_indices(mask.shape[0], size[0])[top : top + self.crop_size]
        cols = nearest_indices(mask.shape[1], size[1])[left : left + self.crop_size]
        out = np.full((self.crop_size, self.crop_size), IGNORE_INDEX, np.uint8)
        out[: len(rows), : len(cols)] = mask[rows[:, None], cols]
        return out


def train_transform(
    base_size: int,
    crop_size: int,
    augmentations: Sequence[Augmentation] = (),
    scale_range: tuple[float, float] = (0.5, 2.0),
) -> Pipeline:
    """The authors' training transform, then the user's own transforms on the crop.

    Raises:
        InputError: One of `augmentations` would paint masks with another value than 255.
    """
    check_augmentations(augmentations)
    return A.Compose([A.HorizontalFlip(p=0.5), RandomLongSideCrop(base_size, crop_size, scale_range), *augmentations])


def reseed(transform: Pipeline, seed: int, epoch: int, index: int) -> None:
    """Make the transform's next call a pure function of (seed, epoch, sample index).

    One generator is shared by all steps. `Compose.set_random_seed` would give every step a generator of its own with
    the same seed: the flip, the scale and the crop's place would then be the same draw.
    """
    numpy_seed, python_seed = np.random.SeedSequence((seed, epoch, index)).spawn(2)
    transform.set_random_state(
        np.random.default_rng(numpy_seed), random.Random(int(python_seed.generate_state(1, np.uint64)[0]))
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


def scaled_size(size: tuple[int, int], long: int) -> tuple[int, int]:
    """(H, W) scaled so that the long side has `long` pixels, rounded as the authors round."""
    height, width = size
    if height > width:
        return long, max(1, int(1.0 * width * long / height + 0.5))
    return max(1, int(1.0 * height * long / width + 0.5)), long


def resize_crop(image: UInt8Array, size: tuple[int, int], corner: tuple[int, int], crop: tuple[int, int]) -> UInt8Array:
    """The pixels that resizing `image` (H, W, 3) to `size` and cutting `crop` at `corner` would give; all (y, x)."""
    starts, ends, box = [], [], []
    for axis in (0, 1):
        step = image.shape[axis] / size[axis]  # source pixels per scaled pixel
        first, last = corner[axis] * step, (corner[axis] + crop[axis]) * step
        margin = int(_MARGIN * max(step, 1.0))
        start = max(int(first) - margin, 0)
        end = min(int(last) + margin + 1, image.shape[axis])
        starts.append(start)
        ends.append(end)
        box.append((max(first - start, 0.0), min(last - start, float(end - start))))  # float rounding may overshoot
    region = np.ascontiguousarray(image[starts[0] : ends[0], starts[1] : ends[1]])
    (top, bottom), (left, right) = box
    resized = Image.fromarray(region).resize(
        (crop[1], crop[0]), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    return np.asarray(resized)


def nearest_indices(source: int, target: int) -> npt.NDArray[np.intp]:
    """For each of `target` pixels the source pixel that Pillow's nearest resize takes."""
    line = np.arange(source, dtype=np.float32)[None]  # exact in float32 up to 2**24
    # INTER_NEAREST_EXACT samples at pixel centres as Pillow does; INTER_NEAREST is half a pixel off.
    return np.asarray(cv2.resize(line, (target, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0], np.intp)
