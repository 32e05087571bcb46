"""What the speed benchmarks share: timing in alternating rounds, and what a table is a property of."""

import ctypes
import gc
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segkit.evaluation.results import versions


def measure(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(run: Callable[[], object], device: str = "cpu") -> float:
    """Bytes that one run holds at most, above what is held before it.

    On the CPU that is the process's resident memory (Linux): use a fresh process, for freed memory stays resident.
    """
    import torch  # the other scripts set the number of threads before they import it

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    gc.collect()
    with suppress(OSError, AttributeError):  # what was freed before is given back, so that it does not hide the peak
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024.0 * float(line.split()[1]) for line in lines if line.startswith(name))


def header(names: Sequence[str]) -> str:
    """What the numbers are a property of."""
    found = versions()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    command = shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    for name in set(names) - found.keys():
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    said = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    load = f"load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"`{command}`, {datetime.now(UTC):%Y-%m-%d}; {cpu}, {os.cpu_count()} cores, {load}; {said}"
