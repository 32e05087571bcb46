"""Whether weights are numbers to compute with: floating point, finite."""

from collections.abc import Mapping

import torch
from torch import Tensor

from segkit.errors import InputError
from segkit.models.checkpoint import is_counter

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def unusable(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What is wrong with each tensor that nothing can be computed with; counters of batch norms may be integers.

    One pass over the numbers, without a copy: a sum is finite only if all its terms are.
    """
    found = {name: _fault(tensor, is_counter(name)) for name, tensor in tensors.items()}
    return {name: fault for name, fault in found.items() if fault}


def require_usable(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are no finite floating-point numbers.

    Raises:
        InputError: Names the first such parameter and how many there are.
    """
    refuse_unusable(unusable(tensors), source)


def refuse_unusable(faults: Mapping[str, str], source: str) -> None:
    """As `require_usable`, of what `unusable` has found."""
    if faults:
        name, fault = next(iter(faults.items()))
        raise InputError(
            f"{source}: parameters that are no numbers to compute with: {len(faults)} (first: {name}, {fault}); take "
            "an earlier checkpoint, or write the file again"
        )


def _fault(tensor: Tensor, counter: bool) -> str:
    """In words, or ""."""
    if tensor.dtype not in _TYPES:
        is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
        return "" if counter and is_integer else f"of {str(tensor.dtype).removeprefix('torch.')}, not floating point"
    if bool(torch.isfinite(tensor.detach().sum())):
        return ""
    bad = int((~torch.isfinite(tensor)).sum())  # the sum itself may have overflowed
    return f"{bad} of {tensor.numel()} values NaN or infinite" if bad else ""
