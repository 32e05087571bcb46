"""A loss that is no number: stop before it spoils the weights, say where it came from, and keep what repeats it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from segkit.errors import InputError
from segkit.files import free_path, replacing
from segkit.ops.torch_private import BatchNormBase
from segkit.training.module import SegmentationModule

_SHOWN = 4  # images that a message names


class NonFiniteGuard(Callback):
    """Looks at loss and gradients before each optimiser step; where they are not finite, no weight is changed.

    The step is then left out, running statistics of norms included, or, once `skip` steps have been, training stops;
    the batch, the weights and the settings are kept in `nonfinite-step<n>.pt` for `segkit.training.guards.replay`. All
    processes decide alike. With float16, gradients that overflow are the gradient scaler's business.

    Args:
        skip: How many such steps may be left out in a run.

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

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch, and what the norms knew before the step."""
        if not self._batches and self.skip:
            self._statistics = [buffer.clone() for buffer in _running(pl_module)]
        self._batches.append(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Leave the step out, or stop.

        Raises:
            InputError: The loss or a gradient is not finite, and no step may be left out any more.
        """
        losses, batches, self._losses, self._batches = self._losses, self._batches, [], []
        if not losses:  # a step without a backward pass, as stochastic weight averaging makes for the norms
            return
        if self._is_finite(trainer, pl_module, losses):
            return
        spoilt = next((i for i, loss in enumerate(losses) if not bool(loss.isfinite())), None)
        which = -1 if spoilt is None else spoilt
        batch, loss = batches[which], float(losses[which])
        own = None if spoilt is None else f"the loss is {loss} for {_images(batch)}"
        cause, kept_elsewhere = _cause(trainer, own, batch)
        if self.skipped >= self.skip:
            raise InputError(self._stop(trainer, pl_module, batch, loss, cause, kept_elsewhere))
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)  # an optimiser leaves parameters without a gradient alone
        for buffer, before in zip(_running(pl_module), self._statistics, strict=True):
            buffer.copy_(before)
        rank_zero_warn(f"left out {_step(trainer)}: {cause} ({self.skipped} of {self.skip} allowed)")

    def state_dict(self) -> dict[str, int]:
        """How many steps were left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """How many were left out before."""
        self.skipped = state_dict["skipped"]

    def _is_finite(self, trainer: pl.Trainer, module: pl.LightningModule, losses: Sequence[Tensor]) -> bool:
        finite = torch.stack([*losses]).isfinite().all()
        if trainer.precision != "16-mixed":
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            finite = finite & get_total_norm(gradients).isfinite().to(finite.device)
        flag = finite.to(torch.int32)
        if trainer.world_size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def _stop(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        batch: dict[str, Any],
        loss: float,
        cause: str,
        kept_elsewhere: bool,
    ) -> str:
        """Save what repeats the step; the message."""
        assert isinstance(module, SegmentationModule)
        replayable = _replayable(trainer, module, batch, loss)  # on all processes: they may hold parts of the weights
        if kept_elsewhere:
            return f"{_step(trainer)}: {cause}; that process has kept the batch"
        path = free_path(Path(trainer.default_root_dir) / f"nonfinite-step{trainer.global_step:06d}{_of(trainer)}.pt")
        with replacing(path) as temporary:
            torch.save(replayable, temporary)
        return (
            f"{_step(trainer)}: {cause}; kept in {path}, `python scripts/replay.py {path}` repeats it and names the "
            "first layer; lower --model.optim.lr, raise --model.optim.warmup_steps, or leave such steps out with "
            "--skip_nonfinite 3"
        )


def _step(trainer: pl.Trainer) -> str:
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    return f"step {trainer.global_step} (epoch {trainer.current_epoch}, lr {lr:.4g})"


def _images(batch: dict[str, Any]) -> str:
    names = list(batch["name"])
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _cause(trainer: pl.Trainer, own: str | None, batch: dict[str, Any]) -> tuple[str, bool]:
    """What was not finite, in words, and whether it was in another process's batch only."""
    said: list[str | None] = [own]
    if trainer.world_size > 1:
        said = [None] * trainer.world_size
        dist.all_gather_object(said, own)
    others = [f"in rank {rank} {text}" for rank, text in enumerate(said) if text]
    if own is None and others:
        return others[0], True
    return own or f"a gradient is not finite for {_images(batch)}", False


def _replayable(trainer: pl.Trainer, module: SegmentationModule, batch: dict[str, Any], loss: float) -> dict[str, Any]:
    return {
        "batch": {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()},
        "state_dict": {name: value.cpu() for name, value in module.state_dict().items()},
        "hyper_parameters": dict(module.hparams),
        "loss_config": asdict(module.loss),
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "lr": [float(group["lr"]) for group in trainer.optimizers[0].param_groups],
        "precision": str(trainer.precision),
        "loss": loss,
    }


def _running(module: nn.Module) -> list[Tensor]:
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNormBase)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _of(trainer: pl.Trainer) -> str:
    return f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
