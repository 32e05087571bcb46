"""Writes a traced network as ONNX, OpenVINO IR or PyTorch's .pt2, with its card as metadata."""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from segkit.errors import InputError, import_extra, one_line
from segkit.files import check_writable, write_refusal

OPSET = 20  # of ONNX: the newest that the exporter of torch 2.11 writes
CARD = "segkit"  # the key of the card, JSON, in each format's metadata
LARGEST_ONNX = 2**31 - 2**24  # bytes of weights in one file: protobuf's 2 GB, less the graph

AXES = ("batch", "height", "width")


def model_api(card: Mapping[str, Any]) -> dict[str, str]:
    """The metadata by which OpenVINO's Model API runs a model (model_api/models/segmentation.py, image_model.py)."""
    space = card.get("label_space") or {}
    return {
        "model_type": "Segmentation",
        "labels": " ".join(name.replace(" ", "_") for name in space.get("class_names", ())),
        "reverse_input_channels": "True",  # it reads BGR, as OpenCV does
        "mean_values": "0.0 0.0 0.0",  # the normalisation is in the graph
        "scale_values": "1.0 1.0 1.0",
        "resize_type": "standard",
        "pad_value": "0",
        "blur_strength": "-1",  # labels are the largest logits
        "soft_threshold": "-inf",
        "return_soft_prediction": "False",
    }


def onnx_model(program: ExportedProgram, names: Sequence[str], card: Mapping[str, Any]) -> Any:
    """Translate a traced network to an `onnx.ModelProto` of opset 20 with dynamic batch, height and width.

    Raises:
        InputError: ONNX's packages are missing.
    """
    import_extra("onnxscript", "onnx")
    translated = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=list(names), verbose=False
    )
    assert translated is not None
    model = translated.model_proto
    _name_axes(model)
    set_onnx_card(model, card)
    return model


def set_onnx_card(model: Any, card: Mapping[str, Any]) -> None:
    """Replace the metadata of an `onnx.ModelProto` by the card and the keys of OpenVINO's Model API."""
    del model.metadata_props[:]
    keys = {f"model_info {name}": value for name, value in model_api(card).items()}
    for key, value in {CARD: json.dumps(card), **keys}.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "segkit", str(card.get("segkit", ""))


def write_onnx(path: Path, model: Any) -> None:
    """Write an `onnx.ModelProto`; above 2 GB the weights lie in a file beside it, whose name says whose it is."""
    onnx = import_extra("onnx", "onnx")
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_ONNX
    data = f"{path.name.split('.')[0]}-{uuid.uuid4().hex[:8]}.onnx.data"  # stays when the model is renamed
    with whole_or_nothing(path) as folder:
        onnx.save_model(model, folder / path.name, save_as_external_data=external, location=data)


def openvino_model(onnx_path: Path, card: Mapping[str, Any]) -> Any:
    """Read an ONNX file as an `openvino.Model` with the card in its runtime information.

    Raises:
        InputError: OpenVINO is missing.
    """
    openvino = import_extra("openvino", "openvino")
    model = openvino.convert_model(onnx_path)
    set_openvino_card(model, card)
    return model


def set_openvino_card(model: Any, card: Mapping[str, Any]) -> None:
    """Replace the card of an `openvino.Model`, and the keys of its Model API."""
    model.set_rt_info(json.dumps(card), CARD)
    for name, value in model_api(card).items():
        model.set_rt_info(value, ["model_info", name])


def write_openvino(path: Path, model: Any, half: bool) -> None:
    """Write `NAME.xml` and `NAME.bin`; `half` stores the weights as float16."""
    openvino = import_extra("openvino", "openvino")
    with whole_or_nothing(path) as folder:
        openvino.save_model(model, folder / path.name, compress_to_fp16=half)


def write_pt2(path: Path, program: ExportedProgram, card: Mapping[str, Any]) -> None:
    """Write PyTorch's own format; `torch.export.load(path).module()` runs it without segkit.

    Raises:
        InputError: The format lacks an operation of the network, such as `math.ceil` of a size.
    """
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, and lines of source
    with whole_or_nothing(path) as folder:
        try:
            torch.export.save(program, folder / path.name, extra_files={CARD: json.dumps(card)})
        except Exception as error:
            if type(error).__name__ != "SerializeError":  # a private class of torch
                raise
            raise InputError(
                f"{path}: torch.export cannot store this network ({one_line(error, 300)}); choose .onnx or .xml"
            ) from error


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A folder beside `path` whose files take their places there when the block ends without an error.

    The file that others open by its name comes last, so that it never stands beside an older companion's values.
    """
    check_writable(path.absolute().parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as made:
        try:
            yield Path(made)
        except Exception as error:  # libraries raise errors of their own for a full disk
            raise write_refusal(error, path) or error from error
        for file in sorted(Path(made).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.parent / file.name)


def _name_axes(model: Any) -> None:
    """Call the free axes batch, height and width, and what follows from them, as (height - 1)//8 + 1, likewise."""
    axes = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_param]
    called = dict(zip(axes, AXES, strict=True))
    pattern = re.compile("|".join(rf"\b{re.escape(axis)}\b" for axis in axes))
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda found: called[found[0]], dim.dim_param)
