"""Cross entropy of upsampled logits, its gradient, and the probability of the true class, without upsampled logits.

A training crop of 480x480 with 150 classes has 138 MB of full-size logits, and PyTorch keeps or makes several tensors
of that size (upsampled logits, their log-softmax, two gradients). Here a few rows of one crop at a time are upsampled,
the loss of these rows is taken, and its gradient goes to that of the small logits at once, so that the backward pass
only scales it. Bilinear interpolation is linear and separable: each of its directions is a product with a matrix, and
the gradient one with the transposed matrix. On CUDA a Triton kernel does the same by pixels (`kernels`).

Letters: B batch, K classes, H W size of the mask, h w of the logits, n rows of a piece, m logits' rows that these are
made of.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from segkit.ops.dispatch import fused_ops, uses_triton
from segkit.ops.upsample import UpsampledRows, upsample

OF_IGNORED = 2.0  # above every probability: ignored pixels are sorted to the end


def upsample_cross_entropy(
    logits: Tensor,
    mask: Tensor,
    align_corners: bool = True,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    max_bytes: int | None = None,
) -> Tensor:
    """`F.cross_entropy(upsample(logits, mask's size), mask, reduction="sum")`, equal but for rounding.

    Args:
        logits: Float (B, K, h, w); half precision is raised to float32.
        mask: int64 (B, H, W) train ids. An id that is neither a class nor ignored makes the kernel's loss NaN;
            elsewhere PyTorch raises an error.
        align_corners: How the logits are upsampled, bilinearly.
        ignore_index: Id of pixels that do not count.
        weight: (K,) class weights, or None.
        label_smoothing: In 0..1, as in `F.cross_entropy`.
        max_bytes: Bytes of upsampled logits at once, at least one row; None means `CPU_BYTES` or `GPU_BYTES`. The
            kernel makes none.

    Returns:
        The sum over the pixels that count, a float32 scalar (float64 for float64 logits), differentiable once by the
        logits.
    """
    if not fused_ops():
        return plain_cross_entropy(logits, mask, align_corners, ignore_index, weight, label_smoothing)
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    total: Tensor = _cross_entropy(
        logits, mask, weight, align_corners, ignore_index, label_smoothing, max_bytes, with_gradient
    )[0]
    return total


def plain_cross_entropy(
    logits: Tensor,
    mask: Tensor,
    align_corners: bool = True,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The reference for `upsample_cross_entropy`: PyTorch's own loss of full-size logits."""
    full = upsample(raised(logits), (mask.shape[1], mask.shape[2]), align_corners)  # (B, K, H, W)
    return F.cross_entropy(
        full,
        mask,
        weight=None if weight is None else weight.to(full),
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def raised(logits: Tensor) -> Tensor:
    """The logits in at least float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.library.custom_op("segkit::upsample_cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    max_bytes: int | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The summed loss and its gradient (B, K, h, w), or (0,) without gradient; one operation to torch.compile."""
    if logits.dtype != torch.float64 and uses_triton(logits, "upsample_cross_entropy"):
        from segkit.ops.kernels import upsample_cross_entropy as kernel

        weights = None if weight is None else weight.to(logits.device, torch.float32).contiguous()
        return kernel.cross_entropy(logits, mask, weights, align_corners, ignore_index, label_smoothing, with_gradient)
    logits = raised(logits)
    weights = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits)
    rows = UpsampledRows(logits, (mask.shape[1], mask.shape[2]), align_corners, max_bytes)
    with torch.autocast(logits.device.type, enabled=False):  # autocast would take the products in half precision
        return cross_entropy_by_rows(rows, mask, weights, ignore_index, label_smoothing, with_gradient)


@_cross_entropy.register_fake
def _(
    logits: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    max_bytes: int | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = logits.shape if with_gradient else (0,)
    return logits.new_empty((), dtype=dtype), logits.new_empty(shape, dtype=dtype)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


@once_differentiable
def _scale_gradient(ctx: Any, scale: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (gradient * scale).to(ctx.dtype), None, None, None, None, None, None, None


_cross_entropy.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def cross_entropy_by_rows(
    rows: UpsampledRows,
    mask: Tensor,
    weights: Tensor,
    ignore_index: int,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Summed loss and gradient (B, K, h, w), or (0,) without; the arguments are those of `upsample_cross_entropy`."""
    logits = rows.logits
    total = logits.new_zeros(())
    gradient = logits.new_empty(logits.shape if with_gradient else (0,))
    for crop in range(logits.shape[0]):
        wide = rows.wide(crop)
        gradient_wide = torch.zeros_like(wide)
        for piece in rows.pieces:
            scores = piece.matrix @ wide[:, piece.source]  # (K, n, W)
            targets = _Targets(mask[crop, piece.rows], ignore_index, weights, label_smoothing)
            total += targets.loss_and_gradient(scores, with_gradient)
            if with_gradient:  # `scores` now is the gradient
                gradient_wide[:, piece.source] += piece.matrix.T @ scores
        if with_gradient:
            gradient[crop] = gradient_wide @ rows.across
    return total, gradient


class _Targets(NamedTuple):
    """The targets of a few rows of one crop."""

    mask: Tensor  # (n, W)
    ignore_index: int
    weights: Tensor  # (K,)
    label_smoothing: float

    def loss_and_gradient(self, scores: Tensor, with_gradient: bool) -> Tensor:
        """The summed loss of scores (K, n, W); with gradient, the gradient overwrites the scores.

        With p the softmax, t the true class, w the weights and e the smoothing, a pixel's loss is
        `(1 - e) w_t (-log p_t) + e / K sum_c w_c (-log p_c)`, as PyTorch has it.
        """
        valid = self.mask != self.ignore_index
        target = torch.where(valid, self.mask, 0)[None]  # (1, n, W)
        hard = (1 - self.label_smoothing) * torch.where(valid, self.weights[target[0]], 0)  # (n, W)
        soft = self.label_smoothing / len(self.weights) * self.weights  # (K,)
        true_score = scores.gather(0, target)[0]
        largest = scores.amax(0)  # (n, W)
        smooth = (soft[:, None, None] * scores).sum(0) if self.label_smoothing else 0.0
        exponents = scores.sub_(largest).exp_()
        sums = exponents.sum(0)
        log_sum = largest + sums.log()
        mass = hard + soft.sum() * valid  # what a pixel's targets sum to
        loss = (mass * log_sum - hard * true_score - valid * smooth).sum()
        if with_gradient:
            exponents.mul_(mass / sums).scatter_add_(0, target, -hard[None])
            if self.label_smoothing:
                exponents.sub_(soft[:, None, None] * valid)
        return loss


def upsample_true_probability(
    logits: Tensor,
    mask: Tensor,
    align_corners: bool = True,
    ignore_index: int = 255,
    max_bytes: int | None = None,
) -> Tensor:
    """The softmax of the upsampled logits at the classes of the mask; no gradient flows through it.

    Args:
        logits: Float (B, K, h, w); half precision is raised to float32.
        mask: int64 (B, H, W) train ids.
        align_corners: How the logits are upsampled, bilinearly.
        ignore_index: Id of pixels that get `OF_IGNORED`.
        max_bytes: Bytes of upsampled logits at once, as in `upsample_cross_entropy`.

    Returns:
        (B, H, W) in 0..1, or `OF_IGNORED`; float32 (float64 for float64 logits).
    """
    if not fused_ops():
        return plain_true_probability(logits, mask, align_corners, ignore_index)
    probability: Tensor = _true_probability(logits.detach(), mask, align_corners, ignore_index, max_bytes)
    return probability


def plain_true_probability(logits: Tensor, mask: Tensor, align_corners: bool = True, ignore_index: int = 255) -> Tensor:
    """The reference for `upsample_true_probability`: PyTorch's own softmax of full-size logits."""
    full = upsample(raised(logits.detach()), (mask.shape[1], mask.shape[2]), align_corners)  # (B, K, H, W)
    return _at_targets(full.softmax(1), mask, 1, ignore_index)


@torch.library.custom_op("segkit::upsample_true_probability", mutates_args=())
def _true_probability(
    logits: Tensor, mask: Tensor, align_corners: bool, ignore_index: int, max_bytes: int | None
) -> Tensor:
    """The probability of each pixel's true class, as one operation to torch.compile."""
    if logits.dtype != torch.float64 and uses_triton(logits, "upsample_true_probability"):
        from segkit.ops.kernels import upsample_cross_entropy as kernel

        return kernel.true_probability(logits, mask, align_corners, ignore_index, OF_IGNORED)
    rows = UpsampledRows(raised(logits), (mask.shape[1], mask.shape[2]), align_corners, max_bytes)
    with torch.autocast(logits.device.type, enabled=False):  # autocast would take the products in half precision
        return true_probability_by_rows(rows, mask, ignore_index)


@_true_probability.register_fake
def _(logits: Tensor, mask: Tensor, align_corners: bool, ignore_index: int, max_bytes: int | None) -> Tensor:
    return logits.new_empty(mask.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def true_probability_by_rows(rows: UpsampledRows, mask: Tensor, ignore_index: int) -> Tensor:
    """Compute `upsample_true_probability` row by row."""
    found = rows.logits.new_empty(mask.shape)
    for crop in range(mask.shape[0]):
        wide = rows.wide(crop)
        for piece in rows.pieces:
            scores = piece.matrix @ wide[:, piece.source]  # (K, n, W)
            found[crop, piece.rows] = _at_targets(scores.softmax(0), mask[crop, piece.rows], 0, ignore_index)
    return found


def _at_targets(probabilities: Tensor, mask: Tensor, dim: int, ignore_index: int) -> Tensor:
    """The values at the mask's classes along `dim`."""
    valid = mask != ignore_index
    target = torch.where(valid, mask, 0).unsqueeze(dim)
    return torch.where(valid, probabilities.gather(dim, target).squeeze(dim), OF_IGNORED)
