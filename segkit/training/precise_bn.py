"""Precise batch norm: running statistics measured again, as averages over many batches at fixed weights.

Training leaves a moving average over weights that were still changing (Wu and Johnson 2021, "Rethinking 'Batch' in
BatchNorm", section 3.1). The average is PyTorch-Encoding's (encoding/utils/precise_bn.py, 200 batches): the mean of the
batch means, and the mean of the batch variances. Variances are UNBIASED, as in torch's batch norms and in Ioffe and
Szegedy 2015 (algorithm 2) for inference. The variance of the batch means is not added, so batches should be as large as
in training. `torch.optim.swa_utils.update_bn` computes it; changed here: frozen norms keep their statistics, the given
network is not modified, and input that would give wrong numbers is refused.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint
from segkit.ops.normalize import Normalization, normalize
from segkit.ops.torch_private import BatchNormBase


@dataclass(frozen=True)
class Change:
    """How far the statistics of a batch norm moved.

    Attributes:
        layer: Its name in the network.
        mean: |new - old| / |old| of its running mean, Euclidean over the channels; infinite from 0.
        variance: The same for its running variance.
    """

    layer: str
    mean: float
    variance: float


@dataclass(frozen=True)
class Recalibration:
    """A network whose batch norms have new statistics, and how far these moved.

    Attributes:
        network: A copy with the new statistics, each part in its former training or eval mode. Its counters
            `num_batches_tracked` hold the number of batches.
        batches: Number of batches that were averaged.
        images: Number of images in them.
        changes: One for each recalibrated norm, in the network's order.
    """

    network: nn.Module
    batches: int
    images: int
    changes: tuple[Change, ...]


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> Recalibration:
    """Average the statistics of all batch norms over batches, as the module's docstring says.

    Frozen norms keep theirs and normalise with them: those in eval mode in a network that trains, those whose weights
    need no gradient where other weights do, and those that keep no statistics. The forward passes are those of
    training: dropout and DropBlock are active, so with DropBlock the result depends on torch's seed.

    Args:
        network: Maps a batch to anything; left as it is.
        batches: Normalised float (B, C, H, W) on the network's device, of equal B, since each batch counts the same.
            Each norm must see more than one value a channel: B of 2 or more where images are pooled to 1x1.

    Raises:
        InputError: There is no batch norm, all are frozen, there is no batch, or statistics come out infinite or NaN.
        ValueError: torch's, of a batch with one value a channel.
    """
    fresh = copy.deepcopy(network)
    norms = {name: module for name, module in fresh.named_modules() if isinstance(module, BatchNormBase)}
    moving = {name: norm for name, norm in norms.items() if not _is_frozen(norm, fresh)}
    if not moving:
        frozen = f"all its {len(norms)} batch norms are frozen" if norms else "it has no batch norm"
        raise InputError(f"{type(network).__name__}: {frozen}, so there is nothing to recalibrate; use it as it is")
    view = _View(fresh, list(moving.values()), [norm for name, norm in norms.items() if name not in moving])
    update_bn(batches, view)
    if view.batches == 0:
        raise InputError("recalibrate: no batch was given, so there are no statistics; give one or more")
    for copied, original in zip(fresh.modules(), network.modules(), strict=True):
        copied.training = original.training
    before = dict(network.named_modules())
    changes = tuple(_change(name, before[name], norm) for name, norm in moving.items())
    return Recalibration(fresh, view.batches, view.images, changes)


def recalibrate_checkpoint(
    checkpoint: Checkpoint, images: Iterable[Tensor], device: torch.device, seed: int = 0
) -> tuple[Checkpoint, Recalibration]:
    """`recalibrate` a checkpoint's network, and drop its scores and temperature, which belong to the old statistics.

    Args:
        checkpoint: A checkpoint of a whole network.
        images: uint8 (B, 3, H, W) crops, as in training.
        device: Where to compute.
        seed: Seed of DropBlock.

    Raises:
        InputError: See `recalibrate`.
    """
    network = checkpoint.build_network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalization = Normalization.from_dict(checkpoint.normalization)
    torch.manual_seed(seed)
    result = recalibrate(network, (normalize(i.to(device, non_blocking=True), normalization) for i in images))
    card = {name: part for name, part in checkpoint.card.items() if name != "calibration"} | {"scores": []}
    return replace(checkpoint, state_dict=result.network.state_dict(), card=card), result


class _View(nn.Module):
    """A network as `update_bn` sees it: only the norms to recalibrate; frozen ones stay in eval mode."""

    def __init__(self, network: nn.Module, moving: Sequence[nn.Module], frozen: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.moving, self.frozen = moving, frozen
        self.batches = self.images = 0

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """The norms whose statistics are first set to 0 and 1, and then averaged."""
        return iter(self.moving)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the frozen norms."""
        super().train(mode)
        for norm in self.frozen:
            norm.eval()
        return self

    def forward(self, batch: Tensor) -> Any:
        """Run the network, and count batches and images."""
        self.batches += 1
        self.images += len(batch)
        return self.network(batch)


def _is_frozen(norm: BatchNormBase, network: nn.Module) -> bool:
    if not norm.track_running_stats or norm.running_mean is None:
        return True
    if network.training and not norm.training:
        return True
    others_learn = any(parameter.requires_grad for parameter in network.parameters())
    return norm.affine and others_learn and not any(parameter.requires_grad for parameter in norm.parameters())


def _change(name: str, old: nn.Module, new: BatchNormBase) -> Change:
    assert isinstance(old, BatchNormBase)
    pairs = ((old.running_mean, new.running_mean), (old.running_var, new.running_var))
    mean, variance = (_relative(name, before, after) for before, after in pairs)
    return Change(name, mean, variance)


def _relative(name: str, old: Tensor | None, new: Tensor | None) -> float:
    assert old is not None and new is not None
    if not new.isfinite().all():
        raise InputError(
            f"{name}: its statistics over these batches are infinite or NaN, so the network overflows on them; check "
            "its weights and the normalisation of the images"
        )
    size, distance = float(old.double().norm()), float((new.double() - old.double()).norm())
    return distance / size if size > 0 else math.inf if distance > 0 else 0.0
