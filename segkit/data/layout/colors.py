"""Masks whose classes are RGB colours, for a folder of your own."""

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.io import File, read_colors
from segkit.metadata.class_files import Colour, read_colour_table

_AT_ONCE = 1 << 20  # pixels of a mask that are looked up at once, to save memory
_UNKNOWN = 254  # a colour of no class, in the look-up table; so masks of colours have at most 254 classes


class ColorMasks:
    """Reads masks of RGB colours as train ids.

    Args:
        palette: The file palette.csv with each class's colours; read at first use.
        class_names: K names.
    """

    def __init__(self, palette: Path, class_names: tuple[str, ...]) -> None:
        self.palette = palette
        self.class_names = class_names

    def __call__(self, file: File) -> UInt8Array:
        """Train ids of a mask, uint8 (H, W); 255 = ignored.

        Raises:
            InputError: palette.csv is absent or wrong, the mask is unreadable, or holds a colour that is not declared.
        """
        colours = read_colors(file)
        height, width = colours.shape[:2]
        ids = np.empty((height, width), np.uint8)
        rows = max(1, _AT_ONCE // width)
        for start in range(0, height, rows):
            ids[start : start + rows] = self._ids_by_code[_codes(colours[start : start + rows])]
        if _UNKNOWN in ids:
            raise InputError(f"{file}: {_describe_unknown(colours, ids == _UNKNOWN)} in {self.palette}")
        return ids

    @cached_property
    def ids(self) -> dict[Colour, int]:
        """Train id, or 255 = ignore, of each colour.

        Raises:
            InputError: palette.csv is absent or wrong.
        """
        if not self.palette.is_file():
            raise InputError(
                f"{self.palette}: no such file; masks of colours need it (columns id,name,r,g,b; 255 = ignored)"
            )
        if len(self.class_names) > _UNKNOWN:
            raise InputError(f"{self.palette}: {len(self.class_names)} classes; masks of colours may have {_UNKNOWN}")
        return read_colour_table(self.palette, self.class_names)

    @cached_property
    def _ids_by_code(self) -> UInt8Array:
        """Train id by 24-bit colour: 16 MB, of which the few colours of a mask touch a few cache lines."""
        ids = np.full(1 << 24, _UNKNOWN, np.uint8)
        for (red, green, blue), label in self.ids.items():
            ids[(red << 16) | (green << 8) | blue] = label
        return ids


def _codes(colours: UInt8Array) -> npt.NDArray[np.int32]:
    """The 24-bit number of each colour: (..., 3) -> (...)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return np.asarray((red << 16) | (green << 8) | blue)


def _describe_unknown(colours: UInt8Array, unknown: npt.NDArray[np.bool_]) -> str:
    row, col = divmod(int(unknown.argmax()), unknown.shape[1])
    first = colours[row, col]
    step = -(-max(unknown.shape) // math.isqrt(_AT_ONCE))
    seen = unknown[::step, ::step]  # an image (H, W, 3) has too many colours to sort them all
    others = len(set(np.unique(_codes(colours[::step, ::step][seen])).tolist()) - {int(_codes(first))})
    more = f" (and {others} other undeclared colours)" if others else ""
    cause = "give it a row (a class's id, or 255 to ignore it)"
    if others > 20:
        cause = "so many suggest blended edges: draw masks without antialiasing, with the colours"
    count, name = int((colours == first).all(axis=2).sum()), tuple(first.tolist())
    return f"colour {name} is not declared: {count} pixels, first at row {row}, column {col}{more}; {cause}"
