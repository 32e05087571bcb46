"""`segkit.ops.upsample_argmax` on the CPU: only pixels near the borders of objects are interpolated, in its caches.

A cell is the rectangle between four neighbouring logits. Bilinear scores are convex combinations of its corners, so
where one class is the largest at all four corners it is the label of the whole cell. In the other cells, here called
mixed, only classes can win that reach, at one corner at least, the mean there of the four corners' winners: else one
of these is larger everywhere. Rows that are mostly mixed (noise, hardly upsampled logits) are done as strips instead,
with all classes.

Scores are rounded as `interpolate` rounds them where the CPU has fused multiply-add: width first, and each mean of two
samples as fma(lower, weight, upper * weight). Letters: B batch, K classes, H W wanted size, h w logits, n rows of a
strip, m rows of logits in a band, N mixed cells, M classes that may win in one, R C most pixels of a cell down and
across.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.ops.upsample import label_dtype, neighbours

STRIP_BYTES = 2**20  # of scores at once: a core's second cache holds them
BAND_BYTES = 8 * 2**20  # of corner logits at once: enough cells for long vectors
MIXED_SHARE = 0.85  # of a band's cells: above, strips are as fast
SCORE_SHARE = 0.1  # of all scores of a band's pixels: above, strips are as fast (scores of cells cost more each)
LEAST_GROWTH = 4  # pixels to a cell: below, strips are as fast
ABOVE_ANY_CLASS = 2.0**15


def label_images(logits: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int | None) -> Tensor:
    """Labels (B, H, W) of logits (B, K, h, w): `upsample_argmax` on the CPU."""
    _, num_classes, height, width = logits.shape
    labels = torch.empty(logits.shape[0], *size, dtype=label_dtype(num_classes))
    falling = _falling(torch.arange(num_classes)[:, None])
    rows, columns = Axis(height, size[0], align_corners), Axis(width, size[1], align_corners)
    by_cells = size[0] * size[1] >= LEAST_GROWTH * height * width
    budget = min(max_bytes or BAND_BYTES, BAND_BYTES)
    at_once = max(1, budget // (16 * num_classes * width)) if by_cells else height
    for scores, result in zip(logits, labels, strict=True):
        for first in range(0, height, at_once):
            last = min(first + at_once, height)
            if by_cells and _label_band(_Band(scores, rows, columns, first, last), falling, budget, result):
                continue
            span = rows.span(first, last)
            for start, stop, strip in _strips(scores, size, align_corners, max_bytes, span):
                result[start:stop] = _first_largest(strip, falling)
    return labels


def label_images_with_confidence(
    logits: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int | None, sharpness: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same labels, and the probability of each, softmax(logits * sharpness), float32 (B, H, W).

    All is done in strips, since all classes count.
    """
    labels = torch.empty(logits.shape[0], *size, dtype=label_dtype(logits.shape[1]))
    total = torch.empty(logits.shape[0], *size)
    falling = _falling(torch.arange(logits.shape[1])[:, None])
    for image, scores in enumerate(logits):
        for start, stop, strip in _strips(scores, size, align_corners, max_bytes, (0, size[0])):
            terms = (strip - strip.amax(dim=1, keepdim=True)).mul_(sharpness).exp_()  # (n, K, W)
            torch.sum(terms, dim=1, out=total[image, start:stop])
            labels[image, start:stop] = _first_largest(strip, falling)
    return labels, total.reciprocal_()


class Axis:
    """How the outputs along one axis are made of source samples: `neighbours`, and the cells between the samples.

    Cell i holds the outputs whose lower sample is i; at most `longest` of them.
    """

    def __init__(self, source: int, size: int, align_corners: bool) -> None:
        self.lower, _, self.weight = neighbours(source, size, align_corners)  # (size,)
        self._start = torch.searchsorted(self.lower, torch.arange(source + 1))  # (source + 1,)
        self.counts = self._start.diff()  # (source,) outputs of each cell
        self.longest = int(self.counts.max())
        self.next = torch.arange(1, source + 1).clamp_(max=source - 1)  # (source,) the upper sample of each cell

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The outputs [start, stop) that lie in the cells [first, last)."""
        return int(self._start[first]), int(self._start[last])

    def outputs(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Which outputs lie in cells (N,), int64 (longest, N), the last repeated; and their weights of the upper."""
        index = self._start[cells] + torch.arange(self.longest)[:, None]
        index = torch.minimum(index, self._start[cells + 1] - 1)
        return index, self.weight[index]


def _falling(classes: Tensor) -> Tensor:
    """What `_first_largest` tells classes by: float32, larger for smaller classes."""
    return ABOVE_ANY_CLASS - classes.float()


def _first_largest(scores: Tensor, falling: Tensor) -> Tensor:
    """The class of the largest of scores (n, K, P), the first of equals, float32 (n, P); destroys the scores.

    All passes are vector instructions, which PyTorch's own argmax over an outer dimension lacks: each maximum becomes
    1 and all else 0, and is multiplied by the `_falling` of its class, (K, 1) or (K, P). NaN gives class 0.
    """
    found = scores.eq_(scores.amax(dim=1, keepdim=True)).mul_(falling).amax(dim=1)
    return torch.where(found > 0, ABOVE_ANY_CLASS - found, 0)


def _strips(
    scores: Tensor, size: tuple[int, int], align_corners: bool, max_bytes: int | None, span: tuple[int, int]
) -> Iterator[tuple[int, int, Tensor]]:
    """From row span[0] to span[1]: (start, stop) and these rows' scores float32 (n, K, W), in one buffer used again."""
    lower, upper, weights = (part.tolist() for part in neighbours(scores.shape[1], size[0], align_corners))
    at_once = max(1, min(max_bytes or STRIP_BYTES, STRIP_BYTES) // (4 * scores.shape[0] * size[1]))
    buffer = torch.empty(min(at_once, span[1] - span[0]), scores.shape[0], size[1])
    wide: dict[int, Tensor] = {}  # the two source rows in use, (K, W)
    for start in range(*span, at_once):
        stop = min(start + at_once, span[1])
        for row, result in zip(range(start, stop), buffer, strict=False):
            above, below = lower[row], upper[row]
            wide = {i: wide[i] if i in wide else _widened(scores[:, i], size[1], align_corners) for i in (above, below)}
            torch.mul(wide[below], weights[row], out=result).add_(wide[above], alpha=1 - weights[row])
        yield start, stop, buffer[: stop - start]


def _widened(row: Tensor, width: int, align_corners: bool) -> Tensor:
    """(K, w) to float32 (K, W)."""
    if row.shape[1] == width:
        return row.float()
    return F.interpolate(row.float()[:, None], width, mode="linear", align_corners=align_corners)[:, 0]


class _Band(NamedTuple):
    """The cells in rows first to last of one image."""

    scores: Tensor  # (K, h, w)
    rows: Axis
    columns: Axis
    first: int
    last: int


def _label_band(band: _Band, falling: Tensor, budget: int, result: Tensor) -> bool:
    """Write the labels of all pixels of a band into `result` (H, W), or say that strips are as fast."""
    rows, columns = band.rows, band.columns
    logits = band.scores[:, band.first : band.last + 1].float().contiguous()  # (K, m, w)
    winners = _first_largest(logits.flatten(1)[None].clone(), falling).view(logits.shape[1:]).to(result.dtype)
    next_row = torch.arange(1, band.last - band.first + 1).clamp_(max=len(winners) - 1)
    y, x = _mixed(winners, next_row, band)
    if len(y) > MIXED_SHARE * len(next_row) * len(columns.next):
        return False
    start, stop = rows.span(band.first, band.last)
    corners = ((y, x), (y, columns.next[x]), (next_row[y], x), (next_row[y], columns.next[x]))
    width = logits.shape[2]
    values = torch.stack([logits.flatten(1).index_select(1, i * width + j) for i, j in corners])  # (4, K, N)
    contends = _contends(values, torch.stack([winners[i, j] for i, j in corners]).long())  # (K, N)
    pixels = rows.longest * columns.longest
    if int(contends.sum()) * pixels > SCORE_SHARE * len(logits) * (stop - start) * result.shape[1]:
        return False
    whole = winners[:, columns.lower]  # (m, W)
    torch.index_select(whole, 0, rows.lower[start:stop] - band.first, out=result[start:stop])
    for ids, some in _alike(contends, budget // (4 * pixels)):
        few = values.flatten(1).index_select(1, (ids * len(y) + some).flatten()).view(4, *ids.shape)  # (4, M, n)
        down, across = rows.outputs(y[some] + band.first), columns.outputs(x[some])
        labels = _interpolated_labels(few, ids, down[1], across[1])  # (R, C, n)
        result[down[0][:, None], across[0]] = labels.to(result.dtype)
    return True


def _mixed(winners: Tensor, next_row: Tensor, band: _Band) -> tuple[Tensor, Tensor]:
    """Row in the band and column, int64 (N,), of the cells with pixels whose corners have not all one winner."""
    here, below = winners[: len(next_row)], winners[next_row]
    right = band.columns.next
    differ = (here != below) | (here != here[:, right]) | (here != below[:, right])
    differ &= (band.rows.counts[band.first : band.last] > 0)[:, None] & (band.columns.counts > 0)
    y, x = differ.nonzero(as_tuple=True)
    return y, x


def _contends(values: Tensor, winning: Tensor) -> Tensor:
    """Which classes may be the largest somewhere in a cell, bool (K, N).

    Args:
        values: float32 (4, K, N) logits at the corners.
        winning: int64 (4, N) the largest class at each corner.
    """
    mean = torch.stack([corner.gather(0, winning).mean(0) for corner in values])  # (4, N) of the winners
    reach = (values - mean[:, None]).amax(0)  # (K, N)
    return (reach >= 0).scatter_(0, winning, True)  # the mean of equal winners may round up


def _alike(contends: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cells with about as many candidates, M n <= most: int64 (M, n) classes, the last may repeat; (n,) which cells."""
    cell, number = contends.T.nonzero(as_tuple=True)  # by cell, then class
    count = torch.bincount(cell, minlength=contends.shape[1])  # (N,)
    start = count.cumsum(0) - count
    low, largest = 0, int(count.max()) if len(count) else 0
    while low < largest:
        high = min(max(2, 2 * low), largest)
        for some in ((count > low) & (count <= high)).nonzero()[:, 0].split(max(1, most // high)):
            rank = torch.minimum(torch.arange(high)[:, None], count[some] - 1)
            yield number[start[some] + rank], some
        low = high


def _interpolated_labels(corners: Tensor, ids: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(R, C, n) labels from corner logits (4, M, n) of the classes ids (M, n); weights down (R, n), across (C, n)."""
    across, down = across[:, None], down[:, None, None]  # (C, 1, n), (R, 1, 1, n)
    left, right = corners[0::2, None], corners[1::2, None]  # (2, 1, M, n)
    sides = (right * across).addcmul_(left, 1 - across)  # (2, C, M, n)
    values = (sides[1] * down).addcmul_(sides[0], 1 - down)  # (R, C, M, n)
    return _first_largest(values.flatten(0, 1), _falling(ids)).view(*values.shape[:2], -1)
