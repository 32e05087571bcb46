"""Training losses on logits at the network's stride."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segkit.metadata.label_space import IGNORE_INDEX
from segkit.ops.upsample import upsample


@dataclass(frozen=True)
class LossConfig:
    """The authors' loss (PyTorch-Encoding, encoding/nn/loss.py): cross entropy plus the weighted auxiliary one.

    Attributes:
        aux_weight: Weight of the auxiliary head's cross entropy.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
    """

    aux_weight: float = 0.2
    label_smoothing: float = 0.0


def segmentation_loss(
    outputs: Mapping[str, Tensor], mask: Tensor, config: LossConfig, align_corners: bool = True
) -> Tensor:
    """Main plus auxiliary cross entropy, a float32 scalar.

    Args:
        outputs: Logits "out" and perhaps "aux", `(B, K, h, w)`.
        mask: Train ids `(B, H, W)`, any integer dtype; 255 is ignored.
        config: The weights.
        align_corners: How the logits are upsampled to `(H, W)`.
    """
    loss = valid_cross_entropy(outputs["out"], mask, config.label_smoothing, align_corners)
    if "aux" in outputs:
        aux = valid_cross_entropy(outputs["aux"], mask, config.label_smoothing, align_corners)
        loss = loss + config.aux_weight * aux
    return loss


def valid_cross_entropy(
    logits: Tensor, mask: Tensor, label_smoothing: float = 0.0, align_corners: bool = True
) -> Tensor:
    """Cross entropy of upsampled logits, averaged over the valid pixels; 0, with zero gradients, if there are none."""
    target = mask.long()
    upsampled = upsample(logits.float(), (mask.shape[-2], mask.shape[-1]), align_corners)  # (B, K, H, W)
    total = F.cross_entropy(
        upsampled, target, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=label_smoothing
    )
    valid = (target != IGNORE_INDEX).sum()
    return total / torch.clamp(valid, min=1)
