"""Online hard example mining: only the pixels that the network finds hard are learnt from.

Source: mmsegmentation 1.2.2, mmseg/structures/sampler/ohem_pixel_sampler.py (its mode with a threshold), restated
without boolean indexing, so that no GPU is waited for.
"""

import torch
from torch import Tensor

from segkit.metadata.label_space import IGNORE_INDEX


@torch.no_grad()
def hard_target(probability: Tensor, target: Tensor, threshold: float, min_kept: int) -> Tensor:
    """The target with its easy pixels ignored.

    Hard is a valid pixel whose probability of its true class is below `threshold`, or, where these are too few, below
    that of the pixel with `min_kept * B` smaller ones in the batch (or below the largest there is). The comparison is
    strict, as mmsegmentation's: of equal probabilities at the limit none is kept.

    Args:
        probability: Float `(B, H, W)` of the true classes, and more than 1 at ignored pixels, so that they are sorted
            to the end: what `segkit.ops.upsample_probability` makes.
        target: int64 train ids `(B, H, W)`; 255 is ignored.
        threshold: Probability in 0..1.
        min_kept: Pixels an image.

    Returns:
        int64 `(B, H, W)`: `target`, with 255 at the pixels that are not hard.
    """
    ordered = probability.flatten().sort().values  # (B H W)
    valid = (target != IGNORE_INDEX).sum()
    last_kept = (valid - 1).clamp(0, min_kept * target.shape[0])
    limit = ordered.gather(0, last_kept[None]).clamp(min=threshold)  # (1)
    return torch.where(probability < limit, target, IGNORE_INDEX)
