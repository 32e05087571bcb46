"""What the speed benchmarks share: timing in alternating rounds, and what a table is a property of."""

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segkit.benchmark.cost import PeakMemory
from segkit.evaluation.results import versions
from segkit.text import markdown


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


def times_table(
    title: str,
    unit: str,
    seconds: Mapping[str, Sequence[float]],
    value: Callable[[float], float],
    digits: int = 0,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A Markdown table: medians, range and ratios to the first row, which are medians of those within a round.

    Args:
        title: Of the contestants' column.
        unit: Of what is shown.
        seconds: Of each contestant in each round.
        value: What is shown of a round's seconds.
        digits: Of it.
        more: Further columns: title, then the cell of each contestant.
    """
    first, columns = next(iter(seconds.values())), more or {}
    rows = [[title, f"{unit}, median", "least .. most", "time, relative to the first", *columns]]
    for name, times in seconds.items():
        shown = sorted(map(value, times))
        ratio = statistics.median(t / f for t, f in zip(times, first, strict=True))
        span = f"{shown[0]:.{digits}f} .. {shown[-1]:.{digits}f}"
        cells = [name, f"{statistics.median(shown):.{digits}f}", span, f"{ratio:.2f}"]
        rows.append([*cells, *(column[name] for column in columns.values())])
    return f"\n{markdown(rows)}"


def peak_memory(run: Callable[[], object], device: str = "cpu") -> float:
    """Bytes that one run holds at most, above what is held before it; on the CPU in a fresh process, and on Linux."""
    with PeakMemory(device) as memory:
        run()
    assert memory.bytes is not None, "the peak of resident memory can be measured on Linux only"
    return float(memory.bytes)


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
