"""Processes an image that does not fit into memory in overlapping tiles, whose logits are joined.

A tile begins at a multiple of the network's coarsest stride, so that its cells are cells of the image, and extends
beyond its own cells by the receptive field, so that they see what they see in the image. Its own cells are put into
the logits of the whole image: what follows (upsampling, fusion) does not know about tiles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.tiling.footprint import meta_forward
from segkit.inference.tiling.receptive_field import ReceptiveField, receptive_field
from segkit.machine import format_bytes

LEAST_STEPS = 8  # of the coarsest stride, along a side of the smallest tile: four are its own, two overlap each side

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """A tile along one axis, which sees pixels [start, stop) and owns the cells [first, last) of the logits."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Tiles:
    """All tiles of one image: every one of `rows` with every one of `columns`.

    Attributes:
        rows: Stretches from top to bottom.
        columns: Stretches from left to right.
        overlap: Pixels by which a tile extends beyond its own cells, inside the image.
        field: The network's receptive field.
    """

    rows: tuple[Stretch, ...]
    columns: tuple[Stretch, ...]
    overlap: int
    field: ReceptiveField

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the largest tile in pixels."""
        return _largest(self.rows), _largest(self.columns)

    def own_cells(self, logits: Tensor, row: Stretch, column: Stretch) -> Tensor:
        """The tile's own cells of its logits (..., h, w)."""
        down, across = row.first - row.start // self.field.stride, column.first - column.start // self.field.stride
        return logits[..., down : down + row.last - row.first, across : across + column.last - column.first]

    def __iter__(self) -> Iterator[tuple[Stretch, Stretch]]:
        """(row, column) of each tile, row by row."""
        return ((row, column) for row in self.rows for column in self.columns)


def plan_tiles(
    network: nn.Module, size: tuple[int, int], most_pixels: int, channels: int = 3, most_rows: int | None = None
) -> Tiles:
    """Find the cheapest tiles that fit.

    The overlap is the receptive field, but at most a quarter of a tile.

    Args:
        network: Maps float (1, channels, H, W) to {"out": (1, K, h, w)}; must run on meta tensors.
        size: (H, W) of the image.
        most_pixels: Maximum pixels of one tile.
        channels: Channels of the image.
        most_rows: Maximum height of a tile in pixels.

    Raises:
        InputError: Not even the smallest tile fits, or the network cannot process parts of an image.
    """
    field = receptive_field(network, channels)
    height, width = meta_forward(network, (1, channels, *size)).shape[-2:]
    rows = size[0] if most_rows is None else min(most_rows, size[0])
    least = LEAST_STEPS * field.step
    if most_pixels < min(least**2, size[0] * size[1]) or rows < min(least, size[0]):
        raise InputError(
            f"memory: an image of {size[0]} x {size[1]} leaves room for {most_pixels} pixels in one forward, but a "
            f"tile of this network has at least {least} x {least}: allow more memory, or give a smaller image"
        )
    reach = _up(max(field.before, field.after), field.step)
    quarter = min(rows, math.isqrt(most_pixels)) // 4 // field.step * field.step
    for overlap in (reach, min(reach, quarter)):
        tiles = _cheapest(size, (height, width), field, overlap, most_pixels, rows)
        if tiles is not None:
            return tiles
    raise InputError(
        f"memory: an image of {size[0]} x {size[1]} has no tiles of {most_pixels} pixels; allow more memory"
    )


class TiledNetwork(nn.Module):
    """A network that processes images of more than `most_pixels` in tiles; the log says so once per size.

    Args:
        network: See `plan_tiles`.
        most_pixels: Maximum pixels of one forward.
        memory: Bytes into which the image did not fit, for the log.
    """

    def __init__(self, network: nn.Module, most_pixels: int, memory: int) -> None:
        super().__init__()
        self.network, self.most_pixels, self.memory = network, most_pixels, memory
        self._plans: dict[tuple[int, int], Tiles] = {}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of normalised float (B, C, H, W)."""
        size = (image.shape[2], image.shape[3])
        if size[0] * size[1] <= self.most_pixels:
            out: dict[str, Tensor] = self.network(image)
            return out
        if size not in self._plans:
            self._plans[size] = plan_tiles(self.network, size, self.most_pixels, image.shape[1])
            tell(self._plans[size], size, self.memory)
        return {"out": tiled_logits(self.network, image, self._plans[size])}


def tiled_logits(network: nn.Module, image: Tensor, tiles: Tiles) -> Tensor:
    """The logits of a batch (B, C, H, W) on the whole image's grid, (B, K, h, w), one tile at a time."""
    cells = (tiles.rows[-1].last, tiles.columns[-1].last)
    whole = torch.empty(0)
    for row, column in tiles:
        seen = image[:, :, row.start : row.stop, column.start : column.stop]
        logits = tiles.own_cells(network(seen)["out"], row, column)  # (B, K, ., .)
        if whole.ndim == 1:
            whole = logits.new_empty(*logits.shape[:2], *cells)
        whole[:, :, row.first : row.last, column.first : column.last] = logits
    return whole


def tell(tiles: Tiles, size: tuple[int, int], memory: int) -> None:
    """Log, once per image size, that the image is processed in tiles and what that changes."""
    height, width = tiles.shape
    text = (
        f"an image of {size[0]} x {size[1]} does not fit into {format_bytes(memory)}: the network sees it in "
        f"{len(tiles.rows)} x {len(tiles.columns)} tiles of up to {height} x {width} pixels with an overlap of "
        f"{tiles.overlap}"
    )
    reach = max(tiles.field.before, tiles.field.after)
    if tiles.overlap < reach:
        text += f", less than its receptive field of {reach} pixels each way"
    if tiles.field.sees_all:
        text += "; split attention and global pooling then see one tile each"
    _log_once(text, size)


@lru_cache(maxsize=1000)
def _log_once(text: str, size: tuple[int, int]) -> None:
    _log.warning(text)


def _cheapest(
    size: tuple[int, int],
    cells: tuple[int, int],
    field: ReceptiveField,
    overlap: int,
    most_pixels: int,
    most_rows: int,
) -> Tiles | None:
    """Of all widths, each with the greatest height that fits, the one with the fewest pixels in all tiles."""
    best, least = None, math.inf
    unit = field.step // field.stride or 1  # cells from one place where a tile may begin to the next
    narrowest = max(unit, _up(math.ceil(2 * overlap / field.stride), unit))  # half of a tile is its own
    widths = [_up(math.ceil(cells[1] / count), unit) for count in range(1, cells[1] // narrowest + 1)]
    for own in dict.fromkeys([cells[1], *widths, narrowest]):
        columns = _parts(size[1], cells[1], own, field, overlap)
        side = min(most_pixels // _largest(columns), most_rows)
        tall = (side - 2 * overlap) // field.stride // unit * unit if side < size[0] else cells[0]
        if tall < min(narrowest, cells[0]):
            continue
        even = _up(math.ceil(cells[0] / math.ceil(cells[0] / tall)), unit)
        rows = _parts(size[0], cells[0], even, field, overlap)
        pixels = sum(row.stop - row.start for row in rows) * sum(part.stop - part.start for part in columns)
        if pixels < least:
            best, least = Tiles(rows, columns, overlap, field), pixels
    return best


def _parts(side: int, cells: int, own: int, field: ReceptiveField, overlap: int) -> tuple[Stretch, ...]:
    """Cut an axis into parts of `own` cells; `own` and the overlap are multiples of the coarsest stride."""
    parts = []
    for first in range(0, cells, own):
        last = min(first + own, cells)
        stop = side if last == cells else min(side, field.stride * last + overlap)
        parts.append(Stretch(max(0, field.stride * first - overlap), stop, first, last))
    return tuple(parts)


def _largest(parts: tuple[Stretch, ...]) -> int:
    return max(part.stop - part.start for part in parts)


def _up(value: int, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return -(-value // step) * step
