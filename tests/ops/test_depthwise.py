"""Dilated depthwise convolutions as shifted products, against PyTorch's."""

import pytest
import torch
from torch import nn

from segkit.ops.depthwise import DilatedDepthwiseConv2d, shift_dilated_depthwise
from segkit.ops.dispatch import plain_ops


@pytest.mark.parametrize("dilation", [7, 12, 36])  # 12 is wider than one side of the map, 36 than both
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_it_is_a_convolution(dilation: int, bias: bool, memory_format: torch.memory_format) -> None:
    convolution = nn.Conv2d(5, 5, 3, padding=dilation, dilation=dilation, groups=5, bias=bias)
    x = torch.randn(2, 5, 11, 25).to(memory_format=memory_format)
    shifted = DilatedDepthwiseConv2d(convolution)
    found, expected = shifted(x), convolution(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=memory_format)
    with plain_ops():
        assert torch.equal(shifted(x), expected)


def test_only_what_gains_is_replaced() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=12, dilation=12, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=12, dilation=12, groups=2),
        nn.Conv2d(4, 8, 3, padding=12, dilation=12, groups=4),
        nn.Conv2d(4, 4, 3, padding=12, dilation=12, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, dilation=12, groups=4),
    )
    keys = set(network.state_dict())
    shift_dilated_depthwise(network)
    assert [isinstance(module, DilatedDepthwiseConv2d) for module in network] == [True] + [False] * 5
    assert set(network.state_dict()) == keys
