"""Everything that relies on Lightning's private parts; no other file reaches into it.

* A checkpoint holds the counters of the fit loop at the moment of saving, from which a resumed run infers which of five
  moments that was. Lightning 2.6.6 gets some wrong: a validation that is due at the last step of an epoch is lost; the
  number of started epochs stays one short, so that a second stop resumes at batch 0 of an epoch while the loader is in
  its middle; and with `max_steps` a finished epoch is ended again. Here only two facts are taken from the counters, the
  finished epochs and the batches done in the current one, and a resumed run derives all counters from these.
  `FitLoop.restarting` and `FitLoop.on_advance_end`:
  https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/loops/fit_loop.py
  https://github.com/Lightning-AI/pytorch-lightning/issues/19549
* The trainer sets up the train loader late, and does not expose how many batches a run has seen or whether a validation
  follows a step. `_TrainingEpochLoop._should_check_val_fx`:
  https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/loops/training_epoch_loop.py
* `LightningCLI` lets the hyper-parameters of a checkpoint win over what the user typed:
  https://github.com/Lightning-AI/pytorch-lightning/pull/21455
"""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningCLI

_EPOCHS, _BATCHES, _STATE = "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"
_COUNTERS = ("ready", "started", "processed", "completed")
_INTEGERS = dict.fromkeys(_COUNTERS, int)

FIT_LOOP = {  # part of a fit loop's state, and its type or its own parts
    _EPOCHS: {"total": _INTEGERS, "current": _INTEGERS},
    _BATCHES: {"total": _INTEGERS, "current": _INTEGERS, "is_last_batch": bool},
    _STATE: dict[str, Any],
    "state_dict": dict[str, Any],
}


class UserFirstCLI(LightningCLI):
    """A LightningCLI that never takes options from a checkpoint by itself."""

    def value(self, config: Any, name: str) -> Any:
        """An option of the command that runs, from its parsed or instantiated configuration."""
        return self._get(config, name)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, where Lightning would let a checkpoint override typed options."""


def epoch_and_batches(fit_loop: Mapping[str, Any]) -> tuple[int, int]:
    """Finished epochs and the batches done in the current one, from the state of a fit loop."""
    epochs, batches = fit_loop[_EPOCHS]["current"], fit_loop[_BATCHES]["current"]
    if epochs["started"] <= epochs["processed"]:
        return epochs["processed"], 0
    if _is_at_end(fit_loop):
        return epochs["processed"] + 1, 0
    return epochs["processed"], batches["processed"]


def restart(fit_loop: Mapping[str, Any], steps: int, by_steps: bool) -> dict[str, Any]:
    """The state in which a fit loop resumes between two batches, whenever the given one was saved.

    Args:
        fit_loop: The saved state.
        steps: Optimiser steps until then.
        by_steps: Whether `max_steps` ends the run, in which case Lightning always assumes a restart.
    """
    epoch, batches = epoch_and_batches(fit_loop)
    total = fit_loop[_BATCHES]["total"]["processed"]
    # Within an epoch, Lightning is told that only the last batch has yet to be counted, so that it does nothing else.
    open_ = 1 if batches or by_steps else 0
    return {
        **fit_loop,
        _EPOCHS: {name: _counters(epoch, 1 if batches else 0, "ready", "started") for name in ("total", "current")},
        _BATCHES: {
            "total": _counters(total - open_, open_, "ready", "started", "processed"),
            "current": _counters(batches - open_, open_, "ready", "started", "processed"),
            "is_last_batch": False,
        },
        _STATE: {**fit_loop[_STATE], "_batches_that_stepped": steps - open_},
        "state_dict": {name: value for name, value in fit_loop["state_dict"].items() if name != "combined_loader"},
    }


def is_unvalidated(fit_loop: Mapping[str, Any]) -> bool:
    """Whether the state was saved at the end of an epoch's last step, before the validation that may follow it."""
    batches = fit_loop[_BATCHES]["current"]
    return _is_at_end(fit_loop) and bool(batches["completed"] < batches["processed"])


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation follows one of the batches of the optimiser step that begins with batch `batch_idx`."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    first = trainer.fit_loop.total_batch_idx if every is None else batch_idx  # batches of all epochs, or of this one
    last = first + trainer.accumulate_grad_batches - 1
    if interval is None or interval == float("inf"):  # validates by time, or at the end of an epoch of unknown length
        return batch_idx + trainer.accumulate_grad_batches >= trainer.num_training_batches
    return (last + 1) // interval > first // interval


def train_loader(trainer: Trainer) -> Any:
    """The loader of training batches; it is set up now if needed, as in a run that `max_steps` ends."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    return trainer.train_dataloader


def hide_score_tables(trainer: Trainer) -> None:
    """Hide Lightning's own table after `test` and `validate`."""
    trainer.test_loop.verbose = trainer.validate_loop.verbose = False


def _counters(value: int, more: int, *ahead: str) -> dict[str, int]:
    return {name: value + (more if name in ahead else 0) for name in _COUNTERS}


def _is_at_end(fit_loop: Mapping[str, Any]) -> bool:
    """Whether all batches of an epoch are done but the epoch is not, a state in which other callbacks may save."""
    epochs, batches = fit_loop[_EPOCHS]["current"], fit_loop[_BATCHES]
    done = batches["is_last_batch"] and batches["current"]["ready"] == batches["current"]["processed"]
    return bool(done and epochs["started"] > epochs["processed"])
