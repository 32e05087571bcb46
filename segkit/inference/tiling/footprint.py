"""Measures how much memory a forward takes.

The network is measured, not modelled: its forward runs once on meta tensors (shapes without values, which cost neither
memory nor arithmetic) while every operation's results are counted for as long as they live. A convolutional network's
activations grow with the pixels, so that one measurement holds for all sizes.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import InputError, one_line
from segkit.ops.dispatch import plain_ops
from segkit.ops.meta import meta_image, on_meta
from segkit.ops.torch_private import TorchDispatchMode

MEASURED_SIDE = 768  # pixels; a multiple of every stride, so that no rounding up of a feature's size is measured


@dataclass(frozen=True)
class Footprint:
    """A network's memory in bytes, with activations in the dtype of its parameters.

    Attributes:
        parameters: Bytes of its parameters and buffers.
        per_pixel: Bytes per input pixel at the peak of a forward: all activations that live at once, with input and
            logits, and the copies that a convolution may make of its input and output.
        logits_per_pixel: Bytes of the float32 logits per input pixel.
        num_classes: The number of classes, K.
    """

    parameters: int
    per_pixel: float
    logits_per_pixel: float
    num_classes: int


_footprints: weakref.WeakKeyDictionary[nn.Module, Footprint] = weakref.WeakKeyDictionary()


def footprint(network: nn.Module, channels: int = 3) -> Footprint:
    """Measure a network's memory once; later calls look it up.

    Args:
        network: Maps float (1, channels, h, w) to {"out": (1, K, ., .)}; it must run on meta tensors, that is, its
            control flow must not depend on values.
        channels: Channels of its input.

    Raises:
        InputError: The network does not run on meta tensors.
    """
    held = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
    if network not in _footprints or _footprints[network].parameters != held:  # it may have given up buffers
        live = _LiveBytes()
        out = meta_forward(network, (1, channels, MEASURED_SIDE, MEASURED_SIDE), live)
        pixels = MEASURED_SIDE**2
        _footprints[network] = Footprint(held, live.peak / pixels, 4 * out.numel() / pixels, out.shape[1])
    return _footprints[network]


def meta_forward(
    network: nn.Module, shape: tuple[int, ...], watch: AbstractContextManager[Any] | None = None
) -> Tensor:
    """Run a forward in eval mode on meta tensors; the logits have a shape and a dtype, but no values.

    Args:
        network: See `footprint`.
        shape: The shape of its input.
        watch: A dispatch mode that sees the operations.

    Raises:
        InputError: The network does not run on meta tensors.
    """
    # A compiled network would show no operations. Where nothing was compiled, asking takes seconds: it loads Dynamo.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    # Outside inference mode composite operations show their parts; fused ones have no form without values.
    with torch.inference_mode(False), torch.no_grad(), plain_ops(), eager:
        try:
            shapes = on_meta(network)
            with watch or nullcontext():
                out: Tensor = shapes(meta_image(shapes, shape))["out"]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise InputError(
                f"memory: {type(network).__name__} cannot be measured without values ({one_line(error)}); its control "
                "flow must not depend on them"
            ) from error
    return out


class _LiveBytes(TorchDispatchMode):
    """Current and peak bytes of all tensors that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[int, int] = {}  # by the storage's id: views share it, and it is released with the last
        self._now = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [
            one for one in (result if isinstance(result, tuple | list) else (result,)) if isinstance(one, Tensor)
        ]
        for tensor in tensors:
            self._hold(tensor.untyped_storage())
        copies = 0
        if func is torch.ops.aten.convolution.default:  # libraries rearrange what it reads and what it writes
            copies = args[0].nbytes + tensors[0].nbytes
        self.peak = max(self.peak, self._now + copies)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._now -= self._held.pop(key)
