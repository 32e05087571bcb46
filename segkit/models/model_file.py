"""Model files: safetensors whose header carries a JSON card that says all about the weights.

The card is the value of the header's one metadata key, "segkit":

    {"format": 1, "segkit": version, "network": {...}, "normalization": {...}, "label_space": {...} | null,
     "protocol": {...} | null, "scores": [...], "source": {...}, "versions": {...}}

`network` rebuilds the architecture, its dilation convention included; `label_space` has class names, palette and label
table; `protocol` is the one recommended for tests, and `scores` are what it and others gave. Safetensors holds no code.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from segkit.errors import InputError
from segkit.files import replacing
from segkit.models.checkpoint import Checkpoint

FORMAT = 1  # raise it when a reader of this version could misread the card
CARD_KEY = "segkit"

_OF_THE_NETWORK = ("network", "normalization", "label_space")  # of the card; the rest is `Checkpoint.card`
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def write_model_file(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write weights and card, atomically; the folder is made. Numbers, dtypes and shapes are kept bit for bit.

    Args:
        path: The file, replaced if it exists.
        checkpoint: Of its hyper-parameters, network, normalisation and label space are kept; all of its `card` is.

    Raises:
        ValueError: The card holds what JSON has not, such as NaN.
        TypeError: Likewise, an object.
    """
    parts = {name: checkpoint.hyper_parameters.get(name) for name in _OF_THE_NETWORK}
    empty: dict[str, Any] = {"segkit": None, "protocol": None, "scores": [], "source": {}, "versions": {}}
    card = {"format": FORMAT} | empty | checkpoint.card | parts | {"format": FORMAT}
    metadata = {CARD_KEY: json.dumps(card, ensure_ascii=False, allow_nan=False)}
    # Copied one by one: safetensors takes no tensors that share memory, nor channels_last ones.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.state_dict.items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_model_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Read weights, onto the CPU, and card.

    Raises:
        InputError: The file is absent, truncated or of another kind, or has no card, a damaged one, or one of a newer
            format. That the weights fit the card's network shows when it is built.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; give a model file (.safetensors)")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            card = _card((file.metadata() or {}).get(CARD_KEY), path)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except InputError:
        raise
    except Exception as error:  # as many kinds as there are ways to be damaged
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
            f"{path}: a safetensors file without segkit's card, so its architecture is not known; "
            "give one that `segkit export` wrote"
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
