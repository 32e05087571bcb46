"""The grid of windows that a network sees of one image, and what to cut out for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.inference.protocols import Protocol


@dataclass(frozen=True)
class Window:
    """The part of the image inside one window, in pixels of the scaled image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Grid:
    """All windows of one scaled image, row by row.

    Attributes:
        image: height and width of the scaled image.
        shape: height and width of what the network sees, one for all windows; black fills what the image does not.
        rows: (top, height) of each row of windows.
        columns: (left, width) of each column of windows.
    """

    image: tuple[int, int]
    shape: tuple[int, int]
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @property
    def windows(self) -> list[Window]:
        """Each window, the order in which the network sees them."""
        return [Window(top, left, height, width) for top, height in self.rows for left, width in self.columns]

    def counts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """In how many windows each row (height, 1) and each column (width,) lies; float32, their product per pixel."""
        down = _coverage(self.rows, self.image[0])
        across = _coverage(self.columns, self.image[1])
        return down[:, None].to(device, non_blocking=True), across.to(device, non_blocking=True)


def window_grid(protocol: Protocol, image: tuple[int, int]) -> Grid:
    """The windows of a scaled image (height, width), by the protocol's rule; one window without such a rule."""
    if protocol.window is None:
        return Grid(image, image, rows=((0, image[0]),), columns=((0, image[1]),))
    stride = protocol.stride or int(protocol.window * 2 / 3)
    rows, columns = (_spans(side, protocol.window, stride, protocol.window_rule == "truncate") for side in image)
    shape = (protocol.window, protocol.window)
    if protocol.window_rule == "shift_back":  # mmseg's windows shrink to a small image, the authors' are filled
        shape = (min(shape[0], image[0]), min(shape[1], image[1]))
    return Grid(image, shape, rows, columns)


def network_inputs(protocol: Protocol, size: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    """What the network sees of one image of `size` (height, width): for each scale, how many inputs of what shape."""
    grids = [window_grid(protocol, protocol.scaled_size(scale, size)) for scale in protocol.scales]
    return [(len(grid.windows) * (2 if protocol.flip else 1), grid.shape) for grid in grids]


def cut(image: Tensor, window: Window, shape: tuple[int, int], black: Tensor) -> Tensor:
    """The window's part of a normalised batch (B, 3, H, W), filled right and bottom with black (1, 3, 1, 1) to `shape`.

    Without anything to fill it is a view of `image`.
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
