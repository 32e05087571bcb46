"""Going on after a stop as if there had been none: what a step draws, and what a run must not silently change."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from segkit.errors import InputError
from segkit.training.preflight import batch_size

RECORD = "segkit_run"  # key in a checkpoint
_SHOWN = 6  # changes that a message names


class StepSeeds(Callback):
    """Seeds torch, NumPy and Python before each training step with a function of (seed, rank, epoch, batch).

    Dropout and DropBlock then draw the same in a step whether or not the run was stopped before it, without the states
    of all processes' generators in the checkpoint. Processes draw differently from each other.

    Args:
        seed: Of the run; None draws one, which the checkpoint keeps.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = random.SystemRandom().randrange(2**32) if seed is None else seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed this step."""
        seeds = np.random.SeedSequence((self.seed, trainer.global_rank, trainer.current_epoch, batch_idx))
        of_torch, of_numpy, of_python = (int(word) for word in seeds.generate_state(3))
        torch.manual_seed(of_torch)
        np.random.seed(of_numpy)
        random.seed(of_python)

    def state_dict(self) -> dict[str, int]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The seed of the run that is gone on with."""
        self.seed = state_dict["seed"]


class RunRecord(Callback):
    """Keeps in each checkpoint how the run trains, and refuses to go on with it otherwise.

    Args:
        config: Plain values by dotted name: what decides on batches, loss and schedule.
        reschedule: Go on with other values, and say which.
    """

    def __init__(self, config: Mapping[str, Any], reschedule: bool = False) -> None:
        self.config = dict(config)
        self.reschedule = reschedule
        self._before: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the record."""
        checkpoint[RECORD] = self._now(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what the checkpoint says, until it can be compared."""
        self._before = checkpoint.get(RECORD, {})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, also in a run that is over already.

        Raises:
            InputError: Something differs, and `reschedule` is off; names it.
        """
        self._compare(self._now(trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare where the strategy loads a checkpoint only now; errors as in `on_fit_start`."""
        self._compare(self._now(trainer))

    def _compare(self, now: dict[str, Any]) -> None:
        before, self._before = self._before, {}
        changed = [
            f"{name}: {_plain(before[name])} -> {_plain(now[name])}"
            for name in sorted(now.keys() & before.keys())
            if _plain(before[name]) != _plain(now[name])
        ]
        if not changed:
            return
        text = "; ".join(changed[:_SHOWN]) + (f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        if not self.reschedule:
            raise InputError(
                f"--ckpt_path: the run was begun with other settings than now ({text}); give it the old ones, or "
                "--reschedule to go on with the new ones"
            )
        rank_zero_info(f"rescheduled: {text}")

    def _now(self, trainer: pl.Trainer) -> dict[str, Any]:
        batch = batch_size(trainer)
        return self.config | {
            "steps in all": int(trainer.estimated_stepping_batches),
            "images a batch over all processes": None if batch is None else batch * trainer.world_size,
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
