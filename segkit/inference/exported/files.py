"""Runs a network that was exported to ONNX or OpenVINO, without PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segkit.errors import InputError, did_you_mean, import_extra, one_line
from segkit.inference.exported.card import parse_card
from segkit.metadata.label_space import IGNORE_INDEX, LabelSpace, numbered_space

_CARD = "segkit"  # the key of the card in the metadata
_SMALL = 8  # pixels; pools of OpenVINO need one cell, a stride of the network


class ExportedFile(Protocol):
    """A file that maps stored images to labels or logits.

    Attributes:
        path: The file itself.
        card: What the file says of itself, as `segkit.models.export.card` writes it; {} in a file of another origin.
        outputs: Names of the outputs.
        input_dtype: "uint8" or "float32": what `run` takes.
        input_shape: Of the batch that it takes; None where a side is free.
    """

    path: Path
    card: Mapping[str, Any]
    outputs: tuple[str, ...]
    input_dtype: str
    input_shape: tuple[int | None, ...]

    def run(self, image: np.ndarray, output: str) -> np.ndarray:
        """Compute one output of a batch (B, C, H, W).

        Raises:
            InputError: The runtime refuses the image.
        """


def open_exported(path: Path, device: str | None = None, output: str | None = None) -> ExportedFile:
    """Open an ONNX or OpenVINO file.

    Args:
        path: `NAME.onnx`, or `NAME.xml` beside its `NAME.bin`.
        device: "cpu" (default for ONNX), "cuda", "cuda:1", or a device of OpenVINO ("auto" is its default).
        output: Where the file has it, only this output is computed; None keeps all.

    Raises:
        InputError: The file is missing, damaged or of another kind; the runtime is not installed or lacks the device.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxFile(path, device, output)
    if suffix == ".xml":
        return OpenVINOFile(path, device, output)
    raise InputError(f"{path}: neither .onnx nor .xml")


class OnnxFile:
    """See `ExportedFile`; runs in ONNX Runtime."""

    def __init__(self, path: Path, device: str | None = None, output: str | None = None) -> None:
        runtime = import_extra("onnxruntime", "onnx")
        self.path = path
        try:
            model = path if output is None else _pruned_onnx(path, output)
            self._session = runtime.InferenceSession(model, providers=_providers(runtime, device))
        except InputError:
            raise
        except Exception as error:  # the runtime has a class for each of its many reasons
            raise InputError(f"{path}: {_onnx_problem(error)}") from error
        self.card = parse_card(self._session.get_modelmeta().custom_metadata_map.get(_CARD), path)
        self.outputs = tuple(node.name for node in self._session.get_outputs())
        inputs = self._session.get_inputs()
        self._input = inputs[0].name
        _check_io(path, [len(node.shape) for node in inputs], self.outputs)
        self.input_dtype = {"tensor(uint8)": "uint8"}.get(inputs[0].type, "float32")
        self.input_shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)

    def run(self, image: np.ndarray, output: str) -> np.ndarray:
        """See `ExportedFile.run`."""
        try:
            result: np.ndarray = self._session.run([output], {self._input: image})[0]
        except Exception as error:
            raise refusal(self.path, "ONNX Runtime", image, error) from error
        return result


class OpenVINOFile:
    """See `ExportedFile`; runs in OpenVINO."""

    def __init__(self, path: Path, device: str | None = None, output: str | None = None) -> None:
        openvino = import_extra("openvino", "openvino")
        self.path = path
        if not path.with_suffix(".bin").is_file():
            raise InputError(
                f"{path}: {path.with_suffix('.bin').name} is not beside it, where its weights are; copy both"
            )
        core = _core()
        wanted = _openvino_device(core, device)
        try:
            model = core.read_model(path)
        except Exception as error:
            raise InputError(f"{path}: not an OpenVINO model, or damaged: {_reason(error)}") from error
        self.card = parse_card(model.get_rt_info([_CARD]).value if model.has_rt_info([_CARD]) else None, path)
        _check_io(path, [len(node.partial_shape) for node in model.inputs], model.outputs)
        kept = [node for node in model.outputs if output in node.names] or model.outputs
        model = openvino.Model(kept, model.get_parameters(), "segkit")
        self.outputs = tuple(_name(node.names) for node in model.outputs)
        self.input_dtype = "uint8" if model.inputs[0].element_type == openvino.Type.u8 else "float32"
        sides = model.inputs[0].partial_shape
        self.input_shape = tuple(int(side.get_length()) if side.is_static else None for side in sides)
        hint = "bf16" if self.card.get("precision") == "bf16" else "f32"
        try:
            self._model = core.compile_model(model, wanted, {"INFERENCE_PRECISION_HINT": hint})
        except Exception as error:
            raise InputError(f"{path}: OpenVINO cannot run it on {wanted}: {_reason(error)}") from error

    def run(self, image: np.ndarray, output: str) -> np.ndarray:
        """See `ExportedFile.run`."""
        try:
            result: np.ndarray = self._model(image)[self.outputs.index(output)]
        except Exception as error:
            raise refusal(self.path, "OpenVINO", image, error) from error
        return result


def _providers(runtime: Any, device: str | None) -> list[Any]:
    """ONNX Runtime's execution providers for a device as PyTorch names it."""
    kind, _, number = (device or "cpu").lower().partition(":")
    known = {p.removesuffix("ExecutionProvider").lower(): p for p in runtime.get_available_providers()}
    if kind not in known:
        hint = did_you_mean(kind, list(known))
        raise InputError(
            f"device {device!r}: ONNX Runtime has no such provider here; {hint}give one of {', '.join(known)}"
        )
    options = {"device_id": int(number)} if number.isdecimal() else {}
    return [(known[kind], options)] + ([] if kind == "cpu" else ["CPUExecutionProvider"])


@cache
def _core() -> Any:
    """OpenVINO's core, one for the process, as its plugins belong to it.

    Each gives the thread a signal stack, and at its end the one that was there before (2026.4.1). Of two, which end in
    the order in which they began, the second leaves the freed one of the first; then the next signal with a handler,
    such as Ctrl-C or the end of a child, is a segmentation fault.
    """
    return import_extra("openvino", "openvino").Core()


def _openvino_device(core: Any, device: str | None) -> str:
    wanted = (device or "cpu").upper().replace("CUDA", "GPU").replace(":", ".")
    allowed = [*core.available_devices, "AUTO"]
    if wanted not in allowed:
        raise InputError(f"device {device!r}: OpenVINO has none such here; give one of {', '.join(allowed).lower()}")
    return wanted


def check_own(card: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that does not say what is needed to run it.

    Raises:
        InputError: It is of another origin than `segkit export`.
    """
    if not card:
        raise InputError(
            f"{path}: was not written by `segkit export`: it has no card to say how images are normalised and what the "
            "classes are; `segkit benchmark` scores it"
        )


def label_space_of(file: ExportedFile) -> LabelSpace:
    """The classes of a file of `segkit export`: "class 0", "class 1", ... where its card does not name them.

    Raises:
        InputError: There are more classes than a label map can hold.
    """
    classes, space = int(file.card["num_classes"]), file.card.get("label_space")
    if classes > IGNORE_INDEX:
        raise InputError(
            f"{file.path}: has {classes} classes, but segkit's label maps are of 8 bits and hold at most "
            f"{IGNORE_INDEX}; run it in its own runtime, whose labels are int16 (docs/deployment.md)"
        )
    return numbered_space(classes) if space is None else LabelSpace.from_dict(space)


def _name(names: Set[str]) -> str:
    """Of the names that OpenVINO has for one output, that of `segkit export`, or else the first."""
    return next(iter(sorted(names, key=lambda name: (name not in ("labels", "logits"), name))), "")


def _check_io(path: Path, dimensions: list[int], outputs: Any) -> None:
    if dimensions != [4]:
        raise InputError(
            f"{path}: has {len(dimensions)} inputs, of {' and '.join(map(str, dimensions))} dimensions; a segmentation "
            "network has one, the image (B, C, H, W)"
        )
    if not outputs:
        raise InputError(f"{path}: has no output")


def _pruned_onnx(path: Path, output: str) -> bytes | str:
    """The model without the nodes that only its other outputs need: the runtime computes them all."""
    onnx = import_extra("onnx", "onnx")
    model = onnx.load(path, load_external_data=False)
    if any(tensor.external_data for tensor in model.graph.initializer):
        return str(path)  # too large for a copy in memory
    made_by = {name: node for node in model.graph.node for name in node.output}
    needed, todo = set(), [output]
    while todo:
        node = made_by.get(todo.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            todo += node.input
    kept = [node for node in model.graph.node if id(node) in needed]
    results = [value for value in model.graph.output if value.name == output]
    if not results:
        return str(path)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(kept)
    model.graph.output.extend(results)
    return bytes(model.SerializeToString())


def _onnx_problem(error: Exception) -> str:
    said = one_line(error, 200)
    if "external" in said.lower():
        return f"its weights lie in a second file that is missing: copy both ({said})"
    if "is not a registered function/op" in said or "No Op registered" in said:
        return f"uses operators that ONNX Runtime lacks ({said}): export it with standard operators only"
    return f"not an ONNX model, or damaged: {said}"


def refusal(path: Path, runtime: str, image: np.ndarray, error: Exception) -> InputError:
    """The error for a batch that a runtime cannot compute."""
    shape = " x ".join(map(str, image.shape))
    cure = "give an image of at least 8 pixels a side" if min(image.shape[2:]) < _SMALL else "give another image"
    return InputError(
        f"{path}: {runtime} refuses {image.dtype} {shape} (batch, channels, height, width); {cure} ({_reason(error)})"
    )


def _reason(error: Exception) -> str:
    """What a runtime says, without the places in its source with which it begins."""
    return re.sub(r"Exception from \S+ ", "", one_line(error, 1000))[:200]
