"""Which pixels of a batch a loss counts, and with what weight: hard example mining, and averages over processes."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from segkit.metadata.label_space import IGNORE_INDEX


@torch.no_grad()
def hard_target(probability: Tensor, target: Tensor, threshold: float, min_kept: int) -> Tensor:
    """The target with its easy pixels ignored: online hard example mining.

    Source: mmsegmentation 1.2.2, mmseg/structures/sampler/ohem_pixel_sampler.py (its mode with a threshold), restated
    without boolean indexing, so that no GPU is waited for.

    A valid pixel is hard if the probability of its true class is below `threshold` or, if those are too few, below that
    of the pixel with `min_kept * B` smaller ones in the batch (or below the largest one). The comparison is strict, as
    in mmsegmentation: of equal probabilities at the limit none is kept.

    Args:
        probability: Float `(B, H, W)` of the true classes, and more than 1 at ignored pixels, so that they are sorted
            to the end, as `segkit.ops.upsample_cross_entropy` returns it.
        target: int64 train ids `(B, H, W)`; 255 is ignored.
        threshold: Probability in 0..1.
        min_kept: Minimum number of pixels per image.

    Returns:
        int64 `(B, H, W)`: `target`, with 255 at the pixels that are not hard.
    """
    ordered = probability.flatten().sort().values  # (B H W)
    valid = (target != IGNORE_INDEX).sum()
    last_kept = (valid - 1).clamp(0, min_kept * target.shape[0])
    limit = ordered.gather(0, last_kept[None]).clamp(min=threshold)  # (1)
    return torch.where(probability < limit, target, IGNORE_INDEX)


def own_count(count: Tensor) -> Tensor:
    """The `mean_count` of a single process, which is its own count."""
    return count


class PixelAverage:
    """Divides sums over pixels by their counts, and calls `mean_count` once for each kind of count.

    Args:
        over: "valid" pixels, or "all": ignored ones, too, all alike whatever their class weights.
        mean_count: Takes this process's count, a float scalar on the device, and returns the divisor.
    """

    def __init__(self, over: Literal["valid", "all"], mean_count: Callable[[Tensor], Tensor]) -> None:
        self._over, self._mean_count = over, mean_count
        self._divisors: dict[str, Tensor] = {}

    def __call__(self, total: Tensor, target: Tensor, weights: Tensor | None = None, pixels: str = "valid") -> Tensor:
        """The average of a quantity that sums to `total` over the valid pixels of a target; 0 if its count is 0.

        Args:
            total: Float scalar.
            target: int64 train ids `(B, H, W)`; 255 is ignored.
            weights: Class weights `(K,)`, whose sum over the pixels is then the count.
            pixels: A name for the valid pixels of this target; equal names must mean the same pixels.
        """
        kind = "all" if self._over == "all" else pixels if weights is None else f"weighted {pixels}"
        if kind not in self._divisors:
            count = total.new_full((), target.numel()) if kind == "all" else _count(target, weights).to(total.dtype)
            self._divisors[kind] = self._mean_count(count)
        divisor = self._divisors[kind]
        some = divisor > 0  # not "at least 1", because a mean over processes, or of weights, may be between 0 and 1
        return total * some / torch.where(some, divisor, 1)


def _count(target: Tensor, weights: Tensor | None) -> Tensor:
    """The number of valid pixels, int64, or the sum of their class weights `(K,)`."""
    valid = target != IGNORE_INDEX
    if weights is None:
        return valid.sum()
    return torch.where(valid, weights[torch.where(valid, target, 0)], 0.0).sum()
