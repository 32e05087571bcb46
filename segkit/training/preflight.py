"""Checks and messages before the first step of a training, and advice if memory does not suffice."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from segkit.errors import InputError, did_you_mean
from segkit.models.norms import BATCH_NORMS, needs_more_than_one_value
from segkit.models.segmentation import SegmentationModel
from segkit.models.signatures import check_arguments, fits
from segkit.ops.sync_batch_norm import SYNCHRONISED
from segkit.training.lightning_border import train_loader
from segkit.training.losses import LossConfig
from segkit.training.optim import OptimConfig, scaled_lr


def check_norms(network: nn.Module, batch_size: int | None) -> None:
    """Refuse a batch of one image that batch norms on 1x1 maps cannot be trained with.

    PyTorch would stop in the first step ("Expected more than 1 value per channel") and name neither norm nor cure.

    Raises:
        InputError: There are such norms; the message names them and the cures.
    """
    if batch_size != 1 or any(isinstance(module, SYNCHRONISED) for module in network.modules()):
        return
    names = needs_more_than_one_value(network)
    if names:
        raise InputError(
            f"data.batch_size is 1, but {len(names)} norms see one value an image ({names[0]}, ...), which has no "
            "variance: set --data.batch_size 2 or more, or several processes with --trainer.sync_batchnorm true, or "
            "--model.network.pooled_norm frozen (or group)"
        )


def check_monitors(trainer: Trainer, names: Collection[str]) -> None:
    """Refuse a callback that monitors a value which nothing logs: Lightning would find out after an epoch, or never.

    Args:
        trainer: The trainer with its callbacks.
        names: Names of all values that segkit logs.

    Raises:
        InputError: There is such a callback; the message names it, the value, and the values that are logged.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if not all(type(callback).__module__.startswith(_KNOWN) for callback in callbacks):
        return  # a user's own callback may log anything
    validates = trainer.limit_val_batches != 0
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor.startswith("lr-"):  # logged by LearningRateMonitor
            continue
        # A missing best checkpoint is no reason not to train; a missing stopping criterion is.
        there = [name for name in names if validates or isinstance(callback, Checkpoint) or not name.startswith("val/")]
        if monitor not in there:
            raise InputError(
                f"trainer: {type(callback).__name__} monitors {monitor!r}, which is not logged"
                f"{'' if validates else ' (nothing is validated: limit_val_batches is 0)'}; "
                f"{did_you_mean(monitor, there)}allowed: {', '.join(there)}"
            )


_KNOWN = ("pytorch_lightning.", "segkit.")


def learning_rate(trainer: Trainer, optim: OptimConfig, total_steps: float) -> float:
    """Scale the encoder's learning rate to the images of an optimiser step over all processes, and print it.

    Raises:
        InputError: The run has no end, which every schedule needs.
    """
    if total_steps == float("inf"):
        raise InputError("trainer: the schedule needs an end; set trainer.max_epochs or trainer.max_steps")
    batch = batch_size(trainer)
    if not batch:
        rank_zero_info(f"lr: {optim.lr} as given (the train loader names no batch size to scale it by)")
        return optim.lr
    total = batch * trainer.world_size * trainer.accumulate_grad_batches
    lr = scaled_lr(optim, total)
    factors = [(batch, "a batch"), (trainer.world_size, "processes"), (trainer.accumulate_grad_batches, "accumulated")]
    product = " x ".join(f"{number} {what}" for number, what in factors if number > 1 or what == "a batch")
    scaled = f", scaled from {optim.lr:g} for {optim.reference_batch} images" if lr != optim.lr else ""
    rank_zero_info(
        f"{optim.name}, {optim.schedule} over {total_steps:g} steps of {total} images ({product}); "
        f"learning rate {lr:g}{scaled}"
    )
    return lr


def batch_size(trainer: Trainer) -> int | None:
    """Images of a training batch in each process; None if the loader does not say."""
    return getattr(train_loader(trainer), "batch_size", None)


def is_whole(limit: float | int | None) -> bool:
    """Whether a `limit_..._batches` of the trainer leaves the split whole: 1.0 does, the integer 1 means one batch."""
    return isinstance(limit, float) and limit == 1.0


def smaller_batch(batch_size: int, accumulated: int, crop_size: tuple[int, int]) -> str:
    """One line of advice: what did not fit, and the next smaller batch that trains on as many images per step.

    Args:
        batch_size: Crops in one process's batch, which did not fit.
        accumulated: Batches per optimiser step.
        crop_size: (H, W) in pixels.
    """
    height, width = crop_size
    what = f"out of memory with data.batch_size {batch_size}, crops of {height}x{width} and {accumulated} accumulated"
    others = "--model.checkpoint_stages '[3, 4]', --trainer.precision bf16-mixed"
    probe = "--probe finds the largest batch that fits"
    if batch_size == 1:
        smaller = max(8, height * 3 // 4 // 8 * 8), max(8, width * 3 // 4 // 8 * 8)
        return f"{what}: take --data.crop_size '[{smaller[0]}, {smaller[1]}]', or {others}"
    fits = max(n for n in range(1, batch_size) if batch_size % n == 0)
    times = accumulated * batch_size // fits
    return (
        f"{what}: take --data.batch_size {fits} --trainer.accumulate_grad_batches {times} (as many images a step), "
        f"or {others}; {probe}"
    )


def check_settings(network: SegmentationModel, loss: LossConfig, norm_eval: bool) -> None:
    """Refuse settings that have no effect on this network.

    Raises:
        InputError: There is such a setting; the message names the first.
    """
    if network.aux_head is None:
        if loss.aux_weight not in (0, LossConfig.aux_weight):
            raise InputError(
                f"model.loss.aux_weight={loss.aux_weight} has no effect: the network has no auxiliary head; set it to "
                "0, or model.network.init_args.aux to true"
            )
        replace(loss, aux_weight=0.0)  # refuses options of cross entropies if none is left
    if norm_eval and not any(isinstance(m, BATCH_NORMS) for m in network.encoder.modules()):
        raise InputError("model.norm_eval=true has no effect: the encoder has no batch norms; leave it out")


# command     what it does nothing without, and what it does
_BATCHES = {
    "fit":      ("limit_train_batches", "trained"),
    "validate": ("limit_val_batches",   "validated"),
    "test":     ("limit_test_batches",  "tested"),
    "predict":  ("limit_predict_batches", "predicted"),
}  # fmt: skip

# Trainer's option          what is left of it, and why nothing else is taken
_UNUSED = {
    "enable_checkpointing": (True, "a run that keeps no checkpoint is lost with its process; leave it out, or try a "
                                   "recipe with --trainer.fast_dev_run 1, which writes nothing"),
    "barebones":            (False, "it turns off checkpoints, logs and checks, which segkit always has; leave it out"),
    "default_root_dir":     (None, "has no effect: a run writes where --run_dir says"),
    "model_registry":       (None, "has no effect: segkit sends models to no registry; leave it out"),
}  # fmt: skip


def check_work(command: str, trainer: Mapping[str, Any]) -> None:
    """Refuse options of the Trainer under which nothing would be done, or which have no effect on a run of segkit.

    Args:
        command: "fit", "validate", "test" or "predict".
        trainer: The options.

    Raises:
        InputError: There is such an option; the message names the first.
    """
    limit, done = _BATCHES[command]
    lengths = [limit, "max_epochs", "max_steps"] if command == "fit" else [limit]
    empty = [name for name in lengths if trainer.get(name) == 0]
    if empty:
        raise InputError(f"trainer.{empty[0]} is 0, so nothing would be {done}; give another number, or leave it out")
    if command == "fit" and trainer.get("accumulate_grad_batches") == 0:
        raise InputError("trainer.accumulate_grad_batches is 0; allowed is 1 or more batches a step")
    for name, (value, why) in _UNUSED.items():
        if trainer.get(name) is not None and trainer[name] is not value:
            raise InputError(f"trainer.{name}={trainer[name]}: {why}")


_CONFIGS = {"optim": OptimConfig, "loss": LossConfig}
_PLAIN = {"frozen_stages": int, "norm_eval": bool}


def training_arguments(hyper_parameters: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Arguments of `SegmentationModule` that a checkpoint keeps: optim, loss, frozen_stages and norm_eval.

    Raises:
        InputError: One of them has the wrong type, or a value that is not allowed.
    """
    found: dict[str, Any] = {}
    try:
        for name, config in _CONFIGS.items():
            if name in hyper_parameters:
                values = hyper_parameters[name]
                if not fits(values, dict[str, Any]):
                    raise InputError(f"{name} is no mapping")
                check_arguments(config, values, name)
                found[name] = config(**values)
        for name, kind in _PLAIN.items():
            if name in hyper_parameters:
                if not fits(hyper_parameters[name], kind):
                    raise InputError(f"{name} is not of type {kind.__name__}")
                found[name] = hyper_parameters[name]
    except InputError as error:
        raise InputError(f"{source}: damaged, or not a segkit file: {error}; copy it again") from error
    return found
