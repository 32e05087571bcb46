"""Reads weight files without running code from them: torch files, safetensors, and segkit's model files.

A model file is safetensors, which holds no code, with a JSON card about the weights in its header. The card is the
value of the header's only metadata key, "segkit":

    {"format": 1, "segkit": version, "network": {...}, "normalization": {...}, "label_space": {...} | null,
     "protocol": {...} | null, "scores": [...], "source": {...}, "versions": {...}}

`network` rebuilds the architecture, including its dilation convention; `label_space` has class names, palette and
label table; `protocol` is the one recommended for tests; `scores` lists results under that and other protocols.
"""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segkit.errors import InputError
from segkit.files import replacing
from segkit.models.checkpoint import Checkpoint

FORMAT = 1  # increase it when a reader of this version could misread the card
CARD_KEY = "segkit"

_OF_THE_NETWORK = ("network", "normalization", "label_space")  # of the card; the rest is `Checkpoint.card`
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit

# The parts of a pickled NumPy scalar, which trainers store as their best score: data, not code. Older NumPy has another
# name for its function.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Read a torch file of plain data and tensors onto the CPU.

    Raises:
        InputError: The file is missing, empty, truncated, not a torch file, or would run code when unpickled.
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
    except Exception as error:  # damaged bytes may raise anything
        raise InputError(f"{path}: not a complete torch checkpoint (truncated, or another kind of file)") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not a checkpoint's dictionary")
    return data


def is_safetensors(path: str | Path) -> bool:
    """Whether the file claims to be safetensors by its name or its first bytes."""
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
        InputError: The file is missing, empty, truncated or of another kind.
    """
    path = _existing_file(path)
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # damaged bytes may raise anything
        raise InputError(
            f"{path}: not a complete safetensors file (truncated, or another kind of file); copy or download it again"
        ) from error


def check_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not plain arrays, or that claim more bytes than the file has.

    A few bytes can describe a tensor of any size (repeated, sparse or without values), and a network built for it
    would take gigabytes.

    Raises:
        InputError: A tensor is not a plain array, or the tensors claim too many bytes.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InputError(
                f"{path}: {name} is not a plain tensor (sparse, quantized or without values); write it as one"
            )
    claimed, held = sum(t.numel() * t.element_size() for t in tensors.values()), Path(path).stat().st_size
    if claimed > held:
        raise InputError(
            f"{path}: damaged: its tensors claim {claimed} bytes, but the file has {held}; copy it again, or write it "
            "again with whole tensors"
        )


def _check_members(path: Path) -> None:
    """Refuse an archive that unpacks to more bytes than it has: PyTorch compresses nothing.

    Raises:
        InputError: The archive is compressed or its members overlap.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # the format before PyTorch 1.6
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise InputError(f"{path}: a compressed archive, which PyTorch does not write; unpack it, or write it again")


def _existing_file(path: str | os.PathLike[str]) -> Path:
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


def write_model_file(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write weights and card atomically, creating the folder. Values, dtypes and shapes are kept bit for bit.

    Args:
        path: The file, replaced if it exists.
        checkpoint: Network, normalisation and label space of its hyper-parameters are kept, and its whole `card`.

    Raises:
        ValueError: The card has a value that JSON cannot represent, such as NaN.
        TypeError: The card has an object that is not plain data.
    """
    parts = {name: checkpoint.hyper_parameters.get(name) for name in _OF_THE_NETWORK}
    empty: dict[str, Any] = {"segkit": None, "protocol": None, "scores": [], "source": {}, "versions": {}}
    card = {"format": FORMAT} | empty | checkpoint.card | parts | {"format": FORMAT}
    metadata = {CARD_KEY: json.dumps(card, ensure_ascii=False, allow_nan=False)}
    # Copied one by one: safetensors accepts neither tensors that share memory nor channels_last ones.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.state_dict.items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_model_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the card, and the weights onto the CPU. Building the network shows whether they fit.

    Raises:
        InputError: The file is missing, truncated or of another kind, or its card is missing, damaged or of a newer
            format.
    """
    path = _existing_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            card = _card((file.metadata() or {}).get(CARD_KEY), path)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except InputError:
        raise
    except Exception as error:  # damaged bytes may raise anything, here too
        raise InputError(
            f"{path}: not a complete safetensors file (truncated, or another kind of file); copy or export it again"
        ) from error
    hyper_parameters = {name: card.pop(name, None) for name in _OF_THE_NETWORK}
    return Checkpoint(hyper_parameters=hyper_parameters, state_dict=tensors, card=card)


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as a safetensors file with a card; its end may still be missing."""
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if 2 <= length <= _LARGEST_HEADER else None
        return CARD_KEY in header["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _card(text: str | None, path: Path) -> dict[str, Any]:
    if text is None:
        raise InputError(
            f"{path}: a safetensors file without segkit's card, so its architecture is unknown; give one that "
            "`segkit export` wrote"
        )
    try:
        card = json.loads(text)
        version = card["format"]
        if not isinstance(version, int):
            raise TypeError(f"format is {version!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its card is damaged ({_one_line(error)}); export the model again") from error
    if version > FORMAT:
        raise InputError(
            f"{path}: its card has format {version}, written by segkit {card.get('segkit')}; this version reads up to "
            f"format {FORMAT}: install a newer segkit"
        )
    for name, needed in (("network", ("class_path", "init_args")), ("normalization", ("mean", "std"))):
        part = card.get(name)
        if not isinstance(part, dict) or not set(needed) <= part.keys():
            raise InputError(f"{path}: its card is damaged (no {name} with {' and '.join(needed)}); export it again")
    return dict(card)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
