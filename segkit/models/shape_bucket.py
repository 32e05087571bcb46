"""Compiles a function for the first few input shapes that it meets, and runs it uncompiled for all others.

A compiled network is one program a shape. Windows of a protocol have one shape, but whole images may have hundreds,
each of which would take a minute to compile and stay in memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_SHAPES = 8


class ShapeBuckets:
    """`run`, compiled by `torch.compile` for up to `max_shapes` shapes; on CUDA with CUDA graphs.

    Args:
        run: Maps a tensor to a tensor.
        max_shapes: How many input shapes get a program of their own.
        compile_: Stands in for `torch.compile` in tests.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        max_shapes: int = MAX_SHAPES,
        compile_: Callable[..., Callable[[Tensor], Tensor]] = torch.compile,
    ) -> None:
        self._plain, self._max_shapes, self._compile = run, max_shapes, compile_
        self._programs: dict[tuple[object, ...], Callable[[Tensor], Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Run on `x`, compiled if its shape is among the first."""
        key = (tuple(x.shape), x.dtype, x.device)
        if key not in self._programs:
            if len(self._programs) >= self._max_shapes:
                return self._plain(x)
            # CUDA graphs replay a forward without the CPU's part in it; their output is overwritten by the next one.
            mode = "reduce-overhead" if x.is_cuda else None
            self._programs[key] = self._compile(self._plain, dynamic=False, mode=mode)
        result = self._programs[key](x)
        return result.clone() if x.is_cuda else result
