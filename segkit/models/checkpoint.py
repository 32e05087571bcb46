"""What a checkpoint says of a network, as plain data, and reading torch files without unpickling anything."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import SegmentationModel, build_network
from segkit.ops.meta import ShapesOnly

# What makes up a pickled NumPy scalar, which trainers store as their best score: data, no code. Older NumPy calls its
# function by another name.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]


@dataclass(frozen=True)
class Checkpoint:
    """What a segkit checkpoint says of a network, as plain data.

    Attributes:
        hyper_parameters: All hyper-parameters; "network" and "normalization" are always there.
        state_dict: Parameters and buffers under the bare network's names.
        card: What else is known, as plain data: "source", "protocol", "scores", "versions", ...; see `model_file.py`.
    """

    hyper_parameters: dict[str, Any]
    state_dict: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> dict[str, Any]:
        """`{"class_path": ..., "init_args": {...}}`."""
        return dict(self.hyper_parameters["network"])

    @property
    def label_space(self) -> dict[str, Any] | None:
        """`LabelSpace.to_dict()` of the data it was trained on, or None."""
        return self.hyper_parameters.get("label_space")

    @property
    def normalization(self) -> dict[str, list[float]]:
        """`{"mean": [...], "std": [...]}` on the 0..1 scale."""
        return dict(self.hyper_parameters["normalization"])

    def build_network(self) -> SegmentationModel:
        """Build the network in eval mode with a copy of these weights; none is drawn at random first.

        Raises:
            InputError: Class, arguments or weights do not belong together.
        """
        with ShapesOnly():
            network = build_network(self.network)
        require_match(network, self.state_dict, "checkpoint")  # before memory is taken for it
        if not isinstance(network.encoder, ResNeSt):  # others may hold more than parameters and buffers
            network = build_network(self.network)
            load_strict(network, self.state_dict, "checkpoint")
            return network.eval()
        own = network.state_dict()
        given = {name: torch.empty(t.shape, dtype=own[name].dtype).copy_(t) for name, t in self.state_dict.items()}
        network.load_state_dict({n: t for n, t in own.items() if is_counter(n)} | given, assign=True)
        return network.eval()


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes of all parameters and buffers, whatever the device, layout or kind of file."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_strict(module: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Load every parameter or none; batch norms' counters may be absent: old files lack them, and no output needs them.

    Raises:
        InputError: As `require_match`.
    """
    own = module.state_dict()
    has_classifier = any(name.startswith("fc.") for name in own)
    given = {name: v for name, v in state_dict.items() if has_classifier or not name.startswith("fc.")}
    require_match(module, given, source)
    module.load_state_dict(own | given)


def require_match(module: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Refuse weights that are not a module's, name by name and shape by shape.

    Raises:
        InputError: Names the first missing, unexpected and misshapen parameters and their number.
    """
    own, given = module.state_dict(), state_dict
    shapes = [n for n in own.keys() & given.keys() if own[n].shape != given[n].shape]
    problems = [
        f"{len(names)} {kind} (first: {sorted(names)[0]})"
        for kind, names in (
            ("missing", {name for name in own.keys() - given.keys() if not is_counter(name)}),
            ("unexpected", given.keys() - own.keys()),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source}: the weights do not fit {type(module).__name__}: {'; '.join(problems)}; "
            "build the network that they were made for"
        )


def is_counter(name: str) -> bool:
    """Whether this is a batch norm's number of batches seen: PyTorch before 0.4.1 had none."""
    return name.endswith(".num_batches_tracked")


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Read a torch file of plain data and tensors onto the CPU.

    Raises:
        InputError: The file is absent, empty, truncated, no torch file, or would run code when unpickled.
    """
    path = _existing_file(path)
    try:
        _check_members(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_unpickling_problem(path, error)) from error
    except InputError:
        raise
    except Exception as error:  # reading damaged bytes fails in as many ways as there are bytes
        raise InputError(f"{path}: not a complete torch checkpoint (truncated, or another kind of file)") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not a checkpoint's dictionary")
    return data


def is_safetensors(path: str | Path) -> bool:
    """Whether the file claims to be safetensors, by its name or by its first bytes."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header; a torch file begins otherwise


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of any toolkit's safetensors file onto the CPU.

    Raises:
        InputError: The file is absent, empty, truncated or of another kind.
    """
    path = _existing_file(path)
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # as above
        raise InputError(
            f"{path}: not a complete safetensors file (truncated, or another kind of file); copy or download it again"
        ) from error


def check_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no plain arrays, or that claim more numbers than the file has bytes for.

    A few bytes can describe a tensor of any size (repeated, sparse, without values); a network built for it would take
    gigabytes.

    Raises:
        InputError: Names the first one, or says how many bytes are claimed.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InputError(
                f"{path}: {name} is no plain tensor (sparse, quantized or without values); write it as one"
            )
    claimed, held = sum(t.numel() * t.element_size() for t in tensors.values()), Path(path).stat().st_size
    if claimed > held:
        raise InputError(
            f"{path}: damaged: its tensors claim {claimed} bytes and the file has {held}; copy or write it again, each "
            "tensor whole"
        )


def _check_members(path: Path) -> None:
    """Refuse an archive that unpacks to more than itself: PyTorch compresses nothing.

    Raises:
        InputError: It does.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # the format before PyTorch 1.6
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise InputError(f"{path}: a compressed archive, which PyTorch does not write; unpack it, or write it again")


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; give a checkpoint file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; was the disk full when it was written?")
    return path


def _unpickling_problem(path: Path, error: pickle.UnpicklingError) -> str:
    # torch names the class or function that it will not call
    match = re.search(r"GLOBAL ([\w.]+)", str(error), re.IGNORECASE)
    if match is None:
        return f"{path}: not a torch checkpoint (another kind of file, or damaged)"
    clean = 'torch.save({"state_dict": network.state_dict()}, NEW)'
    if match[1].startswith(("mmengine.", "mmcv.", "mmseg.")):
        clean = 'torch.save({"state_dict": c["state_dict"], "meta": {"CLASSES": [...], "PALETTE": [...]}}, NEW)'
    return (
        f"{path}: refused: unpickling it would run code ({match[1]}); load it where it was made, write a file of "
        f"plain tensors there with {clean}, and give that"
    )
