"""The capabilities of processor and GPU for this process, and its memory use.

Two documented environment variables restrict a process to the instructions of an older processor:
ATEN_CPU_CAPABILITY for PyTorch's own operations, ONEDNN_MAX_CPU_ISA for its convolutions.
"""

import os
import sys

import torch

from segkit.errors import InputError
from segkit.machine import free_memory

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_NO_AVX512 = {"DEFAULT", "NO AVX", "AVX2"}  # of PyTorch's names
_NO_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}  # of oneDNN's


def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32, with AVX-512 BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return torch.backends.cpu.get_cpu_capability() not in _NO_AVX512 and allowed.upper() not in _NO_BFLOAT16


def free_bytes(device: torch.device) -> int:
    """Free bytes of the GPU (including PyTorch's own reserve), or of the machine or container."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return free_memory()


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None: the GPU if there is one.

    Raises:
        InputError: It does not exist here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        usable = torch.device(device)
        torch.zeros(1, device=usable).cpu()  # a device that PyTorch knows may still be missing here
    except (RuntimeError, AssertionError) as error:
        choices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise InputError(f"device {str(device)!r} cannot be used here; give one of {', '.join(choices)}") from error
    return usable


def peak_memory(device: torch.device) -> int:
    """Peak memory use in bytes: of tensors on a GPU since the last reset, otherwise of the process since it began.

    It is 0 if the system does not report it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; macOS counts these, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
