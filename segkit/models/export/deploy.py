"""Writes a checkpoint in the formats of other runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint
from segkit.models.export.deployable import Deployable, Outputs, deployment_card, output_names, trace
from segkit.models.export.formats import (
    OPSET,
    onnx_model,
    openvino_model,
    set_onnx_card,
    set_openvino_card,
    write_onnx,
    write_openvino,
    write_pt2,
)
from segkit.models.export.quantize import Calibration, layers_of, quantize_until, quantized
from segkit.ops.normalize import Normalization

ExportPrecision = Literal["fp32", "fp16", "bf16", "int8"]

# suffix     precisions that its runtimes have
PRECISIONS = {
    ".onnx": ("fp32", "fp16", "int8"),
    ".xml":  ("fp32", "fp16", "bf16", "int8"),
    ".pt2":  ("fp32", "fp16", "bf16"),
}  # fmt: skip
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Form:
    """How a network is written.

    Attributes:
        outputs: "both", "labels" (uint8 at the image's size) or "logits" (float32 at the network's stride).
        input: "float32" or "uint8": the dtype of the image, whose values are those of the image file either way.
        precision: Of the weights and, where the runtime can, of the arithmetic.
        license: Of the weights; a name or an address.
    """

    outputs: Outputs = "both"
    input: Literal["float32", "uint8"] = "float32"
    precision: ExportPrecision = "fp32"
    license: str | None = None

    def check(self, path: Path, normalization: Normalization) -> None:
        """Refuse what a format or the bands cannot have.

        Raises:
            InputError: Says which, and what is allowed.
        """
        allowed = PRECISIONS[path.suffix.lower()]
        if self.precision not in allowed:
            others = [suffix for suffix, has in PRECISIONS.items() if self.precision in has]
            raise InputError(
                f"{path}: {path.suffix} files have no {self.precision}, {' and '.join(others)} files do; choose "
                f"{', '.join(allowed)}"
            )
        bands = normalization.bands
        if self.input == "uint8" and bands is not None and bands.dtype != "uint8":
            raise InputError(f"--input uint8: the bands of these weights are {bands.dtype}; leave it at float32")


def deploy(
    path: Path, checkpoint: Checkpoint, network: nn.Module, form: Form, calibration: Calibration | None = None
) -> dict[str, Any]:
    """Write a network for other runtimes: `.onnx`, `.xml` (OpenVINO, with `.bin` beside it) or `.pt2`.

    Args:
        path: The file; its suffix chooses the format.
        checkpoint: The description of the weights.
        network: The network that `checkpoint` builds, in eval mode on the CPU.
        form: Outputs, input and precision.
        calibration: What int8 is calibrated on and judged by; no other precision needs it.

    Returns:
        The card that the file holds.

    Raises:
        InputError: The format lacks the precision, the network cannot be traced, packages are missing, or the file
            cannot be written.
    """
    normalization = Normalization.from_dict(checkpoint.normalization)
    form.check(path, normalization)
    if form.precision == "int8" and calibration is None:
        raise InputError("int8 is calibrated on training images: give the data, --data NAME --data.root DIR")
    suffix = path.suffix.lower()
    opset = {} if suffix == ".pt2" else {"opset": OPSET}
    how = {"outputs": form.outputs, "input": form.input, "precision": form.precision, "license": form.license}
    card = deployment_card(checkpoint, network, **how, **opset)
    dtype = None if suffix == ".xml" else _DTYPES.get(form.precision)  # OpenVINO rounds by itself
    deployable = Deployable(network, normalization, form.outputs, dtype)
    program = trace(deployable, getattr(torch, form.input))
    if suffix == ".pt2":
        write_pt2(path, program, card)
        return card
    model = onnx_model(program, output_names(form.outputs), card)
    layers = layers_of(model)
    with tempfile.TemporaryDirectory() as folder:
        if suffix == ".xml":
            write_onnx(Path(folder) / "model.onnx", model)
            model = openvino_model(Path(folder) / "model.onnx", card)

        def write(kept: Sequence[str], nodes: Sequence[str]) -> None:
            card["float_layers"] = list(kept)
            assert calibration is not None
            _write(path, quantized(model, calibration, nodes), card, form)

        if calibration is None or form.precision != "int8":
            _write(path, model, card, form)
        else:
            quantize_until(path, layers, deployable, calibration, write)
    return card


def _write(path: Path, model: Any, card: dict[str, Any], form: Form) -> None:
    if path.suffix.lower() == ".onnx":
        set_onnx_card(model, card)
        write_onnx(path, model)
    else:
        set_openvino_card(model, card)
        write_openvino(path, model, half=form.precision == "fp16")
