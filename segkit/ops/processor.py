"""What the processor and the GPU offer, as far as this process may use it.

Two documented variables of the environment hold a process to less than the processor has, as if it were an older one:
ATEN_CPU_CAPABILITY PyTorch's own operations, ONEDNN_MAX_CPU_ISA its convolutions.
"""

import os

import torch

from segkit.machine import free_memory

_NO_AVX512 = {"DEFAULT", "NO AVX", "AVX2"}  # of PyTorch's names
_NO_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}  # of oneDNN's


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 is multiplied faster than float32: AVX-512 BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return torch.backends.cpu.get_cpu_capability() not in _NO_AVX512 and allowed.upper() not in _NO_BFLOAT16


def free_bytes(device: torch.device) -> int:
    """Bytes that are free now: of the GPU (with what PyTorch keeps in reserve), or of the machine or the container."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return free_memory()
