"""The effective receptive field of an encoder: how much each pixel moves the feature at the centre.

Luo et al. 2016 (arXiv 1701.04128), section 2: the gradient of the centre cell of the last feature, its channels added
up, by the input; its absolute value, added up over the input's channels, is averaged over images.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segkit.arrays import Float64Array
from segkit.errors import InputError
from segkit.explain.look import padded, stages_of
from segkit.inference.tiling.receptive_field import receptive_field
from segkit.models.resnest import RESNEST_VARIANTS
from segkit.models.segmentation import SegmentationModel, build_network

SIDE = 513  # pixels; its centre is that of a cell at every output stride up to 32
ENERGY = 0.95


class EffectiveField(NamedTuple):
    """The effective receptive field of one encoder.

    Attributes:
        name: What to call it.
        gradient: Float (S, S) around the centre, adding up to 1.
        side: Pixels along a side of the smallest square around the centre that holds 95 % of the gradient's energy, the
            sum of its squares.
        bound: Pixels that a cell can see along a side, global pools left out; None: not known.
        beyond: Share of the gradient outside of `bound`, by global pools; None if `gradient` does not reach as far.
    """

    name: str
    gradient: Float64Array
    side: int
    bound: int | None
    beyond: float | None


def wired(network: SegmentationModel, convention: str) -> SegmentationModel:
    """The network with the same weights, its ResNeSt dilated by another convention.

    Raises:
        InputError: Its encoder is no ResNeSt.
    """
    arguments = network.config["init_args"]
    encoder = arguments.get("encoder", type(network.encoder).__name__)
    if encoder not in RESNEST_VARIANTS:
        raise InputError(
            f"--receptive_field {convention}: only a ResNeSt has dilation conventions, and the encoder is {encoder}; "
            "give --receptive_field without one"
        )
    made = build_network({**network.config, "init_args": {**arguments, "dilation_convention": convention}})
    made.load_state_dict(network.state_dict())
    return made.to(next(network.parameters()).device).eval().requires_grad_(False)


def crops(x: Tensor, count: int, seed: int = 0) -> list[Tensor]:
    """Crops (1, C, S, S) of an image (1, C, H, W), each around a random pixel; beyond its border it is mirrored."""
    around = SIDE // 2
    wide = np.pad(x.cpu().numpy(), ((0, 0), (0, 0), (around, around), (around, around)), mode="symmetric")
    corners = np.random.default_rng(seed).integers(0, x.shape[-2:], (count, 2))
    return [torch.from_numpy(wide[..., top : top + SIDE, left : left + SIDE].copy()) for top, left in corners]


def effective_field(name: str, network: SegmentationModel, inputs: Iterable[Tensor]) -> EffectiveField:
    """Measure the effective receptive field of a network's encoder.

    Args:
        name: What to call it.
        network: In eval mode, its parameters not requiring gradients.
        inputs: Normalised float (1, C, S, S) each, as `crops` makes them.

    Raises:
        InputError: The network is a user's own, without stages.
    """
    encoder: Any = network.encoder
    total = np.zeros((SIDE, SIDE))
    for one in inputs:
        x = one.to(next(network.parameters()).device).requires_grad_()
        with torch.enable_grad():
            seen = padded(network, x)
            stages = stages_of(encoder(seen))
        if not stages:
            raise InputError(f"--receptive_field: {type(encoder).__name__} has no stages to look at; leave it out")
        row, column = (SIDE // 2 * stages[-1].shape[i] // seen.shape[i] for i in (2, 3))
        (gradient,) = torch.autograd.grad(stages[-1][..., row, column].sum(), x)
        total += gradient.abs().sum((0, 1)).double().cpu().numpy()
    gradient = total / total.sum()
    distance = np.abs(np.arange(len(total)) - len(total) // 2)
    ring, bound = np.maximum.outer(distance, distance), _bound(encoder)
    energy = np.bincount(ring.ravel(), gradient.ravel() ** 2).cumsum()
    side = 2 * int((energy < ENERGY * energy[-1]).sum()) + 1
    beyond = None if bound is None or bound > SIDE else float(gradient[ring > bound // 2].sum())
    return EffectiveField(name, gradient, side, bound, beyond)


class _LastFeature(nn.Module):
    """An encoder as `receptive_field` takes a network."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": stages_of(self.encoder(x))[-1]}


def _bound(encoder: Any) -> int | None:
    try:
        field = receptive_field(_LastFeature(encoder), encoder.channels[0])
    except InputError:  # it does not run without values
        return None
    return field.before + 1 + field.after
