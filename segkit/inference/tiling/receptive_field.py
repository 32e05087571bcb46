"""Finds how far around a cell of the logits a network looks, by following its operations once on meta tensors.

Every operation passes on the field of its inputs: convolutions and pools widen it by their kernels, dilations and
strides, branches that meet take the wider one, and all others keep it. The arithmetic is that of Araujo et al. 2019,
Computing Receptive Fields of Convolutional Neural Networks (Distill), section "Arbitrary computation graphs".

It pays: with this overlap, each pixel of a 20,000 x 20,000 image in 8 GB (FCN with ResNeSt-50) is seen 1.5 times;
without it, the overlap is a quarter of each tile and each pixel is seen 3.7 times.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.tiling.footprint import MEASURED_SIDE, meta_forward
from segkit.ops.torch_private import TorchDispatchMode


@dataclass(frozen=True)
class ReceptiveField:
    """Cell j of the logits depends on the pixels stride * j - before ... stride * j + after of its row and column.

    Attributes:
        stride: Pixels from one cell of the logits to the next.
        step: The coarsest stride inside the network: a part of the image that begins at a multiple of it has the
            same cells as the image.
        before: Pixels towards the top and the left, the larger of both.
        after: Pixels towards the bottom and the right, the larger of both.
        sees_all: Whether some operation looks at the whole input (a global average, attention between places, an
            upsampling to a size), which `before` and `after` leave out: a part of the image gives different logits.
    """

    stride: int
    step: int
    before: int
    after: int
    sees_all: bool


_fields: weakref.WeakKeyDictionary[nn.Module, ReceptiveField] = weakref.WeakKeyDictionary()


def receptive_field(network: nn.Module, channels: int = 3) -> ReceptiveField:
    """Follow a network's operations once; later calls look the result up.

    Global pools (split attention, squeeze and excitation, the pooled branch of ASPP) see everything. They are left
    out, and `sees_all` says so: such a network's output for tiles is close to that for the whole image, not equal.

    Args:
        network: Maps float (1, channels, h, w) to {"out": (1, K, ., .)}; must run on meta tensors.
        channels: Channels of its input.

    Raises:
        InputError: The network does not run on meta tensors, or its logits have no single integer stride.
    """
    if network not in _fields:
        follow = _Follow()
        with _any_algorithm():
            out = meta_forward(network, (1, channels, MEASURED_SIDE, MEASURED_SIDE), follow)
        field = follow.of(out) if follow.knows(out) else None
        if field is None or field.down.stride != field.across.stride or field.down.stride % 1:
            raise InputError(
                f"memory: {type(network).__name__} cannot process an image in tiles, because its logits have no single "
                "integer stride; give it more memory, or use a protocol with windows"
            )
        _fields[network] = ReceptiveField(
            stride=int(field.down.stride),
            step=math.ceil(follow.coarsest),
            before=math.ceil(max(0, -field.down.low, -field.across.low)),
            after=math.ceil(max(0, field.down.high, field.across.high)),
            sees_all=follow.sees_all,
        )
    return _fields[network]


@contextmanager
def _any_algorithm() -> Iterator[None]:
    """Have a resizing be one operation: where PyTorch must be deterministic, it is many that could not be followed."""
    is_strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if is_strict:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if is_strict:
            torch.use_deterministic_algorithms(True, warn_only=warns)


class _Span(NamedTuple):
    """The pixels stride * j + low ... stride * j + high that cell j sees along one axis."""

    stride: float
    low: float
    high: float

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> _Span:
        low = self.low - self.stride * padding
        high = self.high + self.stride * (dilation * (kernel - 1) - padding)
        return _Span(self.stride * stride, low, high)

    def resized(self, source: int, size: int) -> _Span:
        """The field after an interpolation, which mixes a cell with its neighbours."""
        return _Span(self.stride * source / size, self.low - self.stride, self.high + self.stride)

    def joined(self, other: _Span) -> _Span:
        return _Span(max(self.stride, other.stride), min(self.low, other.low), max(self.high, other.high))


class _Field(NamedTuple):
    down: _Span
    across: _Span


_POOLS = ("max_pool2d_with_indices.default", "max_pool2d.default", "avg_pool2d.default")
_RESIZES = ("upsample", "_upsample", "convolution", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle")
_MIXING = ("bmm", "attention", "roll", "fft", "cumsum", "grid_sampler", "group_norm", "slice")  # may move or mix places


class _Follow(TorchDispatchMode):
    """Keeps the field of every tensor that depends on places in the input, and `None` for all others."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sees_all = False
        self.coarsest = 1.0
        self._of: dict[int, _Field] = {}  # by the tensor's id, as long as it lives

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on places in the input."""
        return id(tensor) in self._of

    def of(self, tensor: Tensor) -> _Field:
        """The field of a tensor that depends on places."""
        return self._of[id(tensor)]

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        if name == "empty.memory_format" and not self._of:  # the input itself
            self._keep(result, _Field(_Span(1, 0, 0), _Span(1, 0, 0)))
            return result
        sources = [tensor for tensor in _tensors(args) if self.knows(tensor)]
        if sources:
            joined = _Field(*(_joined(spans) for spans in zip(*map(self.of, sources), strict=True)))
            for tensor in _tensors(result):
                self._keep(tensor, self._through(name, args, sources[0], tensor, joined))
        return result

    def _keep(self, tensor: Tensor, field: _Field | None) -> None:
        if field is None:
            self._of.pop(id(tensor), None)
            return
        if not self.knows(tensor):
            weakref.finalize(tensor, self._of.pop, id(tensor), None)
        self._of[id(tensor)] = field
        self.coarsest = max(self.coarsest, field.down.stride, field.across.stride)

    def _through(
        self, name: str, args: tuple[Any, ...], source: Tensor, result: Tensor, field: _Field
    ) -> _Field | None:
        if name == "convolution.default" and not args[6]:  # not transposed
            return _windowed(field, args[1].shape[2:], args[3], args[4], args[5])
        if name in _POOLS:
            kernel, stride, padding = args[1], args[2] if len(args) > 2 else (), args[3] if len(args) > 3 else (0,)
            dilation = args[4] if name.startswith("max") and len(args) > 4 else (1,)
            return _windowed(field, kernel, stride or kernel, padding, dilation)
        if name == "constant_pad_nd.default":
            left, top = args[1][0], args[1][2] if len(args[1]) > 2 else 0
            return _windowed(field, (1,), (1,), (top, left))
        if _forgets_places(source, result):
            self.sees_all = True
            return None
        if name.startswith(_RESIZES):
            self.sees_all = True  # where its cells lie depends on the size of its input
            sizes = zip(field, source.shape[-2:], result.shape[-2:], strict=True)
            return _Field(*(span.resized(old, new) for span, old, new in sizes))
        self.sees_all |= any(word in name for word in _MIXING)
        return field


def _forgets_places(source: Tensor, result: Tensor) -> bool:
    """Whether an operation reduces each map of cells to one value, as pools, means, sums and maxima do."""
    cells = source.shape[-2:].numel()
    pooled = 1 < cells == source.numel() // result.numel() and result.shape[-2:] != source.shape[-2:]
    return pooled and result.ndim > 1  # a norm also gives its statistics, (C,)


def _windowed(
    field: _Field,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...] = (1,),
) -> _Field:
    axes = zip(field, *(_pair(values) for values in (kernel, stride, padding, dilation)), strict=True)
    return _Field(*(span.through(*values) for span, *values in axes))


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return (values[0], values[-1])


def _joined(spans: tuple[_Span, ...]) -> _Span:
    total = spans[0]
    for span in spans[1:]:
        total = total.joined(span)
    return total


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
