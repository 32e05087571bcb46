"""Opens a model of any kind by its name, and identifies its version."""

from pathlib import Path
from typing import Any

from segkit.benchmark.models.base import JudgedModel
from segkit.benchmark.models.function import FunctionModel, is_function, source_of
from segkit.benchmark.models.options import ModelOptions
from segkit.benchmark.models.segkit_file import open_segkit
from segkit.errors import InputError
from segkit.inference.protocols import Protocol


def open_model(given: str, device: str, protocol: Protocol, options: ModelOptions) -> JudgedModel:
    """Open a model of any kind.

    Args:
        given: A file that `segkit.load` reads, or `module:name` (see `FunctionModel`).
        device: Where it runs.
        protocol: How it sees images; other kinds than segkit's files see them in their own way.
        options: What else is known of it.

    Raises:
        InputError: There is no such model, it cannot be read, or it knows no protocols.
    """
    if Path(given).is_file():
        return open_segkit(given, device, protocol)
    if protocol.to_dict() != Protocol("whole").to_dict():
        raise InputError(
            f"{given}: sees images in its own way, so the protocol {protocol.name} cannot be followed; leave it out"
        )
    if is_function(given):
        return FunctionModel(given, device)
    raise InputError(f"{given}: no such file; {_KINDS}")


def fingerprint(given: str) -> list[Any]:
    """A fingerprint that changes with the model, as far as its files tell: name, size and modification time.

    Raises:
        InputError: There is no such model.
    """
    if Path(given).is_file():
        return [given, *_state(Path(given))]
    if is_function(given):
        return [given, *_state(source_of(given))]
    raise InputError(f"{given}: no such file; {_KINDS}")


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


_KINDS = "give a checkpoint, or module:function"
