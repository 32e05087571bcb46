"""Compares each Triton kernel with plain PyTorch once, on a small input, before it is trusted.

Kernels are compiled on the user's machine, by a compiler that changes with every release, for a card that may never
have been tested. A kernel that raises or differs is not used for the rest of the process: the plain form, which needs
no compiler, takes its place, and one warning says so. The comparison adds a few milliseconds to the compilation.
"""

import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_log = logging.getLogger(__name__)
_lock = Lock()
_verdicts: dict[tuple[str, torch.device, torch.dtype], str | None] = {}  # None: agrees; else what is wrong


class KernelResult(NamedTuple):
    """A kernel's result, and the exact one.

    Attributes:
        found: The kernel's result, of any floating type.
        exact: The result for the same inputs in float64 on the CPU.
        terms: Number of consecutive float32 operations behind a value; an exponential counts as 32, because its
            argument's rounding is multiplied by the argument, here below 16.
    """

    found: Tensor
    exact: Tensor
    terms: int


def trusted(kernel: str, tensor: Tensor) -> bool:
    """Whether a kernel of `COMPARISONS` agrees with the plain form for tensors of this type on this device.

    The first call for each kernel, device and dtype compares them. While a CUDA graph is being captured, nothing can be
    compared because the CPU must not wait: a kernel that was not compared before is not captured.
    """
    key = kernel, tensor.device, tensor.dtype
    if key not in _verdicts:
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        with _lock:  # other threads wait here, and find the verdict
            if key not in _verdicts:
                _verdicts[key] = fault(*key)
                if _verdicts[key] is not None:
                    _log.warning(
                        "the Triton kernel %s is not used for %s on %s, PyTorch's own operations take its place: %s "
                        "(%s); please report this, and see `segkit doctor`",
                        *(kernel, _name(tensor.dtype), tensor.device, _verdicts[key], versions(tensor.device)),
                    )
    return _verdicts[key] is None


def fault(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Describe in one line what is wrong with a kernel; None if it agrees with the plain form.

    Raises:
        torch.OutOfMemoryError: Which says nothing about the kernel.
    """
    try:
        # A separate thread has none of the caller's modes: autocast, inference, dispatch modes, a custom
        # operator's exclusion of autograd.
        with ThreadPoolExecutor(1) as pool:
            comparisons = pool.submit(lambda: list(COMPARISONS[kernel](device, dtype))).result()
            differences = [text for text in map(_difference, comparisons) if text]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return differences[0] if differences else None


def versions(device: torch.device) -> str:
    """The versions a kernel is compiled by and for: "torch 2.15.0, triton 3.8.0, compute capability 9.0"."""
    found = f"torch {torch.__version__}, triton {importlib.metadata.version('triton')}"
    if device.type == "cuda":
        found += ", compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    return found


def _difference(compared: KernelResult) -> str | None:
    """The larger of what rounding allows, or None."""
    found, exact = compared.found.detach().double().cpu(), compared.exact
    if found.shape != exact.shape:
        return f"has the shape {tuple(found.shape)} instead of {tuple(exact.shape)}"
    scale = float(exact.abs().max())
    # The result is rounded or cut off once, by an eps of its type, and each operation before by one of float32.
    allowed = scale * (torch.finfo(compared.found.dtype).eps + compared.terms * torch.finfo(torch.float32).eps)
    largest = float((found - exact).abs().max())
    return None if largest <= allowed else f"differs by {largest:.2g}, where rounding allows {allowed:.2g}"


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")


def _split_attention(device: torch.device, dtype: torch.dtype) -> Iterator[KernelResult]:
    from segkit.ops.kernels import split_attention as kernels

    for layout in (torch.contiguous_format, torch.channels_last):
        splits, attention, gradient = _splits(device, dtype, layout)
        output = torch.empty_like(gradient)
        found = kernels.forward(splits, attention, output, radix=2, cardinality=2)
        yield KernelResult(found, _attended(splits.double().cpu(), attention.double().cpu()), 2 + 32)


def _split_attention_backward(device: torch.device, dtype: torch.dtype) -> Iterator[KernelResult]:
    from segkit.ops.kernels import split_attention as kernels

    for layout in (torch.contiguous_format, torch.channels_last):
        splits, attention, gradient = _splits(device, dtype, layout)
        found = kernels.backward(gradient, splits, attention, radix=2, cardinality=2)
        inputs = [tensor.double().cpu().requires_grad_() for tensor in (splits, attention)]
        exact = torch.autograd.grad(_attended(*inputs), inputs, gradient.double().cpu())
        for one, other in zip(found, exact, strict=True):
            yield KernelResult(one, other, 2 * 35 + 32)  # a sum over the cells


def _splits(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Splits (2, 2 * 24, 5, 7), attention (2, 2 * 24, 1, 1), and the output's gradient (2, 24, 5, 7)."""
    splits, gradient = (_noise(2, c, 5, 7, seed=c).to(device, dtype, memory_format=layout) for c in (48, 24))
    return splits, _noise(2, 48, 1, 1, seed=0).to(device, dtype), gradient


def _attended(splits: Tensor, attention: Tensor) -> Tensor:
    """Radix 2 and cardinality 2, as segkit.ops.split_attention defines them."""
    weights = attention.view(2, 2, 2, 12).softmax(2).transpose(1, 2).reshape(2, 2, 24, 1, 1)
    return (weights * splits.reshape(2, 2, 24, 5, 7)).sum(1)


def _upsample_argmax(device: torch.device, dtype: torch.dtype) -> Iterator[KernelResult]:
    from segkit.ops.kernels.upsample_argmax import launch

    logits, size = 3 * _noise(2, 5, 3, 4, seed=0), (11, 70)
    given = logits.to(device, dtype)
    for align_corners in (True, False):
        full = F.interpolate(given.double().cpu(), size, mode="bilinear", align_corners=align_corners)  # (2, 5, 11, 70)
        labels, confidence = launch(given, size, align_corners, with_confidence=True)
        score = full.gather(1, labels.cpu().long()[:, None])[:, 0]
        yield KernelResult(score.float(), full.amax(1), 8)  # among equal scores any class is right
        yield KernelResult(confidence, full.softmax(1).amax(1), 8 + 5 * 32)


def _upsample_cross_entropy(device: torch.device, dtype: torch.dtype) -> Iterator[KernelResult]:
    from segkit.ops.kernels import upsample_cross_entropy as kernel

    logits, mask = _logits_and_mask()
    given, weights = logits.to(device, dtype), torch.linspace(0.5, 2, 5)
    for align_corners in (True, False):
        exact = given.double().cpu().requires_grad_()
        full = F.interpolate(exact, mask.shape[1:], mode="bilinear", align_corners=align_corners)
        loss = F.cross_entropy(full, mask, weights.double(), ignore_index=255, reduction="sum", label_smoothing=0.1)
        found = kernel.cross_entropy(given, mask.to(device), weights.to(device), align_corners, 255, 0.1, True)
        yield KernelResult(found[0], loss.detach(), mask.numel() + 5 * 32)
        yield KernelResult(found[1], torch.autograd.grad(loss, exact)[0], mask.numel() + 5 * 32)


def _upsample_true_probability(device: torch.device, dtype: torch.dtype) -> Iterator[KernelResult]:
    from segkit.ops.kernels import upsample_cross_entropy as kernel

    logits, mask = _logits_and_mask()
    given, valid = logits.to(device, dtype), mask != 255
    for align_corners in (True, False):
        full = F.interpolate(given.double().cpu(), mask.shape[1:], mode="bilinear", align_corners=align_corners)
        true = full.softmax(1).gather(1, (mask * valid)[:, None])[:, 0]
        found = kernel.true_probability(given, mask.to(device), align_corners, 255, 2.0)
        yield KernelResult(found, torch.where(valid, true, 2.0), 8 + 5 * 32)


def _logits_and_mask() -> tuple[Tensor, Tensor]:
    """float64 (2, 5, 2, 3), and int64 (2, 4, 5) with ignored pixels."""
    mask = torch.randint(0, 5, (2, 4, 5), generator=torch.Generator().manual_seed(1), device="cpu")
    mask[0, 0] = 255
    return 3 * _noise(2, 5, 2, 3, seed=0), mask


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


COMPARISONS: dict[str, Callable[[torch.device, torch.dtype], Iterator[KernelResult]]] = {
    "split_attention": _split_attention,
    "split_attention_backward": _split_attention_backward,
    "upsample_argmax": _upsample_argmax,
    "upsample_cross_entropy": _upsample_cross_entropy,
    "upsample_true_probability": _upsample_true_probability,
}
