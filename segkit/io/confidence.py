"""Confidence maps: how sure a network is of each pixel's label, as 8-bit grey PNGs named NAME_confidence.png.

A value v means a confidence of v / 255, rounded to the nearest; the PNG's own text, `confidence = value / 255`, says so
and tells a confidence map from a label map.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.io import png_chunks, read_bytes, read_label, write_png

ENDING = "_confidence.png"

_TEXT = {"confidence": "value / 255"}
_CHUNK = b"tEXt", "\0".join(*_TEXT.items()).encode()
_SEEN = 128  # bytes: signature, header and the text, which `write_confidence` writes first


def confidence_path(labels: Path) -> Path:
    """Where the confidence map of a label map lies: NAME_confidence.png beside NAME.png or NAME_labels.png."""
    return labels.with_name(labels.stem.removesuffix("_labels") + ENDING)


def write_confidence(path: str | os.PathLike[str], confidence: NDArray[np.float32]) -> None:
    """Write a confidence map, float (H, W) in 0..1, atomically."""
    write_png(path, np.rint(confidence * 255).astype(np.uint8), text=_TEXT)


def read_confidence(path: Path) -> UInt8Array:
    """The confidence of each pixel times 255, uint8 (H, W).

    Raises:
        InputError: The file is missing, damaged, or no confidence map.
    """
    if _CHUNK not in png_chunks(read_bytes(path, "confidence map"), path):
        raise InputError(f"{path}: no confidence map, as its PNG has no text 'confidence'; give one that segkit wrote")
    return read_label(path)


def is_confidence(path: Path) -> bool:
    """Whether a file is a confidence map by its name and its first bytes; nothing is decoded."""
    if not path.name.endswith(ENDING):
        return False
    try:
        with path.open("rb") as file:
            return b"".join(_CHUNK) in file.read(_SEEN)
    except OSError:
        return False  # who reads it will say why
