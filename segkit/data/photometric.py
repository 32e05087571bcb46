"""mmsegmentation's colour jitter, `PhotoMetricDistortion` (mmseg 1.2.2, mmseg/datasets/transforms/transforms.py).

Changed: uint8 RGB in place of BGR, look-up tables of 256 entries in place of float images, which give the same bytes
because every step of mmsegmentation's ends in uint8, and draws from albumentations' generators.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from segkit.arrays import UInt8Array
from segkit.data.albumentations import A
from segkit.errors import InputError

_HUES = 180  # OpenCV's of uint8 images: degrees / 2
_HALF = 0.5  # probability of each step
_SAME = np.arange(256, dtype=np.uint8)


class PhotoMetricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Brightness, contrast, saturation and hue, each with probability 0.5, of uint8 RGB images (H, W, 3).

    Brightness comes first; contrast comes next or last, with equal probability; saturation and hue are changed in HSV.
    After each step values are clipped to 0..255 and truncated to whole numbers.

    Args:
        brightness_delta: Largest change of brightness, in grey levels, up and down.
        contrast_range: Smallest and largest factor of the values.
        saturation_range: Smallest and largest factor of the saturation.
        hue_delta: Change of the hue in units of 2 degrees: -hue_delta to hue_delta - 1, as mmsegmentation draws it.
        p: Probability that the image is changed at all; mmsegmentation always changes it.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        brightness_delta: int = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: int = 18,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        _check_number("brightness_delta", brightness_delta, 255)
        _check_range("contrast_range", contrast_range)
        _check_range("saturation_range", saturation_range)
        _check_number("hue_delta", hue_delta, _HUES // 2)
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta

    def get_params(self) -> dict[str, Any]:
        """Draw the parameters of `apply`; None skips a step."""
        draw = self.py_random
        return {
            "brightness": self._maybe(lambda: draw.uniform(-self.brightness_delta, self.brightness_delta)),
            "contrast_first": draw.random() < _HALF,
            "contrast": self._maybe(lambda: draw.uniform(*self.contrast_range)),
            "saturation": self._maybe(lambda: draw.uniform(*self.saturation_range)),
            "hue": self._maybe(lambda: draw.randrange(-self.hue_delta, max(self.hue_delta, 1))),
        }

    def apply(
        self,
        img: UInt8Array,
        brightness: float | None,
        contrast: float | None,
        contrast_first: bool,
        saturation: float | None,
        hue: int | None,
        **params: Any,
    ) -> UInt8Array:
        """Change an image.

        Args:
            img: uint8 (H, W, 3) RGB.
            brightness: Added to the values.
            contrast: Factor of the values.
            contrast_first: Whether contrast comes before saturation and hue; otherwise it comes last.
            saturation: Factor of the saturation.
            hue: Added to the hue, modulo 180.
            **params: albumentations' own, not used.

        Raises:
            InputError: The image is not uint8 RGB.
        """
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise InputError(
                f"PhotoMetricDistortion: got an image of {img.dtype} {img.shape}; allowed is uint8 (H, W, 3) RGB: "
                "put it before the augmentation that changes this"
            )
        first, last = (contrast, None) if contrast_first else (None, contrast)
        values = _SAME if brightness is None else _scaled(beta=brightness)
        img = _mapped(img, values if first is None else _scaled(alpha=first)[values])
        if saturation is not None:
            img = _mapped_hsv(img, 1, _scaled(alpha=saturation))
        if hue is not None:
            img = _mapped_hsv(img, 0, ((_SAME.astype(int) + hue) % _HUES).astype(np.uint8))
        return img if last is None else _mapped(img, _scaled(alpha=last))

    def _maybe(self, draw: Callable[[], float]) -> float | None:
        return draw() if self.py_random.random() < _HALF else None


def _scaled(alpha: float = 1.0, beta: float = 0.0) -> UInt8Array:
    """mmsegmentation's `convert` of each of the 256 values: float32, clipped, truncated."""
    return np.asarray(np.clip(_SAME.astype(np.float32) * alpha + beta, 0, 255), np.uint8)


def _mapped(img: UInt8Array, table: UInt8Array) -> UInt8Array:
    return img if table is _SAME else np.asarray(cv2.LUT(img, table), np.uint8)


def _mapped_hsv(img: UInt8Array, channel: int, table: UInt8Array) -> UInt8Array:
    """Map hue (channel 0) or saturation (1). Not both at once: mmsegmentation rounds to RGB in between."""
    hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _check_number(name: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise InputError(f"PhotoMetricDistortion: {name} is {value}; allowed is 0 to {most}: correct it in the config")


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
        raise InputError(
            f"PhotoMetricDistortion: {name} is {list(bounds)}; give two numbers from 0 on, the smaller one first"
        )
