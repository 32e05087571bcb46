"""Checkpoints that a stop cannot damage: when and how `last.ckpt` is written, and which file a run resumes from."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from segkit.errors import InputError
from segkit.files import replacing
from segkit.models.signatures import fits
from segkit.models.weight_files import read_torch_file
from segkit.training.lightning_border import FIT_LOOP, validation_follows

LAST = "last.ckpt"
PREVIOUS = "last-previous.ckpt"

# part of a checkpoint that resuming needs, and its type or its own parts
_TRAINING = {
    "pytorch-lightning_version": str,
    "global_step": int,
    "epoch": int,
    "state_dict": dict[str, Any],
    "loops": {"fit_loop": FIT_LOOP},
    "callbacks": dict[str, Any],
    "optimizer_states": list[Any],
    "lr_schedulers": list[Any],
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in its folder, waits until it is on disk, and renames it.

    Lightning writes into the system's temporary folder and copies from there, so that a process that dies while copying
    leaves half a checkpoint in place of the good one. A replaced `last.ckpt` is kept as `last-previous.ckpt`.
    """

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            InputError: `checked_training` refuses it.
        """
        return checked_training(super().load_checkpoint(path, *args, **kwargs), path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint atomically, keeping the previous `last.ckpt`."""
        if "://" in str(path):  # a remote store, which fsspec knows to write to
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                os.replace(target, target.with_name(PREVIOUS))


def checked_training(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the checkpoint if a training can be resumed from it; `path` names it in errors.

    Raises:
        InputError: A part that resuming needs is absent or has the wrong type.
    """
    wrong = next(_wrong_parts(checkpoint, _TRAINING), None)
    if wrong is not None:
        raise InputError(
            f"{path}: damaged, or not from `segkit fit`: its {wrong} is absent or has the wrong type; resume from "
            f"another checkpoint, such as {PREVIOUS}, or start again without --ckpt_path"
        )
    return checkpoint


def _wrong_parts(parts: Any, expected: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Names of the parts that are absent or have the wrong type, outer ones first."""
    for name, kind in expected.items():
        if not isinstance(parts, Mapping) or name not in parts:
            yield f"{where}{name}"
        elif isinstance(kind, dict):
            yield from _wrong_parts(parts[name], kind, f"{where}{name}.")
        elif not fits(parts[name], kind):
            yield f"{where}{name}"


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint in `folder` to resume from: the last one or, with a warning if that is damaged, an older one.

    Raises:
        InputError: No checkpoint is complete.
    """
    best = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    last = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    candidates = [*last, *(path for path in best if path not in last)]
    for path in candidates:
        try:
            read_torch_file(path)
        except InputError as error:
            rank_zero_warn(f"{error}; resuming from the one before it")
        else:
            return path
    what = "no checkpoint is complete" if candidates else "no checkpoint was written yet"
    raise InputError(f"{folder}: {what}; start again without --ckpt_path, in another --run_dir")


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` between two steps, once everything that the steps before it caused is done and logged.

    That is before the first step, every `save_every` steps, before a step that a validation follows, and after each
    epoch. A run that is stopped at any moment, in a validation or while it writes its best checkpoint, then repeats
    only the steps since then and the validation after them; no validation is resumed half-way. If gradients are
    accumulated over batches, a step begins with the first of these batches.

    Args:
        folder: Folder of the checkpoint.
        save_every: Interval in optimiser steps.

    Raises:
        InputError: `save_every` is not positive.
    """

    def __init__(self, folder: Path, save_every: int) -> None:
        if save_every < 1:
            raise InputError(f"save_every is {save_every}; allowed is 1 or more optimiser steps")
        self.path, self.save_every = folder / LAST, save_every
        self._saved: int | None = None  # optimiser steps until then

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Avoid writing the checkpoint again that the run was resumed from."""
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.path.resolve():
            self._saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, index: int) -> None:
        """Save if a checkpoint is due."""
        if trainer.global_step == self._saved or not begins_step(trainer, index):
            return
        if self._saved is None or trainer.global_step % self.save_every == 0 or validation_follows(trainer, index):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the best checkpoint, to which `last.ckpt` refers."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save now; call this only between two steps."""
        trainer.save_checkpoint(self.path)
        self._saved = trainer.global_step


def begins_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch is the first of an optimiser step: a checkpoint then loses no accumulated gradients."""
    return batch_idx % trainer.accumulate_grad_batches == 0
