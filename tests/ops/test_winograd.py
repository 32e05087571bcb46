"""Winograd's way gives what `conv2d` gives, and is taken only where it is faster."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.ops import winograd
from segkit.ops.dispatch import plain_ops
from segkit.ops.winograd import WinogradConv2d, relative_time, suits, transformed_filters, winograd_conv2d

SIZES = [(1, 1), (1, 7), (5, 5), (6, 4), (13, 11), (20, 40), (37, 23)]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wide(dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """Wide enough to be faster on a map of 40 x 40."""
    return nn.Conv2d(128, 128, 3, padding=dilation, dilation=dilation, groups=groups).requires_grad_(False)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an item at each convolution that goes Winograd's way."""
    calls: list[int] = []

    def counted(*arguments: object) -> Tensor:
        calls.append(1)
        return winograd_conv2d(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(winograd, "winograd_conv2d", counted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 12])
def test_float64_is_conv2d(dilation: int, size: tuple[int, int]) -> None:
    for groups, batch, layout in product((1, 2, 4), (1, 2), (torch.contiguous_format, torch.channels_last)):
        x = rand(batch, 8, *size).to(memory_format=layout)
        weight = rand(12, 8 // groups, 3, 3, seed=1)
        bias = rand(12, seed=2) if batch == 1 else None
        found = winograd_conv2d(x, transformed_filters(weight, groups), bias, dilation, groups)
        expected = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation, groups=groups)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tiles", [1, 7, 50])
def test_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch, tiles: int) -> None:
    for name, value in (("_TILES", tiles), ("_CHANNELS", 3), ("_BLOCK", 5)):
        monkeypatch.setattr(winograd, name, value)
    x, weight = rand(2, 16, 43, 30), rand(4, 8, 3, 3, seed=1)
    found = winograd_conv2d(x, transformed_filters(weight, 2), None, 2, 2)
    expected = F.conv2d(x, weight, padding=2, dilation=2, groups=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("channels", "size"), [(16, (20, 20)), (128, (33, 17)), (512, (12, 12))])
def test_float32_rounds_little(channels: int, size: tuple[int, int]) -> None:
    x, weight = rand(1, channels, *size).relu().float(), rand(32, channels, 3, 3, seed=1).float()
    found = winograd_conv2d(x, transformed_filters(weight))
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(("x", "groups"), [(rand(8, 9, 9), 1), (rand(1, 6, 9, 9), 1), (rand(1, 8, 9, 9), 2)])
def test_other_shapes_are_refused(x: Tensor, groups: int) -> None:
    with pytest.raises(InputError, match=r"winograd_conv2d: filters of shape \(49, 8, 4\)"):
        winograd_conv2d(x, transformed_filters(rand(4, 8, 3, 3)), groups=groups)


@torch.no_grad()
def test_the_module_is_its_convolution(taken: list[int]) -> None:
    convolution, x = wide(2), rand(1, 128, 60, 60, dtype=torch.float32)
    module = WinogradConv2d(convolution)
    expected = convolution(x)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert len(taken) == 1 and not torch.equal(module(x), expected)
    assert dict(module.named_parameters()).keys() == module.state_dict().keys() == convolution.state_dict().keys()
    assert module.weight is convolution.weight and module.bias is convolution.bias
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert "128, 128, dilation=2" in repr(module)


def test_where_it_is_not_faster_or_not_wanted_it_is_conv2d_to_the_bit(taken: list[int]) -> None:
    convolution, x = wide(), rand(1, 128, 40, 40, dtype=torch.float32)
    module = WinogradConv2d(convolution)
    with plain_ops():
        assert torch.equal(module(x), convolution(x))
    for small in (x[..., :6, :6], x[..., :1, :], x[:, :, :9, :9], x[0]):
        assert torch.equal(module(small), convolution(small))
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    half = copy.deepcopy(module).bfloat16()
    assert torch.equal(half(x.detach().bfloat16()), copy.deepcopy(convolution).bfloat16()(x.detach().bfloat16()))
    assert not taken
    module(x.detach())
    assert taken


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (wide(), True),
        (wide(4), True),
        (wide(12), True),
        (wide(13), False),
        (wide(groups=2), False),
        (nn.Conv2d(256, 512, 3, padding=2, dilation=2, groups=2), True),
        (nn.Conv2d(32, 32, 3, padding=1), False),
        (nn.Conv2d(256, 256, 1), False),
        (nn.Conv2d(256, 256, 3), False),
        (nn.Conv2d(256, 256, 3, padding="same"), False),
        (nn.Conv2d(256, 256, 3, padding=1, stride=2), False),
        (nn.Conv2d(256, 256, 3, padding=1, padding_mode="reflect"), False),
        (nn.Conv2d(256, 256, (3, 5), padding=1), False),
        (nn.Conv2d(256, 256, 3, padding=1, dtype=torch.bfloat16), False),
        (nn.Conv2d(256, 256, 3, padding=1, device="meta"), False),
        (nn.ConvTranspose2d(256, 256, 3, padding=1), False),
    ],
)
def test_which_convolutions_suit(module: nn.Module, expected: bool) -> None:
    assert suits(module) is expected


def test_time_grows_with_padding_and_falls_with_channels() -> None:
    assert relative_time(256, 512, 4, (60, 60)) == pytest.approx(0.47, abs=0.01)  # measured 0.47
    assert relative_time(256, 512, 4, (60, 60)) < relative_time(256, 512, 4, (61, 61))
    assert relative_time(128, 256, 1, (60, 60)) < relative_time(64, 128, 1, (60, 60))
    assert relative_time(256, 512, 1, (7, 7)) > 1


def test_one_operator_to_the_compiler() -> None:
    module, x = WinogradConv2d(wide()).eval(), rand(2, 128, 40, 40, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))
        assert not torch.equal(compiled(x), F.conv2d(x, module.weight, module.bias, padding=1))
    arguments = (rand(2, 8, 9, 9), transformed_filters(rand(4, 8, 3, 3)), None, 1, 1)
    operator = torch.ops.segkit.winograd_conv2d.default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
