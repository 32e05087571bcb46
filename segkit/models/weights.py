"""Reading weights: segkit's own files, and those of every toolkit in `formats.py`. Nothing is unpickled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint, is_safetensors, load_strict, read_safetensors, read_torch_file
from segkit.models.model_file import is_model_file, read_model_file
from segkit.models.norms import without_absent_statistics
from segkit.models.segmentation import build_network
from segkit.models.toolkits.foreign import TIMM_PREFIX, Choices, Inspection, encoder_names, inspect_foreign
from segkit.models.toolkits.formats import wrapper_prefix
from segkit.models.toolkits.keys import place

NETWORK_PREFIX = "network."  # where SegmentationModule keeps its network in a Lightning checkpoint
_CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "module")  # of weights, in torch files


def read_checkpoint(path: str | Path, choices: Choices = Choices()) -> Checkpoint:  # noqa: B008  (frozen)
    """Read a whole network: segkit's own checkpoint or model file, or a checkpoint of any toolkit in `formats.py`.

    Args:
        path: The file.
        choices: What another toolkit's file does not say.

    Raises:
        InputError: The file is absent, empty, truncated or holds code; it is of no known toolkit; or a parameter is
            missing, unexpected or of another shape.
    """
    content = _read(Path(path))
    if isinstance(content, Checkpoint):
        return content
    inspection = inspect_foreign(Path(path), content.tensors, content.beside, choices)
    return inspection.checkpoint(str(path), choices.allow_unmatched)


def inspect(path: str | Path, choices: Choices = Choices()) -> Inspection:  # noqa: B008  (frozen)
    """Find out what a weight file holds, and compare every name and shape with the network that it is of.

    Args:
        path: The file.
        choices: What another toolkit's file does not say.

    Raises:
        InputError: The file is absent, empty, truncated or holds code, or is of no known toolkit, head or encoder.
    """
    content = _read(Path(path))
    if not isinstance(content, Checkpoint):
        return inspect_foreign(Path(path), content.tensors, content.beside, choices)
    with torch.device("meta"):
        network = build_network(content.network)
    weights, keys = place(content.state_dict, {}, network.state_dict())
    return Inspection(
        toolkit="segkit (model file)" if is_safetensors(path) else "segkit (checkpoint of `segkit fit`)",
        config=dict(network.config),
        is_network=True,
        weights=weights,
        keys=keys,
        label_space=content.label_space,
        card=content.card,
        normalization=content.normalization,
    )


def load_encoder_weights(encoder: nn.Module, path: str | Path) -> None:
    """Load an encoder's weights: its own, ImageNet files of the authors, timm and torchvision, or a whole network's.

    An ImageNet classifier and a segmentation head in the file are left out; counters of batch norms may be absent.

    Raises:
        InputError: The file cannot be read, or a parameter is missing, unexpected or of another shape.
    """
    content = _read(Path(path))
    if isinstance(content, Checkpoint):
        weights = content.state_dict
        found = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    else:
        found = _known_names(content.tensors)
    own = encoder.state_dict()
    if all(name.startswith(TIMM_PREFIX) for name in own):
        found = _timm_names(found, own)
    load_strict(encoder, without_absent_statistics(encoder, found), str(path))


def _known_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a known toolkit's file; of an unknown one, everything as it is."""
    try:
        return encoder_names(tensors)
    except InputError:
        return tensors


def _timm_names(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names under those of a `TimmEncoder`, without the layers after its last feature (classifier, last norm).

    Where timm builds features only it may write "stages_0" for "stages.0".
    """
    parts = {name.removeprefix(TIMM_PREFIX).split(".")[0].split("_")[0] for name in own}
    named = {}
    for name, tensor in found.items():
        plain = name.removeprefix(TIMM_PREFIX)
        flat = TIMM_PREFIX + plain.replace(".", "_", 1)
        if flat in own:
            named[flat] = tensor
        elif plain.split(".")[0].split("_")[0] in parts:
            named[TIMM_PREFIX + plain] = tensor
    return named


@dataclass(frozen=True)
class _Foreign:
    """Weights of another toolkit, wrappers' prefixes taken off their names, and the plain data beside them."""

    tensors: dict[str, Tensor]
    beside: dict[str, Any]


def _read(path: Path) -> Checkpoint | _Foreign:
    if is_safetensors(path):
        return read_model_file(path) if is_model_file(path) else _foreign(path, read_safetensors(path), {})
    data = read_torch_file(path)
    hyper_parameters: Any = data.get("hyper_parameters")
    state_dict: Any = data.get("state_dict")
    both = isinstance(hyper_parameters, dict) and isinstance(state_dict, dict)
    if both and {"network", "normalization"} <= hyper_parameters.keys():
        names = [name for name in state_dict if name.startswith(NETWORK_PREFIX)]
        return Checkpoint(hyper_parameters, {name.removeprefix(NETWORK_PREFIX): state_dict[name] for name in names})
    found = [data[name] for name in _CONTAINERS if isinstance(data.get(name), dict)]
    return _foreign(path, found[0], data) if found else _foreign(path, data, {})


def _foreign(path: Path, weights: Mapping[Any, Any], beside: dict[str, Any]) -> _Foreign:
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(weights)[:4]))
        raise InputError(f"{path}: holds no weights (its keys: {keys}, ...); give a checkpoint or a state_dict")
    prefix = wrapper_prefix(tensors)
    return _Foreign({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, beside)
