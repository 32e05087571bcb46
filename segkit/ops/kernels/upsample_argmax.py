"""`segkit.ops.upsample_argmax` on CUDA: one Triton kernel, a tile of output pixels in each program.

A program goes through the classes once and keeps each pixel's best score and its class; for the confidence also the
sum of exp(score - best), scaled down when a better one is met (Milakov and Gimelshein 2018, "Online normalizer
calculation for softmax"). Positions follow ATen's float32 formulas (aten/src/ATen/native/UpSample.h). Letters: B batch,
K classes, H W wanted size, h w logits.
"""

# mypy: disable-error-code="import-untyped, import-not-found"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from segkit.ops.upsample import label_dtype

TILE_ROWS, TILE_COLUMNS = 8, 64  # four pixels to a thread of four warps; a warp's stores are whole sectors


def launch(
    logits: Tensor, size: tuple[int, int], align_corners: bool, with_confidence: bool, sharpness: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W), and the probability of each, softmax(logits * sharpness), float32 (B, H, W), empty if unasked.

    Args:
        logits: float16, bfloat16 or float32 (B, K, h, w) on CUDA, of any strides; on the CPU in Triton's interpreter.
        size: (H, W) wanted.
        align_corners: As in `interpolate`.
        with_confidence: Whether the second result is wanted.
        sharpness: 1 / temperature.
    """
    batch, num_classes, height, width = logits.shape
    logits = logits.float() if logits.dtype == torch.float64 else logits
    labels = torch.empty(batch, *size, dtype=label_dtype(num_classes), device=logits.device)
    confidence = torch.empty((batch, *size) if with_confidence else (0,), device=logits.device)
    tiles = (triton.cdiv(size[0], TILE_ROWS), triton.cdiv(size[1], TILE_COLUMNS))
    if labels.numel() == 0:
        return labels, confidence
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        _kernel[(tiles[0] * tiles[1], batch)](
            logits,
            labels,
            confidence,
            *logits.stride(),
            num_classes,
            height,
            width,
            *size,
            _scale(height, size[0], align_corners),
            _scale(width, size[1], align_corners),
            float(sharpness),
            align_corners=align_corners,
            with_confidence=with_confidence,
            tile_rows=TILE_ROWS,
            tile_columns=TILE_COLUMNS,
        )
    return labels, confidence


def _scale(source: int, size: int, align_corners: bool) -> float:
    """Source samples per output; the launch rounds it to float32."""
    if align_corners:
        return (source - 1) / (size - 1) if size > 1 else 0.0
    return source / size


@triton.jit
def _position(index, scale, source, align_corners: tl.constexpr):
    """Lower sample and upper one, int32, and the weight of the upper, of the outputs `index`."""
    if align_corners:
        position = index.to(tl.float32) * scale
    else:
        position = tl.maximum((index.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    lower = tl.minimum(position.to(tl.int32), source - 1)
    upper = tl.minimum(lower + 1, source - 1)
    weight = tl.minimum(position - lower.to(tl.float32), 1.0)
    return lower, upper, weight


@triton.jit
def _score(logits, top_left, top_right, bottom_left, bottom_right, down, across, inside):
    """One class's interpolated logits of a tile, float32; `logits` points to the class, the others are offsets."""
    a = tl.load(logits + top_left, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(logits + top_right, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(logits + bottom_left, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(logits + bottom_right, mask=inside, other=0.0).to(tl.float32)
    top = a * (1.0 - across) + b * across
    bottom = c * (1.0 - across) + d * across
    return top * (1.0 - down) + bottom * down


@triton.jit
def _kernel(
    logits,
    labels,
    confidence,
    stride_batch,
    stride_class,
    stride_row,
    stride_column,
    num_classes,
    height,
    width,
    out_height,
    out_width,
    scale_down,
    scale_across,
    sharpness,
    align_corners: tl.constexpr,
    with_confidence: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
):
    tiles_across = tl.cdiv(out_width, tile_columns)
    tile = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    rows = (tile // tiles_across) * tile_rows + tl.arange(0, tile_rows)
    columns = (tile % tiles_across) * tile_columns + tl.arange(0, tile_columns)
    inside = (rows < out_height)[:, None] & (columns < out_width)[None, :]

    above, below, down = _position(rows, scale_down, height, align_corners)
    left, right, across = _position(columns, scale_across, width, align_corners)
    down = down[:, None]
    across = across[None, :]
    above = (above.to(tl.int64) * stride_row)[:, None]
    below = (below.to(tl.int64) * stride_row)[:, None]
    left = (left.to(tl.int64) * stride_column)[None, :]
    right = (right.to(tl.int64) * stride_column)[None, :]
    top_left = above + left
    top_right = above + right
    bottom_left = below + left
    bottom_right = below + right

    one_class = logits + image * stride_batch
    best = _score(one_class, top_left, top_right, bottom_left, bottom_right, down, across, inside)
    label = tl.zeros((tile_rows, tile_columns), dtype=tl.int32)
    total = tl.full((tile_rows, tile_columns), 1.0, dtype=tl.float32)
    for number in range(1, num_classes):
        one_class += stride_class
        score = _score(one_class, top_left, top_right, bottom_left, bottom_right, down, across, inside)
        better = score > best
        if with_confidence:
            largest = tl.maximum(score, best)
            total = total * tl.exp((best - largest) * sharpness) + tl.exp((score - largest) * sharpness)
        label = tl.where(better, number, label)
        best = tl.where(better, score, best)

    pixel = (image * out_height + rows[:, None]) * out_width + columns[None, :]
    tl.store(labels + pixel, label.to(labels.dtype.element_ty), mask=inside)
    if with_confidence:
        tl.store(confidence + pixel, 1.0 / total, mask=inside)
