"""segkit's own options of `fit`, `validate`, `test` and `predict`, and the check that refuses options without effect.

Only typed options are checked, because one recipe serves all commands. For the same reason options of `--trainer` and
`--data` may be typed after any command, as long as the command still does something.
"""

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jsonargparse import ActionYesNo
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser

from segkit.cli import COMMANDS
from segkit.cli.parser import option_names
from segkit.errors import InputError
from segkit.evaluation.conventions import ALL_METRICS, CONVENTIONS, DEFAULT
from segkit.models.inference_form import Precision
from segkit.training.preflight import check_work

_ALL, _FIT, _SCORED = ("fit", "validate", "test", "predict"), ("fit",), ("test", "validate")


class Option(NamedTuple):
    """An option: the type of its value (None: a switch), and the commands that it affects."""

    type: Any
    default: Any
    commands: tuple[str, ...]
    help: str


OPTIONS = {
    "protocol": Option(
        str | dict[str, Any],
        "whole",
        _ALL,
        "How to test and predict: the name of a protocol (whole, ms-flip, ...), a file, or its fields.",
    ),
    "run_dir": Option(str | None, None, _ALL, "The folder that the run writes to; runs/<n> by default."),
    "metric": Option(
        str, DEFAULT, _SCORED, f"The convention of the scores: {', '.join(CONVENTIONS)}, or {ALL_METRICS}."
    ),
    "without": Option(
        list[str] | str | None, None, _SCORED, "Leave a class, or a list of them, out of the means: background."
    ),
    "test_precision": Option(
        Precision,
        "exact",
        (*_SCORED, "predict"),
        "Run the network exactly as it was trained, or in its faster inference form.",
    ),
    "output": Option(str | None, None, ("predict",), "The folder of the PNGs; predictions/ by default."),
    "overwrite": Option(None, False, ("predict",), "Write the PNGs again that are in the output folder already."),
    "confidence": Option(None, False, ("predict",), "Also write NAME_confidence.png, how sure each label is: v / 255."),
    "official": Option(None, False, ("test",), "Also run cityscapesScripts, the official scores of Cityscapes."),
    "calibration": Option(None, False, ("test",), "Also measure the calibration error, and mIoU by confidence."),
    "report": Option(
        None, False, ("test",), "Also write label maps, confidence and calibration, and report.html of it all."
    ),
    "probe": Option(
        None,
        False,
        _FIT,
        "Find the largest batch that fits into memory and estimate the time of the run; nothing is trained.",
    ),
    "encoder_weights": Option(
        str | None, None, _FIT, "The encoder's first weights: a file, or imagenet (timm's) or authors, downloaded once."
    ),
    "init_from": Option(
        str | None,
        None,
        _FIT,
        "A checkpoint of any toolkit to start from, or one of the authors' by its recipe, such as "
        "authors/ade20k/deeplabv3_resnest50; everything in it that fits the network is taken.",
    ),
    "validation_scale": Option(
        float, 1.0, _FIT, "Scale of the images in validation; if training scales them down, give the same scale."
    ),
    "save_every": Option(int, 1000, _FIT, "Write last.ckpt every N steps."),
    "skip_nonfinite": Option(
        int, 0, _FIT, "Skip at most N steps whose loss or gradient is NaN or infinite, then end the run."
    ),
    "overlays": Option(int, 4, _FIT, "Draw N validation images with their predictions; 0 draws none."),
    "reschedule": Option(None, False, _FIT, "Resume from --ckpt_path even though settings of the run have changed."),
    "rank_timeout": Option(
        float, 60.0, _ALL, "With several processes: seconds of silence after which a process counts as lost."
    ),
}

# Options of Lightning and of the model that affect only some commands.
_EFFECTS = {name: option.commands for name, option in OPTIONS.items()} | {
    "checkpoint":              _FIT,
    "model.optim":             _FIT,
    "model.loss":              _FIT,
    "model.frozen_stages":     _FIT,
    "model.norm_eval":         _FIT,
    "model.checkpoint_stages": _FIT,
}  # fmt: skip

_CHECKPOINT_DEFAULTS = {
    "monitor": "val/mIoU",
    "mode": "max",
    "filename": "epoch{epoch:03d}-mIoU{val/mIoU:.4f}",
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


def add_options(parser: LightningArgumentParser, command: str) -> None:
    """Add segkit's options, and those of the callback that keeps the best checkpoints.

    Args:
        parser: The parser of one of Lightning's commands.
        command: The command that runs; `--help` shows the options that affect it.
    """
    parser.usage = f"segkit {command} --config RECIPE [--OPTION VALUE ...]"  # not two pages of all options
    parser.description = f"{COMMANDS[command][1].capitalize()}. `segkit recipes` lists the recipes."
    for name, option in OPTIONS.items():
        kind = {"action": ActionYesNo(no_prefix="no-")} if option.type is None else {"type": option.type}
        parser.add_argument(
            f"--{name}", default=option.default, help=option.help if command in option.commands else SUPPRESS, **kind
        )
    parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
    parser.set_defaults({f"checkpoint.{name}": value for name, value in _CHECKPOINT_DEFAULTS.items()})


def check_typed(command: str, typed: Sequence[str], config: Mapping[str, Any]) -> None:
    """Refuse options without any effect.

    Args:
        command: One of Lightning's commands.
        typed: The command line.
        config: The parsed options of the command.

    Raises:
        InputError: An option has no effect; the message names the first one and the commands that it affects.
    """
    for name in (option[2:].replace(".init_args", "") for option in option_names(typed)):
        for option, commands in _EFFECTS.items():
            if f"{name}.".startswith(f"{option}.") and command not in commands:
                where = " and ".join(commands)
                raise InputError(f"--{name}: has no effect on {command}, only on {where}; leave it out")
    if config.get("reschedule") and not config.get("ckpt_path"):
        raise InputError("--reschedule: has no effect on a new run; leave it out, or resume one: --ckpt_path last")
    check_work(command, config["trainer"])
