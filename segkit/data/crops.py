"""The authors' random scale and crop, crop first: only the pixels of the crop are read and resampled.

Follows PyTorch-Encoding, encoding/datasets/base.py (`_sync_transform`): flip, random long side, pad right and bottom,
random crop. Changed: one transform does all four without ever building the enlarged image, and draws the same crops
with the same probabilities. The mask is padded with 255, because it holds train ids already.

A scaled pixel d lies at (d + 0.5) * step - 0.5 in the source, `step` being source pixels per scaled pixel. A region
that begins at a whole source pixel and is resized by the same step has these very pixels; so the crop is drawn in
scaled pixels, and its corner is then moved to the whole source pixel before it: by less than one source pixel, image
and mask alike, and by nothing where it falls on one. The crop's first row and column do not see their neighbours
outside of it, which in the enlarged image they would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from segkit.arrays import UInt8Array
from segkit.bands import BandArray
from segkit.data.albumentations import A
from segkit.metadata.label_space import IGNORE_INDEX

Size: TypeAlias = tuple[int, int]  # height, width

_EXACT = 1e-7  # source pixels; below it is float rounding
_TRIES = 10  # draws of the crop's place, as in mmsegmentation's RandomCrop
# Share of a crop that a wanted class must cover; DAFormer (Hoyer et al. 2022) wants 3000 pixels of 512 x 512.
WANTED_SHARE = 0.01


@dataclass(frozen=True)
class Lattice:
    """One axis of a crop of a scaled image.

    Attributes:
        source: Pixels of the image.
        scaled: Pixels of the scaled image.
        first: The first pixel of the scaled image that is in the crop.
        count: Pixels of the scaled image that are in the crop.
    """

    source: int
    scaled: int
    first: int
    count: int

    @property
    def step(self) -> float:
        """Source pixels per scaled pixel."""
        return self.source / self.scaled

    @property
    def start(self) -> int:
        """The source pixel at which the crop begins."""
        return int(self.first * self.step + _EXACT)

    @property
    def end(self) -> int:
        """The source pixel after the last one that resizing the crop needs."""
        margin = math.ceil(self.step) + 1  # reach of the antialiasing kernel beyond the last pixel
        return min(self.source, math.ceil(self.start + self.count * self.step) + margin)

    def nearest(self) -> npt.NDArray[np.intp]:
        """The nearest source pixel of each pixel of the crop, on the same lattice on which the image is resized."""
        shift = self.start - self.first * self.step
        steps = np.full(self.first + self.count, self.step)
        steps[0] /= 2
        # Summed step by step, not multiplied, as in Pillow, whose rounding decides ties between two pixels.
        places = np.cumsum(steps)[self.first :] + (shift if shift < -_EXACT else 0.0)
        return np.minimum(np.maximum(places, 0).astype(np.intp), self.source - 1)


@dataclass(frozen=True)
class Window:
    """The part of a crop that lies inside the scaled, possibly mirrored image."""

    rows: Lattice
    cols: Lattice
    flipped: bool = False

    def image(self, image: BandArray, antialias: bool = True) -> BandArray:
        """Resample these pixels of (H, W, C), bilinear: antialiased as by Pillow, or plain as by OpenCV."""
        rows, cols = self.rows, self.cols
        region = image[rows.start : rows.end]
        if self.flipped:
            region = _with_channels(cv2.flip(region[:, cols.source - cols.end : cols.source - cols.start], 1))
        else:
            region = region[:, cols.start : cols.end]
        steps = rows.step, cols.step
        # A copy even if nothing is resampled: later transforms must not write to a cache's pages.
        resized = np.array(region) if steps == (1.0, 1.0) else _resize(region, steps, antialias)
        return resized[: rows.count, : cols.count]

    def mask(self, mask: UInt8Array) -> UInt8Array:
        """Take these pixels of uint8 (H, W), nearest neighbour."""
        rows, cols = self.rows.nearest(), self.cols.nearest()
        if self.flipped:
            cols = self.cols.source - 1 - cols
        first, last = int(cols.min()), int(cols.max())
        # Copying whole rows is fast, copying single pixels is not, so columns are taken as rows of the transposed mask.
        columns = cv2.transpose(mask[rows, first : last + 1])[cols - first]
        return np.asarray(cv2.transpose(columns), np.uint8)


class RandomLongSideCrop(A.DualTransform):  # type: ignore[misc]
    """Mirror at random, scale so that the long side is a random number of pixels, cut a random window, pad if need be.

    The long side is a uniform integer of [int(ratio[0] * base_size), int(ratio[1] * base_size)], both ends included;
    the other side follows as int(other * long / longside + 0.5). With two base sizes it is mmsegmentation's
    RandomResize(keep_ratio=True): a uniform factor, and the largest image that fits into both, scaled by it. The
    image is resampled by bilinear interpolation, the mask by nearest. Where the scaled image is smaller
    than the crop, right and bottom are filled with black and the mask with 255. Images are (H, W, C), uint8, uint16 or
    float32, masks uint8 (H, W).

    A key `wanted_class` in the data (a train id; -1: none) asks for crops of which at least 1 % are of that class.

    Args:
        base_size: Pixels of the long side at ratio 1; or bounds of long and short side.
        crop_size: Pixels, (height, width) or one number for both.
        ratio: Smallest and largest factor of `base_size`.
        flip: Probability of mirroring left and right.
        antialias: Whether an image that becomes smaller is smoothed, as by Pillow, PyTorch-Encoding and torchvision;
            OpenCV's users (mmsegmentation, albumentations) do without.
        cat_max_ratio: Largest share of the valid pixels that one class may have, and at least two must occur; below 1
            another place is drawn, 10 times at most (mmsegmentation's RandomCrop, 0.75 in its recipes). 1: any crop.

    Attributes:
        fill: What black is, a value for all bands or one for each.
    """

    _targets = (A.core.transforms_interface.Targets.IMAGE, A.core.transforms_interface.Targets.MASK)

    def __init__(
        self,
        base_size: int | tuple[int, int],
        crop_size: int | tuple[int, int],
        ratio: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        antialias: bool = True,
        cat_max_ratio: float = 1.0,
    ) -> None:
        super().__init__(p=1.0)
        self.base_size = base_size
        self.crop_size = crop_size if isinstance(crop_size, tuple) else (crop_size, crop_size)
        self.ratio = ratio
        self.flip = flip
        self.antialias = antialias
        self.cat_max_ratio = cat_max_ratio
        self.fill: float | Sequence[float] = 0

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw mirroring, scale and place; the place is drawn again if the mask requires it."""
        source: Size = params["shape"][:2]
        flipped = self.py_random.random() < self.flip
        size = self._draw_size(source)
        wanted = data.get("wanted_class", -1)
        best, most = self._draw_window(source, size, flipped), -1
        if self.cat_max_ratio >= 1 and wanted < 0:
            return {"window": best}
        window = best
        for _ in range(_TRIES):
            counts = _histogram(window.mask(data["mask"]))
            found = int(counts[wanted]) if wanted >= 0 else 0
            if found > most:
                best, most = window, found
            if self._is_varied(counts) and (wanted < 0 or found >= WANTED_SHARE * math.prod(self.crop_size)):
                return {"window": window}
            window = self._draw_window(source, size, flipped)
        return {"window": window if wanted < 0 else best}

    def apply(self, img: BandArray, window: Window, **params: Any) -> BandArray:
        """Cut the crop out of the image."""
        inside = window.image(img, self.antialias)
        if inside.shape[:2] == self.crop_size:
            return inside
        return _padded(inside, self.crop_size, self.fill)

    def apply_to_mask(self, mask: UInt8Array, window: Window, **params: Any) -> UInt8Array:
        """Cut the crop out of the mask."""
        inside = window.mask(mask)
        if inside.shape == self.crop_size:
            return inside
        return _padded(inside, self.crop_size, IGNORE_INDEX)

    def _draw_size(self, source: Size) -> Size:
        if isinstance(self.base_size, tuple):
            factor = self.py_random.uniform(*self.ratio)
            return bounded_size(source, int(self.base_size[0] * factor), int(self.base_size[1] * factor))
        low, high = (int(factor * self.base_size) for factor in self.ratio)
        return scaled_size(source, self.py_random.randint(low, high))

    def _draw_window(self, source: Size, size: Size, flipped: bool) -> Window:
        left = self.py_random.randint(0, max(size[1] - self.crop_size[1], 0))
        top = self.py_random.randint(0, max(size[0] - self.crop_size[0], 0))
        rows = Lattice(source[0], size[0], top, min(size[0], self.crop_size[0]))
        cols = Lattice(source[1], size[1], left, min(size[1], self.crop_size[1]))
        return Window(rows, cols, flipped)

    def _is_varied(self, counts: npt.NDArray[np.int64]) -> bool:
        if self.cat_max_ratio >= 1:
            return True
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())


def scaled_size(size: Size, long: int) -> Size:
    """(H, W) scaled so that the long side has `long` pixels, rounded as the authors round."""
    height, width = size
    if height > width:
        return long, max(1, int(1.0 * width * long / height + 0.5))
    return max(1, int(1.0 * height * long / width + 0.5)), long


def bounded_size(size: Size, long: int, short: int) -> Size:
    """The largest (H, W) of the same aspect ratio whose long and short side fit, rounded as by mmcv's rescale_size."""
    factor = min(long / max(size), short / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _resize(region: BandArray, steps: tuple[float, float], antialias: bool) -> BandArray:
    """Pillow's BILINEAR: if nothing shrinks, by OpenCV, which only rounds differently; else by PyTorch, antialiased."""
    if max(steps) <= 1 or not antialias:
        resized = cv2.resize(region, None, fx=1 / steps[1], fy=1 / steps[0], interpolation=cv2.INTER_LINEAR)
        return _with_channels(resized)
    factors = tuple((1 + 1e-9) / step for step in steps)  # the size is rounded down, so 479.999... must not occur
    batch = torch.from_numpy(np.array(region, order="C"))[None].permute(0, 3, 1, 2)  # (H, W, C) -> (1, C, H, W)
    is_deep = batch.dtype == torch.uint16  # which PyTorch does not resample
    values = batch.float() if is_deep else batch
    small = F.interpolate(values, scale_factor=factors, mode="bilinear", antialias=True, recompute_scale_factor=False)
    small = small.round_().to(torch.uint16) if is_deep else small
    made: BandArray = small[0].permute(1, 2, 0).numpy()
    return made


def _with_channels(image: Any) -> BandArray:
    """OpenCV's result as (H, W, C), with the axis of a single channel that OpenCV drops."""
    made: BandArray = image if image.ndim == 3 else image[..., None]
    return made


def _padded(inside: BandArray, size: Size, fill: float | Sequence[float]) -> BandArray:
    """Pad `inside` with `fill` on the right and at the bottom, writing no pixel twice."""
    rows, cols = inside.shape[:2]
    out = np.empty((*size, *inside.shape[2:]), inside.dtype)
    out[:rows, :cols] = inside
    out[:rows, cols:] = fill
    out[rows:] = fill
    return out


def _histogram(mask: UInt8Array) -> npt.NDArray[np.int64]:
    """Pixels of each train id 0..254."""
    counts = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel()
    return counts[:IGNORE_INDEX].astype(np.int64)
