"""Reading weights: segkit's checkpoints, and encoder files with the authors' parameter names. Nothing is unpickled."""

from pathlib import Path
from typing import Any

from torch import nn

from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint, load_strict, read_torch_file

NETWORK_PREFIX = "network."  # where SegmentationModule keeps its network in a Lightning checkpoint


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint written by `segkit fit`.

    Raises:
        InputError: The file is absent, empty, truncated, holds code, or is not a segkit checkpoint.
    """
    data = read_torch_file(path)
    hyper_parameters: Any = data.get("hyper_parameters")
    state_dict: Any = data.get("state_dict")
    both = isinstance(hyper_parameters, dict) and isinstance(state_dict, dict)
    if not both or not {"network", "normalization"} <= hyper_parameters.keys():
        raise InputError(
            f"{path}: not a segkit checkpoint (its keys: {', '.join(map(str, list(data)[:4]))}, ...); "
            "give a .ckpt file that `segkit fit` wrote"
        )
    names = [name for name in state_dict if name.startswith(NETWORK_PREFIX)]
    return Checkpoint(
        hyper_parameters=hyper_parameters,
        state_dict={name.removeprefix(NETWORK_PREFIX): state_dict[name] for name in names},
    )


def load_encoder_weights(encoder: nn.Module, path: str | Path) -> None:
    """Load a file with the encoder's own parameter names, such as the authors' `resnest50-528c19ca.pth`.

    A classifier (`fc.*`) in the file is skipped where the encoder has none.

    Raises:
        InputError: The file cannot be read, or a parameter is missing, unexpected or of another shape.
    """
    data = read_torch_file(path)
    state_dict = data.get("state_dict", data)
    load_strict(encoder, state_dict, str(path))
