"""Repeating the step of a `nonfinite-step<n>.pt` file, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint, read_torch_file
from segkit.models.weights import NETWORK_PREFIX
from segkit.ops.normalize import Normalization, normalize
from segkit.training.losses import LossConfig, segmentation_loss

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Replay:
    """What a repeated step shows.

    Attributes:
        step: Optimiser steps before it.
        names: Images of the batch.
        loss: Of the repeated forward pass.
        first: Name of the first layer whose output is not finite; None if all are.
        parameters: Names of parameters that are not finite before the step.
    """

    step: int
    names: tuple[str, ...]
    loss: float
    first: str | None
    parameters: tuple[str, ...]


def replay(path: str | Path, device: str = "cpu") -> Replay:
    """Run the kept batch through the kept weights, in training mode and the run's precision.

    Dropout draws anew, and norms see this process's batch only.

    Raises:
        InputError: The file is not one that a stopped run has left.
    """
    kept = read_torch_file(path)
    if not {"batch", "state_dict", "hyper_parameters", "loss_config"} <= kept.keys():
        raise InputError(f"{path}: is no file of a stopped step; give a nonfinite-step....pt of a run")
    weights = {name.removeprefix(NETWORK_PREFIX): value for name, value in kept["state_dict"].items()}
    checkpoint = Checkpoint(kept["hyper_parameters"], weights)
    network = checkpoint.build_network()
    network.to(device).train()
    batch, config = kept["batch"], LossConfig(**kept["loss_config"])
    image = normalize(batch["image"].to(device), Normalization.from_dict(checkpoint.normalization))
    precision = _AUTOCAST.get(kept["precision"])
    with _first_not_finite(network) as found, torch.autocast(device, precision, enabled=precision is not None):
        loss = segmentation_loss(network(image), batch["mask"].to(device), config, network.align_corners)
    spoilt = tuple(name for name, value in weights.items() if not bool(value.isfinite().all()))
    return Replay(kept["step"], tuple(batch["name"]), float(loss), found[0] if found else None, spoilt)


@contextmanager
def _first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """Names of the layers whose outputs are not finite, in the order in which they ran; only those without children."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
