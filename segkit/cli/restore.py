"""What a Lightning command takes from the checkpoint that it names, for its parser and its network.

Hyper-parameters become the parser's defaults: what the user typed beats the checkpoint, which beats the default.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from segkit.cli.given import named
from segkit.errors import InputError
from segkit.inference.exported.files import check_own
from segkit.inference.exported.network import open_network
from segkit.models.checkpoint import Checkpoint
from segkit.models.classifier import Classifier
from segkit.models.own import own_network
from segkit.models.weights import is_own, read_checkpoint
from segkit.paths import is_exported
from segkit.plain_data import flatten
from segkit.training.preflight import training_arguments

RESTORED = (
    "network",
    "optim",
    "loss",
    "normalization",
    "frozen_stages",
    "norm_eval",
    "mixup",
    "label_smoothing",
    "lighting",
)  # of a checkpoint's hyper-parameters, where it has them


def read_named_checkpoint(args: Sequence[str], foreign: bool = False) -> Checkpoint | None:
    """Read the checkpoint, of any toolkit, that the command line or its config files name; None without one.

    Args:
        args: The command and its options.
        foreign: Whether commands other than `fit` leave another toolkit's file to be read once the network is known.

    Returns:
        The checkpoint; for `fit` without its weights, which Lightning restores itself together with its own state. Its
        training settings have been checked, because the parser imports every class that a value names.

    Raises:
        InputError: The file cannot be read, a value in it has the wrong type, or `fit` cannot resume from it because
            it has no optimiser state.
    """
    path = named(args, "ckpt_path")
    if path is None or path in ("best", "last", "hpc", "registry"):  # Lightning's own words
        return None
    _import_network(args)
    if foreign and args[0] != "fit" and not is_own(path):
        return None
    checkpoint = _of_exported(path, args[0]) if is_exported(path) else read_checkpoint(path)
    training_arguments(checkpoint.hyper_parameters, path)
    if args[0] != "fit":
        return checkpoint
    if "optim" not in checkpoint.hyper_parameters:  # not written by `fit`: no training settings
        raise InputError(
            f"--ckpt_path {path}: has weights but no optimiser state to resume from; give a .ckpt that `segkit fit` "
            f"wrote, or start a new training from its encoder: --encoder_weights {path}"
        )
    return replace(checkpoint, state_dict={})


def _of_exported(path: str, command: str) -> Checkpoint:
    """What an exported file says of its network, without weights; see `SegmentationCLI`."""
    if command not in ("test", "predict"):
        raise InputError(f"{path}: an exported file, which `segkit test` and `segkit predict` run; give a checkpoint")
    file = open_network(Path(path), None)
    check_own(file.card, file.path)
    parts = {name: file.card.get(name) for name in ("network", "normalization", "label_space")}
    return Checkpoint(parts, {}, dict(file.card))


def is_of_classification(args: Sequence[str]) -> bool:
    """Whether a command line or its config files name a classifier, or data with a class for each image."""
    options = ("model.network.class_path", "model.network", "data.class_path", "data")
    names = {str(named(args[1:], option)).rsplit(".", 1)[-1] for option in options}
    return not names.isdisjoint({Classifier.__name__, "ImageNetDataModule"})


def _import_network(args: Sequence[str]) -> None:
    """Import the network that the user names, so that the checkpoint, which never imports anything, may refer to it."""
    name = named(args[1:], "model.network.class_path") or named(args[1:], "model.network")
    if isinstance(name, str) and "." in name:
        with suppress(InputError):  # the parser reports what is wrong with it
            own_network(name)


def parser_defaults(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's hyper-parameters as defaults of the parser's `model.*` options."""
    defaults = {}
    for name in RESTORED:
        if name in hyper_parameters:
            value = hyper_parameters[name]
            whole = name in ("network", "normalization") or not isinstance(value, Mapping)
            nested = {"": value} if whole else {f".{key}": v for key, v in value.items()}
            defaults.update({f"model.{name}{key}": v for key, v in nested.items()})
    return defaults


def differences(hyper_parameters: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(checkpoint's, given) by dotted name where the parsed `model` differs; `num_classes` is left to the data."""
    stored = flatten({name: hyper_parameters[name] for name in RESTORED if name in hyper_parameters})
    given = flatten(model)
    return {
        key: (stored[key], given[key])
        for key in sorted(stored.keys() & given.keys())
        if not key.endswith("num_classes") and not _same(stored[key], given[key])
    }


def _same(stored: Any, typed: Any) -> bool:
    sequences = isinstance(stored, (list, tuple)) and isinstance(typed, (list, tuple))
    return list(stored) == list(typed) if sequences else bool(stored == typed)
