"""Campaigns: many faulty inputs, one after another. Each must give the right result or one line of refusal."""

import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from segkit.errors import InputError

_SHOWN = 20  # failures that a report names
_HANG = 120  # seconds; no case works for a tenth of it, so a case that takes as long hangs


class Campaign:
    """Counts the cases that were tried and what became of them.

    A case that raises nothing is done, one that raises `InputError` is refused; both have survived. Any other
    exception, and a case that does not end, is a failure.

    Args:
        name: What is attacked, in the plural: "images".
        say: Takes the line of figures; pytest prints it below the results.
    """

    def __init__(self, name: str, say: Callable[[str], Any]) -> None:
        self.name, self._say = name, say
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    @contextmanager
    def case(self, label: str) -> Iterator[None]:
        """Run one case; `label` must be enough to make it again (seed and mutation)."""
        previous = signal.signal(signal.SIGALRM, _hang)
        signal.alarm(_HANG)
        try:
            yield
            self.counts["done"] += 1
        except InputError as error:
            lines = str(error).splitlines()
            if len(lines) == 1:
                self.counts["refused"] += 1
            else:
                self.fail(label, f"refused in {len(lines)} lines: {lines[:2]}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.fail(label, f"{type(error).__name__}: {str(error)[:160]!r} at {where.filename}:{where.lineno}")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    def finish(self) -> None:
        """Print the figures, and fail if any case has."""
        tried = sum(self.counts.values())
        survived = tried - len(self.failures)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        self._say(f"{self.name}: {tried} tried, {survived} survived ({kinds})")
        assert tried, f"{self.name}: nothing was tried"
        assert not self.failures, f"{len(self.failures)} of {tried}:\n" + "\n".join(self.failures[:_SHOWN])

    def fail(self, label: str, what: str) -> None:
        """Count a failure; called directly for a case that is judged from outside, by a process's exit code, say."""
        self.counts["failed"] += 1
        self.failures.append(f"{label}: {what}")


def _hang(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"still at work after {_HANG} s")
