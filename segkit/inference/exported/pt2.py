"""Runs a network that was exported to PyTorch's own format, without running anything else that the file may hold.

`torch.export.load` unpickles example inputs, constants and weights, evaluates sizes and guards, writes names into
Python source, and calls whatever function of PyTorch a node names. So it is handed a copy of the archive with tensors,
graph and card alone, after all that is in these has been looked at.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkit.errors import InputError, one_line
from segkit.inference.exported.card import parse_card
from segkit.inference.exported.files import check_own, refusal
from segkit.ops.processor import usable_device

_PARTS = re.compile(
    r"data/weights/weight_\d+|data/weights/model_weights_config\.json|data/constants/tensor_\d+"
    r"|data/constants/model_constants_config\.json|models/model\.json|extra/segkit|archive_format|archive_version"
    r"|byteorder|\.data/(?:version|serialization_id)"
)
_EXAMPLE = "data/sample_inputs/model.pt"  # a pickle; the copy has an empty one

# What strings may hold. Sizes are evaluated: classes of sympy, their keywords, symbols and numbers, nothing else.
_EXPRESSION = re.compile(r"(?:[A-Z][A-Za-z]*|[a-z]+=|'?[su]\d+'?|\d+|[\s+\-*/%(),<>=!&|~])*")
_NAME = re.compile(r"[\w.]*", re.ASCII)
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file|save|load)\w+\.\w+|torch\.sym_\w+|math\.(?:floor|ceil|trunc|sqrt)"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_FREE = {"expr_str": _EXPRESSION, "target": _TARGET, "in_spec": re.compile(r"[\w\s.,:\"\[\]{}]*", re.ASCII)}
_FREE |= {"torch_version": re.compile(r"[\w.+]*", re.ASCII)}
_FREE |= {"out_spec": _FREE["in_spec"], "as_string": re.compile(r".*", re.DOTALL)}


class Pt2File:
    """See `ExportedFile`; runs in PyTorch."""

    def __init__(self, path: Path, device: str | None = None, output: str | None = None) -> None:
        extra = {"segkit": ""}
        try:
            # Guards would be evaluated as Python; wrong images are refused by what runs the module.
            module = torch.export.load(_safe_copy(path), extra_files=extra).module(check_guards=False)
        except InputError:
            raise
        except Exception as error:  # damaged bytes may raise anything
            raise InputError(f"{path}: not a file of torch.export, or damaged: {one_line(error, 200)}") from error
        self.card = parse_card(extra["segkit"], path)
        check_own(self.card, path)
        self.path, self._device = path, usable_device(device or "cpu")
        said = str(self.card.get("outputs"))
        self.outputs: tuple[str, ...] = ("labels", "logits") if said == "both" else (said,)
        self._module = module.to(self._device)
        if output is not None and output in self.outputs:
            _keep_one(self._module, self.outputs.index(output))
            self.outputs = (output,) * len(self.outputs)
        self.input_dtype = str(self.card.get("input", "float32"))
        self.input_shape: tuple[int | None, ...] = (None, None, None, None)

    def run(self, image: np.ndarray, output: str) -> np.ndarray:
        """See `ExportedFile.run`."""
        try:
            with torch.inference_mode():
                results = self._module(torch.from_numpy(image).to(self._device))
        except Exception as error:  # of its own checks, or of any operation
            raise refusal(self.path, "PyTorch", image, error) from error
        found: np.ndarray = results[self.outputs.index(output)].cpu().numpy()
        return found


def _safe_copy(path: Path) -> io.BytesIO:
    """The archive with what is needed, after a look at it.

    Raises:
        InputError: It is missing, damaged, or holds what could run code.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    copied = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copied, "w") as copy:
        for name in archive.namelist():
            part = name.partition("/")[2]
            if part == _EXAMPLE:
                copy.writestr(name, b"")
            elif _PARTS.fullmatch(part):
                content = archive.read(name)
                copy.writestr(name, _checked(content, path) if part.endswith(".json") else content)
    copied.seek(0)
    return copied


def _checked(content: bytes, path: Path) -> bytes:
    """A JSON part without what only a debugger needs.

    Raises:
        InputError: It names a pickle, a function, or Python that is no arithmetic.
    """
    described = json.loads(content)
    for holder, key, value in _entries(described):
        if key == "metadata":  # traces of the source
            holder[key] = {}
        elif key == "guards_code":
            holder[key] = []
        elif key == "use_pickle" and value:
            raise InputError(f"{path}: holds pickled parts, which could run code when read: export it again")
        elif key == "path_name" and not re.fullmatch(r"(?:weight|tensor)_\d+", str(value)):
            raise InputError(f"{path}: holds an object, {str(value)[:60]!r}, which could run code when read")
        elif isinstance(value, str) and not _FREE.get(key, _NAME).fullmatch(value):
            what = {"expr_str": "a size", "target": "an operation"}.get(key, f"the {key}")
            raise InputError(f"{path}: has {what} {value[:60]!r}, which is not to be trusted; export it again")
    return json.dumps(described).encode()


def _entries(value: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """All (mapping, key, value) of nested plain data; a string in a list is an entry of its key."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            for key, inner in list(one.items()):
                yield one, key, inner
                if not _NAME.fullmatch(key):
                    yield one, "key", key
                if isinstance(inner, list):
                    yield from ((one, key, text) for text in inner if isinstance(text, str))
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def _keep_one(module: Any, index: int) -> None:
    """Let a traced module return one of its outputs in place of all, and compute nothing for the others."""
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    results = output.args[0]
    output.args = (type(results)([results[index]] * len(results)),)
    module.graph.eliminate_dead_code()
    module.recompile()
