"""Dice, Lovász, focal and Tversky losses: segmentation_models_pytorch's, made safe for masks with nothing to learn.

All take float32 or float64 logits `(B, K, H, W)` and int64 train ids `(B, H, W)`, of which 255 is ignored, and return a
scalar of the logits' dtype: 0, with zero gradients, if all pixels are ignored. Focal is a sum over pixels; the others
compare regions of the whole batch and cannot be summed over processes. None waits for a GPU, while smp's own Lovász and
focal losses, which select valid pixels by a boolean mask, do so at every class.
"""

import torch
from segmentation_models_pytorch.losses import MULTICLASS_MODE, DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor

from segkit.metadata.label_space import IGNORE_INDEX


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the Dice score of each class, over the pixels of the batch; the mean of all K, absent classes 0."""
    loss: Tensor = DiceLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX)(logits, target)
    return loss


def tversky_loss(logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    """Dice loss with false positives weighed by `alpha` and false negatives by `beta` (both 0.5: Dice itself)."""
    loss: Tensor = TverskyLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX, alpha=alpha, beta=beta)(logits, target)
    return loss


def lovasz_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász-Softmax (Berman et al. 2018, section 3.1) of the batch, the mean over the classes present in it.

    It is computed in float32 whatever the dtype, as are smp's weights of the sorted errors.
    """
    probability, valid = logits.float().softmax(1), (target != IGNORE_INDEX).flatten()
    losses, present = [], []
    for k in range(logits.shape[1]):
        true = (target == k).flatten().float()  # (B H W)
        errors = (true - probability[:, k].flatten()).abs()
        ordered, order = torch.where(valid, errors, -1.0).sort(descending=True)  # ignored pixels come last
        losses.append(torch.dot(ordered.clamp(min=0), _jaccard_steps(true[order])))
        present.append(true.any())
    counts = torch.stack(present)  # (K)
    return (torch.stack(losses) * counts).sum().to(logits.dtype) / counts.sum().clamp(min=1)


def focal_loss_sum(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017) of each class against the rest, averaged over classes, summed over valid pixels."""
    valid = (target != IGNORE_INDEX)[:, None]
    # An ignored pixel has probability 0 for all classes and no target, so its loss is exactly 0.
    sure = torch.where(valid, logits, torch.finfo(logits.dtype).min / 2)
    loss: Tensor = FocalLoss(MULTICLASS_MODE, gamma=gamma, reduction="sum")(sure, target)
    return loss


def _jaccard_steps(true: Tensor) -> Tensor:
    """How much each pixel adds to a class's Jaccard loss, if the errors fall from pixel to pixel; Berman's algorithm 1.

    Args:
        true: 1 for pixels of the class, 0 for all others; float (N).
    """
    total = true.sum()
    jaccard = 1 - (total - true.cumsum(0)) / (total + (1 - true).cumsum(0))
    return jaccard.diff(prepend=jaccard.new_zeros(1))
