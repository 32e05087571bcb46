"""All checks, in the order in which they explain each other: what needs a missing package cannot be looked at."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from segkit.doctor import data, gpu, machine, packages
from segkit.doctor.finding import Check, Finding, guarded


def examine(roots: Sequence[Path] = ()) -> Iterator[Finding]:
    """Look at everything; each finding is yielded as soon as it is known.

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
