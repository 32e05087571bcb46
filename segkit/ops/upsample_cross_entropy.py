"""Cross entropy of upsampled logits, and its gradient, without the upsampled logits.

A training crop of 480x480 with 150 classes has 138 MB of full-size logits, and PyTorch keeps or makes several tensors
of that size (upsampled logits, their log-softmax, two gradients). Here a few rows of one crop at a time are upsampled,
the loss of these rows is taken, and its gradient goes to that of the small logits at once, so that the backward pass
only scales it. Bilinear interpolation is linear and separable: each of its directions is a product with a matrix, and
the gradient one with the transposed matrix.

Letters: B batch, K classes, H W size of the mask, h w of the logits, n rows of a piece, m logits' rows that these are
made of.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CPU_BYTES = 4 * 2**20  # of upsampled logits at once: a core's cache holds them
GPU_BYTES = 256 * 2**20  # enough rows to fill a GPU


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
        mask: int64 (B, H, W) train ids.
        align_corners: How the logits are upsampled, bilinearly.
        ignore_index: Id of pixels that do not count.
        weight: (K,) class weights, or None.
        label_smoothing: In 0..1, as in `F.cross_entropy`.
        max_bytes: Of upsampled logits at once, at least one row; None: `CPU_BYTES` or `GPU_BYTES`.

    Returns:
        The sum over the pixels that count, a scalar of float32 (float64 where the logits are); differentiable once, by
        the logits.
    """
    raised = logits if logits.dtype == torch.float64 else logits.float()
    if max_bytes is None:
        max_bytes = GPU_BYTES if logits.is_cuda else CPU_BYTES
    weights = raised.new_ones(logits.shape[1]) if weight is None else weight.to(raised)
    with torch.autocast(logits.device.type, enabled=False):  # which would take the products in half precision
        total: Tensor = _CrossEntropy.apply(
            raised, mask, align_corners, ignore_index, weights, label_smoothing, max_bytes
        )
    return total


class _CrossEntropy(torch.autograd.Function):
    """Sums the loss, and where it is wanted its gradient, piece by piece in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        mask: Tensor,
        align_corners: bool,
        ignore_index: int,
        weights: Tensor,
        label_smoothing: float,
        max_bytes: int,
    ) -> Tensor:
        across = _matrix(logits.shape[3], mask.shape[2], align_corners, logits)  # (W, w)
        down = _matrix(logits.shape[2], mask.shape[1], align_corners, logits)  # (H, h)
        pieces = _pieces(down.cpu(), logits.shape[1] * mask.shape[2] * logits.element_size(), max_bytes)
        total = logits.new_zeros(())
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for crop in range(logits.shape[0]):
            wide = logits[crop] @ across.T  # (K, h, W)
            gradient_wide = torch.zeros_like(wide)
            for start, stop, first, last in pieces:
                part = down[start:stop, first:last]  # (n, m)
                scores = part @ wide[:, first:last]  # (K, n, W)
                piece = _Piece(mask[crop, start:stop], ignore_index, weights, label_smoothing)
                total += piece.loss_and_gradient(scores, gradient is not None)
                if gradient is not None:  # `scores` now is the gradient
                    gradient_wide[:, first:last] += part.T @ scores
            if gradient is not None:
                gradient[crop] = gradient_wide @ across
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None, None, None, None


class _Piece(NamedTuple):
    """Cross entropy over the classes of a few rows of one crop."""

    mask: Tensor  # (n, W)
    ignore_index: int
    weights: Tensor  # (K,)
    label_smoothing: float

    def loss_and_gradient(self, scores: Tensor, with_gradient: bool) -> Tensor:
        """The loss of scores (K, n, W), summed; with gradient, it takes the scores' place.

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


def _matrix(source: int, size: int, align_corners: bool, like: Tensor) -> Tensor:
    """Bilinear interpolation of one direction, (size, source): PyTorch's weights, found by resizing unit vectors."""
    units = torch.eye(source, dtype=like.dtype, device=like.device)[None]  # (1, source, source)
    return F.interpolate(units, size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def _pieces(down: Tensor, row_bytes: int, max_bytes: int) -> list[tuple[int, int, int, int]]:
    """(first row, row after the last, first source row, source row after the last) of each piece."""
    rows = max(1, max_bytes // row_bytes)
    found = []
    for start in range(0, len(down), rows):
        stop = min(start + rows, len(down))
        used = down[start:stop].any(0).nonzero()
        found.append((start, stop, int(used[0]), int(used[-1]) + 1))
    return found
