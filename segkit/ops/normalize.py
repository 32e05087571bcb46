"""Normalisation of images: the one place where a batch stops being uint8, or uint16.

The arithmetic and its order are those of torchvision's `ToTensor` and `Normalize`, which the ResNeSt authors used:
divide by 255, subtract the mean, divide by the standard deviation, each rounded to float32. Images whose data declare
bands are brought to 0..1 by their range in place of 255, and clipped to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from segkit.bands import Bands
from segkit.errors import InputError

_SMALLEST = 1e-6  # of a standard deviation; 256 grey levels have steps of 4e-3


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, on the 0..1 scale.

    Attributes:
        mean: C means.
        std: C standard deviations.
        bands: Names of the channels and the values that become 0 and 1; None: uint8 RGB.

    Raises:
        InputError: The lengths differ or are zero, a value is not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: Bands | None = None

    def __post_init__(self) -> None:
        """Turn lists (as read from a checkpoint) into tuples of floats and check them."""
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"normalization: {len(self.mean)} means and {len(self.std)} standard deviations; "
                "give one of each per channel"
            )
        if self.bands is not None and len(self.bands.names) != len(self.mean):
            raise InputError(f"normalization: {len(self.mean)} means for {self.bands}; give one for each band")
        if not all(_SMALLEST <= value <= 1 / _SMALLEST for value in self.std):  # false for NaN
            raise InputError(
                f"normalization: std is {self.std}, but every value must be greater than 0, on the 0..1 scale"
            )
        if not all(abs(value) <= 1 / _SMALLEST for value in self.mean):
            raise InputError(f"normalization: mean is {self.mean}, but every value must be a number on the 0..1 scale")

    @property
    def black(self) -> tuple[float, ...]:
        """The normalised value of a black pixel, by channel: -mean / std."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a checkpoint keeps it: `{"mean": [...], "std": [...]}`, and "bands" where there are."""
        plain: dict[str, Any] = {"mean": list(self.mean), "std": list(self.std)}
        return plain if self.bands is None else plain | {"bands": self.bands.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalization:
        """Build a normalization from the result of `to_dict`."""
        bands = values.get("bands")
        return cls(tuple(values["mean"]), tuple(values["std"]), None if bands is None else Bands.from_dict(bands))

    def adapted(self, channels: int) -> Normalization:
        """Adapt to other channels as pretrained weights are adapted: repeat RGB; for one channel take the mean."""
        if channels == len(self.mean):
            return self
        if channels == 1:
            made: list[tuple[float, ...]] = [(sum(values) / len(values),) for values in (self.mean, self.std)]
        else:
            made = [tuple(v[i % len(v)] for i in range(channels)) for v in (self.mean, self.std)]
        return replace(self, mean=made[0], std=made[1])


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def normalize(image: Tensor, normalization: Normalization = IMAGENET, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise a batch on the device it lies on.

    Args:
        image: uint8 (B, 3, H, W) RGB; of C bands, uint8, uint16 or float32 (B, C, H, W).
        normalization: Mean and standard deviation by channel, and the bands.
        dtype: The dtype of the result; the arithmetic is always float32.

    Returns:
        `dtype` (B, C, H, W), in the memory format of `image`, which is left unchanged.

    Raises:
        InputError: `image` is not uint8 and has no bands (a float image would be divided by 255 a second time), or has
            a different number of channels from the statistics.
    """
    bands = normalization.bands
    if image.dtype != torch.uint8 and bands is None:
        raise InputError(f"normalize: the image is {image.dtype}, but uint8 0..255 is needed; do not scale it before")
    channels = len(normalization.mean)
    if image.ndim != 4 or image.shape[1] != channels:
        raise InputError(f"normalize: the batch has shape {tuple(image.shape)}, but (B, {channels}, H, W) is needed")
    values = image.clone() if image.dtype == torch.float32 else image.to(torch.float32)
    return standardize_(values, normalization).to(dtype)


def standardize_(values: Tensor, normalization: Normalization) -> Tensor:
    """Normalise float32 `(B, C, H, W)` with the values that images store, in place and unchecked; see `normalize`."""
    bands = normalization.bands
    mean, std = (by_channel(constants, values.device) for constants in (normalization.mean, normalization.std))
    if bands is None:
        values.div_(255)
    else:
        low, high = (by_channel(ends, values.device) for ends in (bands.low, bands.high))
        values.sub_(low).div_(high - low).clamp_(0, 1)
    return values.sub_(mean).div_(std)


def restore(values: Tensor, normalization: Normalization) -> Tensor:
    """Invert `standardize_`: the stored values, float32, of normalised ones, up to rounding."""
    mean, std = (by_channel(constants, values.device) for constants in (normalization.mean, normalization.std))
    unit = values * std + mean
    if normalization.bands is None:
        return unit * 255
    low, high = (by_channel(ends, values.device) for ends in (normalization.bands.low, normalization.bands.high))
    return unit * (high - low) + low


def by_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """One float32 value per channel, (1, C, 1, 1), copied to the device without waiting for it."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(device, non_blocking=True)
