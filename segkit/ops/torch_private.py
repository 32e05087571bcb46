"""The private names of PyTorch that segkit needs; no other file uses any.

* `TorchDispatchMode` sees every operation. It is documented for subclassing; only its module is private:
  https://dev-discuss.pytorch.org/t/torchdispatchmode-for-debugging-testing-and-more/717
* `BatchNormBase` is the base of all batch norms, which `torch.optim.swa_utils.update_bn` relies on, too:
  https://github.com/pytorch/pytorch/blob/main/torch/nn/modules/batchnorm.py
* `ASSERT_SCALAR` is the operation by which a traced program checks what its trace supposed of sizes:
  https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/export.html
"""

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ASSERT_SCALAR", "BatchNormBase", "TorchDispatchMode"]

ASSERT_SCALAR = torch.ops.aten._assert_scalar.default
