"""The Triton kernels of split attention, run by Triton's interpreter on the CPU, against plain PyTorch."""

import itertools

import pytest
import torch
from torch import Tensor

from segkit.ops import split_attention as reference
from segkit.ops.dispatch import plain_ops

pytest.importorskip("triton", reason="Triton has no wheel for this system")
from segkit.ops.kernels import split_attention as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = list(itertools.product([1, 2, 3], [1, 2]))  # radix, cardinality


@pytest.fixture(params=[2048, 16], ids=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE", request.param)
    monkeypatch.setattr(kernels, "SUMMED_CHANNELS", min(request.param, 128) // 8)


in_tiles = pytest.mark.usefixtures("tiles")


def example(radix: int, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (5, 3)) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6 * radix, *size), (2, 6 * radix, 1, 1), (2, 6, *size)
    splits, attention, gradient = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    return splits, 2 * attention, gradient


def run(splits: Tensor, attention: Tensor, gradient: Tensor, radix: int, cardinality: int) -> tuple[Tensor, ...]:
    output = reference._empty_result(splits, attention, radix).fill_(torch.nan)
    attended = kernels.forward(splits, attention, output, radix, cardinality)
    assert attended is output
    return attended, *kernels.backward(gradient, splits, attention, radix, cardinality)


def plain(splits: Tensor, attention: Tensor, gradient: Tensor, radix: int, cardinality: int) -> tuple[Tensor, ...]:
    inputs = [t.clone().requires_grad_() for t in (splits, attention)]
    with plain_ops():
        output = reference.split_attention(*inputs, radix, cardinality)
    return output.detach(), *torch.autograd.grad(output, inputs, gradient)


@pytest.mark.slow
@in_tiles
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("radix, cardinality", SHAPES)
def test_values_and_gradients(radix: int, cardinality: int, memory_format: torch.memory_format) -> None:
    splits, attention, gradient = example(radix)
    splits, gradient = (t.contiguous(memory_format=memory_format) for t in (splits, gradient))
    found = run(splits, attention, gradient, radix, cardinality)
    torch.testing.assert_close(found, plain(splits, attention, gradient, radix, cardinality))
    assert all(t.is_contiguous(memory_format=memory_format) for t in found[:2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("radix", [1, 2])
def test_other_types(radix: int, dtype: torch.dtype) -> None:
    splits, attention, gradient = example(radix, dtype)
    found = run(splits, attention, gradient, radix, 2)
    assert [t.dtype for t in found] == [dtype] * 3
    raised = plain(*(t.double() for t in (splits, attention, gradient)), radix, 2)
    torch.testing.assert_close(found, tuple(t.to(dtype) for t in raised))


def test_mixed_types() -> None:
    splits, attention, gradient = example(2)
    found = run(splits.bfloat16(), attention, gradient, 2, 1)
    assert [t.dtype for t in found] == [torch.float32, torch.bfloat16, torch.float32]
    wanted = plain(splits.bfloat16(), attention, gradient, 2, 1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@in_tiles
def test_odd_layouts() -> None:
    """Splits that no one stride walks, gradients of stride 0 or of another memory format, rows and columns."""
    splits, attention, gradient = example(2, size=(6, 4))
    wide = torch.randn(2, 12, 12, 6).to(DEVICE)
    cases = [
        (wide[:, :, ::2, :4], gradient),
        (splits.transpose(2, 3).contiguous().transpose(2, 3), gradient),
        (splits, torch.ones((), device=DEVICE).expand(2, 6, 6, 4)),
        (splits, gradient.contiguous(memory_format=torch.channels_last)),
        (splits[:, :, :1], gradient[:, :, :1]),
        (splits[:, :, :, 1:2], gradient[:, :, :, 1:2]),
        (splits[:, :, 2:3, 1:2], gradient[:, :, 2:3, 1:2]),
    ]
    for some, given in cases:
        torch.testing.assert_close(run(some, attention, given, 2, 3), plain(some, attention, given, 2, 3))
    empty = run(splits[:0], attention[:0], gradient[:0], 2, 1)
    assert [t.shape for t in empty] == [(0, 6, 6, 4), (0, 12, 6, 4), (0, 12, 1, 1)]


@pytest.mark.parametrize("radix", [1, 2])
def test_large_attention_stays_finite(radix: int) -> None:
    splits, attention, gradient = example(radix)
    attention = 1000 * attention
    found = run(splits, attention, gradient, radix, 1)
    assert all(t.isfinite().all() for t in found)
    torch.testing.assert_close(found, plain(splits, attention, gradient, radix, 1))
