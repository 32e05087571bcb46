"""The authors' augmentation of ImageNet: RandAugment, a random area, mirroring, colour jitter.

Source: zhanghang1989/ResNeSt, resnest/torch/transforms (build.py, transforms.py, autoaug.py), where PCA lighting
follows, which is added on the device here (`segkit.training.classification`). The order is theirs: RandAugment changes
the whole image, and the crop is cut from the result.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from segkit.data.imagenet.crops import CentreCrop
from segkit.errors import InputError

# image, strength, randomness -> image
Operation = Callable[[Image.Image, float, random.Random], Image.Image]

_AREA, _RATIO = (0.1, 1.0), (3 / 4, 4 / 3)  # ranges of a crop's share of the image, and of width over height
_TRIES = 10
_STRONGEST = 30  # the strength at which an operation reaches the end of its range
_GREY = (125, 123, 114)  # colour of a hole: about ImageNet's mean


def _signed(value: float, rng: random.Random) -> float:
    return -value if rng.random() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC)


def _brighter_below(image: Image.Image, value: float, rng: random.Random) -> Image.Image:
    """Add to all values, then invert bright ones."""
    return ImageOps.solarize(image.point([min(255, int(i + value)) for i in range(256)] * 3), 128)


def _hole(image: Image.Image, value: float, rng: random.Random) -> Image.Image:
    """Cover a square whose centre lies anywhere; both of its ends are covered, as Pillow draws."""
    width, height = image.size
    x, y = (int(max(0.0, rng.uniform(0, length) - value / 2)) for length in (width, height))
    covered = image.copy()
    ImageDraw.Draw(covered).rectangle((x, y, min(width, x + value), min(height, y + value)), _GREY)
    return covered


def _enhance(kind: Callable[[Image.Image], Any]) -> Operation:
    return lambda image, value, rng: cast(Image.Image, kind(image).enhance(value))


# fmt: off
OPERATIONS: dict[str, tuple[float, float, Operation]] = {
    # name          range        what is done with the value; where a sign is drawn, half of them go the other way
    "auto_contrast": (0.0, 1.0,   lambda image, v, rng: ImageOps.autocontrast(image)),
    "equalize":      (0.0, 1.0,   lambda image, v, rng: ImageOps.equalize(image)),
    "invert":        (0.0, 1.0,   lambda image, v, rng: ImageOps.invert(image)),
    "rotate":        (0.0, 30.0,  lambda image, v, rng: image.rotate(_signed(v, rng))),
    "posterize":     (0.0, 4.0,   lambda image, v, rng: ImageOps.posterize(image, max(1, int(v)))),
    "solarize":      (0.0, 256.0, lambda image, v, rng: ImageOps.solarize(image, v)),  # type: ignore[arg-type]
    "solarize_add":  (0.0, 110.0, _brighter_below),
    "color":         (0.1, 1.9,   _enhance(ImageEnhance.Color)),
    "contrast":      (0.1, 1.9,   _enhance(ImageEnhance.Contrast)),
    "brightness":    (0.1, 1.9,   _enhance(ImageEnhance.Brightness)),
    "sharpness":     (0.1, 1.9,   _enhance(ImageEnhance.Sharpness)),
    "shear_x":       (0.0, 0.3,   lambda image, v, rng: _affine(image, 1, _signed(v, rng), 0, 0, 1, 0)),
    "shear_y":       (0.0, 0.3,   lambda image, v, rng: _affine(image, 1, 0, 0, _signed(v, rng), 1, 0)),
    "cutout":        (0.0, 40.0,  _hole),
    "translate_x":   (0.0, 100.0, lambda image, v, rng: _affine(image, 1, 0, _signed(v, rng), 0, 1, 0)),
    "translate_y":   (0.0, 100.0, lambda image, v, rng: _affine(image, 1, 0, 0, 0, 1, _signed(v, rng))),
}
# fmt: on


def augmented(image: Image.Image, operations: Sequence[str], strength: float, rng: random.Random) -> Image.Image:
    """Apply each of these `OPERATIONS` with a probability that is itself drawn from 0.2 to 0.8."""
    for name in operations:
        low, high, operation = OPERATIONS[name]
        if rng.random() <= rng.uniform(0.2, 0.8):
            image = operation(image, low + (high - low) * strength / _STRONGEST, rng)
    return image


def random_area(size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int] | None:
    """A box (left, top, right, bottom) in an image of (width, height); None if the centre is to be taken.

    The ratio is drawn first, then a height between those of the smallest and the largest area that fits. This is
    TensorFlow's sampling, which gives smaller crops than torchvision's, uniform in the area.
    """
    width, height = size
    smallest, largest = (share * width * height for share in _AREA)
    for _ in range(_TRIES):
        ratio = rng.uniform(*_RATIO)
        most = round(math.sqrt(largest / ratio))
        if most * ratio > width:
            most = int((width + 0.5 - 1e-7) / ratio)
            most -= most * ratio > width
        most = min(most, height)
        least = min(round(math.sqrt(smallest / ratio)), most)
        rows = round(rng.uniform(least, most))
        cols = round(rows * ratio)
        if not smallest <= rows * cols <= largest or cols > width or rows > height:
            continue
        if (cols, rows) == size:
            return None
        left, top = rng.randint(0, width - cols), rng.randint(0, height - rows)
        return left, top, left + cols, top + rows
    return None


@dataclass(frozen=True)
class TrainCrop:
    """Makes a training crop of an image; see the arguments of `ImageNetDataModule`."""

    size: int
    rand_augment: tuple[int, int] = (2, 12)
    color_jitter: float = 0.4

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        count, strength = self.rand_augment
        if count < 0 or not 0 <= strength <= _STRONGEST or not 0 <= self.color_jitter <= 1:
            raise InputError(
                f"rand_augment is {[count, strength]} and color_jitter {self.color_jitter}; allowed are a number of "
                f"operations with a strength of 0 to {_STRONGEST}, and a share of 0 to 1"
            )

    def __call__(self, image: Image.Image, key: Sequence[int]) -> Image.Image:
        """A crop of an RGB image.

        Args:
            image: An RGB image of any size.
            key: Non-negative numbers that determine the randomness.
        """
        rng = random.Random(int(np.random.SeedSequence(tuple(key)).generate_state(1, np.uint64)[0]))
        count, strength = self.rand_augment
        image = augmented(image, rng.choices(list(OPERATIONS), k=count), strength, rng)
        box = random_area(image.size, rng)
        if box is None:
            image = CentreCrop("encoding", self.size)(image)
        else:
            image = image.crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        for kind in rng.sample((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), 3):
            image = kind(image).enhance(rng.uniform(1 - self.color_jitter, 1 + self.color_jitter))
        return image
