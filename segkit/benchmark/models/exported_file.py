"""An ONNX or OpenVINO file of another origin than `segkit export`: what it does with an image is given, or assumed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from segkit.bands import BandArray
from segkit.benchmark.models.base import Altered, JudgedModel
from segkit.benchmark.models.preprocessing import Preprocessing
from segkit.inference.exported.files import ExportedFile, open_exported


class ExportedModel(JudgedModel):
    """Runs the file's first output, labels or logits, in its runtime.

    A file that takes uint8 gets the image as it is; any other is given normalised values, by default with ImageNet's
    mean and deviation. Its input may be fixed in size, and have its channels last.

    Raises:
        InputError: The preprocessing is wrong.
    """

    def __init__(self, name: str, file: ExportedFile, given: Mapping[str, Any]) -> None:
        shape, self._file = file.input_shape, file
        self._is_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
        height, width = shape[1:3] if self._is_last else shape[2:4]
        self._takes_bytes = file.input_dtype == "uint8"
        plain = {"mean": 0, "std": 1, "range": 255} if self._takes_bytes else {}  # the values as they are
        fixed = None if height is None or width is None else (height, width)
        self.before = Preprocessing.of({**plain, **given}, fixed)
        super().__init__(name, self.before.to_dict() | {"given": ", ".join(map(str, given)) or "nothing: assumed"})

    def prepare(self, image: BandArray, name: str) -> Any:
        """See base class."""
        batch = self.before(image)
        batch = batch.permute(0, 2, 3, 1) if self._is_last else batch
        values = batch.round() if self._takes_bytes else batch
        return np.ascontiguousarray(values.numpy(), np.uint8 if self._takes_bytes else np.float32)

    def label(self, prepared: Any, size: tuple[int, int]) -> Tensor:
        """See base class."""
        return self.read(self._file.run(prepared, self._file.outputs[0]), size)

    def variants(self) -> dict[str, JudgedModel]:
        """See base class."""
        if self._takes_bytes:
            return {"BGR": Altered(self)}
        other, end = copy.copy(self), 1 if self.before.range == 255 else 255
        other.before = replace(self.before, range=end)
        return {"BGR": Altered(self), f"values 0..{end} before mean and std": other}


def foreign_file(path: Path, device: str) -> ExportedFile | None:
    """The opened file, if it is ONNX or OpenVINO and not of `segkit export`.

    Raises:
        InputError: See `open_exported`.
    """
    if path.suffix.lower() not in (".onnx", ".xml"):
        return None
    file = open_exported(path, device)
    return None if file.card else file
