"""A normalised image of noise, the same for the same size."""

import torch
from torch import Tensor


def random_image(*size: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal noise (batch, 3, *size), whose seed is the sum of the sides."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(sum(size)), dtype=dtype)
