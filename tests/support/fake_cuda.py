"""A CUDA device that is not there: tensors without values that say "cuda:0", and a list of what would wait for it.

Every operation on them is dispatched as on a GPU and computes shapes, dtypes and devices only; what lies on the CPU is
computed as ever. A tensor left on the CPU that
meets one on the GPU is an error, as it is there. What makes the CPU wait for the GPU is noted with the function of
segkit that does it, and answered with zeros, so that a test can say which waits are meant: values that are read, and
copies between the two that are not asynchronous. A shape that depends on values has no such answer and is an error.

Not seen: the inside of segkit's own operators, whose fake forms (`torch.library`) stand in for the kernels; and the
backward pass, which asks for a CUDA context.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# PyTorch has no public name for these yet; its own guide to fake tensors imports them from here.
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import segkit

DEVICE = torch.device("cuda:0")
MEMORY = 80 * 10**9  # bytes of the card, where something asks for them

_ATEN = torch.ops.aten
_COPIES = (_ATEN._to_copy.default, _ATEN.copy_.default)
_READS = (_ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.is_nonzero.default)
_SIZED_BY_VALUES = (
    *(_ATEN.nonzero.default, _ATEN.masked_select.default, _ATEN.bincount.default, _ATEN._unique2.default),
    *(_ATEN.unique_consecutive.default, _ATEN.unique_dim.default, _ATEN.repeat_interleave.Tensor),
)
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)


class CudaError(AssertionError):
    """What a GPU would refuse, or would make the CPU wait for without an answer."""


class Watch(TorchDispatchMode):
    """Notes every wait for the GPU.

    Attributes:
        waits: Qualified names of the functions of segkit that waited, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        tensors = [one for one in _flat([*args, *given.values()]) if isinstance(one, Tensor)]
        to_gpu = torch.device(given.get("device") or "cpu").type == "cuda"
        if not to_gpu and not any(tensor.is_cuda for tensor in tensors):
            with unset_fake_temporarily():  # what the CPU computes has values
                return func(*args, **given)
        if func.namespace == "aten":  # type: ignore[attr-defined]
            with self:  # in inference mode composite operations come whole: `to` is to be seen as a copy
                result = func.decompose(*args, **given)  # type: ignore[attr-defined]
            if result is not NotImplemented:
                return result
        if func in _COPIES:
            return self._copy(func, args, given)
        if func in _READS:
            self.waits.add(_where())
            return 0.0 if tensors[0].is_floating_point() else 0
        self._check(func, args, tensors)
        return func(*args, **given)

    def _check(self, func: Callable[..., Any], args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        if func in _SIZED_BY_VALUES:
            raise CudaError(f"{_where()}: the size of the result of {func} depends on values on the GPU")
        if func in _INDEXING and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
            raise CudaError(f"{_where()}: {func} by a boolean mask waits for the number of true values")
        if any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors):
            raise CudaError(f"{_where()}: {func} has tensors on the CPU and on the GPU")

    def _copy(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        in_place = func is _COPIES[1]
        source = args[1] if in_place else args[0]
        target = args[0].device if in_place else torch.device(given.get("device") or source.device)
        asynchronous = args[2] if in_place and len(args) > 2 else given.get("non_blocking", False)
        if source.device.type != target.type and target.type != "meta" and not asynchronous:
            self.waits.add(_where())
            if target.type == "cpu":
                with unset_fake_temporarily():
                    zeros = torch.zeros(source.shape, dtype=given.get("dtype") or source.dtype)
                    return args[0].copy_(zeros) if in_place else zeros
        return func(*args, **given)


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Inside, tensors on `DEVICE` can be made and computed with."""
    # `Module.to` swaps the insides of a parameter and its conversion, which fails with fake ones (weak references).
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    # The runtime is asked nothing.
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (MEMORY, MEMORY))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        yield watch


def on_gpu(module: nn.Module) -> nn.Module:
    """Put fake tensors on `DEVICE` in the place of a module's parameters and buffers; what it keeps otherwise stays."""
    return module._apply(_like)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for child in module.children() if recurse else ():
        child._apply(function)
    with torch.no_grad():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(function(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, function(buffer))
    return module


def _where() -> str:
    """The innermost function of segkit that runs."""
    frame, package = sys._getframe(1), str(Path(segkit.__file__).parent)
    while frame is not None and not frame.f_code.co_filename.startswith(package):
        frame = frame.f_back  # type: ignore[assignment]
    return "the test" if frame is None else frame.f_code.co_qualname


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(list(value))
        else:
            yield value
