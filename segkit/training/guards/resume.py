"""Resumes a stopped run as if it had not stopped: same draws, same position, and no silently changed setting."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from segkit.errors import InputError
from segkit.training.lightning_border import epoch_and_batches, is_unvalidated, restart
from segkit.training.preflight import batch_size

RECORD, POSITION = "segkit_run", "segkit_position"  # keys in a checkpoint
_SHOWN = 6  # changes that a message names


class StepSeeds(Callback):
    """Seeds torch, NumPy and Python before each training step with a function of (seed, rank, epoch, batch).

    Dropout and DropBlock then draw the same in a step whether or not the run was stopped before it, without keeping the
    generators of all processes in the checkpoint. Each process draws differently.

    Args:
        seed: Seed of the run; None draws one, which the checkpoint keeps.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = random.SystemRandom().randrange(2**32) if seed is None else seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed all generators for this step."""
        seeds = np.random.SeedSequence((self.seed, trainer.global_rank, trainer.current_epoch, batch_idx))
        of_torch, of_numpy, of_python = (int(word) for word in seeds.generate_state(3))
        torch.manual_seed(of_torch)
        np.random.seed(of_numpy)
        random.seed(of_python)

    def state_dict(self) -> dict[str, int]:
        """Keep the seed in the checkpoint."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seed with which the run began."""
        self.seed = state_dict["seed"]


class ExactResume(Callback):
    """Keeps a run's settings and position in each checkpoint, and resumes there after any number of stops.

    A run with other settings is refused. Besides the loops and the train loader, which skips the epoch's used samples,
    it restores what Lightning keeps only in memory: the metrics that other callbacks monitor, and whether early
    stopping has ended the run.

    Args:
        config: Settings that affect batches, loss and schedule, as plain values by dotted name.
        reschedule: Accept other settings and report them; a run that was stopped early then continues.
    """

    def __init__(self, config: Mapping[str, Any], reschedule: bool = False) -> None:
        self.config, self.reschedule = dict(config), reschedule
        self._record: dict[str, Any] = {}  # of the checkpoint, until it can be compared
        self._position: dict[str, Any] = {}  # likewise, until there is a loader

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add settings and position to the checkpoint."""
        epoch, batches = epoch_and_batches(checkpoint["loops"]["fit_loop"])
        batch = batch_size(trainer)
        checkpoint[RECORD] = self._settings(trainer)
        checkpoint[POSITION] = {
            "epoch": epoch,
            "batches": batches,
            "samples": None if batch is None else batches * batch * trainer.world_size,
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the loops, which Lightning restores after the callbacks, and keep the rest for later hooks."""
        self._record, self._position = checkpoint.get(RECORD, {}), checkpoint.get(POSITION, {})
        if not self._position or trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]
        if is_unvalidated(loops["fit_loop"]):
            rank_zero_warn("the checkpoint was saved before its epoch's end; a validation due there is left out")
        by_steps = trainer.max_steps != -1
        checkpoint["loops"] = loops | {"fit_loop": restart(loops["fit_loop"], checkpoint["global_step"], by_steps)}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):  # which saves this, and leaves it out when it is loaded
                callback.current_score = checkpoint["callbacks"].get(callback.state_key, {}).get("current_score")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the settings, even if the run is already over.

        Raises:
            InputError: Some settings differ, and `reschedule` is off; the message names them.
        """
        now, (before, self._record) = self._settings(trainer), (self._record, {})
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
                "--reschedule to continue with the new ones"
            )
        rank_zero_info(f"rescheduled: {text}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the loader's position, restore the metrics, and end a run that early stopping had ended.

        Raises:
            InputError: Settings differ, and the strategy has loaded the checkpoint only now.
        """
        self.on_fit_start(trainer, pl_module)
        position, self._position = self._position, {}
        if not position:
            return
        loader: Any = trainer.train_dataloader
        if position["samples"] is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict({"epoch": position["epoch"], "samples": position["samples"]})
        trainer.callback_metrics.update(position["metrics"])
        stoppers = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        if any(c.stopping_reason is not EarlyStoppingReason.NOT_STOPPED for c in stoppers) and not self.reschedule:
            trainer.should_stop = True

    def _settings(self, trainer: Trainer) -> dict[str, Any]:
        batch = batch_size(trainer)
        return self.config | {
            "steps in all": int(trainer.estimated_stepping_batches),
            "images a batch over all processes": None if batch is None else batch * trainer.world_size,
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
