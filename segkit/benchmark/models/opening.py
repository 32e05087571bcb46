"""Opens a model of any kind by its name, and identifies its version."""

import hashlib
import json
from pathlib import Path
from typing import Any

from segkit.benchmark.models.base import JudgedModel
from segkit.benchmark.models.exported_file import ExportedModel, foreign_file
from segkit.benchmark.models.function import FunctionModel, is_function, source_of
from segkit.benchmark.models.hugging_face import HuggingFaceModel, folder_of, is_id
from segkit.benchmark.models.options import ModelOptions
from segkit.benchmark.models.predictions import PredictionsModel
from segkit.benchmark.models.segkit_file import open_segkit
from segkit.errors import InputError
from segkit.inference.protocols import Protocol
from segkit.paths import walk_files


def open_model(given: str, device: str, protocol: Protocol, options: ModelOptions) -> JudgedModel:
    """Open a model of any kind.

    Args:
        given: A file that `segkit.load` reads, or an ONNX or OpenVINO file of another origin; `module:name` (see
            `FunctionModel`); a folder that transformers saved, or the hub's id of one; or a folder of label maps.
        device: Where it runs.
        protocol: How it sees images; other kinds than segkit's files see them in their own way.
        options: What else is known of it.

    Raises:
        InputError: There is no such model, it cannot be read, or it knows no protocols.
    """
    kind = _kind(given)
    foreign = foreign_file(Path(given), device) if kind == "file" else None
    if options.preprocessing is not None and foreign is None:
        raise InputError(f"{given}: knows its preprocessing by itself; leave the option out, or write a function")
    if kind == "file" and foreign is None:
        return open_segkit(given, device, protocol)
    if protocol.to_dict() != Protocol("whole").to_dict():
        raise InputError(
            f"{given}: sees images in its own way, so the protocol {protocol.name} cannot be followed; leave it out"
        )
    if foreign is not None:
        return ExportedModel(given, foreign, options.preprocessing or {})
    if kind == "function":
        return FunctionModel(given, device)
    if kind == "predictions":
        return PredictionsModel(given)
    return HuggingFaceModel(given, _folder(given), device)


def fingerprint(given: str) -> list[Any]:
    """A fingerprint that changes with the model, as far as its files tell: name, size and modification time.

    Raises:
        InputError: There is no such model.
    """
    kind = _kind(given)
    if kind == "file":
        return [given, *_state(Path(given))]
    if kind == "function":
        return [given, *_state(source_of(given))]
    folder = _folder(given)
    files = [[path.relative_to(folder).as_posix(), *_state(path)] for path in walk_files(folder)]
    return [given, hashlib.sha256(json.dumps(files).encode()).hexdigest()]


def _kind(given: str) -> str:
    path = Path(given)
    if path.is_file():
        return "file"
    if path.is_dir():
        return "hugging face" if (path / "config.json").is_file() else "predictions"
    if is_function(given):
        return "function"
    if is_id(given):
        return "hugging face"
    raise InputError(
        f"{given}: no such file; give a checkpoint, an exported file, my_module:function, a folder of transformers or "
        "of predictions, or an id of Hugging Face"
    )


def _folder(given: str) -> Path:
    return Path(given) if Path(given).is_dir() else folder_of(given)


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
