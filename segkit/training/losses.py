"""Training losses on logits at the network's stride."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.models.signatures import check_effects
from segkit.ops.upsample import upsample
from segkit.ops.upsample_cross_entropy import (
    plain_cross_entropy,
    plain_true_probability,
    raised,
    upsample_cross_entropy,
    upsample_true_probability,
)
from segkit.training.pixels import PixelAverage, hard_target, own_count

WEIGHT_KINDS = ("enet", "median")  # rules by which class weights follow from the data
MAIN_TERMS = ("cross_entropy", "dice", "lovasz", "focal", "tversky")  # the fields that are weights of the main head


@dataclass(frozen=True)
class LossConfig:
    """A weighted sum of losses; by default the authors' (PyTorch-Encoding, encoding/nn/loss.py): cross entropies.

    Attributes:
        aux_weight: Weight of the auxiliary head's loss, which is always the plain cross entropy, without mining.
        label_smoothing: Share of the target that the cross entropies spread over all classes, in [0, 1].
        class_weights: One weight a class, for the cross entropies only; None or "none" weighs all pixels alike, as the
            authors do. "enet" and "median" stand for numbers that follow from the training data: `segkit fit` fills
            them in; from Python give `data.class_weights("enet")`.
        cross_entropy: Weight of the main head's cross entropy; 0 leaves it out, here and below.
        ohem_threshold: Online hard example mining: the main cross entropy is that of the pixels whose true class has
            a probability below this, or of `ohem_min_kept` where these are fewer; 0 turns it off. See `pixels.py`.
        ohem_min_kept: Minimum number of pixels per image.
        dice: Weight of the Dice loss. This and the next three are segmentation_models_pytorch's, for the main head.
        lovasz: Weight of the Lovász-Softmax loss.
        focal: Weight of the focal loss.
        tversky: Weight of the Tversky loss.
        focal_gamma: Exponent of the focal loss; 0, or 1 and more.
        tversky_alpha: Weight of false positives in the Tversky loss.
        tversky_beta: Weight of false negatives in it.
        average: What the sums over pixels (cross entropies and focal loss) are divided by: "valid", the number of
            pixels that count (their class weights' sum, as in `torch.nn.CrossEntropyLoss`); or "all", the number of
            all pixels, ignored ones included (mmsegmentation's default, `avg_non_ignore=False`).
        extra: Your own loss for the main head, added unweighted: maps float logits `(B, K, H, W)` and int64 train ids
            `(B, H, W)`, 255 ignored, to a scalar, for each process's own batch. No checkpoint keeps it.
        fused: Whether cross entropies and mining do without full-size logits (`segkit.ops.upsample_cross_entropy`);
            false takes PyTorch's operations, which differ by rounding and take far more memory.
    """

    aux_weight: float = 0.2
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | str | None = None  # no Literal: the message below says more than the parser's
    cross_entropy: float = 1.0
    ohem_threshold: float = 0.0
    ohem_min_kept: int = 100_000
    dice: float = 0.0
    lovasz: float = 0.0
    focal: float = 0.0
    tversky: float = 0.0
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.5
    tversky_beta: float = 0.5
    average: Literal["valid", "all"] = "valid"
    fused: bool = True
    extra: nn.Module | None = None

    def __post_init__(self) -> None:
        """Turn a list (as read from a file) into a tuple and refuse values that make no loss."""
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _checked_weights(self.class_weights))
        for name in ("aux_weight", *MAIN_TERMS, "focal_gamma", "tversky_alpha", "tversky_beta"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a finite number, 0 or more")
        for name in ("label_smoothing", "ohem_threshold"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in 0..1")
        kept = self.ohem_min_kept
        self._require("ohem_min_kept", isinstance(kept, int) and kept >= 1, "a whole number of pixels, 1 or more")
        self._require("average", self.average in ("valid", "all"), "valid or all")
        # Between 0 and 1 the gradient of smp's focal loss is NaN at pixels whose probability rounds to 1.
        self._require("focal_gamma", not 0 < self.focal_gamma < 1, "0, or 1 and more")
        self._require("tversky_beta", self.tversky_alpha + self.tversky_beta > 0, "above 0 where tversky_alpha is 0")
        mined_is_used = self.cross_entropy > 0 or not self.ohem_threshold
        self._require("ohem_threshold", mined_is_used, "0 where cross_entropy, whose pixels it chooses, is 0")
        some_term = self.extra is not None or any(getattr(self, name) > 0 for name in MAIN_TERMS)
        self._require("cross_entropy", some_term, f"above 0, or one of {', '.join(MAIN_TERMS[1:])}: the sum is empty")
        cross_entropies = self.cross_entropy > 0 or self.aux_weight > 0, "cross_entropy or aux_weight above 0"
        check_effects(
            self,
            "model.loss",
            {
                "label_smoothing": cross_entropies,
                "class_weights": cross_entropies,
                "fused": cross_entropies,
                "average": (cross_entropies[0] or self.focal > 0, "a cross entropy or focal above 0"),
                "ohem_min_kept": (self.ohem_threshold > 0, "ohem_threshold above 0"),
                "focal_gamma": (self.focal > 0, "focal above 0"),
                "tversky_alpha": (self.tversky > 0, "tversky above 0"),
                "tversky_beta": (self.tversky > 0, "tversky above 0"),
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, without `extra`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "extra"}

    def terms(self) -> list[str]:
        """Names of the main head's terms: those of `MAIN_TERMS` whose weight is not 0, and "extra"."""
        return [name for name in MAIN_TERMS if getattr(self, name)] + ["extra"] * (self.extra is not None)

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise InputError(f"model.loss.{name}={getattr(self, name)} must be {allowed}")


def segmentation_loss(
    outputs: Mapping[str, Tensor],
    mask: Tensor,
    config: LossConfig,
    align_corners: bool = True,
    mean_count: Callable[[Tensor], Tensor] = own_count,
) -> Tensor:
    """The sum of `loss_terms`, which takes the same arguments: a float32 scalar, float64 if the logits are."""
    return torch.stack(list(loss_terms(outputs, mask, config, align_corners, mean_count).values())).sum()


def loss_terms(
    outputs: Mapping[str, Tensor],
    mask: Tensor,
    config: LossConfig,
    align_corners: bool = True,
    mean_count: Callable[[Tensor], Tensor] = own_count,
) -> dict[str, Tensor]:
    """The weighted terms of the loss by name: those of `LossConfig.terms`, and "aux".

    Ignored pixels take no part in any term; if all are ignored, each is 0 with zero gradients.

    In distributed training `mean_count` makes the averaged gradients those of one process with the joined batch:
    let it return the sum of the counts over all processes, divided by the number of processes. That holds for the
    cross entropies and the focal loss, which are sums over pixels. Dice, Lovász and Tversky losses, and the mining of
    hard pixels, use each process's own batch.

    Args:
        outputs: Logits "out" and perhaps "aux", `(B, K, h, w)`; half precision is raised to float32.
        mask: Train ids `(B, H, W)`, any integer dtype; 255 is ignored.
        config: The weights.
        align_corners: How the logits are upsampled to `(H, W)`.
        mean_count: Takes this process's count for a sum over pixels, a float scalar on the device, and returns the
            sum's divisor. Called once for each kind of count (valid, mined or all pixels, class weights); how often
            depends only on `config` and the names in `outputs`.

    Raises:
        InputError: There is not one class weight for each class, or class weights are still the name of a rule.
    """
    target = mask.long()
    average = PixelAverage(config.average, mean_count)
    terms = {}
    if config.cross_entropy:
        mined, pixels = target, "valid"
        if config.ohem_threshold:
            mined, pixels = _hard_target(outputs["out"], target, config, align_corners), "hard"
        loss = _cross_entropy(outputs["out"], mined, config, align_corners, average, pixels)
        terms["cross_entropy"] = config.cross_entropy * loss
    if set(config.terms()) - {"cross_entropy"}:  # only these need the logits at full size
        full = upsample(raised(outputs["out"]), (target.shape[1], target.shape[2]), align_corners)
        terms |= _full_size_terms(full, target, config, average)
    if "aux" in outputs:  # even if its weight is 0: a head without a loss stops distributed training
        loss = _cross_entropy(outputs["aux"], target, config, align_corners, average)
        terms["aux"] = config.aux_weight * loss
    return terms


def _hard_target(logits: Tensor, target: Tensor, config: LossConfig, align_corners: bool) -> Tensor:
    """The target with its easy pixels ignored."""
    true_probability = upsample_true_probability if config.fused else plain_true_probability
    probability = true_probability(logits, target, align_corners, IGNORE_INDEX)
    return hard_target(probability, target, config.ohem_threshold, config.ohem_min_kept)


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    config: LossConfig,
    align_corners: bool,
    average: PixelAverage,
    pixels: str = "valid",
) -> Tensor:
    """Cross entropy of logits `(B, K, h, w)` at the target's size, averaged over the valid pixels."""
    weights = _weights(config, logits)
    cross_entropy = upsample_cross_entropy if config.fused else plain_cross_entropy
    total = cross_entropy(logits, target, align_corners, IGNORE_INDEX, weights, config.label_smoothing)
    return average(total, target, weights, pixels)


def _full_size_terms(logits: Tensor, target: Tensor, config: LossConfig, average: PixelAverage) -> dict[str, Tensor]:
    """The terms of segmentation_models_pytorch and the user's own loss, from logits `(B, K, H, W)`."""
    terms = {} if config.extra is None else {"extra": config.extra.to(logits.device)(logits, target)}
    if config.terms() in (["extra"], ["cross_entropy", "extra"]):
        return terms
    # smp takes more than a second to import, and the cross entropy needs none of it.
    from segkit.training import region_losses

    if config.dice:
        terms["dice"] = config.dice * region_losses.dice_loss(logits, target)
    if config.lovasz:
        terms["lovasz"] = config.lovasz * region_losses.lovasz_loss(logits, target)
    if config.focal:
        total = region_losses.focal_loss_sum(logits, target, config.focal_gamma)
        terms["focal"] = config.focal * average(total, target)
    if config.tversky:
        alpha, beta = config.tversky_alpha, config.tversky_beta
        terms["tversky"] = config.tversky * region_losses.tversky_loss(logits, target, alpha, beta)
    return terms


def check_class_weights(config: LossConfig, num_classes: int) -> None:
    """Refuse class weights of another data set.

    Raises:
        InputError: There is not one weight for each class.
    """
    weights = config.class_weights
    if weights is not None and not isinstance(weights, str) and len(weights) != num_classes:
        raise InputError(
            f"model.loss.class_weights has {len(weights)} numbers, the network {num_classes} classes; set "
            f"--model.loss.class_weights to null (all classes alike), to {' or '.join(WEIGHT_KINDS)} (counted from the "
            f"training data), or to {num_classes} numbers"
        )


def _checked_weights(given: Sequence[float] | str) -> tuple[float, ...] | str | None:
    """Class weights with numbers as a tuple, and "none" as None."""
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
    """One weight for each class, on the logits' device; float32, or float64 if the logits are."""
    if config.class_weights is None:
        return None
    if isinstance(config.class_weights, str):
        raise InputError(
            f"model.loss.class_weights is still the word {config.class_weights!r}; give the numbers: "
            f"data.class_weights({config.class_weights!r})"
        )
    check_class_weights(config, logits.shape[1])
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.tensor(config.class_weights, dtype=dtype).to(logits.device, non_blocking=True)
