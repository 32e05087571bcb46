"""The private names of PyTorch that segkit needs; no other file uses any.

* `TorchDispatchMode` sees every operation. It is documented for subclassing; only its module is private:
  https://dev-discuss.pytorch.org/t/torchdispatchmode-for-debugging-testing-and-more/717
* `BatchNormBase` is the base of all batch norms, which `torch.optim.swa_utils.update_bn` relies on, too:
  https://github.com/pytorch/pytorch/blob/main/torch/nn/modules/batchnorm.py
"""

from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["BatchNormBase", "TorchDispatchMode"]
