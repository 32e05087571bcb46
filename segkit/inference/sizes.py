"""How large a view of an image is: the size rules of the toolkits, pure integers in and out.

Each rounds in its own way, and a pixel more or less moves every sample of the resize that follows. Sources:
PyTorch-Encoding (encoding/models/sseg/base.py), mmcv 2.1.0 (image/geometric.py `rescale_size`, transforms/processing.py
`Resize`) with mmsegmentation 0.x (datasets/pipelines/test_time_aug.py), CSAIL (mit_semseg/dataset.py `ValDataset`).
Letters: sizes are (height, width) in pixels; no side is ever less than 1.
"""

from __future__ import annotations

import math

Size = tuple[int, int]

CSAIL_MULTIPLE = 8  # CSAIL's DATASET.padding_constant: the largest stride of its networks


def both_sides(size: Size, scale: float) -> Size:
    """Each side times `scale`, halves up: segkit's own rule, and PaddleSeg's (paddleseg/core/infer.py)."""
    return _at_least_one(size[0] * scale + 0.5, size[1] * scale + 0.5)


def long_side(size: Size, base_size: int, scale: float) -> Size:
    """The longer side becomes ceil(base_size * scale), the other follows, halves up: PyTorch-Encoding's rule."""
    return _one_side(size, base_size, scale, height_is_side=size[0] > size[1])


def short_side(size: Size, base_size: int, scale: float) -> Size:
    """The shorter side becomes ceil(base_size * scale), the other follows, halves up."""
    return _one_side(size, base_size, scale, height_is_side=size[0] <= size[1])


def mmcv_image(size: Size, scale: float) -> Size:
    """mmcv's `Resize(scale_factor=scale, keep_ratio=True)`: each side is rounded, then the image is fitted inside.

    The two roundings are why a side can be one pixel less than with `both_sides`.
    """
    height, width = both_sides(size, scale)
    return _fit(size, max(height, width), min(height, width))


def mmcv_limits(size: Size, limits: tuple[int, int], scale: float) -> Size:
    """mmcv's `Resize(scale=limits, keep_ratio=True)`: as large as fits (long side, short side), small ones grow.

    `scale` multiplies the limits first, rounded down, as mmsegmentation 0.x does with its `img_ratios`.
    """
    return _fit(size, int(limits[0] * scale), int(limits[1] * scale))


def csail(size: Size, base_size: int, long_limit: int, scale: float) -> Size:
    """The short side becomes base_size * scale unless the long one would pass `long_limit`; CSAIL's rule.

    Both are rounded down, then up to a multiple of 8, so that the aspect ratio is not quite kept.
    """
    height, width = size
    factor = min(base_size * scale / float(min(size)), long_limit / float(max(size)))
    return _multiple(int(height * factor)), _multiple(int(width * factor))


def _one_side(size: Size, base_size: int, scale: float, height_is_side: bool) -> Size:
    side = math.ceil(base_size * scale)
    old, other = size if height_is_side else (size[1], size[0])
    # Halves go up, as the authors round; Python's round() would send them to the even number.
    other = max(1, int(1.0 * other * side / old + 0.5))
    return (side, other) if height_is_side else (other, side)


def _fit(size: Size, long_limit: int, short_limit: int) -> Size:
    factor = min(long_limit / max(size), short_limit / min(size))
    return _at_least_one(size[0] * factor + 0.5, size[1] * factor + 0.5)


def _multiple(side: int) -> int:
    return max(1, math.ceil(side / CSAIL_MULTIPLE)) * CSAIL_MULTIPLE


def _at_least_one(height: float, width: float) -> Size:
    return max(1, int(height)), max(1, int(width))
