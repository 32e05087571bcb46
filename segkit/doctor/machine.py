"""Checks what this process may use of processor, threads, memory and disks, within containers' limits."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segkit.doctor.finding import Finding
from segkit.errors import InputError
from segkit.files import check_writable, nearest_existing
from segkit.machine import cores, format_bytes, free_memory

LEAST_MEMORY = 2 * 10**9  # bytes: `segkit demo` takes 1.5 GB
LEAST_DISK = 10**9  # bytes: one checkpoint of ResNeSt-269 with its optimiser's state
LEAST_SHARED = 512 * 2**20  # bytes: batches of several loader workers; Docker gives 64 MB

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_INFO = Path("/proc/cpuinfo")
_SHARED = Path("/dev/shm")
_FLAGS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "neon", "sve", "bf16")  # of PyTorch
_PRETENDING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def processor() -> Iterator[Finding]:
    """Name and instruction sets, and what `auto` precision takes for them."""
    import torch

    from segkit.ops.processor import multiplies_bfloat16

    capabilities = torch.cpu.get_capabilities()
    has = [name for name in _FLAGS if capabilities.get(name) is True] or ["no vector instructions known"]
    pretended = [f"{name}={os.environ[name]}" for name in _PRETENDING if name in os.environ]
    flags = " ".join(has) + "".join(f"; held back by {text}" for text in pretended)
    level = torch.backends.cpu.get_cpu_capability()
    yield Finding("processor", "ok", f"{_processor_name()}: {flags}; PyTorch uses {level}")
    if multiplies_bfloat16():
        yield Finding("precision", "ok", "auto takes bfloat16 on the CPU: it has AVX-512 BF16 or AMX")
    else:
        lacks = "is held back from using" if pretended else "lacks"
        yield Finding("precision", "ok", f"auto takes float32 on the CPU, which {lacks} AVX-512 BF16 and AMX")


def threads() -> Iterator[Finding]:
    """Compare PyTorch's threads with the cores available to them."""
    import torch

    count, allowed, quota = torch.get_num_threads(), cores(), cpu_quota()
    usable = allowed if quota is None else max(1, min(allowed, round(quota)))
    found = f"{count} of PyTorch on {allowed} of {os.cpu_count()} cores"
    if quota is not None:
        found += f", with time for {quota:g} (container's limit)"
    if count > usable:
        yield Finding("threads", "note", f"{found}: they wait for each other", f"export OMP_NUM_THREADS={usable}")
    elif count < usable and "OMP_NUM_THREADS" in os.environ:
        found += f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})"
        yield Finding("threads", "note", f"{found}: cores are idle", "unset OMP_NUM_THREADS, unless others need them")
    else:
        yield Finding("threads", "ok", found)


def memory() -> Iterator[Finding]:
    """Free memory, and the shared memory in which loader workers hand over batches."""
    free = free_memory()
    found = f"{format_bytes(free)} free for this process"
    if free < LEAST_MEMORY:
        yield Finding("memory", "note", found, "close other programs, or raise the container's limit (docker run -m)")
    else:
        yield Finding("memory", "ok", found)
    if _SHARED.is_dir():
        shared = shutil.disk_usage(_SHARED)
        found = f"{format_bytes(shared.free)} of {format_bytes(shared.total)} free in {_SHARED}"
        if shared.free < LEAST_SHARED:
            cure = "docker run --shm-size=8g, or --data.num_workers 0: loader workers die with a bus error without it"
            yield Finding("shared memory", "note", found, cure)
        else:
            yield Finding("shared memory", "ok", found)


def disks() -> Iterator[Finding]:
    """Check the folders that segkit writes into: this one, the cache of weights, and that of temporary files."""
    from segkit.paths import cache_folder

    places = (
        ("working folder", Path.cwd(), "change to a folder of your own, or name another --run_dir or --output"),
        ("weights cache", cache_folder(), "set SEGKIT_CACHE to a folder of your own with more room"),
        ("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder of your own with more room"),
    )
    for name, folder, cure in places:
        try:
            check_writable(folder)
        except InputError as error:
            yield Finding(name, "wrong", str(error).split(";")[0], cure)
            continue
        free = shutil.disk_usage(nearest_existing(folder)).free
        found = f"{folder}: can be written, {format_bytes(free)} free"
        yield Finding(name, "wrong", found, cure) if free < LEAST_DISK else Finding(name, "ok", found)


def cpu_quota() -> float | None:
    """Cores' worth of time that the container grants (cgroup version 2), None where it does not limit it."""
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _processor_name() -> str:
    try:
        rows = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
