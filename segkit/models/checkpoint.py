"""What a checkpoint says of a network, as plain data, and reading torch files without unpickling anything."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.segmentation import SegmentationModel, build_network


@dataclass(frozen=True)
class Checkpoint:
    """What a segkit checkpoint says of a network, as plain data.

    Attributes:
        hyper_parameters: All hyper-parameters; "network" and "normalization" are always there.
        state_dict: Parameters and buffers under the bare network's names.
    """

    hyper_parameters: dict[str, Any]
    state_dict: dict[str, Tensor]

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
        """Build the network in eval mode with these weights.

        Raises:
            InputError: Class, arguments or weights do not belong together.
        """
        network = build_network(self.network)
        load_strict(network, self.state_dict, "checkpoint")
        return network.eval()


def load_strict(module: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Load every parameter or none.

    Raises:
        InputError: Names the first missing, unexpected and misshapen parameters and their number.
    """
    own = module.state_dict()
    has_classifier = any(name.startswith("fc.") for name in own)
    given = {name: v for name, v in state_dict.items() if has_classifier or not name.startswith("fc.")}
    shapes = [n for n in own.keys() & given.keys() if own[n].shape != given[n].shape]
    problems = [
        f"{len(names)} {kind} (first: {sorted(names)[0]})"
        for kind, names in (
            ("missing", own.keys() - given.keys()),
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
    module.load_state_dict(given)


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Read a torch file of plain data and tensors onto the CPU.

    Raises:
        InputError: The file is absent, empty, truncated, no torch file, or would run code when unpickled.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; give a checkpoint file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; was the disk full when it was written?")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_unpickling_problem(path, error)) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise InputError(f"{path}: not a complete torch checkpoint (truncated, or another kind of file)") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not a checkpoint's dictionary")
    return data


def _unpickling_problem(path: Path, error: pickle.UnpicklingError) -> str:
    if "GLOBAL" in str(error).upper():  # torch names the class or function that it will not call
        return f"{path}: refused: unpickling it would run code; save its state_dict() with torch.save and give that"
    return f"{path}: not a torch checkpoint (another kind of file, or damaged)"
