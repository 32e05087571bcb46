"""Which form of a fused operation runs: its Triton kernel on CUDA, its strips on the CPU, or plain PyTorch by request.

`SEGKIT_FUSED_OPS=0` in the environment, or `plain_ops()` around some code, turns every fused form off: what then runs
is the reference that the tests compare the fused forms with.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

from torch import Tensor

_plain: ContextVar[bool] = ContextVar("segkit_plain_ops", default=os.environ.get("SEGKIT_FUSED_OPS", "1") == "0")


@contextmanager
def plain_ops() -> Iterator[None]:
    """Inside, operations run as plain PyTorch; in this thread alone."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def fused_ops() -> bool:
    """Whether operations may take their fused forms."""
    return not _plain.get()


def uses_triton(tensor: Tensor) -> bool:
    """Whether the kernel for CUDA is to run on this tensor."""
    return tensor.is_cuda and fused_ops() and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
