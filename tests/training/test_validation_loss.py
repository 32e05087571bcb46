"""The loss of a validation against PyTorch's own, over the pixels of all images at once."""

import pytest
import torch
from torch.nn import functional as F

from segkit.training import validation_loss
from segkit.training.losses import LossConfig, loss_terms
from segkit.training.validation_loss import ValidationLoss

WEIGHTS = (0.5, 2.0, 1.0)


def images(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (1, 3, 4, 5) and masks of unlike sizes and unlike numbers of valid pixels; the last one has none."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        mask = torch.randint(0, 3, (1, 13 + 8 * i, 17 + i), generator=generator, dtype=torch.uint8)
        mask[:, : 3 * i] = 255 if i < count - 1 else 0
        made.append((3 * torch.randn(1, 3, 4, 5, generator=generator), mask))
    made.append((torch.randn(1, 3, 4, 5, generator=generator), torch.full((1, 9, 9), 255, dtype=torch.uint8)))
    return made


def of_all(config: LossConfig, given: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    loss = ValidationLoss(config)
    for logits, mask in given:
        loss.update(logits, mask, align_corners=True)
    return loss.compute()


def reference(given: list[tuple[torch.Tensor, torch.Tensor]], **options) -> float:
    """Cross entropy of all pixels in one call, float64."""
    scores, targets = [], []
    for logits, mask in given:
        full = F.interpolate(logits.double(), mask.shape[1:], mode="bilinear", align_corners=True)
        scores.append(full.flatten(2)[0].T)
        targets.append(mask.long().flatten())
    return float(F.cross_entropy(torch.cat(scores), torch.cat(targets), ignore_index=255, **options))


def test_cross_entropy_is_that_of_all_pixels_at_once() -> None:
    """Not a mean of means: images differ in size and in how much of them is ignored."""
    given = images()
    assert of_all(LossConfig(), given) == pytest.approx(reference(given), rel=1e-5)
    smooth = LossConfig(class_weights=WEIGHTS, label_smoothing=0.1, cross_entropy=0.5)
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    # PyTorch divides the smoothed loss by the sum of the weights, too
    assert of_all(smooth, given) == pytest.approx(0.5 * reference(given, weight=weight, label_smoothing=0.1), rel=1e-5)


def test_all_valid_pixels_count_whatever_the_training_mines_or_divides_by() -> None:
    given = images()
    config = LossConfig(ohem_threshold=0.5, ohem_min_kept=1, average="all")
    assert of_all(config, given) == pytest.approx(reference(given), rel=1e-5)


def test_region_losses_are_means_over_images() -> None:
    given = images()
    config = LossConfig(cross_entropy=0.0, dice=0.5)
    own = [float(loss_terms({"out": logits}, mask, config)["dice"]) for logits, mask in given[:-1]]
    assert of_all(config, given) == pytest.approx(sum(own) / len(own), rel=1e-5)
    every = LossConfig(dice=1.0, lovasz=1.0, focal=1.0, focal_gamma=0.0, tversky=1.0, tversky_alpha=0.3, aux_weight=0)
    assert of_all(every, given) > 2 * reference(given)  # a focal loss without focus is the cross entropy
    both = LossConfig(dice=0.5)
    assert of_all(both, given) == pytest.approx(reference(given) + sum(own) / len(own), rel=1e-5)


def test_processes_add_sums_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may have seen nothing at all."""
    given = images()
    rest = ValidationLoss(LossConfig())
    for logits, mask in given[1:]:
        rest.update(logits, mask, True)
    monkeypatch.setattr(validation_loss.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(validation_loss.dist, "all_reduce", lambda sums: sums.add_(rest._sums))
    assert of_all(LossConfig(), given[:1]) == pytest.approx(reference(given), rel=1e-5)
    assert of_all(LossConfig(), []) == pytest.approx(reference(given[1:]), rel=1e-5)


def test_a_split_without_a_valid_pixel_has_no_loss() -> None:
    assert of_all(LossConfig(), images()[-1:]) != of_all(LossConfig(), images()[-1:])  # NaN
