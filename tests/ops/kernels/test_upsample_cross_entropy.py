"""The Triton kernels against PyTorch in float64; in Triton's interpreter where there is no GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segkit.ops import upsample_cross_entropy as operation

pytest.importorskip("triton")
from segkit.ops.kernels import upsample_cross_entropy as kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def example(
    classes: int = 5, source: tuple[int, int] = (3, 3), size: tuple[int, int] = (7, 8), batch: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, classes, *source, generator=generator)
    mask = torch.randint(0, classes, (batch, *size), generator=generator)
    mask[0, :1, : (size[1] + 1) // 2] = 255
    return logits.to(DEVICE), mask.to(DEVICE)


def reference(logits: Tensor, mask: Tensor, align_corners: bool, **options: Any) -> Tensor:
    full = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(full, mask, ignore_index=255, **options)


def check(logits: Tensor, mask: Tensor, align_corners: bool, weight: Tensor | None, smoothing: float) -> None:
    loss, gradient = kernel.cross_entropy(logits, mask, weight, align_corners, 255, smoothing, True)
    exact = logits.double().requires_grad_()
    weight = None if weight is None else weight.double()
    expected = reference(exact, mask, align_corners, weight=weight, label_smoothing=smoothing, reduction="sum")
    (wanted,) = torch.autograd.grad(expected, exact)
    assert loss.dtype == gradient.dtype == torch.float32 and gradient.is_contiguous()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "smoothing, weighted, align_corners",
    [(0.0, False, True), (0.0, True, False), (0.2, False, True), (1.0, True, False)],
)
def test_loss_and_gradient_are_pytorchs(smoothing: float, weighted: bool, align_corners: bool) -> None:
    weight = torch.tensor([0.5, 2, 0, 1, 3], device=DEVICE) if weighted else None
    check(*example(batch=2), align_corners, weight, smoothing)


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    "source, size", [((1, 1), (3, 4)), ((6, 5), (3, 1)), ((4, 3), (4, 3)), ((2, 5), (9, 3)), ((3, 1), (1, 5))]
)
def test_any_size(source: tuple[int, int], size: tuple[int, int], align_corners: bool) -> None:
    check(*example(3, source, size), align_corners, None, 0.0)


@pytest.mark.slow
def test_more_than_one_program_for_classes_pixels_and_cells() -> None:
    classes, cells, pixels = kernel.CELL_CLASSES + 2, kernel.CELLS + 2, kernel.PIXELS + 2
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    check(*example(classes, (1, cells), (2, pixels), 1), False, weight, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_any_layout_are_read_as_stored(dtype: torch.dtype) -> None:
    logits, mask = example()
    logits = logits.to(dtype, memory_format=torch.channels_last)
    check(logits, mask.transpose(1, 2).contiguous().transpose(1, 2), True, None, 0.0)


@pytest.mark.slow
def test_without_gradient_and_with_nothing_to_learn() -> None:
    logits, mask = example(3, (2, 2), (3, 4), 1)
    loss, gradient = kernel.cross_entropy(logits, mask, None, True, 255, 0.0, False)
    torch.testing.assert_close(loss, reference(logits, mask, True, reduction="sum"))
    assert gradient.shape == (0,)
    logits[0, 0, 0, 0] = torch.nan  # where all is ignored, what the network says is all the same
    loss, gradient = kernel.cross_entropy(logits, torch.full_like(mask, 255), None, True, 255, 0.1, True)
    assert loss == 0 and not gradient.any()


def test_wrong_ids_and_infinite_scores_show() -> None:
    logits, mask = example(3, (2, 2), (3, 4), 1)
    for wrong in (3, -1, 254):
        assert kernel.cross_entropy(logits, mask.clamp(min=wrong, max=wrong), None, True, 255, 0.0, False)[0].isnan()
    torch.testing.assert_close(
        kernel.cross_entropy(1e4 * logits, mask, None, True, 255, 0.0, False)[0],
        reference(1e4 * logits, mask, True, reduction="sum"),
    )
    logits[0, 0, 1, 1] = torch.inf
    assert not kernel.cross_entropy(logits, mask, None, True, 255, 0.0, False)[0].isfinite()


@pytest.mark.parametrize("align_corners", [True, False])
def test_probabilities_are_pytorchs(align_corners: bool) -> None:
    logits, mask = example(kernel.CLASSES + 1)
    found = kernel.true_probability(logits, mask, align_corners, 255, 2.0)
    exact = (-reference(logits.double(), mask, align_corners, reduction="none")).exp()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.where(mask == 255, 2.0, exact), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_operations_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on CUDA: autograd scales the kernel's gradient and lowers it; float64 goes the other way."""
    monkeypatch.setattr(operation, "uses_triton", lambda tensor, kernel: True)
    monkeypatch.setattr(operation, "uses_triton", lambda tensor, kernel: True)
    logits, mask = example(3, (2, 3), (5, 4))
    weight = torch.tensor([0.5, 2, 1], dtype=torch.float64, device=DEVICE)
    total, by_kernel = kernel.cross_entropy(logits.half(), mask, weight.float(), True, 255, 0.1, True)
    given = logits.half().requires_grad_()
    loss = operation.upsample_cross_entropy(given, mask, weight=weight, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(3 * loss, given)
    assert torch.equal(loss, total) and torch.equal(gradient, (3 * by_kernel).half())
    found = operation.upsample_true_probability(given, mask)
    assert torch.equal(found, kernel.true_probability(logits.half(), mask, True, 255, operation.OF_IGNORED))
    exact = operation.upsample_cross_entropy(logits.double(), mask)
    torch.testing.assert_close(exact, reference(logits.double(), mask, True, reduction="sum"), rtol=1e-12, atol=1e-12)
