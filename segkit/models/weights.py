"""Reads weights from segkit's own files and those of every toolkit in `formats.py`, without running any code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segkit.errors import InputError
from segkit.metadata.label_space import check_same_classes
from segkit.models.card import checked
from segkit.models.checkpoint import Checkpoint, load_strict, require_match, require_usable, unusable
from segkit.models.classifier import Classifier
from segkit.models.norms import without_absent_statistics
from segkit.models.segmentation import SegmentationModel
from segkit.models.toolkits.foreign import TIMM_PREFIX, encoder_names, inspect_foreign
from segkit.models.toolkits.formats import wrapper_prefix
from segkit.models.toolkits.inspection import Choices, Inspection
from segkit.models.toolkits.keys import place
from segkit.models.weight_files import (
    check_tensors,
    is_model_file,
    is_safetensors,
    read_model_file,
    read_safetensors,
    read_torch_file,
)

NETWORK_PREFIX = "network."  # where SegmentationModule keeps its network in a Lightning checkpoint
_CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "module")  # keys of weights in torch files


def read_checkpoint(path: str | Path, choices: Choices = Choices()) -> Checkpoint:  # noqa: B008  (frozen)
    """Read a whole network: segkit's own checkpoint or model file, or a checkpoint of any toolkit in `formats.py`.

    Args:
        path: The weight file.
        choices: What another toolkit's file does not say.

    Raises:
        InputError: The file is missing, empty, truncated, damaged or holds code; it is of no known toolkit; or a
            parameter is missing, unexpected, of another shape, NaN or infinite.
    """
    content = _read(Path(path))
    if isinstance(content, _Own):
        _refuse_choices(path, choices)
        require_match(content.shapes, content.checkpoint.state_dict, str(path))
        require_usable(content.checkpoint.state_dict, str(path))
        return content.checkpoint
    inspection = inspect_foreign(Path(path), content.tensors, content.beside, choices)
    return inspection.checkpoint(str(path), choices.allow_unmatched)


def inspect(path: str | Path, choices: Choices = Choices()) -> Inspection:  # noqa: B008  (frozen)
    """Find out what a weight file holds, and compare every name and shape with its network.

    Values that cannot be computed with are listed, not refused.

    Args:
        path: The weight file.
        choices: What another toolkit's file does not say.

    Raises:
        InputError: The file is missing, empty, truncated or holds code, or its toolkit, head or encoder is unknown.
    """
    content = _read(Path(path))
    if isinstance(content, _Foreign):
        return inspect_foreign(Path(path), content.tensors, content.beside, choices)
    _refuse_choices(path, choices)
    own = content.checkpoint
    weights, keys = place(own.state_dict, {}, content.shapes.state_dict())
    return Inspection(
        toolkit="segkit (model file)" if is_safetensors(path) else "segkit (checkpoint of `segkit fit`)",
        config=own.network,
        is_network=True,
        weights=weights,
        keys=keys,
        label_space=own.label_space,
        card=own.card,
        normalization=own.normalization,
        unusable=unusable(own.state_dict),
    )


def _refuse_choices(path: str | Path, choices: Choices) -> None:
    """Refuse choices for one of segkit's own files, which already say everything.

    Raises:
        InputError: A choice was made; names the first.
    """
    for name in ("encoder", "dilation_convention", "output_stride"):
        if getattr(choices, name) != getattr(Choices, name):
            raise InputError(
                f"{path}: --{name} has no effect on one of segkit's own files, which says it itself; leave it out"
            )


def load_encoder_weights(
    encoder: nn.Module, path: str | Path, say: Callable[[str], None] = lambda line: None
) -> tuple[str, ...]:
    """Load an encoder's weights: its own, ImageNet files of the authors, timm and torchvision, or a whole network's.

    Segmentation heads, ImageNet classifiers and everything else that timm's whole network has after the encoder's last
    feature are left out; counters of batch norms may be missing. RGB weights are adapted to an encoder of other bands.

    Args:
        encoder: The encoder.
        path: The file.
        say: Called with a line on weights that are adapted.

    Returns:
        timm's names of the layers after the last feature that were left out.

    Raises:
        InputError: The file cannot be read, or a parameter is missing, unexpected, of another shape, NaN or infinite.
    """
    content = _read(Path(path))
    if isinstance(content, _Own):
        weights = content.checkpoint.state_dict
        found = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    else:
        found = _known_names(content.tensors)
    own, left_out = encoder.state_dict(), set[str]()
    if all(name.startswith(TIMM_PREFIX) for name in own):
        found = _timm_names(found, own)
        left_out = found.keys() - own.keys()
        left_out &= _whole_names(encoder) if left_out else set()
    given = without_absent_statistics(encoder, {name: t for name, t in found.items() if name not in left_out})
    require_usable(given, str(path))
    given = adapt_input(given, own, say)
    load_strict(encoder, given, str(path))
    return tuple(name.removeprefix(TIMM_PREFIX) for name in found if name in left_out)


def adapt_input(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], say: Callable[[str], None]
) -> dict[str, Tensor]:
    """Adapt the first convolution of RGB weights to other channels, by timm's rule (timm.models.adapt_input_conv).

    One channel has the sum of the three; N have them in the order of RGB, repeated and scaled by 3 / N.

    Args:
        given: The weights.
        own: The network's weights, under the same names.
        say: Called with a line on the change.
    """
    adapted = dict(given)
    for name in given.keys() & own.keys():
        old, new = given[name].shape, own[name].shape
        if len(old) == len(new) == 4 and old[1] == 3 != new[1] and (old[0], *old[2:]) == (new[0], *new[2:]):
            weight, count = given[name].float(), new[1]
            order = [i % 3 for i in range(count)]
            made = weight.sum(dim=1, keepdim=True) if count == 1 else weight[:, order] * (3 / count)
            adapted[name] = made.to(given[name].dtype)
            how = "their sum" if count == 1 else f"red, green, blue, red, ... times 3/{count}"
            say(f"weights of RGB adapted to {count} band{'s'[: count > 1]}, as timm does: {how} ({name})")
    return adapted


def is_own(path: str | Path) -> bool:
    """Whether this is one of segkit's own files of a whole network.

    Raises:
        InputError: It cannot be read.
    """
    return isinstance(_read(Path(path)), _Own)


def read_classifier(
    path: str | Path,
    encoder: str,
    encoder_args: dict[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> Classifier:
    """The classifier of a whole ImageNet network's file, in eval mode; it has as many classes as the file.

    Args:
        path: A file of the authors, timm or torchvision, or segkit's own.
        encoder: The encoder's name.
        encoder_args: See `Classifier`.
        class_names: Class names of the data, if known.

    Raises:
        InputError: The file has other classes; or see `load_classifier_weights`.
    """
    content = _read(Path(path))
    if isinstance(content, _Own):
        classes, stored = content.checkpoint.num_classes, content.checkpoint.hyper_parameters.get("class_names")
        if stored and class_names is not None:
            check_same_classes([str(name) for name in stored], class_names, str(path), "the data")
    else:
        classes = len(content.tensors.get("fc.weight", ())) or 1  # 1 if absent: the next line reports that
    network = Classifier(encoder, classes, encoder_args=encoder_args)
    load_classifier_weights(network, path)
    return network.eval()


def load_classifier_weights(network: Classifier, path: str | Path) -> None:
    """Load a whole ImageNet network: a file of the authors, timm or torchvision.

    Raises:
        InputError: The file cannot be read, has no classifier or one of another number of classes, or holds an encoder
            that is not the network's, or layers that it does not have.
    """
    content = _read(Path(path))
    if isinstance(content, _Own):
        load_strict(network, content.checkpoint.state_dict, str(path))
        return
    found = {name: t for name, t in content.tensors.items() if name in ("fc.weight", "fc.bias")}
    if len(found) < 2:
        raise InputError(f"{path}: no classifier fc in it; give a file with that of ImageNet, or an encoder's to `fit`")
    left_out = set(load_encoder_weights(network.encoder, path)) - found.keys()
    if left_out:
        raise InputError(f"{path}: holds {min(left_out)}, ..., which a Classifier lacks; test it by its toolkit")
    require_usable(found, str(path))
    load_strict(network.fc, {name.removeprefix("fc."): tensor for name, tensor in found.items()}, str(path))


def _known_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a known toolkit's file, or everything in a file of an unknown one."""
    try:
        return encoder_names(tensors)
    except InputError:
        return tensors


def _timm_names(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors as in a `TimmEncoder`, which may say "stages_0" for "stages.0" or wrap the model."""
    named = {}
    for name, tensor in found.items():
        plain = name.removeprefix(TIMM_PREFIX)
        ways = [TIMM_PREFIX + way for way in (plain, plain.replace(".", "_", 1), f"model.{plain}")]
        named[next((way for way in ways if way in own), ways[0])] = tensor
    return named


def _whole_names(encoder: nn.Module) -> set[str]:
    """Names of all parameters of timm's whole network; a `TimmEncoder` has those up to its last feature."""
    names: set[str] = encoder.whole_names()  # type: ignore[operator]
    return {TIMM_PREFIX + name for name in names}


@dataclass(frozen=True)
class _Own:
    """The checked contents of segkit's own file, and its network as shapes."""

    checkpoint: Checkpoint
    shapes: SegmentationModel


@dataclass(frozen=True)
class _Foreign:
    """Another toolkit's weights, without wrappers' prefixes in their names, and the plain data stored with them."""

    tensors: dict[str, Tensor]
    beside: dict[str, Any]


def _read(path: Path) -> _Own | _Foreign:
    if is_model_file(path):
        return _own(path, read_model_file(path))
    if is_safetensors(path):
        return _foreign(path, read_safetensors(path), {})
    data = read_torch_file(path)
    hyper_parameters: Any = data.get("hyper_parameters")
    state_dict: Any = data.get("state_dict")
    both = isinstance(hyper_parameters, dict) and isinstance(state_dict, dict)
    if both and {"network", "normalization"} <= hyper_parameters.keys():
        tensors = {
            name.removeprefix(NETWORK_PREFIX): value
            for name, value in state_dict.items()
            if isinstance(name, str) and name.startswith(NETWORK_PREFIX) and isinstance(value, Tensor)
        }
        return _own(path, Checkpoint(hyper_parameters, tensors))
    found = [data[name] for name in _CONTAINERS if isinstance(data.get(name), dict)]
    return _foreign(path, found[0], data) if found else _foreign(path, data, {})


def _own(path: Path, checkpoint: Checkpoint) -> _Own:
    check_tensors(path, checkpoint.state_dict)
    return _Own(*checked(path, checkpoint))


def _foreign(path: Path, weights: Mapping[Any, Any], beside: dict[str, Any]) -> _Foreign:
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(weights)[:4]))
        raise InputError(f"{path}: holds no weights (its keys: {keys}, ...); give a checkpoint or a state_dict")
    check_tensors(path, tensors)
    prefix = wrapper_prefix(tensors)
    return _Foreign({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, beside)
