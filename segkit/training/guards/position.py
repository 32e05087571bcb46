"""Where a run stands: what its checkpoints say of it, and how Lightning's loops are set when a run goes on from there.

Lightning 2.6 saves the counters of its loops as they are at the moment of saving, and reads off them at which of five
moments that was. It knows some wrongly: a validation due at an epoch's last step is lost, the count of epochs begun
stays one short, so that a second stop goes on at batch 0 of an epoch while the loader is in its middle, and with
`max_steps` an epoch that has ended is ended again. Here only the facts are taken from the counters, epoch and batches
done in it, and when a run goes on all counters are made from these.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities import rank_zero_warn

from segkit.training.preflight import batch_size

POSITION = "segkit_position"  # key in a checkpoint

_EPOCHS, _BATCHES, _STATE = "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"  # of the fit loop


class RunPosition(Callback):
    """Keeps in each checkpoint where the run stands, and goes on from there, also after any number of stops.

    Beside loops and train loader, which then leaves out the samples of the epoch that were used, that is what Lightning
    keeps in memory only: the metrics that other callbacks look at, and that early stopping has ended the run.

    Args:
        reschedule: The run goes on with other settings; that it had been ended early then does not count.
    """

    def __init__(self, reschedule: bool = False) -> None:
        self.reschedule = reschedule
        self._position: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add it."""
        epoch, batches = epoch_and_batches(checkpoint["loops"]["fit_loop"])
        batch = batch_size(trainer)
        checkpoint[POSITION] = {
            "epoch": epoch,
            "batches": batches,
            "samples": None if batch is None else batches * batch * trainer.world_size,
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the loops, which Lightning restores after the callbacks, and keep the rest until there is a loader."""
        self._position = checkpoint.get(POSITION, {})
        if not self._position or trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]
        by_steps = trainer.max_steps != -1
        if _is_unvalidated(loops["fit_loop"]):
            rank_zero_warn("the checkpoint was saved before its epoch's end; a validation due there is left out")
        checkpoint["loops"] = loops | {"fit_loop": restart(loops["fit_loop"], checkpoint["global_step"], by_steps)}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):  # which saves this, and leaves it out when it is loaded
                callback.current_score = checkpoint["callbacks"].get(callback.state_key, {}).get("current_score")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the loader, restore the metrics, and end a run that early stopping had ended."""
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


def epoch_and_batches(fit_loop: Mapping[str, Any]) -> tuple[int, int]:
    """Epochs that are over, and batches done in the one that was begun; of the state of a fit loop."""
    epochs, batches = fit_loop[_EPOCHS]["current"], fit_loop[_BATCHES]["current"]
    if epochs["started"] <= epochs["processed"]:
        return epochs["processed"], 0
    if _is_at_end(fit_loop):
        return epochs["processed"] + 1, 0
    return epochs["processed"], batches["processed"]


def restart(fit_loop: Mapping[str, Any], steps: int, by_steps: bool) -> dict[str, Any]:
    """The state that a fit loop goes on from, between two batches, whenever it was that it was saved.

    Args:
        fit_loop: Its state.
        steps: Optimiser steps until then.
        by_steps: Whether the run is as long as its `max_steps`: Lightning then always takes it for restarted.
    """
    epoch, batches = epoch_and_batches(fit_loop)
    total = fit_loop[_BATCHES]["total"]["processed"]
    # In the middle of an epoch Lightning is told that the last batch has yet to be counted: it then does nothing else.
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


def _counters(value: int, more: int, *ahead: str) -> dict[str, int]:
    return {name: value + (more if name in ahead else 0) for name in ("ready", "started", "processed", "completed")}


def _is_at_end(fit_loop: Mapping[str, Any]) -> bool:
    """Whether all batches of an epoch are done, and the epoch itself not yet: so another callback may save."""
    epochs, batches = fit_loop[_EPOCHS]["current"], fit_loop[_BATCHES]
    done = batches["is_last_batch"] and batches["current"]["ready"] == batches["current"]["processed"]
    return bool(done and epochs["started"] > epochs["processed"])


def _is_unvalidated(fit_loop: Mapping[str, Any]) -> bool:
    """Whether it was saved at the end of an epoch's last step."""
    batches = fit_loop[_BATCHES]["current"]
    return _is_at_end(fit_loop) and bool(batches["completed"] < batches["processed"])
