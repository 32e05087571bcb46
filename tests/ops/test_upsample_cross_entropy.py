"""The loss without full-size logits, and its gradient, against PyTorch's interpolate and cross_entropy."""

from typing import Any

import pytest
import torch
from largest_tensor import Largest
from torch import Tensor
from torch.nn import functional as F

from segkit.ops.dispatch import plain_ops
from segkit.ops.upsample_cross_entropy import UpsampledRows, cross_entropy_by_rows, upsample_cross_entropy

K = 7


def example(
    dtype: torch.dtype, source: tuple[int, int] = (9, 5), size: tuple[int, int] = (65, 33)
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, K, *source, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    mask = torch.randint(0, K, (2, *size), generator=generator)
    mask[0, :9], mask[1, :, 20:] = 255, 255
    return logits, mask


def reference(logits: Tensor, mask: Tensor, align_corners: bool, **options: Any) -> Tensor:
    full = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(full, mask, ignore_index=255, reduction="sum", **options)


OPTIONS = [
    {},
    {"weight": torch.tensor([0.5, 2, 0, 1, 3, 1, 1], dtype=torch.float64)},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"label_smoothing": 0.2, "weight": torch.tensor([0.5, 2, 0, 1, 3, 1, 1], dtype=torch.float64)},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 5000, 10**9])
def test_loss_and_gradient_are_pytorchs(options: dict[str, Any], align_corners: bool, max_bytes: int) -> None:
    logits, mask = example(torch.float64)
    expected = reference(logits, mask, align_corners, **options)
    (wanted,) = torch.autograd.grad(3 * expected, logits)
    loss = upsample_cross_entropy(logits, mask, align_corners, max_bytes=max_bytes, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, logits)[0], wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "source, size", [((60, 60), (480, 480)), ((9, 5), (9, 5)), ((1, 1), (8, 8)), ((20, 9), (7, 4))]
)
@pytest.mark.parametrize("align_corners", [True, False])
def test_any_size_in_float32(source: tuple[int, int], size: tuple[int, int], align_corners: bool) -> None:
    """As near to the result in float64 as PyTorch's float32 is."""
    logits, mask = example(torch.float32, source, size)
    exact = reference(logits.double(), mask, align_corners)
    plain = reference(logits, mask, align_corners)
    loss = upsample_cross_entropy(logits, mask, align_corners)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-4)
    of_exact, of_plain, own = (torch.autograd.grad(value, logits)[0].double() for value in (exact, plain, loss))
    assert (own - of_exact).abs().max() <= 2 * (of_plain - of_exact).abs().max() + 1e-6


@pytest.mark.slow
def test_gradcheck() -> None:
    logits, mask = example(torch.float64, (3, 4), (11, 9))
    weight = torch.rand(K, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: upsample_cross_entropy(x, mask, weight=weight, label_smoothing=0.1, max_bytes=2000), (logits,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_and_its_gradient_lowered(dtype: torch.dtype) -> None:
    logits, mask = example(dtype)
    loss = upsample_cross_entropy(logits, mask)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == dtype
    torch.testing.assert_close(loss, reference(logits.float(), mask, True), rtol=1e-5, atol=1e-4)


def test_autocast_changes_nothing() -> None:
    logits, mask = example(torch.float32)
    plain = upsample_cross_entropy(logits, mask)
    with torch.autocast("cpu", torch.bfloat16):
        inside = upsample_cross_entropy(logits, mask)
        (gradient,) = torch.autograd.grad(inside, logits)
    assert torch.equal(inside, plain) and torch.equal(gradient, torch.autograd.grad(plain, logits)[0])


def test_nothing_to_learn_and_no_gradient_wanted() -> None:
    logits, mask = example(torch.float32)
    loss = upsample_cross_entropy(logits, torch.full_like(mask, 255))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    given = logits.detach()
    before = given.clone()
    loss = upsample_cross_entropy(given, mask)
    assert not loss.requires_grad and torch.equal(given, before)
    torch.testing.assert_close(loss, reference(given, mask, True))


def test_large_scores_stay_finite_and_infinite_ones_show() -> None:
    logits, mask = example(torch.float32)
    with torch.no_grad():
        logits *= 1e4
    torch.testing.assert_close(upsample_cross_entropy(logits, mask), reference(logits, mask, True), rtol=1e-5, atol=1)
    with torch.no_grad():
        logits[0, 0, 5, 2] = torch.inf
    assert not upsample_cross_entropy(logits, mask).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["plain", "all"])
def test_the_operation_is_well_formed(options: dict[str, Any]) -> None:
    """No input is changed or handed out; shapes, strides and autograd are as compilers expect them."""
    logits, mask = example(torch.float32, (3, 4), (11, 9))
    smoothing = options.get("label_smoothing", 0.0)
    for given in (logits, logits.detach().half().to(memory_format=torch.channels_last).requires_grad_()):
        arguments = (given, mask, options.get("weight"), False, 255, smoothing, 2000, True)
        torch.library.opcheck(torch.ops.segkit.upsample_cross_entropy.default, arguments)
    arguments = (logits.detach(), mask, options.get("weight"), True, 255, smoothing, None, False)
    torch.library.opcheck(torch.ops.segkit.upsample_cross_entropy.default, arguments)


@pytest.mark.parametrize("automatic", [False, True], ids=["float32", "autocast"])
@pytest.mark.slow
def test_compiles_to_one_graph(automatic: bool) -> None:
    logits, mask = example(torch.float32)

    def scaled(logits: Tensor) -> Tensor:
        return upsample_cross_entropy(2 * logits, mask, label_smoothing=0.1).sin()

    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        loss = torch.compile(scaled, fullgraph=True, backend="aot_eager")(logits)
        (gradient,) = torch.autograd.grad(loss, logits)
    expected = scaled(logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    assert not torch.compile(scaled, fullgraph=True, backend="aot_eager")(logits.detach()).requires_grad


def test_differentiable_only_once() -> None:
    logits, mask = example(torch.float32)
    scale = torch.ones((), requires_grad=True)
    loss = scale * upsample_cross_entropy(logits, mask)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_plain_by_request() -> None:
    """Then it is PyTorch's own, to the last bit."""
    logits, mask = example(torch.float32)
    weight = torch.rand(K)
    expected = reference(logits, mask, False, weight=weight, label_smoothing=0.1)
    full = 4 * K * mask.numel()
    with plain_ops(), Largest() as largest:
        loss = upsample_cross_entropy(logits, mask, False, weight=weight, label_smoothing=0.1)
    assert torch.equal(loss, expected) and largest.seen == full
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])
    with Largest() as largest:
        upsample_cross_entropy(logits, mask)
    assert largest.seen < full


@pytest.mark.slow
def test_no_tensor_is_as_large_as_full_size_logits() -> None:
    """Of the function inside the operation, into which a dispatch mode does not see."""
    logits = torch.randn(2, 150, 30, 30, requires_grad=True)
    mask = torch.randint(0, 150, (2, 240, 240))
    with Largest() as largest, torch.no_grad():
        rows = UpsampledRows(logits, (240, 240), True, 2**20)
        total, gradient = cross_entropy_by_rows(rows, mask, torch.ones(150), 255, 0.0, True)
    full = 4 * logits.shape[1] * mask.numel()
    assert largest.seen <= 4 * 150 * 30 * 240  # one crop's logits, resized across only
    assert largest.seen < full / 15
    with Largest() as outside:
        loss = upsample_cross_entropy(logits, mask, max_bytes=2**20)
        loss.backward()
    assert outside.seen == 4 * logits.numel()
    assert torch.equal(loss, total) and torch.equal(logits.grad, gradient)
    with Largest() as largest:
        reference(logits, mask, True).backward()
    assert largest.seen == full
