"""Dice, Lovász, focal and Tversky losses: segmentation_models_pytorch's, made safe for masks with nothing to learn.

All take float32 or float64 logits `(B, K, H, W)` and int64 train ids `(B, H, W)`, of which 255 is ignored, and return a
scalar of the logits' dtype: 0, with zero gradients, if all pixels are ignored. Focal is a sum over pixels; the others
compare regions of the whole batch and cannot be summed over processes.
"""

from segmentation_models_pytorch.losses import MULTICLASS_MODE, DiceLoss, FocalLoss, LovaszLoss, TverskyLoss
from torch import Tensor

from segkit.metadata.label_space import IGNORE_INDEX


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the Dice score of each class, over the pixels of the batch; the mean of all K, absent classes 0."""
    loss: Tensor = DiceLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX)(logits, target)
    return loss


def tversky_loss(logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    """As `dice_loss`, with false positives weighed by `alpha` and false negatives by `beta` (both 0.5: Dice)."""
    loss: Tensor = TverskyLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX, alpha=alpha, beta=beta)(logits, target)
    return loss


def lovasz_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász-Softmax (Berman et al. 2018, section 3.1) of the batch, the mean over the classes present in it.

    Computed in float32 whatever the dtype: smp's weights of the sorted errors are float32, and its product of them
    with float64 errors fails.
    """
    loss: Tensor = LovaszLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX)(logits.float(), target)
    return loss.sum().to(logits.dtype)  # the sum of a scalar; without a valid pixel smp returns an empty (0, K)


def focal_loss_sum(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017) of each class against the rest, its mean over K classes summed over valid pixels."""
    loss: Tensor = FocalLoss(MULTICLASS_MODE, gamma=gamma, ignore_index=IGNORE_INDEX, reduction="sum")(logits, target)
    return loss
