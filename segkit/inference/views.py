"""The network's input for an image under a protocol: the sizes of its views, the resizes to them, and the windows.

Sizes: each toolkit rounds in its own way, and a pixel more or less moves every sample of the resize that follows.
Sources: PyTorch-Encoding (encoding/models/sseg/base.py), mmcv 2.1.0 (image/geometric.py `rescale_size`,
transforms/processing.py `Resize`) with mmsegmentation 0.x (datasets/pipelines/test_time_aug.py), CSAIL
(mit_semseg/dataset.py `ValDataset`), PaddleSeg (paddleseg/core/infer.py).

Resizes: mmsegmentation resizes the 8-bit image with OpenCV and CSAIL with Pillow (which blurs before it shrinks), both
before normalisation, so that every value is rounded to a whole grey level; PyTorch-Encoding and PaddleSeg resize the
normalised tensor. The engine is given a normalised image: for the former two its 8-bit values are recovered.

Sizes are (height, width) in pixels; no side is ever less than 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.inference.protocols import Protocol, Resample
from segkit.ops.normalize import Normalization, by_channel, normalize
from segkit.ops.upsample import upsample

Size = tuple[int, int]

CSAIL_MULTIPLE = 8  # CSAIL's DATASET.padding_constant: the largest stride of its networks


def view_size(protocol: Protocol, scale: float, size: Size) -> Size:
    """The size of an image's view at one scale.

    Args:
        protocol: The protocol, whose `resize_to` names the rule.
        scale: One of its scales.
        size: The image's (height, width) in pixels.
    """
    rule, base, limit = protocol.resize_to, protocol.base_size or 0, protocol.long_limit or 0
    if rule in ("image", "mmcv_image"):
        # Halves go up: segkit's own rule, and PaddleSeg's.
        height, width = _at_least_one(size[0] * scale + 0.5, size[1] * scale + 0.5)
        # mmcv's `Resize(scale_factor=scale, keep_ratio=True)` then fits the image inside; the two roundings are why a
        # side can be one pixel less.
        return _fit(size, max(height, width), min(height, width)) if rule == "mmcv_image" else (height, width)
    if rule == "mmcv_limits":
        # `Resize(scale=limits, keep_ratio=True)`: as large as fits, small images grow. The scale multiplies the limits
        # first, rounded down, as mmsegmentation 0.x does with its `img_ratios`.
        return _fit(size, int(limit * scale), int(base * scale))
    if rule == "csail":
        return _csail(size, base * scale, limit)
    is_tall = size[0] > size[1]
    return _one_side(size, math.ceil(base * scale), is_tall == (rule == "long_side"))


def _one_side(size: Size, side: int, height_is_side: bool) -> Size:
    """One side becomes `side`, the other follows: PyTorch-Encoding's rule."""
    old, other = size if height_is_side else (size[1], size[0])
    # Halves go up, as the authors round; Python's round() would send them to the even number.
    other = max(1, int(1.0 * other * side / old + 0.5))
    return (side, other) if height_is_side else (other, side)


def _fit(size: Size, long_limit: int, short_limit: int) -> Size:
    factor = min(long_limit / max(size), short_limit / min(size))
    return _at_least_one(size[0] * factor + 0.5, size[1] * factor + 0.5)


def _csail(size: Size, short: float, long_limit: int) -> Size:
    """The short side becomes `short` unless the long one would pass its limit.

    Both are rounded down, then up to a multiple of 8, so that the aspect ratio is not quite kept.
    """
    factor = min(short / float(min(size)), long_limit / float(max(size)))
    height, width = (max(1, math.ceil(int(side * factor) / CSAIL_MULTIPLE)) * CSAIL_MULTIPLE for side in size)
    return height, width


def _at_least_one(height: float, width: float) -> Size:
    return max(1, int(height)), max(1, int(width))


class ImageResizer:
    """Resizes one normalised batch to any size.

    Args:
        image: Normalised float (B, 3, H, W).
        resample: `"tensor"`: bilinear on the normalised values, no antialias. `"opencv"`: `cv2.INTER_LINEAR` on 8-bit
            values. `"pillow"`: Pillow's bilinear filter on 8-bit values, antialiased. The latter two run on the CPU.
        align_corners: How `"tensor"` aligns; the other two never align corners.
        normalization: How `image` was normalised.
    """

    def __init__(self, image: Tensor, resample: Resample, align_corners: bool, normalization: Normalization) -> None:
        self.image, self.resample, self.align_corners = image, resample, align_corners
        self.normalization = normalization
        self._bytes: UInt8Array | None = None

    def __call__(self, size: Size) -> Tensor:
        """The normalised batch at (height, width), in the image's dtype; the same tensor if nothing changes."""
        if tuple(self.image.shape[-2:]) == size:
            return self.image
        if self.resample == "tensor":
            return upsample(self.image, size, self.align_corners)  # (B, 3, H, W) -> (B, 3, height, width)
        if self._bytes is None:
            self._bytes = denormalize(self.image, self.normalization).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([_resized(pixels, size, self.resample) for pixels in self._bytes])  # (B, h, w, 3)
        batch = torch.from_numpy(resized).to(self.image.device).permute(0, 3, 1, 2)  # (B, 3, h, w)
        return normalize(batch, replace(self.normalization, bands=None), self.image.dtype)


def denormalize(image: Tensor, normalization: Normalization) -> Tensor:
    """The 8-bit image behind a normalised one: round((x * std + mean) * 255), uint8 (B, C, H, W).

    With ImageNet's statistics it is exactly the input of `segkit.ops.normalize` in float32, float16 and bfloat16.
    Images that were never 8-bit are rounded to whole grey levels and clipped to 0 and 255.
    """
    mean, std = (by_channel(values, image.device) for values in (normalization.mean, normalization.std))
    return image.float().mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _resized(image: UInt8Array, size: Size, resample: Resample) -> UInt8Array:
    """One image (H, W, 3) at `size`."""
    height, width = size
    if resample == "opencv":
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, np.uint8).reshape(height, width, -1)  # OpenCV drops a single channel's axis
    # Pillow has no images of any number of channels; its filter treats each channel alone anyway.
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes], axis=-1)


@dataclass(frozen=True)
class SlidingWindow:
    """The part of the image inside one window, in pixels of the scaled image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Grid:
    """All windows of one scaled image, row by row.

    Attributes:
        image: Size of the scaled image.
        shape: Size of all windows that the network sees; black fills what the image does not.
        rows: (top, height) of each row of windows.
        columns: (left, width) of each column of windows.
    """

    image: Size
    shape: Size
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @property
    def windows(self) -> list[SlidingWindow]:
        """Each window, in the order in which the network sees them."""
        return [SlidingWindow(top, left, height, width) for top, height in self.rows for left, width in self.columns]

    def counts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The number of windows over each row (height, 1) and column (width,), float32; multiply them for a pixel."""
        down = _coverage(self.rows, self.image[0])
        across = _coverage(self.columns, self.image[1])
        return down[:, None].to(device, non_blocking=True), across.to(device, non_blocking=True)


def window_grid(protocol: Protocol, image: Size) -> Grid:
    """The windows of a scaled image by the protocol's rule; a single one if it has no rule."""
    if protocol.window is None:
        return Grid(image, image, rows=((0, image[0]),), columns=((0, image[1]),))
    stride = protocol.stride or int(protocol.window * 2 / 3)
    rows, columns = (_spans(side, protocol.window, stride, protocol.window_rule == "truncate") for side in image)
    shape = (protocol.window, protocol.window)
    if protocol.window_rule == "shift_back":  # mmseg's windows shrink to a small image, the authors' are filled
        shape = (min(shape[0], image[0]), min(shape[1], image[1]))
    return Grid(image, shape, rows, columns)


def network_inputs(protocol: Protocol, size: Size) -> list[tuple[int, Size]]:
    """The network's inputs for one image of `size`: for each scale, their number and size."""
    grids = [window_grid(protocol, view_size(protocol, scale, size)) for scale in protocol.scales]
    return [(len(grid.windows) * (2 if protocol.flip else 1), grid.shape) for grid in grids]


def cut(image: Tensor, window: SlidingWindow, shape: Size, black: Tensor) -> Tensor:
    """The window's part of a normalised batch (B, 3, H, W), filled right and bottom with black (1, 3, 1, 1) to `shape`.

    If there is nothing to fill, it is a view of `image`.
    """
    part = image[:, :, window.top : window.top + window.height, window.left : window.left + window.width]
    if tuple(part.shape[-2:]) == shape:
        return part
    filled = black.expand(*image.shape[:2], *shape).clone()  # (B, 3, window, window)
    filled[:, :, : window.height, : window.width] = part
    return filled


def _spans(side: int, window: int, stride: int, truncate: bool) -> tuple[tuple[int, int], ...]:
    """(start, length) of the windows along one side."""
    count = max(0, math.ceil((side - window) / stride)) + 1
    starts = [index * stride for index in range(count)]
    if not truncate:
        starts = [max(0, min(start, side - window)) for start in starts]
    return tuple((start, min(window, side - start)) for start in starts)


def _coverage(spans: tuple[tuple[int, int], ...], side: int) -> Tensor:
    total = torch.zeros(side)
    for start, length in spans:
        total[start : start + length] += 1
    return total
