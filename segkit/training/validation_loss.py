"""The loss of a validation: the training loss's terms over all valid pixels of the split."""

import torch
import torch.distributed as dist
from torch import Tensor

from segkit.metadata.label_space import IGNORE_INDEX
from segkit.training.losses import LossConfig, loss_terms


class ValidationLoss:
    """Sums the terms of the main head over images; one per process, and one `all_reduce` at the end.

    Cross entropy and focal loss are sums over valid pixels, divided by their number in the whole split (by the sum of
    their class weights, if there are any), so that neither the order of images nor the number of processes matters.
    Dice, Lovász, Tversky and extra losses are computed for each image, and averaged over images. Class weights, label
    smoothing and the weights of the terms are the training's. All valid pixels count, even if training mines hard ones
    (`ohem_threshold`) or divides by ignored pixels, too (`average: all`). The auxiliary head does not run.

    Args:
        config: The training's loss, with numbers as class weights.
        device: The device of the sums; that of the logits, so that `update` waits for nothing.
    """

    def __init__(self, config: LossConfig, device: torch.device | str = "cpu") -> None:
        self._terms = [_only(config, name) for name in config.terms()]
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
        self._sums = torch.zeros(len(self._terms), 2, dtype=dtype, device=device)  # each term's sum and divisor

    def update(self, logits: Tensor, mask: Tensor, align_corners: bool) -> None:
        """Add images: logits `(B, K, h, w)` at any stride, train ids `(B, H, W)`."""
        for image in range(len(mask)):
            for row, term in zip(self._sums, self._terms, strict=True):
                row += _sum_and_count(logits[image, None], mask[image, None], term, align_corners).to(row)

    def compute(self) -> float:
        """The loss over all processes; NaN if no pixel is valid. Every process calls it once, at the end."""
        sums = self._sums.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return float((sums[:, 0] / sums[:, 1]).sum())


def _only(config: LossConfig, name: str) -> LossConfig:
    """The configuration of a loss with only this term."""
    kept = {field: getattr(config, field) for field in (name, *_BELONGS.get(name, ()))}
    return LossConfig(**({"cross_entropy": 0.0, "aux_weight": 0.0} | kept))


# term            the fields that it depends on
_BELONGS = {
    "cross_entropy": ("class_weights", "label_smoothing", "fused"),
    "focal":         ("focal_gamma",),
    "tversky":       ("tversky_alpha", "tversky_beta"),
}  # fmt: skip


def _sum_and_count(logits: Tensor, mask: Tensor, config: LossConfig, align_corners: bool) -> Tensor:
    """One term's sum over an image, and its divisor: a number of pixels, or 1 for the image."""
    counts = []

    def undivided(count: Tensor) -> Tensor:
        counts.append(count)
        return torch.ones_like(count)

    (total,) = loss_terms({"out": logits}, mask, config, align_corners, undivided).values()
    some = (mask != IGNORE_INDEX).any().to(total.dtype)  # an image without valid pixels does not count
    return torch.stack([total, counts[0].to(total.dtype) if counts else some])
