"""The channels of an image: their names, how their values are stored, and the range that is scaled to 0..1.

Data that declare nothing are uint8 RGB and have no `Bands`. Others have one, which is passed on with the normalization
from the data to the checkpoint and to inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segkit.arrays import UInt8Array
from segkit.errors import InputError

BandArray: TypeAlias = npt.NDArray[Any]  # uint8, uint16 or float32

RGB = ("red", "green", "blue")
DTYPES = ("uint8", "uint16", "float32")  # types of images until they are on the device


@dataclass(frozen=True)
class Bands:
    """The channels of an image.

    Attributes:
        names: C names.
        dtype: One of `DTYPES`; the type of a file's values.
        low: C values that become 0, as do lower ones. Also the value of padding.
        high: C values that become 1, as do higher ones.

    Raises:
        InputError: The lengths differ, a name occurs twice, or a range is empty or not finite.
    """

    names: tuple[str, ...]
    dtype: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        """Turn lists (as read from a checkpoint) into tuples and check them."""
        for name, kind in (("names", str), ("low", float), ("high", float)):
            object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
        if not self.names or len(set(self.names)) != len(self.names):
            raise InputError(f"bands are {list(self.names)}; give each a name of its own")
        if self.dtype not in DTYPES:
            raise InputError(f"bands are of {self.dtype}; allowed are {', '.join(DTYPES)}")
        if not len(self.low) == len(self.high) == len(self.names):
            raise InputError(
                f"range: {len(self.low)} lower and {len(self.high)} upper ends for {len(self.names)} bands; give one "
                "pair for all, or one for each band"
            )
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise InputError(f"range of {name} is [{low:g}, {high:g}]; give two numbers, the smaller one first")

    def to_dict(self) -> dict[str, Any]:
        """The bands as plain data, for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Bands:
        """Build bands from the result of `to_dict`."""
        return cls(**values)

    def same_kind(self, other: Bands | None) -> bool:
        """Whether images of the other bands are read alike; the range may differ."""
        return other is not None and (self.names, self.dtype) == (other.names, other.dtype)

    def __str__(self) -> str:
        """The bands in words, for a message."""
        return f"{len(self.names)} bands of {self.dtype} ({', '.join(self.names)})"

    def checked(self, image: npt.NDArray[Any], source: object) -> BandArray:
        """An image (H, W, C), if it is of these bands.

        Args:
            image: The image, of one of `DTYPES`.
            source: Its name in messages.

        Raises:
            InputError: Number or type of the bands differ, or a value is not finite.
        """
        if image.shape[2] != len(self.names) or image.dtype != self.dtype:
            raise InputError(
                f"{source}: has {image.shape[2]} bands of {image.dtype}, needed are {self}; give images of these "
                "alone, or declare what they have: --data.bands"
            )
        if self.dtype == "float32" and not np.isfinite(image.sum(dtype=np.float64)):
            wrong = ~np.isfinite(image)
            named = ", ".join(n for n, bad in zip(self.names, wrong.any(axis=(0, 1)), strict=True) if bad)
            raise InputError(
                f"{source}: {int(wrong.sum())} values are NaN or infinite (in {named}); write a number in their place, "
                "and ignore (255) in the mask"
            )
        return image

    def clipped(self, image: BandArray) -> int:
        """The number of values outside the range."""
        low, high = (np.asarray(ends, np.float32) for ends in (self.low, self.high))
        return int(((image < low) | (image > high)).sum())

    def scaled(self, image: BandArray) -> npt.NDArray[np.float64]:
        """The image (H, W, C) scaled to 0..1, as the network's normalization scales it."""
        low, high = (np.asarray(ends, np.float64) for ends in (self.low, self.high))
        return np.clip((image - low) / (high - low), 0, 1)

    def index(self, shown: Sequence[str] = ()) -> list[int]:
        """Indices of the bands that are shown as red, green and blue.

        Args:
            shown: Their names, or their numbers from 1; one or three. None: those that are named so, else the first
                three, or the first one where there are fewer.

        Raises:
            InputError: There is no such band, or another number of them.
        """
        first = self.names[: 3 if len(self.names) >= 3 else 1]
        shown = shown or (RGB if set(RGB) <= set(self.names) else first)
        if len(shown) not in (1, 3):
            raise InputError(f"bands {' '.join(shown)}: one is shown as grey, or three as red, green and blue")
        places = {str(i + 1): i for i in range(len(self.names))} | {name: i for i, name in enumerate(self.names)}
        unknown = [name for name in shown if name not in places]
        if unknown:
            raise InputError(f"no band {unknown[0]!r}; allowed are {', '.join(self.names)}, or 1 to {len(self.names)}")
        return [places[name] for name in shown] * (3 // len(shown))

    def as_rgb(self, image: BandArray, shown: Sequence[str] = ()) -> UInt8Array:
        """An image (H, W, C) for the eye: uint8 (H, W, 3), three of its bands (`index`), scaled by the range."""
        places = self.index(shown)
        chosen = Bands(RGB, self.dtype, *(tuple(ends[i] for i in places) for ends in (self.low, self.high)))
        return (chosen.scaled(image[..., places]) * 255).round().astype(np.uint8)


def bands_of(names: Sequence[str] | int, dtype: str, ends: Sequence[Any] | None) -> Bands:
    """Bands of a number or of names, with a range for all or for each; uint8 without one is 0..255.

    Raises:
        InputError: The range is missing or wrong.
    """
    if isinstance(names, int):
        names = RGB if names == len(RGB) else [f"band {number}" for number in range(1, names + 1)]
    if ends is None and dtype != "uint8":
        raise InputError(
            f"the images are of {dtype}, and the range of their values was never declared: set --data.range "
            "'[0, 10000]', or --data.range percentile"
        )
    pairs = [(0.0, 255.0)] if ends is None else [ends] if np.ndim(ends[0]) == 0 else ends
    pairs = list(pairs) * len(names) if len(pairs) == 1 else pairs
    return Bands(tuple(names), dtype, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))
