"""3x3 convolutions of stride 1 with a fifth of their multiplications: Winograd's minimal filtering, for CPUs.

This module need not be read to understand segkit. Its entry points are `multiply_less`, which puts it into the float32
inference form of a network, and `gave_up_filters`, which removes it if memory is short. Without it, a DeepLabV3 with
ResNeSt-50 takes 1.2 times as long on a processor with AVX-512, and 1.6 times on one with only AVX2 (CPU time, 480x480,
one run with and without).

F(5x5, 3x3) of Lavin & Gray 2016 (arXiv 1509.09308, section 4.1): 7x7 inputs that overlap by two, and the filters, go
through small constant matrices; 49 products replace 225; one more matrix makes 5x5 outputs of them. The matrices are
Toom and Cook's for the points 0, 1, -1, -2, 3/2, -3/8 and infinity, chosen by measured error as Barabasz et al. 2018
(arXiv 1803.10986) advise. A convolution of dilation d is d*d ordinary ones, each on the cells of one phase (every d-th
row and column); here all their tiles share the products.

Letters: B batch, C inputs, O outputs, G groups, H W cells, d dilation; T tiles of 5x5 outputs in one piece, rows R and
columns S of them in each phase.
"""

import logging
import math
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.machine import format_bytes
from segkit.ops.dispatch import fused_ops, operator

_OUT, _IN = 5, 7  # cells a side of a tile's outputs and inputs
_PRODUCTS = _IN * _IN
_POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(-2), Fraction(3, 2), Fraction(-3, 8))

_TILES = 144  # of one piece: the products of 512 outputs, 14 MB, lie in a third-level cache
_CHANNELS = 512  # of one piece, for the same reason
_BLOCK = 64  # inputs whose filters are transformed at once: 13 MB of float64 for 512 outputs
_PAYS = 0.75  # of the direct convolution's time, by `relative_time`
_LARGEST_DILATION = 12  # above it, tiles of usual images (60 cells a side) would be mostly padding


_log = logging.getLogger(__name__)


def multiply_less(network: nn.Module) -> None:
    """Use Winograd's algorithm in the convolutions it makes faster; each also keeps its transformed weights."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and suits(module):
            network.set_submodule(name, WinogradConv2d(module))


def gave_up_filters(network: nn.Module, why: str, more_than: int = 0) -> bool:
    """Free a network's transformed filters for good; return whether that was done.

    Args:
        network: Any network; one without such filters stays unchanged.
        why: The beginning of the log line. It is no warning: the labels do not change, and the speed is documented.
        more_than: Bytes; filters that take no more than this are kept.
    """
    held = [module for module in network.modules() if isinstance(module, WinogradConv2d)]
    freed = sum(module.filters.nbytes for module in held if module.filters is not None)
    if freed <= more_than:
        return False
    for module in held:
        module.filters = None
    _log.info("%s: the network gives up its transformed filters, %s, and is slower", why, format_bytes(freed))
    return True


class WinogradConv2d(nn.Module):
    """A `Conv2d` for inference that uses Winograd's algorithm where that is faster, and otherwise `conv2d`.

    It is faster in float32 on the CPU, without gradients or `plain_ops()`, on large enough maps. Rounding errors are
    4e-6 to 9e-6 of the largest output, compared with about 1e-6 for `conv2d`.

    Args:
        convolution: A convolution that `suits`; its parameters are shared, not copied.

    Attributes:
        filters: The transformed weights, a buffer outside the state dict, 5.4 times as large as the weights. If set to
            None because memory is short, `conv2d` is used from then on.
    """

    filters: Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.dilation, self.groups = convolution.dilation[0], convolution.groups
        self.register_buffer("filters", transformed_filters(convolution.weight, self.groups), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve float (B, C, H, W) to (B, O, H, W)."""
        if self.filters is not None and self._pays(x, self.filters):
            return winograd_conv2d(x, self.filters, self.bias, self.dilation, self.groups)
        return F.conv2d(x, self.weight, self.bias, 1, self.dilation, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The sizes that `print` shows of the module."""
        outputs, inputs = self.weight.shape[:2]
        return f"{inputs * self.groups}, {outputs}, dilation={self.dilation}, groups={self.groups}"

    def _pays(self, x: Tensor, filters: Tensor) -> bool:
        if not (fused_ops() and x.dim() == 4 and x.device.type == "cpu"):
            return False
        if not x.dtype == filters.dtype == torch.float32:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return False
        _, inputs, outputs = filters.shape
        return relative_time(inputs, outputs, self.dilation, (x.shape[-2], x.shape[-1])) < _PAYS


def suits(convolution: nn.Module) -> bool:
    """Whether this is a 3x3 float32 `Conv2d` on the CPU of stride 1 that keeps sizes and gains on large maps."""
    if type(convolution) is not nn.Conv2d or convolution.weight.dtype != torch.float32:
        return False
    outputs, inputs = convolution.out_channels // convolution.groups, convolution.in_channels // convolution.groups
    dilation = convolution.dilation[0]
    return (
        convolution.weight.device.type == "cpu"
        and (convolution.kernel_size, convolution.stride) == ((3, 3), (1, 1))
        and convolution.padding == convolution.dilation == (dilation, dilation)
        and convolution.padding_mode == "zeros"
        and dilation <= _LARGEST_DILATION
        and relative_time(inputs, outputs, dilation, (60 * dilation, 60 * dilation)) < _PAYS
    )


def relative_time(inputs: int, outputs: int, dilation: int, size: tuple[int, int]) -> float:
    """Estimate the time of this algorithm relative to `conv2d`, for one image.

    In units of a direct multiplication, one of the batched products takes 1.3, the transforms of an input and an
    output 120 and 80 for each product, and fetching a filter 16. Measured with AVX-512 on two cores against oneDNN,
    which skips most multiplications by the padding.

    Args:
        inputs: C / G.
        outputs: O / G.
        dilation: D.
        size: H and W.
    """
    height, width = size
    tiles = dilation * _tiles(height, dilation) * dilation * _tiles(width, dilation)
    direct = (height + 2 * max(height - dilation, 0)) * (width + 2 * max(width - dilation, 0))
    return _PRODUCTS * (tiles * (1.3 + 120 / outputs + 80 / inputs) + 16) / max(direct, 1)


@torch.no_grad()
def transformed_filters(weight: Tensor, groups: int = 1) -> Tensor:
    """Transform float (O, C / G, 3, 3) to (G * 49, C / G, O / G) of its type, computed in float64."""
    outputs, inputs = weight.shape[:2]
    filters = weight.new_empty(groups, _PRODUCTS, inputs, outputs // groups)
    for part, target in zip(weight.chunk(groups), filters, strict=True):
        for some, place in zip(part.split(_BLOCK, 1), target.split(_BLOCK, 1), strict=True):
            taps = some.double().flatten(2).permute(2, 1, 0)  # (9, c, O / G)
            place.copy_(torch.tensordot(_FILTER.to(taps), taps, 1))
    return filters.flatten(0, 1)


def winograd_conv2d(
    x: Tensor, filters: Tensor, bias: Tensor | None = None, dilation: int = 1, groups: int = 1
) -> Tensor:
    """Convolve with 3x3 filters, stride 1 and padding that keeps the size; without a derivative.

    Args:
        x: Float (B, C, H, W) on the CPU; channels-last is faster.
        filters: The result of `transformed_filters`.
        bias: Float (O,).
        dilation: D.
        groups: G.

    Returns:
        (B, O, H, W), channels-last, of the dtype of `x`.

    Raises:
        InputError: Channels or filters have other shapes.
    """
    if x.dim() != 4 or filters.shape[:2] != (groups * _PRODUCTS, x.shape[1] // groups) or x.shape[1] % groups:
        raise InputError(
            f"winograd_conv2d: filters of shape {tuple(filters.shape)} and groups={groups} do not fit an input of "
            f"shape {tuple(x.shape)}; they must be (groups * {_PRODUCTS}, C / groups, O / groups) and (B, C, H, W)"
        )
    result: Tensor = _convolve(x, filters, bias, dilation, groups)
    return result


@operator("segkit::winograd_conv2d")
def _convolve(x: Tensor, filters: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    out = _empty_result(x, filters, groups)
    cells, results = x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)  # (B, H, W, C) and (B, H, W, O)
    parts = zip(cells.chunk(groups, -1), filters.chunk(groups), results.chunk(groups, -1), strict=True)
    for group, (source, factors, target) in enumerate(parts):
        shift = None if bias is None else bias.chunk(groups)[group]
        for image, place in zip(source, target, strict=True):
            for rows in _pieces(image.shape[0], image.shape[1], dilation):
                products = _products(image, factors, dilation, rows)
                _write(products, shift, place[dilation * _OUT * rows.start : dilation * _OUT * rows.stop], dilation)
    return out


@_convolve.register_fake
def _(x: Tensor, filters: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    return _empty_result(x, filters, groups)


def _empty_result(x: Tensor, filters: Tensor, groups: int) -> Tensor:
    shape = (x.shape[0], groups * filters.shape[-1], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _tiles(cells: int, dilation: int) -> int:
    """Tiles that cover the longest phase."""
    return -(-cells // (dilation * _OUT))


def _pieces(height: int, width: int, dilation: int) -> Iterator[range]:
    """Rows of tiles, the same in all phases, in pieces of about `_TILES` tiles."""
    rows, tiles = _tiles(height, dilation), _tiles(width, dilation) * dilation**2
    step = math.ceil(rows / math.ceil(rows * tiles / max(_TILES, tiles)))
    for start in range(0, rows, step):
        yield range(start, min(start + step, rows))


def _products(image: Tensor, filters: Tensor, dilation: int, rows: range) -> Tensor:
    """Inputs (H, W, C) of one group, a piece of them, times its filters (49, C, O): (T, 49, O), strided."""
    products: Tensor | None = None
    for part, factors in zip(image.split(_CHANNELS, -1), filters.split(_CHANNELS, 1), strict=True):
        tiles = _cut(part, dilation, rows)  # (T, 49, c)
        inputs = torch.bmm(_INPUT.to(tiles).expand(len(tiles), -1, -1), tiles).transpose(0, 1)  # (49, T, c)
        products = torch.bmm(inputs, factors) if products is None else products.baddbmm_(inputs, factors)
    assert products is not None
    return products.transpose(0, 1)


def _cut(image: Tensor, dilation: int, rows: range) -> Tensor:
    """Tiles of (H, W, C): (T, 49, C), by row, row of the phase, column and column of the phase; outside is 0."""
    height, width, channels = image.shape
    columns = _tiles(width, dilation)
    start, stop = dilation * (_OUT * rows.start - 1), dilation * (_OUT * rows.stop + 1)
    sides = (dilation, dilation * (_OUT * columns + 1) - width)
    ends = (max(-start, 0), max(stop - height, 0))
    padded = F.pad(image[max(start, 0) : min(stop, height)], (0, 0, *sides, *ends))
    phases = padded.view(-1, dilation, _OUT * columns + 2, dilation, channels)
    tiles = phases.unfold(0, _IN, _OUT).unfold(2, _IN, _OUT)  # (R, d, S, d, C, 7, 7)
    return tiles.permute(0, 1, 2, 3, 5, 6, 4).reshape(-1, _PRODUCTS, channels)


def _write(products: Tensor, bias: Tensor | None, out: Tensor, dilation: int) -> None:
    """Compute outputs from (T, 49, O) and write them to their place in (h, W, O)."""
    tiles = torch.bmm(_OUTPUT.to(products).expand(len(products), -1, -1), products)  # (T, 25, O)
    height, width, channels = out.shape
    columns = _tiles(width, dilation)
    tiles = tiles.view(-1, dilation, columns, dilation, _OUT, _OUT, channels)  # (R, d, S, d, 5, 5, O)
    tiles = tiles.permute(0, 4, 1, 2, 5, 3, 6)  # (R, 5, d, S, 5, d, O)
    covered = (tiles.shape[0] * _OUT * dilation, columns * _OUT * dilation)
    if (height, width) == covered:
        out = out.unflatten(1, (columns, _OUT, dilation)).unflatten(0, (-1, _OUT, dilation))
    else:
        tiles = tiles.reshape(*covered, channels)[:height, :width]
    torch.add(tiles, 0 if bias is None else bias, out=out)


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of prod(x - root), of the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """The transforms of a line's outputs (5, 7), inputs (7, 7) and filters (7, 3), float64; Toom and Cook's.

    Inputs and filters are evaluated so that y = A^T ((G g) * (B^T d)): Barabasz et al. 2018, section 2.
    """
    outputs = [[point**power for point in _POINTS] + [Fraction(int(power == _OUT - 1))] for power in range(_OUT)]
    inputs, filters = [], []
    for point in _POINTS:
        others = [other for other in _POINTS if other != point]
        scale = math.prod((point - other for other in others), start=Fraction(1))
        inputs.append([*_polynomial(others), Fraction(0)])
        filters.append([point**power / scale for power in range(3)])
    inputs.append(_polynomial(list(_POINTS)))
    filters.append([Fraction(0), Fraction(0), Fraction(1)])
    tables = [[[float(x) for x in row] for row in rows] for rows in (outputs, inputs, filters)]
    a, b, g = (torch.tensor(table, dtype=torch.float64) for table in tables)
    return a, b, g


def _of_squares() -> tuple[Tensor, Tensor, Tensor]:
    """The same for squares: (25, 49), (49, 49) and (49, 9)."""
    outputs, inputs, filters = (torch.kron(matrix, matrix) for matrix in _matrices())
    return outputs, inputs, filters


_OUTPUT, _INPUT, _FILTER = _of_squares()
