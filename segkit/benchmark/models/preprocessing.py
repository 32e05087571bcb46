"""What is done with an image before a network whose file does not say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segkit.arrays import UInt8Array
from segkit.errors import InputError, did_you_mean
from segkit.ops.normalize import IMAGENET, Normalization, normalize

KEYS = ("mean", "std", "channels", "range", "size")  # that a user may give


@dataclass(frozen=True)
class Preprocessing:
    """An image resized, its channels put in order, scaled to 0..`range`, less the mean, by the deviation.

    Attributes:
        mean: One for all channels, or three; in the order of the channels.
        std: Likewise.
        channels: "RGB" or "BGR".
        range: What 255 becomes: 1, or 255.
        size: Height and width to which every image is resized (bilinear, not smoothed); None: its own.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = "RGB"
    range: float = 1.0
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], size: tuple[int, int] | None) -> Preprocessing:
        """What a user gave, and else ImageNet's normalisation; a mean above 2 is one of 0..255.

        Args:
            given: Some of `KEYS`.
            size: Height and width, where the file fixes them.

        Raises:
            InputError: A key is unknown, or a value not allowed.
        """
        for key in given:
            if key not in KEYS:
                hint = did_you_mean(str(key), KEYS)
                raise InputError(f"preprocessing: no such key {str(key)!r}; {hint}allowed: {', '.join(KEYS)}")
        try:
            mean, std = (_three(given.get(name, getattr(IMAGENET, name))) for name in ("mean", "std"))
            end = float(given.get("range", 255 if max(mean) > 2 else 1))
            channels, wanted = str(given.get("channels", "RGB")).upper(), given.get("size", size)
            if wanted is not None and np.shape(wanted) != (2,):
                raise ValueError(f"size {wanted}")
            made = cls(mean, std, channels, end, None if wanted is None else (int(wanted[0]), int(wanted[1])))
            Normalization(made.mean, made.std)
            if channels not in ("RGB", "BGR") or end not in (1, 255) or (made.size and min(made.size) < 1):
                raise ValueError(f"channels {channels}, range {end:g}, size {made.size}")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"preprocessing: {error}; allowed are mean and std (a number, or three), channels (RGB, BGR), range "
                "(1, 255), and size ([height, width])"
            ) from error
        return made

    def __call__(self, image: UInt8Array) -> Tensor:
        """Float32 (1, 3, h, w) of uint8 RGB (H, W, 3)."""
        batch = torch.from_numpy(image).permute(2, 0, 1)[None]  # (H, W, 3) -> (1, 3, H, W)
        batch = batch.flip(1) if self.channels == "BGR" else batch
        mean, std = (tuple(value / self.range for value in values) for values in (self.mean, self.std))
        values = normalize(batch, Normalization(mean, std))
        return values if self.size is None else interpolate(values, self.size, mode="bilinear", align_corners=False)

    def to_dict(self) -> dict[str, Any]:
        """In the words of a row."""
        size = "as the image" if self.size is None else list(self.size)
        return vars(self) | {"mean": list(self.mean), "std": list(self.std), "range": [0, self.range], "size": size}


def _three(value: Any) -> tuple[float, ...]:
    values = tuple(float(v) for v in np.atleast_1d(value))
    if len(values) not in (1, 3):
        raise ValueError(f"{len(values)} values for three channels")
    return values * (3 // len(values))
