"""Labels an image that is never in memory as a whole: rows of tiles in, strips of labels out, from top to bottom.

Only the logits of one row of tiles and the last cells of the previous one are kept. They lie on the grid of the
whole image's logits and are upsampled with its geometry, so there are no seams, and the labels are those of
`segkit.inference.engine.predict` in tiles. Memory grows with the image's width, not with its height:

    parameters + W (4 K views / stride^2 + 12) B for each row of pixels in a row of tiles + one forward + three strips
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segkit.bands import BandArray
from segkit.errors import InputError
from segkit.inference.engine import default_strip
from segkit.inference.protocols import Protocol
from segkit.inference.tiling.footprint import footprint
from segkit.inference.tiling.tiles import Stretch, Tiles, plan_tiles, tell
from segkit.inference.views import view_size
from segkit.machine import format_bytes
from segkit.models.norms import eval_mode
from segkit.ops.normalize import Normalization, normalize
from segkit.ops.upsample import RowUpsampler, label_dtype
from segkit.ops.winograd import gave_up_filters

_READ = 12  # bytes a pixel: four bands of 16 bits, RGB of 8, and what lies between
_SMALL = 8  # the share of the budget is 1 / this: transformed filters that take less hardly shrink the tiles

ReadRows = Callable[[int, int], BandArray]  # (first, last) rows of the image -> (last - first, W, C)


@dataclass(frozen=True)
class LargeImage:
    """An image on disk and how the network sees it; iterate to get its labels.

    Attributes:
        network: The network, on `device`, in eval mode while labels are made.
        read: A function that gives rows of the image.
        size: (H, W) of the image in pixels.
        protocol: The resolved protocol, with scale 1 and no windows.
        normalization: The network's normalisation.
        device: The device on which the network runs.
        tiles: The tiles that the network sees.
        strip_rows: Rows of labels that are made at once.
    """

    network: nn.Module
    read: ReadRows
    size: tuple[int, int]
    protocol: Protocol
    normalization: Normalization
    device: torch.device
    tiles: Tiles
    strip_rows: int

    @property
    def forwards(self) -> int:
        """How many tiles the network sees, including mirrored ones."""
        return len(self.tiles.rows) * len(self.tiles.columns) * (2 if self.protocol.flip else 1)

    def strips(self, seen: Callable[[], object] = lambda: None) -> Iterator[tuple[int, NDArray[np.uint8 | np.int16]]]:
        """The labels.

        Args:
            seen: Called after each forward.

        Yields:
            (first row, (n, W) train ids), from top to bottom; uint8, int16 above 256 classes.
        """
        kept: list[Tensor] = []
        cells = (self.tiles.rows[-1].last, self.tiles.columns[-1].last)
        upsampler = RowUpsampler(cells, self.size, bool(self.protocol.align_corners), self.device)
        start = 0
        for row in self.tiles.rows:
            with torch.inference_mode(), eval_mode(self.network):
                views = self._row_logits(row, seen)
                views = [torch.cat(pair, dim=1) for pair in zip(kept, views, strict=True)] if kept else views
            first = row.last - views[0].shape[1]  # the cell of their first row
            while start < self.size[0]:
                stop = self._reached(upsampler, start, row.last)
                if stop == start:
                    break
                yield start, self._labels(upsampler, views, first, start, stop)
                start = stop
            needed = upsampler.needed(start, start + 1)[0] if start < self.size[0] else row.last
            kept = [view[:, needed - first :].clone() for view in views]

    def _row_logits(self, row: Stretch, seen: Callable[[], object]) -> list[Tensor]:
        """Logits (K, n, w) of a row's own cells; two for softmax_mean with flip, otherwise their sum."""
        rows = torch.from_numpy(self.read(row.start, row.stop))  # (n, W, C)
        views = [self._view_logits(rows, row, seen)]
        if self.protocol.flip:
            views.append(self._view_logits(rows.flip(1), row, seen).flip(-1))
        return views if self.protocol.fusion == "softmax_mean" or len(views) == 1 else [views[0] + views[1]]

    def _view_logits(self, rows: Tensor, row: Stretch, seen: Callable[[], object]) -> Tensor:
        parts = []
        for column in self.tiles.columns:
            block = rows[:, column.start : column.stop].to(self.device).permute(2, 0, 1)[None]  # (1, C, n, .)
            logits = self.network(normalize(block, self.normalization))["out"][0].float()
            parts.append(self.tiles.own_cells(logits, row, column).clone())
            seen()
        return torch.cat(parts, dim=2)

    def _reached(self, upsampler: RowUpsampler, start: int, cells: int) -> int:
        """The row up to which a strip from `start` may go, given the first `cells` rows of logits."""
        stop = start
        while stop < min(start + self.strip_rows, self.size[0]) and upsampler.needed(stop, stop + 1)[1] <= cells:
            stop += 1
        return stop

    @torch.inference_mode()
    def _labels(
        self, upsampler: RowUpsampler, views: list[Tensor], first: int, start: int, stop: int
    ) -> NDArray[np.uint8 | np.int16]:
        low, high = upsampler.needed(start, stop)
        scores = [upsampler(view[None, :, low - first : high - first], start, stop)[0] for view in views]  # (K, n, W)
        total = scores[0] if len(scores) == 1 else scores[0].softmax(dim=0) + scores[1].softmax(dim=0)
        labels: NDArray[np.uint8 | np.int16] = total.max(dim=0).indices.to(label_dtype(len(total))).cpu().numpy()
        return labels


def plan_large(
    network: nn.Module,
    read: ReadRows,
    size: tuple[int, int],
    protocol: Protocol,
    normalization: Normalization,
    device: torch.device,
    memory: int,
) -> LargeImage:
    """Plan the tiles of an image (H, W) within `memory` bytes; see `LargeImage` for the arguments.

    A network with transformed filters drops them if they would make the tiles much smaller.

    Raises:
        InputError: The protocol has windows or scales other than 1, the budget is too small for one row of tiles, or
            the network cannot be measured (`segkit.inference.tiling.footprint`).
    """
    if protocol.window is not None or view_size(protocol, protocol.scales[0], size) != size or len(protocol.scales) > 1:
        raise InputError(
            f"protocol: an image of {size[0]} x {size[1]} that is read in tiles needs a protocol of scale 1 without "
            f"windows, and {protocol.name!r} is none; use whole"
        )
    no_room = f"an image of {size[0]} x {size[1]} does not fit into {format_bytes(memory)}"
    gave_up_filters(network, no_room, more_than=memory // _SMALL)
    channels = len(normalization.mean)
    measured = footprint(network, channels)
    room = memory - measured.parameters
    strip = min(default_strip(device), room // 16)
    views = 2 if protocol.flip else 1
    of_row = size[1] * (_READ * max(1, channels / 3) + measured.logits_per_pixel * (views + 1))
    most_pixels, most_rows = int(room / 2 / measured.per_pixel), int((room / 2 - 3 * strip) / of_row)
    try:
        tiles = plan_tiles(network, size, max(0, most_pixels), channels, max(0, most_rows))
    except InputError as error:
        if gave_up_filters(network, no_room):
            return plan_large(network, read, size, protocol, normalization, device, memory)
        raise InputError(f"{error} (now {format_bytes(memory)})") from error
    tell(tiles, size, memory)
    strip_rows = max(1, strip // (4 * measured.num_classes * size[1]))
    return LargeImage(network, read, size, protocol, normalization, device, tiles, strip_rows)
