"""A checkpoint's description of its network as plain data, and checks that its weights fit and are usable."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.decoders import EncoderDecoder  # noqa: F401  (a file may name it)
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import SegmentationModel, build_network
from segkit.ops.meta import ShapesOnly

_USABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights and their description as plain data.

    Attributes:
        hyper_parameters: All hyper-parameters; "network" and "normalization" are always present.
        state_dict: Parameters and buffers under the bare network's names.
        card: Everything else known: "source", "protocol", "scores", "versions", ...; see `weight_files.py`.
    """

    hyper_parameters: dict[str, Any]
    state_dict: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> dict[str, Any]:
        """The network's config, `{"class_path": ..., "init_args": {...}}`."""
        return dict(self.hyper_parameters["network"])

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        arguments, space = self.network["init_args"], self.label_space
        known = arguments.get("num_classes", arguments.get("classes"))  # a network of the user's own may have neither
        return int(known if known is not None or space is None else len(space["class_names"]))

    @property
    def label_space(self) -> dict[str, Any] | None:
        """`LabelSpace.to_dict()` of the training data, or None."""
        return self.hyper_parameters.get("label_space")

    @property
    def normalization(self) -> dict[str, list[float]]:
        """`{"mean": [...], "std": [...]}` on the 0..1 scale."""
        return dict(self.hyper_parameters["normalization"])

    def build_network(self) -> SegmentationModel:
        """Build the network in eval mode with a copy of these weights, without initialising random ones first.

        Raises:
            InputError: The class, arguments and weights do not belong together.
        """
        with ShapesOnly():
            network = build_network(self.network)
        require_match(network, self.state_dict, "checkpoint")  # before memory is allocated for it
        if not isinstance(network.encoder, ResNeSt):  # others may hold more than parameters and buffers
            network = build_network(self.network)
            load_strict(network, self.state_dict, "checkpoint")
            return network.eval()
        own = network.state_dict()
        given = {name: torch.empty(t.shape, dtype=own[name].dtype).copy_(t) for name, t in self.state_dict.items()}
        network.load_state_dict({n: t for n, t in own.items() if is_counter(n)} | given, assign=True)
        return network.eval()


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all parameters and buffers, whatever the device, layout or file."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_strict(module: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Load every parameter or none. Batch norm counters may be missing: old files lack them and no output needs them.

    Raises:
        InputError: The weights do not match; see `require_match`.
    """
    own = module.state_dict()
    has_classifier = any(name.startswith("fc.") for name in own)
    given = {name: v for name, v in state_dict.items() if has_classifier or not name.startswith("fc.")}
    require_match(module, given, source)
    module.load_state_dict(own | given)


def require_match(module: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Refuse weights whose names or shapes differ from the module's.

    Raises:
        InputError: Parameters are missing, unexpected or of another shape; counts each kind and names the first.
    """
    own, given = module.state_dict(), state_dict
    missing = sorted(name for name in own.keys() - given.keys() if not is_counter(name))
    shapes = sorted(n for n in own.keys() & given.keys() if own[n].shape != given[n].shape)
    problems = mismatch(missing, sorted(given.keys() - own.keys()), shapes)
    if problems:
        raise InputError(
            f"{source}: the weights do not fit {type(module).__name__}: {problems}; build the network they were made "
            "for"
        )


def mismatch(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    """Describe how many names do not match and the first of each kind; "" if all match."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return "; ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds if names)


def is_counter(name: str) -> bool:
    """Whether this is a batch norm's counter of batches seen, which PyTorch before 0.4.1 did not have."""
    return name.endswith(".num_batches_tracked")


def unusable(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Describe the fault of each tensor that cannot be computed with; counters of batch norms may be integers.

    This takes one pass over the values and no copy: a sum is finite only if all its terms are.
    """
    found = {name: _fault(tensor, is_counter(name)) for name, tensor in tensors.items()}
    return {name: fault for name, fault in found.items() if fault}


def require_usable(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not finite floating-point numbers.

    Raises:
        InputError: Some weights are unusable; counts them and names the first.
    """
    refuse_unusable(unusable(tensors), source)


def refuse_unusable(faults: Mapping[str, str], source: str) -> None:
    """Refuse weights in which `unusable` found faults."""
    if faults:
        name, fault = next(iter(faults.items()))
        raise InputError(
            f"{source}: parameters that cannot be computed with: {len(faults)} (first: {name}, {fault}); use an "
            "earlier checkpoint, or write the file again"
        )


def _fault(tensor: Tensor, counter: bool) -> str:
    if tensor.dtype not in _USABLE:
        is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
        return "" if counter and is_integer else f"of {str(tensor.dtype).removeprefix('torch.')}, not floating point"
    if bool(torch.isfinite(tensor.detach().sum())):
        return ""
    bad = int((~torch.isfinite(tensor)).sum())  # the sum itself may have overflowed
    return f"{bad} of {tensor.numel()} values NaN or infinite" if bad else ""
