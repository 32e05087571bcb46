"""Reads the attention inside a network by hooks: ResNeSt's splits, SENet's gates and SKNet's selective kernels.

All of them weight each of C channels of each of R splits (SENet: of one) by one number for the whole image, so what a
class prefers is measured over its pixels: the share of split r at a cell is its part of the weighted sum there,
sum_c a[r, c] |s[r, c]| / sum_r' sum_c a[r', c] |s[r', c]|, with attention a and splits s. Where R is 1, the mean of the
gates a, weighted by |s| at the cell, takes its place.

Letters: B batch, K classes, C channels, R radix, G cardinality, H W pixels, h w feature cells.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segkit.arrays import Float64Array, UInt8Array
from segkit.models.resnest import SplitAttention
from segkit.ops.split_attention import radix_weights

_GATED = ("SEModule", "EffectiveSEModule", "SqueezeExcite")  # timm's, by name: importing timm takes seconds


class Reading(NamedTuple):
    """The attention of one block.

    Attributes:
        weights: Float (B, R, C): the softmax over R or, if R is 1, the gates.
        share: Float (B, R, h, w): see above; the mean of `weights` where all splits are 0.
    """

    weights: Tensor
    share: Tensor


_Note = Callable[[Tensor, Tensor], None]  # of splits (B, R, C, h, w) and weights (B, R, C)


@contextmanager
def reading(network: nn.Module) -> Iterator[dict[str, Reading]]:
    """Read the attention of the forwards inside the block, whose results stay the same.

    Yields:
        The last reading of each block by its module's name, in the order of the forward.
    """
    read: dict[str, Reading] = {}

    def note(name: str, splits: Tensor, weights: Tensor) -> None:
        size = splits.detach().abs()
        attended = torch.einsum("brc,brchw->brhw", weights.detach(), size)
        whole = attended.sum(1, keepdim=True) if weights.shape[1] > 1 else size.sum(2)  # (B, 1, h, w)
        means = weights.detach().mean(2)[..., None, None]  # (B, R, 1, 1)
        read[name] = Reading(weights.detach(), torch.where(whole > 0, attended / whole, means))

    handles = [handle for name, module in network.named_modules() for handle in _watch(module, partial(note, name))]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _watch(module: nn.Module, note: _Note) -> list[Any]:
    """Put hooks on a module with attention, none on any other."""
    parts, held = dict(module.named_children()), list[Tensor]()

    def hold(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        held[:] = held or [inputs[0] if output is None else output]  # of split attention's two ReLUs the first

    if isinstance(module, SplitAttention):
        radix, cardinality = module.radix, module.cardinality

        def note_splits(_: nn.Module, inputs: Any, logits: Tensor) -> None:
            weights = radix_weights(logits, radix, cardinality).flatten(1)  # (B, R*C), radix-major
            note(held.pop().unflatten(1, (radix, -1)), weights.unflatten(1, (radix, -1)))

        return [module.relu.register_forward_hook(hold), module.fc2.register_forward_hook(note_splits)]
    if type(module).__name__ in _GATED:

        def note_gate(_: nn.Module, inputs: Any, gates: Tensor) -> None:
            note(held.pop().unsqueeze(1), gates.flatten(1).unsqueeze(1))

        return [module.register_forward_pre_hook(hold), parts["gate"].register_forward_hook(note_gate)]
    if type(module).__name__ == "SelectiveKernel":
        return [parts["attn"].register_forward_hook(lambda _, inputs, weights: note(inputs[0], weights.flatten(2)))]
    return []


class ClassShares:
    """The mean share of each split over the predicted pixels of each class, added up over images.

    Attributes:
        pixels: int64 (K,).
        sums: Of each block (R, K), the shares added up over these pixels.
    """

    def __init__(self, num_classes: int) -> None:
        self.pixels = np.zeros(num_classes, np.int64)
        self.sums: dict[str, Float64Array] = {}

    def add(self, readings: Mapping[str, Reading], labels: UInt8Array, covered: tuple[int, int]) -> None:
        """Add an image.

        Args:
            readings: Of a batch of this image alone.
            labels: (H, W) train ids.
            covered: Height and width of all cells, in pixels; a network may have padded the image at its end.
        """
        ids, count = labels.ravel(), len(self.pixels)
        self.pixels += np.bincount(ids, minlength=count)
        for name, read in readings.items():
            share = read.share[0].double().cpu().numpy()  # (R, h, w)
            rows, columns = (np.arange(labels.shape[i]) * share.shape[i + 1] // covered[i] for i in (0, 1))
            total = self.sums.setdefault(name, np.zeros((len(share), count)))
            total += [np.bincount(ids, cells[rows[:, None], columns].ravel(), count) for cells in share]

    def include(self, other: "ClassShares") -> None:
        """Add the images that another one has."""
        self.pixels += other.pixels
        for name, sums in other.sums.items():
            self.sums[name] = self.sums.get(name, 0) + sums

    def means(self) -> dict[str, Float64Array]:
        """(K, R) of each block; NaN of classes without pixels."""
        with np.errstate(invalid="ignore"):
            return {name: (sums / self.pixels).T for name, sums in self.sums.items()}
