"""Normalisation of uint8 images: the one place where a batch stops being uint8.

The arithmetic and its order are those of torchvision's `ToTensor` and `Normalize`, which the ResNeSt authors used:
divide by 255, subtract the mean, divide by the standard deviation, each rounded to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.errors import InputError

_SMALLEST = 1e-6  # of a standard deviation; 256 grey levels have steps of 4e-3


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, on the 0..1 scale.

    Raises:
        InputError: The lengths differ or are zero, a value is not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Turn lists (as read from a checkpoint) into tuples of floats and check them."""
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"normalization: {len(self.mean)} means and {len(self.std)} standard deviations; "
                "give one of each per channel"
            )
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

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data, as a checkpoint keeps it: `{"mean": [...], "std": [...]}`."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Normalization:
        """The inverse of `to_dict`."""
        return cls(mean=tuple(values["mean"]), std=tuple(values["std"]))


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def normalize(image: Tensor, normalization: Normalization = IMAGENET, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise a uint8 batch on the device it lies on.

    Args:
        image: uint8 (B, 3, H, W), or (B, C, H, W) for C-channel statistics.
        normalization: Mean and standard deviation by channel.
        dtype: The dtype of the result; the arithmetic is always float32.

    Returns:
        `dtype` (B, 3, H, W), in the memory format of `image`, which is left unchanged.

    Raises:
        InputError: `image` is not uint8 (a float image would be divided by 255 a second time) or has a different
            number of channels from the statistics.
    """
    if image.dtype != torch.uint8:
        raise InputError(f"normalize: the image is {image.dtype}, but uint8 0..255 is needed; do not scale it before")
    channels = len(normalization.mean)
    if image.ndim != 4 or image.shape[1] != channels:
        raise InputError(f"normalize: the batch has shape {tuple(image.shape)}, but (B, {channels}, H, W) is needed")
    mean, std = (by_channel(values, image.device) for values in (normalization.mean, normalization.std))
    return image.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)


def by_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """One float32 value per channel, (1, C, 1, 1), copied to the device without waiting for it."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(device, non_blocking=True)
