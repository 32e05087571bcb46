"""An exported file as a network: what the engine, its protocols, tiles and budgets need."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.exported.files import ExportedFile, label_space_of, open_exported
from segkit.inference.exported.pt2 import Pt2File
from segkit.models.card import described_network
from segkit.models.weight_files import file_sha256
from segkit.ops.normalize import Normalization, restore

_WHOLE = 1e-2  # a stored value that differs from a whole number by less has been rounded by the normalisation only
_MOST_BLOCKS = 500  # of an encoder that a card describes: five times those of a ResNeSt-269


class ExportedNetwork(nn.Module):
    """Maps normalised float (B, C, h, w) on the CPU to {"out": logits}, computed by another runtime.

    Shapes (tensors on the meta device) go through the network that the card describes, so that memory, receptive field
    and FLOPs are known as for a network of PyTorch.

    Args:
        file: With the output "logits".
        normalization: How the input is normalised, which is taken back: the file normalises by itself.

    Raises:
        InputError: The file lacks the logits, or the card what the engine must know.
    """

    def __init__(self, file: ExportedFile, normalization: Normalization) -> None:
        super().__init__()
        if "logits" not in file.outputs:
            found = ", ".join(file.outputs)
            if "labels" not in file.outputs:
                raise InputError(f"{file.path}: its outputs are {found}; needed are labels or logits: export it again")
            raise InputError(
                f"{file.path}: gives labels only, which suffice for `segkit infer` with the protocol whole and "
                "images that fit into memory; for all else export it with --outputs logits or both"
            )
        label_space_of(file)  # which the caller makes of the card; here its refusal names the file
        self.config = dict(file.card["network"])
        self.num_classes, self.output_stride = int(file.card["num_classes"]), int(file.card["output_stride"])
        self.align_corners = bool(file.card["align_corners"])
        self.precision = str(file.card["precision"])
        self._file, self._normalization = _Shared(file), normalization
        self._shapes = (_shapes(self.config),)  # in a tuple, as it holds no parameters of this module

    @property
    def described(self) -> nn.Module | None:
        """The network that the file was made from, without values; None where its class is not known here."""
        return self._shapes[0]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the network's own stride."""
        if x.is_meta:
            shapes = self.described
            if shapes is None:
                raise NotImplementedError(f"the network class {self.config.get('class_path')} is not known here")
            return {"out": shapes(x)["out"]}
        stored = restore(x.float(), self._normalization)
        if self._file.value.input_dtype == "uint8":
            stored = self._rounded(stored)
        logits = self._file.value.run(np.ascontiguousarray(stored.cpu().numpy()), "logits")
        return {"out": torch.from_numpy(logits).float().to(x.device)}

    def _rounded(self, stored: Tensor) -> Tensor:
        whole = stored.round()
        if (stored - whole).abs().max() > _WHOLE:
            raise InputError(
                f"{self._file.value.path}: takes uint8 images, and the protocol shows it resized ones, whose values "
                "are no whole numbers: export it with --input float32, or take a protocol of scale 1"
            )
        return whole.to(torch.uint8)


def open_network(path: Path, device: str | None, output: str = "logits") -> ExportedFile:
    """Open an exported file of any format for one of its outputs.

    Raises:
        InputError: See `open_exported`.
    """
    return Pt2File(path, device, output) if path.suffix.lower() == ".pt2" else open_exported(path, device, output)


def identified(path: Path, normalization: Normalization) -> ExportedNetwork:
    """The network of a file whose state, of which result files keep the SHA-256, is the content of the file.

    Raises:
        InputError: See `open_exported` and `ExportedNetwork`.
    """
    network = ExportedNetwork(open_network(path, None), normalization)
    for number, part in enumerate(part for part in (path, path.with_suffix(".bin")) if part.is_file()):
        digest = bytearray.fromhex(file_sha256(part))
        network.register_buffer(f"sha256_{number}", torch.frombuffer(digest, dtype=torch.uint8))
    return network


class _Shared:
    """Holds a value that copies of its owner share: a runtime cannot be copied."""

    def __init__(self, value: ExportedFile) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return copy.copy(self)


def _shapes(config: Mapping[str, Any]) -> nn.Module | None:
    try:
        return described_network(config, _MOST_BLOCKS).eval()
    except InputError:  # a network of the user's own, whose class is not known here, or of a later version
        return None
