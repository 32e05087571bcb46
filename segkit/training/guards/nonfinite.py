"""Stops at a loss that is not finite before it spoils the weights, says where it came from, and keeps it repeatable."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from segkit.errors import InputError
from segkit.files import free_path, replacing
from segkit.models.checkpoint import Checkpoint
from segkit.models.weight_files import read_torch_file
from segkit.models.weights import NETWORK_PREFIX
from segkit.ops.normalize import Normalization, normalize
from segkit.ops.torch_private import BatchNormBase
from segkit.training.base import NetworkModule
from segkit.training.losses import LossConfig, segmentation_loss

_SHOWN = 4  # images that a message names
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class NonFiniteGuard(Callback):
    """Checks loss and gradients before each optimiser step; if they are not finite, no weight is changed.

    The step is then skipped, including running statistics of norms, or, after `skip` skipped steps, training stops and
    the batch, the weights and the settings are kept in `nonfinite-step<n>.pt` for `replay`. All processes decide alike.
    With float16, overflowing gradients are left to the gradient scaler.

    Args:
        skip: How many such steps a run may skip.

    Raises:
        InputError: `skip` is negative.
    """

    def __init__(self, skip: int = 0) -> None:
        if skip < 0:
            raise InputError(f"skip_nonfinite is {skip}; allowed is 0 (stop at the first) or more")
        self.skip = skip
        self.skipped = 0
        self._batches: list[dict[str, Any]] = []  # since the last optimiser step
        self._losses: list[Tensor] = []
        self._statistics: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch, and the norms' statistics before the step."""
        if not self._batches and self.skip:
            self._statistics = [buffer.clone() for buffer in _running(pl_module)]
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember the loss of the batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Skip the step or stop if the loss or a gradient is not finite.

        Raises:
            InputError: The loss or a gradient is not finite, and no more steps may be skipped.
        """
        losses, batches, self._losses, self._batches = self._losses, self._batches, [], []
        if not losses:  # no backward pass, as in the steps of stochastic weight averaging for the norms
            return
        if _is_finite(trainer, pl_module, losses):
            return
        spoilt = next((i for i, loss in enumerate(losses) if not bool(loss.isfinite())), None)
        which = -1 if spoilt is None else spoilt
        batch, loss = batches[which], float(losses[which])
        own = None if spoilt is None else f"the loss is {loss} for {_images(batch)}"
        cause, kept_elsewhere = _cause(trainer, own, batch)
        if self.skipped >= self.skip:
            raise InputError(_stop(trainer, _replayable(trainer, pl_module, batch, loss), cause, kept_elsewhere))
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)  # optimisers skip parameters without a gradient
        for buffer, before in zip(_running(pl_module), self._statistics, strict=True):
            buffer.copy_(before)
        rank_zero_warn(f"left out {_step(trainer)}: {cause} ({self.skipped} of {self.skip} allowed)")

    def state_dict(self) -> dict[str, int]:
        """Keep the number of skipped steps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps that were skipped before the stop."""
        self.skipped = state_dict["skipped"]


def _is_finite(trainer: Trainer, module: LightningModule, losses: Sequence[Tensor]) -> bool:
    finite = torch.stack([*losses]).isfinite().all()
    if trainer.precision != "16-mixed":
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        finite = finite & get_total_norm(gradients).isfinite().to(finite.device)
    flag = finite.to(torch.int32)
    if trainer.world_size > 1:
        dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def _cause(trainer: Trainer, own: str | None, batch: dict[str, Any]) -> tuple[str, bool]:
    """Words on what was not finite, and whether it was in another process's batch only."""
    said: list[str | None] = [own]
    if trainer.world_size > 1:
        said = [None] * trainer.world_size
        dist.all_gather_object(said, own)
    others = [f"in rank {rank} {text}" for rank, text in enumerate(said) if text]
    if own is None and others:
        return others[0], True
    return own or f"a gradient is not finite for {_images(batch)}", False


def _stop(trainer: Trainer, replayable: dict[str, Any], cause: str, kept_elsewhere: bool) -> str:
    """Save everything needed to repeat the step, and return the message."""
    if kept_elsewhere:
        return f"{_step(trainer)}: {cause}; that process has kept the batch"
    rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
    path = free_path(Path(trainer.default_root_dir) / f"nonfinite-step{trainer.global_step:06d}{rank}.pt")
    with replacing(path) as temporary:
        torch.save(replayable, temporary)
    return (
        f"{_step(trainer)}: {cause}; kept in {path}, `python scripts/replay.py {path}` repeats it and names the "
        "first layer; lower --model.optim.lr, raise --model.optim.warmup_steps, or leave such steps out with "
        "--skip_nonfinite 3"
    )


def _replayable(trainer: Trainer, module: LightningModule, batch: dict[str, Any], loss: float) -> dict[str, Any]:
    """Everything needed to repeat the step; called in every process, as each may hold a part of the weights."""
    assert isinstance(module, NetworkModule)
    return {
        "batch": {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()},
        "state_dict": {name: value.cpu() for name, value in module.state_dict().items()},
        "hyper_parameters": dict(module.hparams),
        "loss_config": module.loss_config,
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "lr": [float(group["lr"]) for group in trainer.optimizers[0].param_groups],
        "precision": str(trainer.precision),
        "loss": loss,
    }


def _step(trainer: Trainer) -> str:
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    return f"step {trainer.global_step} (epoch {trainer.current_epoch}, lr {lr:.4g})"


def _images(batch: dict[str, Any]) -> str:
    names = list(batch["name"])
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _running(module: nn.Module) -> list[Tensor]:
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNormBase)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@dataclass(frozen=True)
class Replay:
    """The result of repeating a step.

    Attributes:
        step: Number of optimiser steps before it.
        names: Images of the batch.
        loss: Loss of the repeated forward pass.
        first: Name of the first layer whose output is not finite; None if all outputs are finite.
        parameters: Names of parameters that are not finite before the step.
    """

    step: int
    names: tuple[str, ...]
    loss: float
    first: str | None
    parameters: tuple[str, ...]


def replay(path: str | Path, device: str = "cpu") -> Replay:
    """Run the kept batch through the kept weights, in training mode and the run's precision.

    Dropout is redrawn, and norms see only this process's batch.

    Args:
        path: A `nonfinite-step<n>.pt` file.
        device: Where to run it.

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
    batch = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in kept["batch"].items()}
    image = normalize(batch["image"], Normalization.from_dict(checkpoint.normalization))
    precision = _AUTOCAST.get(kept["precision"])
    with _first_not_finite(network) as found, torch.autocast(device, precision, enabled=precision is not None):
        loss = _loss(network, network(image), batch, kept["loss_config"])
    spoilt = tuple(name for name, value in weights.items() if not bool(value.isfinite().all()))
    return Replay(kept["step"], tuple(batch["name"]), float(loss), found[0] if found else None, spoilt)


def _loss(network: nn.Module, outputs: Any, batch: Mapping[str, Any], config: dict[str, Any]) -> Tensor:
    if "label" in batch:  # classification: without mixup and lighting, which would be redrawn
        return F.cross_entropy(outputs, batch["label"], **config)
    return segmentation_loss(outputs, batch["mask"], LossConfig(**config), bool(network.align_corners))


@contextmanager
def _first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """Names of layers without children whose outputs are not finite, in the order in which they ran."""
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
