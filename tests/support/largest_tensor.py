"""How large the tensors are that some code makes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """`seen`: the bytes of the largest tensor that any operation makes; it does not look into custom operations."""

    seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.seen = max(self.seen, tensor.untyped_storage().nbytes())
        return output
