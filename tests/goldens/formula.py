"""Weights and an image from a formula: the same in a script that runs another toolkit and in the test beside it.

NumPy's `RandomState` is used because its streams are frozen: they are the same in every version.
"""

import zlib
from collections.abc import Mapping

import numpy as np


def formula_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values by name and shape: convolutions keep the variance, norms are as after training, none is at its default."""
    return {name: _values(name, shape) for name, shape in shapes.items()}


def image(height: int = 65, width: int = 49) -> np.ndarray:
    """Normalised float32 (1, 3, height, width) of odd sides."""
    return np.random.RandomState(0).standard_normal((1, 3, height, width)).astype(np.float32)


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 4:
        return (random.standard_normal(shape) * (2.0 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    offset = 1.0 if name.endswith("weight") else 0.0
    return (offset + 0.1 * random.standard_normal(shape)).astype(np.float32)
