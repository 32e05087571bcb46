"""Training losses on logits at the network's stride."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.ops.upsample import upsample

WEIGHT_KINDS = ("enet", "median")  # words for class weights that follow from the data


@dataclass(frozen=True)
class LossConfig:
    """The authors' loss (PyTorch-Encoding, encoding/nn/loss.py): cross entropy plus the weighted auxiliary one.

    Attributes:
        aux_weight: Weight of the auxiliary head's cross entropy.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
        class_weights: One weight a class, for rare classes; None or "none" weighs all pixels alike, as the authors do.
            "enet" and "median" stand for the numbers that follow from the training data: `segkit fit` puts them in;
            from Python give `data.class_weights("enet")`.
    """

    aux_weight: float = 0.2
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | str | None = None  # not a Literal: the message below says more than its parser's

    def __post_init__(self) -> None:
        """Turn a list (as read from a file) into a tuple and refuse what no loss can be made of."""
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _checked_weights(self.class_weights))
        if not 0 <= self.label_smoothing <= 1 or not self.aux_weight >= 0:
            raise InputError("model.loss: label_smoothing must be in 0..1, aux_weight 0 or more")


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
    loss = valid_cross_entropy(outputs["out"], mask, config, align_corners)
    if "aux" in outputs:
        loss = loss + config.aux_weight * valid_cross_entropy(outputs["aux"], mask, config, align_corners)
    return loss


def valid_cross_entropy(logits: Tensor, mask: Tensor, config: LossConfig, align_corners: bool = True) -> Tensor:
    """Cross entropy of upsampled logits, averaged over the valid pixels; 0, with zero gradients, if there are none.

    With class weights it is the weighted mean, as in `torch.nn.CrossEntropyLoss`.

    Raises:
        InputError: There is not one weight a class, or still the word for them.
    """
    target = mask.long()
    weights = _weights(config, logits)
    upsampled = upsample(logits.float(), (mask.shape[-2], mask.shape[-1]), align_corners)  # (B, K, H, W)
    total = F.cross_entropy(
        upsampled,
        target,
        weight=weights,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=config.label_smoothing,
    )
    valid = target != IGNORE_INDEX
    if weights is None:
        return total / valid.sum().clamp(min=1)
    return total / torch.where(valid, weights[torch.where(valid, target, 0)], 0.0).sum().clamp(min=1e-6)


def _checked_weights(given: Sequence[float] | str) -> tuple[float, ...] | str | None:
    """Numbers as a tuple, "none" as None."""
    if isinstance(given, str):
        if given not in (*WEIGHT_KINDS, "none"):
            raise InputError(
                f"model.loss.class_weights is {given!r}; allowed are {', '.join(WEIGHT_KINDS)}, none, or a list of one "
                "number a class"
            )
        return None if given == "none" else given
    numbers = tuple(float(weight) for weight in given)
    if not all(0 <= weight < math.inf for weight in numbers) or not any(numbers):
        raise InputError(f"model.loss.class_weights={list(numbers)} must be finite numbers, 0 or more, and one above 0")
    return numbers


def _weights(config: LossConfig, logits: Tensor) -> Tensor | None:
    """One float32 weight a class, where the logits are."""
    if config.class_weights is None:
        return None
    if isinstance(config.class_weights, str):
        raise InputError(
            f"model.loss.class_weights is still the word {config.class_weights!r}; give the numbers: "
            f"data.class_weights({config.class_weights!r})"
        )
    if len(config.class_weights) != logits.shape[1]:
        raise InputError(
            f"model.loss.class_weights has {len(config.class_weights)} numbers, the network {logits.shape[1]} classes"
        )
    return logits.new_tensor(config.class_weights, dtype=torch.float32)
