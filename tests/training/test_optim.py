"""The authors' recipe: learning rates, groups, schedules and the loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.models.segmentation import DeepLabV3
from segkit.training.losses import LossConfig, segmentation_loss, valid_cross_entropy
from segkit.training.optim import OptimConfig, build_optimizer, lr_factor, parameter_groups, scaled_lr


def test_linear_scaling_from_batch_16() -> None:
    assert scaled_lr(OptimConfig(), 16) == 0.01
    assert scaled_lr(OptimConfig(), 8) == 0.005
    assert scaled_lr(OptimConfig(reference_batch=0), 8) == 0.01


def test_head_and_auxiliary_head_learn_ten_times_faster() -> None:
    network = DeepLabV3("resnest14_tiny", 5)
    optimizer = build_optimizer(OptimConfig(), parameter_groups(network, 0.01, 10.0))
    encoder, heads = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (encoder["lr"], heads["lr"]) == (0.01, 0.1)
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {1e-4}  # on all parameters, norms and biases too
    assert len(encoder["params"]) == len(list(network.encoder.parameters()))
    assert len(encoder["params"]) + len(heads["params"]) == len(list(network.parameters()))


def test_poly_is_the_authors_formula() -> None:
    factor = lr_factor(OptimConfig(), 100)
    assert [factor(t) for t in (0, 50, 99, 100, 200)] == pytest.approx([1, 0.5**0.9, 0.01**0.9, 0, 0])


def test_cosine_constant_and_warmup() -> None:
    cosine = lr_factor(OptimConfig(schedule="cosine"), 100)
    assert [cosine(t) for t in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert lr_factor(OptimConfig(schedule="constant"), 100)(99) == 1
    warm = lr_factor(OptimConfig(warmup_steps=4), 104)
    assert [warm(t) for t in (0, 3, 4, 54)] == pytest.approx([0.2, 0.8, 1.0, 0.5**0.9])


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": math.nan}, {"weight_decay": -1}, {"warmup_steps": -1}])
def test_wrong_numbers(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        OptimConfig(**wrong)


def test_loss_is_cross_entropy_over_valid_pixels_plus_auxiliary() -> None:
    torch.manual_seed(0)
    outputs = {"out": torch.randn(2, 5, 4, 6, dtype=torch.double), "aux": torch.randn(2, 5, 4, 6)}
    mask = torch.randint(0, 5, (2, 29, 43), dtype=torch.uint8)
    mask[:, :7] = 255

    def reference(logits: torch.Tensor) -> torch.Tensor:
        full = F.interpolate(logits.float(), (29, 43), mode="bilinear", align_corners=True)
        return F.cross_entropy(full, mask.long(), ignore_index=255)

    loss = segmentation_loss(outputs, mask, LossConfig())
    torch.testing.assert_close(loss, reference(outputs["out"]) + 0.2 * reference(outputs["aux"]))


def test_nothing_to_learn_gives_zero_not_nan() -> None:
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    for config in (LossConfig(), LossConfig(class_weights=[1, 2, 3, 4, 5])):
        logits.grad = None
        loss = valid_cross_entropy(logits, torch.full((1, 32, 32), 255, dtype=torch.uint8), config)
        loss.backward()
        assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_weights_and_smoothing_are_torchs() -> None:
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    mask[0] = 255
    weights = (0.5, 2.0, 7.0)
    loss = valid_cross_entropy(logits, mask, LossConfig(class_weights=weights))
    reference = torch.nn.CrossEntropyLoss(torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(loss, reference(logits, mask.long()))
    smooth = valid_cross_entropy(logits, mask, LossConfig(label_smoothing=0.1))
    torch.testing.assert_close(smooth, F.cross_entropy(logits, mask.long(), ignore_index=255, label_smoothing=0.1))
    with pytest.raises(InputError, match="2 numbers, the network 3 classes"):
        valid_cross_entropy(logits, mask, LossConfig(class_weights=(1, 2)))
