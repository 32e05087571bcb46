"""Options that would change nothing: an argument that has no effect is refused, not swallowed.

Only what was typed is judged: a recipe is one file for all commands. The options of `--trainer` and `--data` are shared
in the same way, and one may type them behind any command, but not so that nothing at all is done.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from segkit.cli.parser import option_names
from segkit.errors import InputError

_FIT, _SCORED = ("fit",), ("test", "validate")

# option                    commands that it changes something of
_COMMANDS = {
    "probe":                   _FIT,
    "reschedule":              _FIT,
    "save_every":              _FIT,
    "skip_nonfinite":          _FIT,
    "overlays":                _FIT,
    "checkpoint":              _FIT,
    "model.optim":             _FIT,
    "model.loss":              _FIT,
    "encoder_weights":         _FIT,
    "init_from":               _FIT,
    "model.frozen_stages":     _FIT,
    "model.norm_eval":         _FIT,
    "model.checkpoint_stages": _FIT,
    "validation_scale":        _FIT,
    "test_precision":          (*_SCORED, "predict"),
    "metric":                  _SCORED,
    "official":                ("test",),
    "calibration":             ("test",),
    "output":                  ("predict",),
    "overwrite":               ("predict",),
}  # fmt: skip

# command     what it does nothing without, and what it does
_BATCHES = {
    "fit":      ("limit_train_batches", "trained"),
    "validate": ("limit_val_batches",   "validated"),
    "test":     ("limit_test_batches",  "tested"),
    "predict":  ("limit_predict_batches", "predicted"),
}  # fmt: skip


def check_effects(command: str, typed: Sequence[str], config: Mapping[str, Any]) -> None:
    """Refuse options without any effect.

    Args:
        command: One of Lightning's.
        typed: The command line.
        config: The parsed options of the command.

    Raises:
        InputError: Names the first such option, and where it has one.
    """
    for name in (option[2:].replace(".init_args", "") for option in option_names(typed)):
        for option, commands in _COMMANDS.items():
            if f"{name}.".startswith(f"{option}.") and command not in commands:
                where = " and ".join(commands)
                raise InputError(f"--{name}: has no effect on {command}, only on {where}; leave it out")
    if config.get("reschedule") and not config.get("ckpt_path"):
        raise InputError("--reschedule: has no effect on a new run; leave it out, or go on with one: --ckpt_path last")
    _check_something_is_done(command, config["trainer"])


def _check_something_is_done(command: str, trainer: Mapping[str, Any]) -> None:
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


# Trainer's option          what is left of it, and why nothing else is taken
_UNUSED = {
    "enable_checkpointing": (True, "a run that keeps no checkpoint is lost with its process; leave it out, or try a "
                                   "recipe with --trainer.fast_dev_run 1, which writes nothing"),
    "barebones":            (False, "it turns off checkpoints, logs and checks, which segkit always has; leave it out"),
    "default_root_dir":     (None, "has no effect: a run writes where --run_dir says"),
    "model_registry":       (None, "has no effect: segkit sends models to no registry; leave it out"),
}  # fmt: skip
