"""Probabilities of true classes without full-size logits, against PyTorch's interpolate and softmax."""

import pytest
import torch
from largest_tensor import Largest
from torch import Tensor
from torch.nn import functional as F

from segkit.ops.dispatch import plain_ops
from segkit.ops.upsample_cross_entropy import (
    OF_IGNORED,
    UpsampledRows,
    true_probability_by_rows,
    upsample_true_probability,
)

K = 7


def example(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, K, 9, 5, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, K, (2, 65, 33), generator=generator)
    mask[0, :9], mask[1, :, 20:] = 255, 255
    return logits.to(dtype), mask


def reference(logits: Tensor, mask: Tensor, align_corners: bool) -> Tensor:
    full = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=align_corners)
    negative = F.cross_entropy(full, mask, ignore_index=255, reduction="none")
    return torch.where(mask == 255, OF_IGNORED, (-negative).exp())


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 5000, None])
def test_probabilities_are_pytorchs(align_corners: bool, max_bytes: int | None) -> None:
    logits, mask = example(torch.float64)
    expected = reference(logits, mask, align_corners)
    found = upsample_true_probability(logits, mask, align_corners, max_bytes=max_bytes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    with plain_ops():
        plain = upsample_true_probability(logits, mask, align_corners)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_without_gradient_whatever_the_logits(dtype: torch.dtype) -> None:
    logits, mask = example(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsample_true_probability(logits.requires_grad_(), mask)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.double(), reference(logits.detach().double(), mask, True), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_one_well_formed_operation_for_compilers() -> None:
    logits, mask = example(torch.float32)
    torch.library.opcheck(torch.ops.segkit.upsample_true_probability.default, (logits, mask, True, 255, None))
    compiled = torch.compile(upsample_true_probability, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, mask), upsample_true_probability(logits, mask))


def test_no_tensor_is_as_large_as_full_size_logits() -> None:
    logits, mask = torch.randn(2, 150, 30, 30), torch.randint(0, 150, (2, 240, 240))
    with Largest() as largest:
        true_probability_by_rows(UpsampledRows(logits, (240, 240), True, 2**20), mask, 255)
    assert largest.seen <= 4 * 150 * 30 * 240  # one crop's logits, resized across only
