"""Stopping on a signal: finish the step, write `last.ckpt`, hand the job back to SLURM, end."""

import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from segkit.training.guards.checkpoint_io import LAST

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
_EVERY = 10  # steps between two questions to the other processes


class Preempted(Exception):  # noqa: N818  (nothing went wrong)
    """Training was stopped by a signal, after a checkpoint was written.

    Attributes:
        signum: The signal.
        checkpoint: What to go on from.
    """

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; saved {checkpoint}")
        self.signum = signum
        self.checkpoint = checkpoint


class Preemption(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C: end the step, save, and raise `Preempted` in all processes at the same step.

    SLURM sends SIGTERM before it preempts a job, and what `--signal=SIGUSR1@120` asks for before the time is up; under
    SLURM the job is then requeued. A second Ctrl-C stops at once. During validation the signal waits for its end.
    """

    def __init__(self) -> None:
        self._received = 0
        self._stopped: Preempted | None = None
        self._replaced: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, in the place of Lightning's handlers, whose broadcasts from within a signal can cross others."""
        if threading.current_thread() is not threading.main_thread():  # where Python lets nobody listen
            return
        for signum in SIGNALS:
            self._replaced[signum] = signal.signal(signum, self._receive)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if any process has received a signal."""
        signum = self._of_any(trainer, batch_idx)
        if not signum:
            return
        path = Path(trainer.default_root_dir) / "checkpoints" / LAST
        rank_zero_info(f"\n{signal.Signals(signum).name}: saving {path}")
        trainer.save_checkpoint(path)
        job = slurm_job(os.environ)
        if job and signum != signal.SIGINT and trainer.is_global_zero:
            requeue(job)
        self._stopped = Preempted(signum, path)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop after a save: only now what the step has measured is logged."""
        self._stop()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a save."""
        self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a save."""
        self._stop()

    def _stop(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no longer."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._restore()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = signum

    def _of_any(self, trainer: pl.Trainer, batch_idx: int) -> int:
        """The signal that this process, or another one, has received; 0 if none has."""
        if trainer.world_size == 1:
            return self._received
        if (batch_idx + 1) % _EVERY and not _is_last(trainer, batch_idx):
            return 0
        largest = torch.tensor(self._received, device=trainer.strategy.root_device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def _restore(self) -> None:
        for signum, handler in self._replaced.items():
            signal.signal(signum, handler)
        self._replaced = {}


def slurm_job(environment: "os._Environ[str] | dict[str, str]") -> str | None:
    """The id of the batch job that this process belongs to, as `scontrol` takes it; None outside SLURM's jobs."""
    if environment.get("SLURM_JOB_NAME") in (None, "bash", "interactive"):
        return None
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None


def requeue(job: str) -> None:
    """Ask SLURM to run the job again; a warning says where that failed."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        rank_zero_info(f"job {job} is queued again")
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        rank_zero_warn(f"job {job} could not be queued again ({reason}); submit it yourself: it goes on from there")


def _is_last(trainer: pl.Trainer, batch_idx: int) -> bool:
    return batch_idx + 1 == trainer.num_training_batches
