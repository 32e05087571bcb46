"""`module:name`: a Python callable of the user's, with its own preprocessing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.bands import BandArray
from segkit.benchmark.models.base import Altered, JudgedModel
from segkit.errors import InputError, one_line
from segkit.models.own import imported


class FunctionModel(JudgedModel):
    """Calls what `module:name` names: a function, an object, or a class, of which one is made without arguments.

    It is called with one image, uint8 RGB (H, W, 3) (or the data's bands), and returns labels, integers (H, W) of the
    image's size, or logits, floating point (K, h, w), as a NumPy array or a tensor; a batch of one will do. With a
    method `preprocess`, it is called with what that made of the image, and the time of that is not the network's.
    Further attributes, where it has them: `class_names`, by its own numbers, else it has the data's, in their order;
    `align_corners` of the resizing of its logits, else False; and `preprocessing`, in words for the table.

    Raises:
        InputError: There is no such callable, or making one raises something.
    """

    def __init__(self, name: str, device: str) -> None:
        found = imported(name.replace(":", "."), "the model")
        try:
            self.called = found() if isinstance(found, type) else found
            self.class_names = tuple(str(n) for n in getattr(self.called, "class_names", ()))
        except Exception as error:  # whatever the user's code raises
            raise InputError(_raised(name, error)) from error
        if not callable(self.called):
            kind = type(self.called).__name__
            raise InputError(f"{name}: is {kind}, which cannot be called; give a function of an image")
        self._preprocess = getattr(self.called, "preprocess", None)
        timed = "its own, timed with the network" if self._preprocess is None else "its own"
        super().__init__(name, {"words": str(getattr(self.called, "preprocessing", timed))}, device)
        self.num_classes = len(self.class_names) or None

    def prepare(self, image: BandArray, name: str) -> Any:
        """See base class."""
        return image if self._preprocess is None else self._answer(self._preprocess, image.copy())

    def label(self, prepared: Any, size: tuple[int, int]) -> Tensor:
        """See base class."""
        align = bool(getattr(self.called, "align_corners", False))
        return self.read(self._answer(self.called, prepared), size, align)

    def variants(self) -> dict[str, JudgedModel]:
        """See base class."""
        found: dict[str, JudgedModel] = {"BGR": Altered(self)}
        if self._preprocess is not None:
            found["values 0..1 before its preprocessing"] = Altered(
                self, lambda image: (image / 255).astype(np.float32)
            )
        return found

    def _answer(self, call: Any, argument: Any) -> Any:
        try:
            with torch.inference_mode():
                return call(argument)
        except Exception as error:  # whatever the user's code raises
            raise InputError(_raised(self.name, error)) from error


def is_function(given: str) -> bool:
    """Whether this reads as `module:name`, a function; nothing is imported for it."""
    module, _, name = given.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def source_of(given: str) -> Path:
    """The file of the module, by which another version of it is known.

    Raises:
        InputError: There is no such module, or its package cannot be imported.
    """
    module = given.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # whatever the user's package raises
        raise InputError(_raised(given, error)) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputError(f"{given}: there is no module {module!r}, neither in this folder nor installed")
    return Path(spec.origin)


def _raised(name: str, error: Exception) -> str:
    return f"{name}: raised {type(error).__name__}: {one_line(error, 200)}"
