"""`last.ckpt`: written between two steps only, when all that follows from the steps before is done and logged."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from segkit.errors import InputError
from segkit.training.guards.checkpoint_io import LAST


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` before the first step, every so many steps, before a step with a validation, after each epoch.

    A run that is stopped at any moment, in a validation or while it writes its best checkpoint, then repeats at most
    the steps since, and does all that follows from them again; a validation is not begun in its middle. With gradients
    that are accumulated over batches, a step begins with the first of these.

    Args:
        folder: Where it goes.
        save_every: Optimiser steps.

    Raises:
        InputError: `save_every` is not positive.
    """

    def __init__(self, folder: Path, save_every: int) -> None:
        if save_every < 1:
            raise InputError(f"save_every is {save_every}; allowed is 1 or more optimiser steps")
        self.path, self.save_every = folder / LAST, save_every
        self._saved: int | None = None  # optimiser steps until then

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a run goes on from need not be written again."""
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.path.resolve():
            self._saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save, where it is time."""
        if trainer.global_step == self._saved or not begins_step(trainer, batch_idx):
            return
        if self._saved is None or trainer.global_step % self.save_every == 0 or _validates(trainer, batch_idx):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, after the best checkpoint has been."""
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save now; between two steps."""
        trainer.save_checkpoint(self.path)
        self._saved = trainer.global_step


def begins_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a batch is the first one of an optimiser step: no gradient is waiting, which a checkpoint would lose."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def _validates(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a validation follows on one of the batches of the optimiser step that begins."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    first = trainer.fit_loop.total_batch_idx if every is None else batch_idx  # of all epochs, or of this one
    last = first + trainer.accumulate_grad_batches - 1
    if interval is None or interval == float("inf"):  # by time, or at the end of an epoch of unknown length
        return batch_idx + trainer.accumulate_grad_batches >= trainer.num_training_batches
    return (last + 1) // interval > first // interval
