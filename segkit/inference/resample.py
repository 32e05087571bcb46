"""The image at the sizes of a protocol's views, resized with the library that the toolkit uses.

mmsegmentation resizes the 8-bit image with OpenCV and CSAIL with Pillow (which blurs before it shrinks), both before
normalisation, so that every value is rounded to a whole grey level; PyTorch-Encoding and PaddleSeg resize the
normalised tensor. The engine is given a normalised image: for the former two its 8-bit values are won back.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segkit.ops.normalize import Normalization, by_channel, normalize
from segkit.ops.upsample import upsample

Resample = Literal["tensor", "opencv", "pillow"]


class ImageResizer:
    """Resizes one normalised batch to any size.

    Args:
        image: normalised float (B, 3, H, W).
        resample: `"tensor"`: bilinear on the normalised values, no antialias. `"opencv"`: `cv2.INTER_LINEAR` on 8-bit
            values. `"pillow"`: Pillow's bilinear filter on 8-bit values, antialiased. The latter two run on the CPU.
        align_corners: of `"tensor"`; the other two never align corners.
        normalization: how `image` was normalised.
    """

    def __init__(self, image: Tensor, resample: Resample, align_corners: bool, normalization: Normalization) -> None:
        self.image, self.resample, self.align_corners = image, resample, align_corners
        self.normalization = normalization
        self._bytes: NDArray[np.uint8] | None = None

    def __call__(self, size: tuple[int, int]) -> Tensor:
        """The batch at (height, width), normalised, of the image's dtype; the very image where nothing changes."""
        if tuple(self.image.shape[-2:]) == size:
            return self.image
        if self.resample == "tensor":
            return upsample(self.image, size, self.align_corners)  # (B, 3, H, W) -> (B, 3, height, width)
        if self._bytes is None:
            self._bytes = denormalize(self.image, self.normalization).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([_resized(pixels, size, self.resample) for pixels in self._bytes])  # (B, h, w, 3)
        batch = torch.from_numpy(resized).to(self.image.device).permute(0, 3, 1, 2)  # (B, 3, h, w)
        return normalize(batch, self.normalization, self.image.dtype)


def denormalize(image: Tensor, normalization: Normalization) -> Tensor:
    """The 8-bit image behind a normalised one: round((x * std + mean) * 255), uint8 (B, 3, H, W).

    Exactly what `segkit.ops.normalize` was given, in float32, float16 and bfloat16 with ImageNet's statistics.
    Images that were never 8-bit are rounded to whole grey levels, and cut off at 0 and 255.
    """
    mean, std = (by_channel(values, image.device) for values in (normalization.mean, normalization.std))
    return image.float().mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _resized(image: NDArray[np.uint8], size: tuple[int, int], resample: Resample) -> NDArray[np.uint8]:
    """One image (H, W, 3) at `size`."""
    height, width = size
    if resample == "opencv":
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, np.uint8).reshape(height, width, -1)  # OpenCV drops a single channel's axis
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in _planes(image)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _planes(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Pillow has no images of any number of channels; its filter treats each channel alone anyway."""
    return [np.ascontiguousarray(image[..., index]) for index in range(image.shape[-1])]
