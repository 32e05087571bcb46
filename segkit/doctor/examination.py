"""All checks, in an order in which earlier ones explain later ones, such as those that need a missing package."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from segkit.doctor import data, gpu, machine, packages
from segkit.doctor.finding import Check, Finding, guarded


def examine(roots: Sequence[Path] = ()) -> Iterator[Finding]:
    """Run all checks, and yield each finding as soon as it is known.

    Args:
        roots: Data roots, see `segkit.doctor.data.data_below`.
    """
    checks: dict[str, Check] = {
        "python": packages.python,
        "packages": packages.packages,
        "opencv": packages.opencv,
        "processor": machine.processor,
        "threads": machine.threads,
        "memory": machine.memory,
        "disks": machine.disks,
        "cuda": gpu.gpus,
        "kernels": gpu.kernels,
        "variables": data.variables,
        "data": partial(data.data_below, roots),
    }
    for name, check in checks.items():
        yield from guarded(name, check)
