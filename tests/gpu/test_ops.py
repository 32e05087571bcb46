"""The fused operations on CUDA against plain PyTorch there; skipped without a GPU.

The kernels' corner cases are in tests/ops/kernels, which run on a GPU where there is one. Here the operations are
called as networks and losses call them, with sizes that fill more than one program.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segkit.ops.dispatch import plain_ops
from segkit.ops.split_attention import split_attention, split_pool
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence
from segkit.ops.upsample_cross_entropy import OF_IGNORED, upsample_cross_entropy, upsample_true_probability

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
K, SIZE = 21, (97, 140)


@contextmanager
def no_sync() -> Iterator[None]:
    """Whatever waits for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def classes_and_ignored() -> Tensor:
    mask = torch.randint(0, K, (2, *SIZE), generator=torch.Generator().manual_seed(1))
    mask[0, :9], mask[1, :, 120:] = 255, 255
    return mask.to(DEVICE)


# --- labels


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("align_corners", [True, False])
def test_labels_and_confidence(align_corners: bool, dtype: torch.dtype, layout: torch.memory_format) -> None:
    logits = noise(2, 150, 33, 41, scale=5).to(dtype, memory_format=layout)
    arguments = (logits, (260, 321), align_corners)
    upsample_argmax(*arguments), upsample_argmax_confidence(*arguments)  # compiles the kernels
    with no_sync():
        labels = upsample_argmax(*arguments)
        again, confidence = upsample_argmax_confidence(*arguments)
    with plain_ops():
        expected, wanted = upsample_argmax_confidence(*arguments)
    assert torch.equal(labels, again) and labels.dtype == torch.uint8
    torch.testing.assert_close(confidence, wanted, rtol=1e-4, atol=0)  # of logits up to 25, rounded to 1e-6 of these
    differ = labels != expected
    assert differ.float().mean() < 1e-4  # two classes that are equal but for a rounding
    full = F.interpolate(logits.float(), arguments[1], mode="bilinear", align_corners=align_corners)
    gap = full.amax(1) - full.gather(1, labels[:, None].long())[:, 0]
    assert gap.max() <= 1e-5 * logits.abs().max()


@pytest.mark.parametrize("with_confidence", [False, True])
def test_twelve_megapixels_of_150_classes_in_200_mb(with_confidence: bool) -> None:
    operation: Callable[..., Any] = upsample_argmax_confidence if with_confidence else upsample_argmax
    logits = noise(1, 150, 375, 500)
    operation(logits[:, :, :8, :8], (64, 64))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = operation(logits, (3000, 4000))
    made = sum(result.nbytes for result in (results if with_confidence else [results]))
    assert torch.cuda.max_memory_allocated() - before - made < 200e6  # of 7.2 GB


# --- losses

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight": torch.linspace(0, 3, K)},
    {"label_smoothing": 0.1},
    {"weight": torch.linspace(0, 3, K), "label_smoothing": 0.2},
]


def on_device(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in options.items()}


def loss_and_gradient(logits: Tensor, mask: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    given = logits.detach().requires_grad_()
    loss = upsample_cross_entropy(given, mask, *arguments, **options)
    (gradient,) = torch.autograd.grad(3 * loss, given)
    assert gradient.dtype == logits.dtype
    return loss.double(), gradient.double()


def assert_as_near(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """As near to the result in float64 as PyTorch's own float32 is, or nearly."""
    scale = exact.abs().max()
    assert (found - exact).abs().max() <= 4 * (plain - exact).abs().max() + 1e-6 * scale


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("align_corners", [True, False])
def test_cross_entropy_and_its_gradient(align_corners: bool, options: dict[str, Any]) -> None:
    logits, mask, options = noise(2, K, 13, 18, scale=3), classes_and_ignored(), on_device(options)
    fused = loss_and_gradient(logits, mask, align_corners, **options)
    in_float64 = loss_and_gradient(logits.double(), mask, align_corners, **options)
    with plain_ops():
        plain = loss_and_gradient(logits, mask, align_corners, **options)
        exact = loss_and_gradient(logits.double(), mask, align_corners, **options)
    for one, other, reference in zip(fused, plain, exact, strict=True):
        assert_as_near(one, other, reference)
    torch.testing.assert_close(in_float64, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_of_half_precision(dtype: torch.dtype) -> None:
    """Read as it is stored and computed in float32, under autocast too; the gradient is rounded once."""
    logits, mask = noise(2, K, 13, 18, scale=3).to(dtype, memory_format=torch.channels_last), classes_and_ignored()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss, gradient = loss_and_gradient(logits, mask)
    with plain_ops():
        exact_loss, exact = loss_and_gradient(logits.double(), mask)
    torch.testing.assert_close(loss, exact_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_ignored_pixels_have_no_part() -> None:
    logits, mask = noise(2, K, 13, 18), torch.full((2, *SIZE), 255, device=DEVICE)
    loss, gradient = loss_and_gradient(logits, mask)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_losses_do_not_wait(options: dict[str, Any]) -> None:
    logits, mask, options = noise(2, K, 13, 18).requires_grad_(), classes_and_ignored(), on_device(options)
    upsample_cross_entropy(logits, mask, **options), upsample_true_probability(logits, mask)
    with no_sync():
        upsample_cross_entropy(logits, mask, **options)
        upsample_true_probability(logits, mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("align_corners", [True, False])
def test_true_probability(align_corners: bool, dtype: torch.dtype) -> None:
    logits, mask = noise(2, K, 13, 18, scale=3).to(dtype), classes_and_ignored()
    found = upsample_true_probability(logits, mask, align_corners)
    with plain_ops():
        plain = upsample_true_probability(logits, mask, align_corners)
        exact = upsample_true_probability(logits.double(), mask, align_corners)
    assert found.dtype == torch.float32 and (found[mask == 255] == OF_IGNORED).all()
    assert_as_near(found.double(), plain.double(), exact)


# --- split attention


def splits_and_attention(radix: int, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    splits = noise(3, 48 * radix, 29, 23).to(dtype, memory_format=layout)
    attention = noise(3, 48 * radix, 1, 1, scale=2, seed=1).to(dtype)
    return splits.requires_grad_(), attention.requires_grad_()


def attended(splits: Tensor, attention: Tensor, radix: int) -> tuple[Tensor, ...]:
    """Results and gradients of both operations."""
    outputs = split_attention(splits, attention, radix, 2), split_pool(splits, radix)
    given = [noise(*output.shape, seed=2).bfloat16().to(output.dtype) for output in outputs]
    return *outputs, *torch.autograd.grad(outputs, (splits, attention), given)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_split_attention(radix: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    splits, attention = splits_and_attention(radix, dtype, layout)
    found = attended(splits, attention, radix)
    with plain_ops():
        exact = attended(splits.double(), attention.double(), radix)
    assert found[0].is_contiguous(memory_format=layout)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    for one, reference in zip(found, exact, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), reference, rtol=2 * rounding, atol=rounding)


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_autocast_leaves_split_attention_as_it_is(radix: int) -> None:
    inputs = splits_and_attention(radix, torch.bfloat16, torch.channels_last)
    expected = attended(*inputs, radix)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = attended(*inputs, radix)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("radix", [1, 2])
def test_split_attention_does_not_wait(radix: int, layout: torch.memory_format) -> None:
    inputs = splits_and_attention(radix, torch.bfloat16, layout)
    attended(*inputs, radix)
    with no_sync():
        split_attention(*inputs, radix, 2), split_pool(inputs[0], radix)


# --- the compiler


def compiled_loss(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return upsample_cross_entropy(2 * logits, mask), upsample_true_probability(2 * logits, mask)


def compiled_labels(logits: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return upsample_argmax(2 * logits, SIZE), *upsample_argmax_confidence(2 * logits, SIZE)


@pytest.mark.parametrize("function", [compiled_loss, compiled_labels])
def test_upsampling_compiles_without_a_break(function: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
    logits, mask = noise(2, K, 13, 18), classes_and_ignored()
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(logits, mask), function(logits, mask))


def test_gradients_compile_without_a_break() -> None:
    logits, mask = noise(2, K, 13, 18).requires_grad_(), classes_and_ignored()
    inputs = splits_and_attention(2, torch.float32, torch.channels_last)

    def function(logits: Tensor, splits: Tensor, attention: Tensor) -> Tensor:
        weighed = split_attention(splits * split_pool(splits, 2).repeat(1, 2, 1, 1), attention, 2)
        return upsample_cross_entropy(2 * logits, mask) + weighed.square().sum()

    given = (logits, *inputs)
    found, expected = (run(*given) for run in (torch.compile(function, fullgraph=True), function))
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, given), torch.autograd.grad(expected, given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
