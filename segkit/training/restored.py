"""How a checkpoint says that its network was trained: plain data that anyone may have written, checked."""

from collections.abc import Mapping
from typing import Any

from segkit.errors import InputError
from segkit.signatures import check_arguments, fits
from segkit.training.losses import LossConfig
from segkit.training.optim import OptimConfig

_CONFIGS = {"optim": OptimConfig, "loss": LossConfig}
_PLAIN = {"frozen_stages": int, "norm_eval": bool}


def training_arguments(hyper_parameters: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Arguments of `SegmentationModule`, those that a checkpoint has: optim, loss, frozen_stages and norm_eval.

    Raises:
        InputError: One of them has another type than it must have, or a value that is not allowed.
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
