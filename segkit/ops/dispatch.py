"""Selects the form of a fused operation: its Triton kernel on CUDA, strips on the CPU, or plain PyTorch on request.

A kernel that fails on a card, or differs from the plain form there, is not used (`kernels/first_use.py`).
`SEGKIT_FUSED_OPS=0` in the environment, or `plain_ops()` around some code, turns every fused form off; the plain forms
are the reference for the tests.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from threading import local
from typing import Any

import torch
from torch import Tensor

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


class _Choice(local):
    """A thread's own choice; the compiler of torch 2.11 cannot trace a `ContextVar`."""

    plain = os.environ.get("SEGKIT_FUSED_OPS", "1") == "0"


_choice = _Choice()


@contextmanager
def plain_ops() -> Iterator[None]:
    """Run operations inside the block as plain PyTorch, in this thread only."""
    before, _choice.plain = _choice.plain, True
    try:
        yield
    finally:
        _choice.plain = before


def fused_ops() -> bool:
    """Whether operations may use their fused forms."""
    return not _choice.plain


def uses_triton(tensor: Tensor, kernel: str) -> bool:
    """Whether this CUDA kernel should run on this tensor; on first use it is compared with the plain form."""
    if not (tensor.is_cuda and fused_ops() and has_triton()):
        return False
    from segkit.ops.kernels.first_use import trusted

    return trusted(kernel, tensor)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


class Operator:
    """A function that is one operator to `torch.compile`, exporters and autograd, and otherwise an ordinary function.

    The first call of any `torch.library` operator imports the compiler, which takes seconds; inference without a
    compiler should not pay for that.

    Args:
        name: "namespace::name" of the operator.
        function: Returns new tensors; see `torch.library.custom_op`, which reads its annotations.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._function = function
        self._operator = torch.library.custom_op(name, function, mutates_args=())
        self.register_fake = self._operator.register_fake
        self.register_autograd = self._operator.register_autograd

    def __call__(self, *arguments: Any) -> Any:
        """Call the operator while being traced, compiled or differentiated; otherwise call the function."""
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if tracing or torch.compiler.is_compiling() or _wants_gradient(arguments) or _is_subclass(arguments):
            return self._operator(*arguments)
        return self._function(*arguments)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorate a function as an `Operator`."""
    return lambda function: Operator(name, function)


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _is_subclass(arguments: tuple[Any, ...]) -> bool:
    """Whether a tensor is of a subclass: PyTorch's fake tensors, which have no values, support only operators."""
    return any(isinstance(a, Tensor) and type(a) not in _PLAIN_TENSORS for a in arguments)
