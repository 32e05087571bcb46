"""Triton kernels of segkit.ops.split_attention: one pass over the splits forward, and one backward.

A program has a tile of channels times cells of one sample, wide along the axis that is contiguous in memory (cells of
NCHW, channels of channels_last). Backward, each tile stores its sums over its cells, and a second kernel adds these in
a fixed order: there are no atomics, and the same input gives the same bits.

A sigmoid is the softmax over a value and 0: radix 1 differs from the others only by this 0.

Letters: B batch, C channels, R radix, G cardinality, h w feature cells; p = C / G.
"""

# mypy: disable-error-code="import-untyped, import-not-found"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements of a program's tile: 16 for each thread
WARPS = 4
SUMMED_CHANNELS = 128  # of a program that adds the tiles' sums


def forward(splits: Tensor, attention: Tensor, output: Tensor, radix: int, cardinality: int) -> Tensor:
    """Fill and return `output` (B, C, h, w), of splits (B, R*C, h, w) and attention (B, R*C, 1, 1)."""
    if output.numel() == 0:
        return output
    source, target = _flattenable(splits), _flattenable(output)
    tiles = _tile(source, radix)
    with torch.cuda.device_of(splits):
        _forward_kernel[tiles.grid](
            source,
            attention.flatten(1).contiguous(),
            target,
            tiles.channels,
            tiles.channels // cardinality,
            tiles.cells,
            tiles.channel_tiles,
            tiles.cell_tiles,
            *_strides(source),
            *_strides(target),
            radix,
            _compute_type(output.dtype),
            tiles.block_channels,
            tiles.block_cells,
            num_warps=WARPS,
        )
    return output if target is output else output.copy_(target)


def backward(
    gradient: Tensor, splits: Tensor, attention: Tensor, radix: int, cardinality: int
) -> tuple[Tensor, Tensor]:
    """The gradients by `splits` and `attention`, in their shapes, from the gradient by the output (B, C, h, w)."""
    by_splits, by_attention = torch.empty_like(splits), attention.new_zeros(attention.shape)
    if gradient.numel() == 0:
        return by_splits, by_attention
    given, source, target = _flattenable(gradient), _flattenable(splits), _flattenable(by_splits)
    logits, tiles = attention.flatten(1).contiguous(), _tile(source, radix)
    sums_type = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    sums = splits.new_empty((splits.shape[0], tiles.cell_tiles, splits.shape[1]), dtype=sums_type)
    group, compute_type = tiles.channels // cardinality, _compute_type(gradient.dtype)
    with torch.cuda.device_of(splits):
        _backward_kernel[tiles.grid](
            given,
            source,
            logits,
            target,
            sums,
            tiles.channels,
            group,
            tiles.cells,
            tiles.channel_tiles,
            tiles.cell_tiles,
            *_strides(given),
            *_strides(source),
            *_strides(target),
            radix,
            compute_type,
            tiles.block_channels,
            tiles.block_cells,
            num_warps=WARPS,
        )
        _attention_kernel[(splits.shape[0], triton.cdiv(tiles.channels, SUMMED_CHANNELS))](
            sums,
            logits,
            by_attention,
            tiles.channels,
            group,
            tiles.cell_tiles,
            radix,
            compute_type,
            SUMMED_CHANNELS,
            num_warps=WARPS,
        )
    return by_splits if target is by_splits else by_splits.copy_(target), by_attention


@triton.jit
def _forward_kernel(
    splits,
    attention,
    output,
    channels,
    group,
    cells,
    channel_tiles,
    cell_tiles,
    split_sample,
    split_channel,
    split_cell,
    output_sample,
    output_channel,
    output_cell,
    RADIX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
):
    sample, _, channel, cell = _place(channel_tiles, cell_tiles, BLOCK_CHANNELS, BLOCK_CELLS)
    inside = (channel < channels)[:, None] & (cell < cells)[None, :]
    logits = _logits(attention, sample, channel, channels, group, RADIX)
    largest, denominator = _normaliser(logits, channel, channels, group, RADIX, COMPUTE)
    parts = splits + sample * split_sample + channel[:, None] * split_channel + cell[None, :] * split_cell
    total = tl.zeros((BLOCK_CHANNELS, BLOCK_CELLS), dtype=COMPUTE)
    for r in tl.static_range(RADIX):
        weight = tl.exp(_logit(logits, r, channel, channels, group, COMPUTE) - largest) / denominator
        part = tl.load(parts + r * channels * split_channel, mask=inside, other=0.0).to(COMPUTE)
        total += weight[:, None] * part
    target = output + sample * output_sample + channel[:, None] * output_channel + cell[None, :] * output_cell
    tl.store(target, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    gradient,
    splits,
    attention,
    by_splits,
    sums,
    channels,
    group,
    cells,
    channel_tiles,
    cell_tiles,
    gradient_sample,
    gradient_channel,
    gradient_cell,
    split_sample,
    split_channel,
    split_cell,
    target_sample,
    target_channel,
    target_cell,
    RADIX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
):
    sample, cell_tile, channel, cell = _place(channel_tiles, cell_tiles, BLOCK_CHANNELS, BLOCK_CELLS)
    inside = (channel < channels)[:, None] & (cell < cells)[None, :]
    logits = _logits(attention, sample, channel, channels, group, RADIX)
    largest, denominator = _normaliser(logits, channel, channels, group, RADIX, COMPUTE)
    source = gradient + sample * gradient_sample + channel[:, None] * gradient_channel + cell[None, :] * gradient_cell
    given = tl.load(source, mask=inside, other=0.0).to(COMPUTE)
    parts = splits + sample * split_sample + channel[:, None] * split_channel + cell[None, :] * split_cell
    targets = by_splits + sample * target_sample + channel[:, None] * target_channel + cell[None, :] * target_cell
    row = sums + (sample * cell_tiles + cell_tile) * channels * RADIX + channel
    for r in tl.static_range(RADIX):
        weight = tl.exp(_logit(logits, r, channel, channels, group, COMPUTE) - largest) / denominator
        part = tl.load(parts + r * channels * split_channel, mask=inside, other=0.0).to(COMPUTE)
        by_part = (weight[:, None] * given).to(by_splits.dtype.element_ty)
        tl.store(targets + r * channels * target_channel, by_part, mask=inside)
        tl.store(row + r * channels, tl.sum(given * part, axis=1), mask=channel < channels)


@triton.jit
def _attention_kernel(
    sums,
    attention,
    by_attention,
    channels,
    group,
    cell_tiles,
    RADIX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    logits = _logits(attention, sample, channel, channels, group, RADIX)
    targets = _logits(by_attention, sample, channel, channels, group, RADIX)
    largest, denominator = _normaliser(logits, channel, channels, group, RADIX, COMPUTE)
    rows = sums + sample * cell_tiles * channels * RADIX + channel
    mean = tl.zeros((BLOCK_CHANNELS,), dtype=COMPUTE)  # of the gradients by the weights, weighted
    for r in tl.static_range(RADIX):
        weight = tl.exp(_logit(logits, r, channel, channels, group, COMPUTE) - largest) / denominator
        mean += weight * _column(rows + r * channels, cell_tiles, channels * RADIX, inside, BLOCK_CHANNELS, COMPUTE)
    for r in tl.static_range(RADIX):
        weight = tl.exp(_logit(logits, r, channel, channels, group, COMPUTE) - largest) / denominator
        by_weight = _column(rows + r * channels, cell_tiles, channels * RADIX, inside, BLOCK_CHANNELS, COMPUTE)
        by_logit = weight * (by_weight - mean)
        tl.store(targets + r * group, by_logit.to(by_attention.dtype.element_ty), mask=inside)


@triton.jit
def _place(channel_tiles, cell_tiles, BLOCK_CHANNELS: tl.constexpr, BLOCK_CELLS: tl.constexpr):
    """Sample, tile of cells, channels and cells of this program, all int64."""
    program = tl.program_id(0).to(tl.int64)
    cell_tile = program % cell_tiles
    rest = program // cell_tiles
    channel = (rest % channel_tiles) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    cell = cell_tile * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    return rest // channel_tiles, cell_tile, channel, cell


@triton.jit
def _logits(attention, sample, channel, channels, group, RADIX: tl.constexpr):
    """Offsets of the channels' attention to the first split in (B, G, R, p); that to the next one is p farther."""
    return attention + sample * channels * RADIX + channel + (channel // group) * (group * (RADIX - 1))


@triton.jit
def _logit(logits, r, channel, channels, group, COMPUTE: tl.constexpr):
    return tl.load(logits + r * group, mask=channel < channels, other=0.0).to(COMPUTE)


@triton.jit
def _normaliser(logits, channel, channels, group, RADIX: tl.constexpr, COMPUTE: tl.constexpr):
    """The largest logit of each channel, and the softmax's denominator."""
    largest = _logit(logits, 0, channel, channels, group, COMPUTE)
    if RADIX == 1:
        largest = tl.maximum(largest, 0.0)
        denominator = tl.exp(-largest)
    else:
        for r in tl.static_range(1, RADIX):
            largest = tl.maximum(largest, _logit(logits, r, channel, channels, group, COMPUTE))
        denominator = tl.zeros_like(largest)
    for r in tl.static_range(RADIX):
        denominator += tl.exp(_logit(logits, r, channel, channels, group, COMPUTE) - largest)
    return largest, denominator


@triton.jit
def _column(first, count, step, inside, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Sums over rows, one after another."""
    total = tl.zeros((BLOCK,), dtype=COMPUTE)
    for i in range(count):
        total += tl.load(first + tl.cast(i, tl.int64) * step, mask=inside, other=0.0)
    return total


class _Tiles(NamedTuple):
    """How (B, C, h * w) is cut among programs."""

    grid: tuple[int]
    channels: int
    cells: int
    channel_tiles: int
    cell_tiles: int
    block_channels: int
    block_cells: int


def _tile(splits: Tensor, radix: int) -> _Tiles:
    channels, cells = splits.shape[1] // radix, splits.shape[2] * splits.shape[3]
    if splits.stride(1) == 1:  # channels_last: 64 channels are a whole number of memory lines
        block_channels = min(64, triton.next_power_of_2(channels))
        block_cells = min(TILE // block_channels, triton.next_power_of_2(cells))
    else:
        block_cells = min(TILE, triton.next_power_of_2(cells))
        block_channels = min(TILE // block_cells, triton.next_power_of_2(channels))
    channel_tiles, cell_tiles = triton.cdiv(channels, block_channels), triton.cdiv(cells, block_cells)
    grid = (splits.shape[0] * channel_tiles * cell_tiles,)
    return _Tiles(grid, channels, cells, channel_tiles, cell_tiles, block_channels, block_cells)


def _flattenable(tensor: Tensor) -> Tensor:
    """The tensor itself if one stride leads from cell to cell, else a contiguous copy."""
    height, width = tensor.shape[2:]
    alike = height == 1 or width == 1 or tensor.stride(2) == width * tensor.stride(3)
    return tensor if alike else tensor.contiguous()


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides between samples, channels and cells of a tensor that `_flattenable` returned."""
    return tensor.stride(0), tensor.stride(1), tensor.stride(2 if tensor.shape[3] == 1 else 3)


def _compute_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
