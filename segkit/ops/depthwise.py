"""Depthwise 3x3 convolutions of large dilation as nine shifted products, for CPUs.

oneDNN leaves its fast kernel where the padding exceeds 6 cells (4 without AVX-512), and multiplies the padding, too.
The convolutions of DeepLabV3+'s separable ASPP on a 32x32 map of 2048 channels take 27, 20 and 76 ms at dilations
12, 24 and 36, and 7, 3 and 2 ms here (one thread with AVX-512); at 64x64 237, 238 and 506 ms, and 75, 62 and 48.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.ops.dispatch import fused_ops

_LARGEST_FAST = 6  # the padding, which is the dilation, up to which oneDNN is faster


def shift_dilated_depthwise(network: nn.Module) -> None:
    """Replace the depthwise 3x3 convolutions that are faster as shifted products, in place."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv2d and _suits(module):
            network.set_submodule(name, DilatedDepthwiseConv2d(module))


class DilatedDepthwiseConv2d(nn.Module):
    """A depthwise 3x3 `Conv2d` of equal dilation and padding, for inference; its parameters are shared, not copied."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.dilation = convolution.weight, convolution.bias, convolution.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve float (B, C, H, W) to the same shape."""
        if fused_ops() and x.device.type == "cpu" and x.dtype == torch.float32:
            return dilated_depthwise(x, self.weight, self.bias, self.dilation)
        return F.conv2d(x, self.weight, self.bias, 1, self.dilation, self.dilation, len(self.weight))


def dilated_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Return what `conv2d` does with padding and dilation `dilation`, but for rounding.

    Args:
        x: Float (B, C, H, W).
        weight: Float (C, 1, 3, 3).
        bias: Float (C,), or None.
        dilation: D, in cells.
    """
    taps = weight[:, 0, :, :, None, None]  # (C, 3, 3, 1, 1)
    y = x * taps[:, 1, 1]
    if bias is not None:
        y += bias[:, None, None]
    for row, column in product(range(3), repeat=2):
        if (row, column) != (1, 1):
            (above, from_above), (left, from_left) = (
                _overlap((tap - 1) * dilation, size) for tap, size in zip((row, column), x.shape[-2:], strict=True)
            )
            y[..., above, left].addcmul_(x[..., from_above, from_left], taps[:, row, column])
    return y


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """The outputs of a tap whose input is `shift` cells further and inside the map, and these inputs."""
    cells = max(size - abs(shift), 0)
    start = max(-shift, 0)
    return slice(start, start + cells), slice(start + shift, start + shift + cells)


def _suits(convolution: nn.Conv2d) -> bool:
    dilation = convolution.dilation[0]
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels
        and (convolution.kernel_size, convolution.stride) == ((3, 3), (1, 1))
        and convolution.padding == convolution.dilation == (dilation, dilation)
        and convolution.padding_mode == "zeros"
        and dilation > _LARGEST_FAST
    )
