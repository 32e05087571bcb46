"""How many processor cores and how much memory this process may use, and amounts of memory as text."""

import os
import re
from pathlib import Path

from segkit.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_CGROUPS = (  # (limit, usage) of this process's container: version 2, version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

SHARE = 0.7  # of the free memory, which an image may take by default; buffers and other processes need the rest


def cores() -> int:
    """The number of cores this process may run on if the system says so, otherwise all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that are free now, on the machine or within its container's limit, whichever is less."""
    return int(min([_free_of_machine(), *(_free_of_container(*files) for files in _CGROUPS)]))


def parse_bytes(text: str) -> int:
    """`"8GB"`, `"500 MB"`, `"16GiB"` or `"8000000000"` as bytes; k, M, G and T are powers of 1000, Ki, ... of 1024.

    Raises:
        InputError: The text is not such an amount, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if value < 1:
        raise InputError(f"memory: {text!r} is not an amount of memory; give for example 8GB, 500MB or 16GiB")
    return value


def format_bytes(count: float) -> str:
    """`7.5 GB`, or `320 MB` below one GB, or `85 kB` below one MB: powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _free_of_machine() -> int:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES"  # macOS counts no free pages
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in names else 8 * 2**30


def _free_of_container(limit: str, usage: str) -> int | float:
    """Bytes that the container's limit leaves; infinite if there is none (version 2 writes "max")."""
    try:
        return int(Path(limit).read_text(encoding="ascii")) - int(Path(usage).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return float("inf")
