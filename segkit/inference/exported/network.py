"""An exported file as a network: what the engine, its protocols, tiles and budgets need."""

from __future__ import annotations

import copy
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkit.errors import InputError, one_line
from segkit.inference.exported.files import ExportedFile, open_exported
from segkit.models.segmentation import build_network
from segkit.ops.meta import ShapesOnly
from segkit.ops.normalize import Normalization, restore

_WHOLE = 1e-2  # a stored value that differs from a whole number by less has been rounded by the normalisation only
# Sizes, which PyTorch reads by evaluating them: classes of sympy, their keywords, symbols and numbers, nothing else.
_EXPRESSION = re.compile(r"(?:[A-Z][A-Za-z]*|[a-z]+=|'?[su]\d+'?|\d+|[\s+\-*/%(),<>=!&|~])*")


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
            raise InputError(
                f"{file.path}: gives labels only, which suffices for `segkit infer` with the protocol whole; for all "
                "else export it with --outputs logits or both"
            )
        described = file.card.get("network")
        if not isinstance(described, Mapping):
            raise InputError(f"{file.path}: was not written by `segkit export`: its card does not describe the network")
        self.config = dict(described)
        self.num_classes, self.output_stride = int(file.card["num_classes"]), int(file.card["output_stride"])
        self.align_corners = bool(file.card["align_corners"])
        self.precision = str(file.card["precision"])
        self._file, self._normalization = _Shared(file), normalization
        self._shapes = (_shapes(self.config),)  # in a tuple, as it holds no parameters of this module

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the network's own stride."""
        if x.is_meta:
            shapes = self._shapes[0]
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


class Pt2File:
    """See `ExportedFile`; runs in PyTorch."""

    def __init__(self, path: Path, device: str | None = None, output: str | None = None) -> None:
        _refuse_pickles(path)
        extra = {"segkit": ""}
        try:
            program = torch.export.load(path, extra_files=extra)
            self.card: Mapping[str, Any] = json.loads(extra["segkit"] or "{}")
        except Exception as error:  # damaged bytes may raise anything
            raise InputError(f"{path}: not a file of torch.export, or damaged: {one_line(error, 200)}") from error
        self.path, self._device = path, torch.device(device or "cpu")
        said = str(self.card.get("outputs"))
        self.outputs: tuple[str, ...] = ("labels", "logits") if said == "both" else (said,)
        self._module = program.module().to(self._device)
        if output is not None and output in self.outputs:
            _keep_one(self._module, self.outputs.index(output))
            self.outputs = (output,) * len(self.outputs)
        self.input_dtype = str(self.card.get("input", "float32"))
        self.input_shape: tuple[int | None, ...] = (None, None, None, None)

    def run(self, image: np.ndarray, output: str) -> np.ndarray:
        """See `ExportedFile.run`."""
        with torch.inference_mode():
            results = self._module(torch.from_numpy(image).to(self._device))
        found: np.ndarray = results[self.outputs.index(output)].cpu().numpy()
        return found


def open_network(path: Path, device: str | None, output: str = "logits") -> ExportedFile:
    """Open an exported file of any format for one of its outputs.

    Raises:
        InputError: See `open_exported`.
    """
    return Pt2File(path, device, output) if path.suffix.lower() == ".pt2" else open_exported(path, device, output)


class _Shared:
    """Holds a value that copies of its owner share: a runtime cannot be copied."""

    def __init__(self, value: ExportedFile) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return copy.copy(self)


def _shapes(config: Mapping[str, Any]) -> nn.Module | None:
    try:
        with ShapesOnly():
            return build_network(config).eval()
    except InputError:  # a network of the user's own, whose class is not known here
        return None


def _refuse_pickles(path: Path) -> None:
    """Refuse an archive with pickled parts, or with sizes that are more than arithmetic: both would run code."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            described = [json.loads(archive.read(n)) for n in archive.namelist() if n.endswith(".json")]
    except (zipfile.BadZipFile, ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not a file of torch.export, or damaged: {one_line(error, 200)}") from error
    for key, value in (pair for one in described for pair in _pairs(one)):
        if key == "use_pickle" and value:
            raise InputError(f"{path}: holds pickled parts, which could run code when read: export it again")
        if key == "expr_str" and not _EXPRESSION.fullmatch(str(value)):
            raise InputError(f"{path}: the size {str(value)[:60]!r} is no arithmetic: the file is not to be trusted")


def _pairs(value: Any) -> list[tuple[str, Any]]:
    """All (key, value) of nested plain data."""
    found, todo = [], [value]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            found += list(one.items())
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return found


def _keep_one(module: Any, index: int) -> None:
    """Let a traced module return one of its outputs in place of all, and compute nothing for the others."""
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    results = output.args[0]
    output.args = (type(results)([results[index]] * len(results)),)
    module.graph.eliminate_dead_code()
    module.recompile()
