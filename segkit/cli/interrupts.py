"""Ctrl-C, at whatever moment of a command."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Raises KeyboardInterrupt on Ctrl-C, as Python does, and remembers it.

    What comes out of a command then need not be one: extension modules turn it into an ImportError, Lightning into an
    exit, and a second one comes while the first is dealt with.

    Args:
        ends: Whether the process ends with the command.

    Attributes:
        received: Whether there was one.
    """

    def __init__(self, ends: bool) -> None:
        self.received = False
        self._ends = ends
        self._before: Any = None

    def __enter__(self) -> Self:
        """Listen, where Python lets one: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        """Listen no longer; one more, while Python waits for threads to end, ends the process without a traceback."""
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._ends else self._before)

    def ignore(self) -> None:
        """Listen no longer to those that come while the last words are said."""
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was received and what ran then has swallowed it."""
        if self.received:
            raise KeyboardInterrupt

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt
