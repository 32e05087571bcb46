"""From sums over pixels to averages that are the same however a batch is spread over processes."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from segkit.metadata.label_space import IGNORE_INDEX


def own_count(count: Tensor) -> Tensor:
    """The `mean_count` of a single process: its own."""
    return count


class PixelAverage:
    """Divides sums over pixels by their counts, each kind of which is asked of `mean_count` once.

    Args:
        over: "valid" pixels, or "all": the ignored ones too, and all alike whatever their class weights.
        mean_count: Gets this process's count, a float scalar on the device, and returns the divisor.
    """

    def __init__(self, over: Literal["valid", "all"], mean_count: Callable[[Tensor], Tensor]) -> None:
        self._over, self._mean_count = over, mean_count
        self._divisors: dict[str, Tensor] = {}

    def __call__(self, total: Tensor, target: Tensor, weights: Tensor | None = None, pixels: str = "valid") -> Tensor:
        """The average of what sums to `total` over the valid pixels of a target; 0 if its count is 0.

        Args:
            total: Float scalar.
            target: int64 train ids `(B, H, W)`; 255 is ignored.
            weights: Class weights `(K,)`, whose sum over the pixels is then the count.
            pixels: A name for the valid pixels of this target; the same name must mean the same ones.
        """
        kind = "all" if self._over == "all" else pixels if weights is None else f"weighted {pixels}"
        if kind not in self._divisors:
            count = total.new_full((), target.numel()) if kind == "all" else _count(target, weights).to(total.dtype)
            self._divisors[kind] = self._mean_count(count)
        divisor = self._divisors[kind]
        some = divisor > 0  # not "at least 1": a mean over processes, or of weights, may well lie between 0 and 1
        return total * some / torch.where(some, divisor, 1)


def _count(target: Tensor, weights: Tensor | None) -> Tensor:
    """The number of valid pixels, int64, or the sum of their class weights `(K,)`."""
    valid = target != IGNORE_INDEX
    if weights is None:
        return valid.sum()
    return torch.where(valid, weights[torch.where(valid, target, 0)], 0.0).sum()
