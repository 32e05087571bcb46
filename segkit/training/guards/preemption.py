"""Stops a run on a signal: finishes the step, writes `last.ckpt`, requeues the SLURM job, and ends."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from segkit.training.guards.checkpoints import LastCheckpoint, begins_step

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
_EVERY = 10  # batches between two exchanges with the other processes


class Preempted(BaseException):  # like KeyboardInterrupt, it must pass `except Exception`
    """Training was stopped by a signal, and the checkpoint to resume from is written.

    Attributes:
        signum: The signal.
        checkpoint: Checkpoint to resume from.
    """

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; resume from {checkpoint}")
        self.signum = signum
        self.checkpoint = checkpoint


class Preemption(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C: end the step, save, and raise `Preempted` in all processes at the same moment.

    In a validation only the current image is finished: `last.ckpt` was written before the step that the validation
    follows, and both are repeated. SLURM sends SIGTERM before it preempts a job, and with `--signal=SIGUSR1@120` that
    signal before the time limit; under SLURM the job is then requeued. A second Ctrl-C stops at once.

    Args:
        last: The callback that writes `last.ckpt`.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self._received = 0  # the signal that this process received
        self._agreed = 0  # the signal that all processes know of
        self._shared = 0  # validation batches that every process has
        self._replaced: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install handlers in place of Lightning's, whose broadcasts from inside a signal handler can cross others."""
        if self._replaced or threading.current_thread() is not threading.main_thread():  # Python allows none there
            return
        for signum in SIGNALS:
            self._replaced[signum] = signal.signal(signum, self._receive)
        if trainer.received_sigterm:  # received before this moment
            self._received = signal.SIGTERM
        self._ask(trainer)
        self._stop(trainer)

    on_sanity_check_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask whether any process has received a signal; acting on it waits until the step's values are logged."""
        if _is_time(trainer, batch_idx) or batch_idx + 1 == trainer.num_training_batches:
            self._ask(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the epoch's end, at which `last.ckpt` was written."""
        self._stop(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save and stop between two optimiser steps."""
        if self._agreed and begins_step(trainer, batch_idx):
            self.last.save(trainer)
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation begins."""
        self._stop(trainer)
        shared = torch.tensor(sum(trainer.num_val_batches), device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            dist.all_reduce(shared, dist.ReduceOp.MIN)
        self._shared = 0 if trainer.sanity_checking and trainer.world_size > 1 else int(shared)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Stop after an image of a validation."""
        if batch_idx < self._shared and _is_time(trainer, batch_idx):
            self._ask(trainer)
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the previous signal handlers."""
        for signum, handler in self._replaced.items():
            signal.signal(signum, handler)
        self._replaced = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self.on_train_end(trainer, pl_module)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received:
            raise Preempted(signum, self.last.path)
        self._received = signum

    def _ask(self, trainer: Trainer) -> None:
        """Find out whether this process or another one has received a signal."""
        if trainer.world_size == 1:
            self._agreed = self._received
            return
        largest = torch.tensor(self._received, device=trainer.strategy.root_device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        self._agreed = int(largest)

    def _stop(self, trainer: Trainer) -> None:
        if not self._agreed:
            return
        rank_zero_info(f"\n{signal.Signals(self._agreed).name}: stopping")
        job = slurm_job(os.environ)
        if job and self._agreed != signal.SIGINT and trainer.is_global_zero:
            requeue(job)
        raise Preempted(self._agreed, self.last.path)


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """The id of this process's batch job, as `scontrol` takes it; None outside SLURM's jobs."""
    if environment.get("SLURM_JOB_NAME") in (None, "bash", "interactive"):
        return None
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None


def requeue(job: str) -> None:
    """Ask SLURM to run the job again; a warning says if that failed."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        rank_zero_info(f"job {job} is queued again")
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        rank_zero_warn(f"job {job} could not be queued again ({reason}); submit it yourself: it resumes from there")


def _is_time(trainer: Trainer, batch_idx: int) -> bool:
    """Whether to ask after this batch; a single process always asks, as it costs nothing."""
    return trainer.world_size == 1 or (batch_idx + 1) % _EVERY == 0
