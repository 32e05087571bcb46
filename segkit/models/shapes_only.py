"""Building a network without its numbers: names, shapes and dtypes, in milliseconds and no memory to speak of.

`torch.device("meta")` does that, too, but drawing initial values on it imports PyTorch's compiler, which takes seconds,
and fails for networks that read numbers off tensors while they are built (timm's drop path rates).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ALLOCATING = (torch.empty, torch.zeros, torch.ones, torch.full)
_DRAWING = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_}
_DRAWING |= {nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_}


class ShapesOnly(TorchFunctionMode):
    """Within it what allocates parameters and buffers makes meta tensors, and initial values are not drawn."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of PyTorch, or what stands in its place."""
        given = dict(kwargs or {})
        if func in _DRAWING:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        if func in _ALLOCATING and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
