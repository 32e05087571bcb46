"""How probable the true class of each pixel is, from small logits and without full-size ones."""

import torch
from torch import Tensor

from segkit.ops.dispatch import fused_ops, uses_triton
from segkit.ops.upsample import upsample
from segkit.ops.upsample_cross_entropy import UpsampledRows, raised

OF_IGNORED = 2.0  # above every probability: ignored pixels are sorted to the end


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
        max_bytes: Of upsampled logits at once, as in `upsample_cross_entropy`.

    Returns:
        (B, H, W) in 0..1, and `OF_IGNORED`; float32, float64 where the logits are.
    """
    if not fused_ops():
        return plain_true_probability(logits, mask, align_corners, ignore_index)
    probability: Tensor = _true_probability(logits.detach(), mask, align_corners, ignore_index, max_bytes)
    return probability


def plain_true_probability(logits: Tensor, mask: Tensor, align_corners: bool = True, ignore_index: int = 255) -> Tensor:
    """What `upsample_true_probability` is compared with: PyTorch's own, of full-size logits."""
    full = upsample(raised(logits.detach()), (mask.shape[1], mask.shape[2]), align_corners)  # (B, K, H, W)
    return _at_targets(full.softmax(1), mask, 1, ignore_index)


@torch.library.custom_op("segkit::upsample_true_probability", mutates_args=())
def _true_probability(
    logits: Tensor, mask: Tensor, align_corners: bool, ignore_index: int, max_bytes: int | None
) -> Tensor:
    """One operation to torch.compile."""
    if logits.dtype != torch.float64 and uses_triton(logits, "upsample_true_probability"):
        from segkit.ops.kernels import upsample_cross_entropy as kernel

        return kernel.true_probability(logits, mask, align_corners, ignore_index, OF_IGNORED)
    rows = UpsampledRows(raised(logits), (mask.shape[1], mask.shape[2]), align_corners, max_bytes)
    with torch.autocast(logits.device.type, enabled=False):  # which would take the products in half precision
        return true_probability_by_rows(rows, mask, ignore_index)


@_true_probability.register_fake
def _(logits: Tensor, mask: Tensor, align_corners: bool, ignore_index: int, max_bytes: int | None) -> Tensor:
    return logits.new_empty(mask.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def true_probability_by_rows(rows: UpsampledRows, mask: Tensor, ignore_index: int) -> Tensor:
    """`upsample_true_probability`, whose arguments and result these are."""
    found = rows.logits.new_empty(mask.shape)
    for crop in range(mask.shape[0]):
        wide = rows.wide(crop)
        for piece in rows.pieces:
            scores = piece.matrix @ wide[:, piece.source]  # (K, n, W)
            found[crop, piece.rows] = _at_targets(scores.softmax(0), mask[crop, piece.rows], 0, ignore_index)
    return found


def _at_targets(probabilities: Tensor, mask: Tensor, dim: int, ignore_index: int) -> Tensor:
    """What stands at the mask's classes along `dim`."""
    valid = mask != ignore_index
    target = torch.where(valid, mask, 0).unsqueeze(dim)
    return torch.where(valid, probabilities.gather(dim, target).squeeze(dim), OF_IGNORED)
