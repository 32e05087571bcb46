"""Cross entropy of upsampled logits on CUDA, its gradient, and probabilities of true classes: no full-size logits.

There are two passes. The first goes over the full-size pixels: their scores are interpolated a few classes at a time,
with a running log-sum-exp over the classes (Milakov and Gimelshein 2018, algorithm 3). The second, for the gradient,
goes over the cells of the small logits: each sums over the pixels of which it is a corner, recomputing their scores.
No two programs write to the same place, so results are the same in every run.

Positions and weights follow ATen's float32 formulas (aten/src/ATen/native/UpSample.h). A corner's weight at a distance
d is `max(0, 1 - |d|)`, which is also how the second pass leaves out pixels that are too far away.

Letters: B batch, K classes, H W size of the mask, h w of the logits.
"""

# ruff: noqa: N803, SIM108  (capitals: sizes and constants of compilation; Triton compiles one branch of such an `if`)
# mypy: disable-error-code="import-untyped, import-not-found"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 128  # of a row, in a program of the first pass
CLASSES = 8  # at once there
CELLS = 32  # of a row, in a program of the second pass: a warp reads neighbours
CELL_CLASSES = 16  # there at most; each keeps nine logits in registers


def cross_entropy(
    logits: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The summed loss and its gradient by the logits.

    Args:
        logits: float16, bfloat16 or float32 (B, K, h, w), read as they are stored.
        mask: Train ids (B, H, W), any integer dtype. One that is neither a class nor ignored makes the loss NaN.
        weights: float32 (K,) class weights, or None.
        align_corners: How the logits are upsampled.
        ignore_index: Id of pixels that do not count.
        label_smoothing: In 0..1.
        with_gradient: Whether the second pass runs.

    Returns:
        float32 scalar, and contiguous float32 (B, K, h, w), or (0,) without gradient.
    """
    logits, mask = logits.contiguous(), mask.contiguous()
    (batch, classes, *source), size = logits.shape, mask.shape[1:]
    log_sums = torch.empty(mask.shape, dtype=torch.float32, device=logits.device)
    blocks = triton.cdiv(size[1], PIXELS)
    partial = torch.empty(batch, size[0], blocks, dtype=torch.float32, device=logits.device)
    gradient = torch.empty(logits.shape if with_gradient else 0, dtype=torch.float32, device=logits.device)
    scales = _scale(source[0], size[0], align_corners), _scale(source[1], size[1], align_corners)
    options = {"ALIGN": align_corners, "SMOOTH": label_smoothing > 0, "num_warps": 4}
    numbers = (classes, *source, *size, *scales, ignore_index, label_smoothing)
    with torch.cuda.device_of(logits):
        _pixels_kernel[(blocks, size[0], batch)](
            logits,
            mask,
            weights,
            log_sums,
            partial,
            *numbers,
            0.0,
            LOSS=True,
            BLOCK_K=CLASSES,
            BLOCK_X=PIXELS,
            **options,
        )
        if with_gradient:
            block_k = max(4, min(CELL_CLASSES, triton.next_power_of_2(classes)))
            grid = (triton.cdiv(source[1], CELLS), source[0], batch * triton.cdiv(classes, block_k))
            spans = _inverse(scales[0], size[0]), _inverse(scales[1], size[1])
            steps = [math.ceil(2 * span) + 1 for span in spans]  # pixels that a cell reaches at most
            _cells_kernel[grid](
                logits,
                mask,
                weights,
                log_sums,
                gradient,
                *numbers,
                *spans,
                *steps,
                BLOCK_K=block_k,
                BLOCK_X=CELLS,
                **options,
            )
    return partial.sum(), gradient


def true_probability(logits: Tensor, mask: Tensor, align_corners: bool, ignore_index: int, of_ignored: float) -> Tensor:
    """The softmax probability of each pixel's true class, float32 (B, H, W), and `of_ignored` at ignored pixels.

    The arguments are those of `cross_entropy`; here a wrong id has the probability NaN.
    """
    logits, mask = logits.contiguous(), mask.contiguous()
    (batch, classes, *source), size = logits.shape, mask.shape[1:]
    found = torch.empty(mask.shape, dtype=torch.float32, device=logits.device)
    scales = _scale(source[0], size[0], align_corners), _scale(source[1], size[1], align_corners)
    numbers = (classes, *source, *size, *scales, ignore_index, 0.0, of_ignored)
    with torch.cuda.device_of(logits):
        _pixels_kernel[(triton.cdiv(size[1], PIXELS), size[0], batch)](
            logits, mask, None, found, found, *numbers,
            ALIGN=align_corners, SMOOTH=False, LOSS=False, BLOCK_K=CLASSES, BLOCK_X=PIXELS, num_warps=4,
        )  # fmt: skip
    return found


def _scale(source: int, size: int, align_corners: bool) -> float:
    """The distance of two neighbouring outputs, in samples of the source."""
    if align_corners:
        return (source - 1) / (size - 1) if size > 1 else 0.0
    return source / size


def _inverse(scale: float, size: int) -> float:
    """The number of outputs between two samples; all outputs if they all lie on the first one."""
    return 1 / scale if scale > 0 else float(size)


@triton.jit
def _place(index, scale, size, ALIGN: tl.constexpr):
    """Where outputs lie among `size` samples, float32."""
    if ALIGN:
        place = index * scale
    else:
        place = (index + 0.5) * scale - 0.5
    return tl.minimum(tl.maximum(place, 0.0), size - 1.0)


@triton.jit
def _first(cell, span, ALIGN: tl.constexpr):
    """The first output to which a sample contributes, int32; negative ones do not exist."""
    if ALIGN:
        place = (cell - 1) * span
    else:
        place = (cell - 0.5) * span - 0.5
    return tl.floor(place).to(tl.int32)


@triton.jit
def _weight(place, cell):
    """A sample's weight at a place."""
    return tl.maximum(1.0 - tl.abs(place - cell), 0.0)


@triton.jit
def _class_weights(weights, k, known):
    """Class weights, float32, in the shape of k; 0 for unknown classes."""
    if weights is not None:
        found = tl.load(weights + k, mask=known, other=0.0)
    else:
        found = tl.where(known, 1.0, 0.0)
    return found


@triton.jit
def _pixels_kernel(
    logits,
    mask,
    weights,
    pixels,  # out: log-sum-exp of each pixel, or without LOSS its true class's probability
    partial,  # out, with LOSS: one sum a program
    K,
    h,
    w,
    H,
    W,
    y_scale,
    x_scale,
    ignore_index,
    smoothing,
    of_ignored,
    ALIGN: tl.constexpr,
    SMOOTH: tl.constexpr,
    LOSS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """BLOCK_X pixels of one row of one crop."""
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    y = tl.program_id(1)
    crop = tl.program_id(2).to(tl.int64)
    inside = x < W
    pixel = (crop * H + y) * W + x
    target = tl.load(mask + pixel, mask=inside, other=0).to(tl.int32)
    valid = inside & (target != ignore_index)

    y_place, x_place = _place(y, y_scale, h, ALIGN), _place(x, x_scale, w, ALIGN)
    top, left = y_place.to(tl.int32), x_place.to(tl.int32)
    bottom, right = tl.minimum(top + 1, h - 1), tl.minimum(left + 1, w - 1)
    lower, righter = y_place - top, x_place - left  # weights of the bottom and the right corners

    crop_logits = logits + crop * K * h * w
    largest = tl.full((BLOCK_X,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK_X,), tl.float32)
    true_score = tl.zeros((BLOCK_X,), tl.float32)
    smooth = tl.zeros((BLOCK_X,), tl.float32)
    weight_sums = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        known = k < K
        both = known[:, None] & inside[None, :]
        plane = crop_logits + k[:, None] * (h * w)
        above_left = tl.load(plane + (top * w + left)[None, :], mask=both, other=0.0).to(tl.float32)
        above_right = tl.load(plane + (top * w + right)[None, :], mask=both, other=0.0).to(tl.float32)
        below_left = tl.load(plane + (bottom * w + left)[None, :], mask=both, other=0.0).to(tl.float32)
        below_right = tl.load(plane + (bottom * w + right)[None, :], mask=both, other=0.0).to(tl.float32)
        above = (1.0 - righter)[None, :] * above_left + righter[None, :] * above_right
        below = (1.0 - righter)[None, :] * below_left + righter[None, :] * below_right
        scores = (1.0 - lower) * above + lower * below  # (BLOCK_K, BLOCK_X)
        true_score += tl.sum(tl.where(k[:, None] == target[None, :], scores, 0.0), axis=0)
        if SMOOTH:
            class_weights = _class_weights(weights, k, known)
            weight_sums += class_weights
            smooth += tl.sum(class_weights[:, None] * scores, axis=0)
        scores = tl.where(known[:, None], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=0))
        shift = tl.where(larger > float("-inf"), larger, 0.0)  # where all are -inf so far, exp(-inf + inf) is no number
        sums = sums * tl.exp(largest - shift) + tl.sum(tl.exp(scores - shift[None, :]), axis=0)
        largest = larger

    log_sum = largest + tl.log(sums)
    is_class = (target >= 0) & (target < K)
    true_score = tl.where(is_class, true_score, float("nan"))
    if LOSS:
        hard = (1.0 - smoothing) * _class_weights(weights, target, valid & is_class)
        loss = hard * (log_sum - true_score)
        if SMOOTH:
            loss += smoothing / K * (tl.sum(weight_sums, axis=0) * log_sum - smooth)
        program = (crop * H + y) * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial + program, tl.sum(tl.where(valid, loss, 0.0), axis=0))
        tl.store(pixels + pixel, log_sum, mask=inside)
    else:
        tl.store(pixels + pixel, tl.where(valid, tl.exp(true_score - log_sum), of_ignored), mask=inside)


@triton.jit
def _logit(plane, known, i, j, h, w):
    """Logits of the cells (i, j) of some classes, float32; 0 beyond the edges."""
    row = i + j * 0
    there = (row >= 0) & (row < h) & (j >= 0) & (j < w)
    return tl.load(plane + (row * w + j)[None, :], mask=known[:, None] & there[None, :], other=0.0).to(tl.float32)


@triton.jit
def _column(row_above, row, row_below, place, i):
    """Logits of one column at a height between the rows i - 1, i and i + 1."""
    return _weight(place, i - 1) * row_above + _weight(place, i) * row + _weight(place, i + 1) * row_below


@triton.jit
def _cells_kernel(
    logits,
    mask,
    weights,
    log_sums,
    gradient,  # out
    K,
    h,
    w,
    H,
    W,
    y_scale,
    x_scale,
    ignore_index,
    smoothing,
    y_span,
    x_span,
    y_steps,
    x_steps,
    ALIGN: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """The gradient by BLOCK_X cells of one row of one crop, for BLOCK_K classes.

    With p the softmax, t the true class, w the class weights and e the smoothing, that by a pixel's score of class c is
    `m p_c - (1 - e) w_t [c = t] - e / K w_c`, where m is what the targets sum to: `(1 - e) w_t + e / K sum_c w_c`.
    """
    j = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    i = tl.program_id(1)
    class_blocks = tl.cdiv(K, BLOCK_K)
    crop = (tl.program_id(2) // class_blocks).to(tl.int64)
    k = (tl.program_id(2) % class_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    known = k < K

    # Pixels that have a part of this cell lie between its neighbours, so that all their corners are among these nine.
    plane = logits + ((crop * K + k) * (h * w))[:, None]
    v00 = _logit(plane, known, i - 1, j - 1, h, w)
    v01 = _logit(plane, known, i - 1, j, h, w)
    v02 = _logit(plane, known, i - 1, j + 1, h, w)
    v10 = _logit(plane, known, i, j - 1, h, w)
    v11 = _logit(plane, known, i, j, h, w)
    v12 = _logit(plane, known, i, j + 1, h, w)
    v20 = _logit(plane, known, i + 1, j - 1, h, w)
    v21 = _logit(plane, known, i + 1, j, h, w)
    v22 = _logit(plane, known, i + 1, j + 1, h, w)

    class_weights = _class_weights(weights, k, known)
    weight_sum = tl.zeros((BLOCK_K,), tl.float32)
    if SMOOTH:
        for start in range(0, K, BLOCK_K):
            some = start + tl.arange(0, BLOCK_K)
            weight_sum += _class_weights(weights, some, some < K)
    soft_sum = smoothing / K * tl.sum(weight_sum, axis=0)

    total = tl.zeros((BLOCK_K, BLOCK_X), tl.float32)
    first_y, first_x = _first(i, y_span, ALIGN), _first(j, x_span, ALIGN)
    for y in range(tl.maximum(first_y, 0), tl.minimum(first_y + y_steps, H)):
        y_place = _place(y, y_scale, h, ALIGN)
        y_weight = _weight(y_place, i)
        before = _column(v00, v10, v20, y_place, i)
        here = _column(v01, v11, v21, y_place, i)
        after = _column(v02, v12, v22, y_place, i)
        for x_step in range(0, x_steps):
            x = first_x + x_step
            x_place = _place(x, x_scale, w, ALIGN)
            x_weight = _weight(x_place, j)
            inside = (x >= 0) & (x < W) & (j < w)
            pixel = (crop * H + y) * W + x
            target = tl.load(mask + pixel, mask=inside, other=0).to(tl.int32)
            log_sum = tl.load(log_sums + pixel, mask=inside, other=0.0)
            counts = inside & (target != ignore_index)
            hard = (1.0 - smoothing) * _class_weights(weights, target, counts & (target >= 0) & (target < K))
            scores = _weight(x_place, j - 1)[None, :] * before + x_weight[None, :] * here
            scores += _weight(x_place, j + 1)[None, :] * after
            slope = (hard + soft_sum)[None, :] * tl.exp(scores - log_sum[None, :])
            slope -= tl.where(k[:, None] == target[None, :], hard[None, :], 0.0)
            if SMOOTH:
                slope -= (smoothing / K * class_weights)[:, None]
            total += tl.where(counts[None, :], (y_weight * x_weight)[None, :] * slope, 0.0)
    at = ((crop * K + k) * (h * w))[:, None] + (i * w + j)[None, :]
    tl.store(gradient + at, total, mask=known[:, None] & (j < w)[None, :])
