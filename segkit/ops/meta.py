"""Networks without values, built, copied and run for names, shapes and dtypes in almost no time and memory."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ALLOCATING = (torch.empty, torch.zeros, torch.ones, torch.full)
_DRAWING = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_}
_DRAWING |= {nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_}


class ShapesOnly(TorchFunctionMode):
    """A mode in which parameters and buffers are allocated as meta tensors and initial values are not drawn.

    `torch.device("meta")` does so too, but drawing initial values on it imports PyTorch's compiler, which takes
    seconds, and it fails for networks that read values from tensors while being built (timm's drop path rates).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of PyTorch, or its replacement."""
        given = dict(kwargs or {})
        if func in _DRAWING:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        if func in _ALLOCATING and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def on_meta(network: nn.Module) -> nn.Module:
    """Copy a network, in eval mode, with parameters and buffers that have shape and dtype but no memory."""
    memo: dict[int, Any] = {}  # `deepcopy` takes what its memo holds for a tensor, and copies none
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(network, memo).eval()


def meta_image(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """An input without values on the meta device, of the floating-point dtype of a network's weights."""
    tensors = chain(network.parameters(), network.buffers())
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    return torch.empty(*shape, dtype=dtype, device="meta")
