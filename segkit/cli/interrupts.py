"""Ctrl-C at any moment of a command."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Raises KeyboardInterrupt on Ctrl-C, as Python does, and remembers it.

    A command need not let the KeyboardInterrupt through: extension modules turn it into an ImportError, Lightning into
    an exit, and a second one may arrive while the first is handled.

    Args:
        ends: Whether the process ends with the command.

    Attributes:
        received: Whether Ctrl-C was pressed.
    """

    def __init__(self, ends: bool) -> None:
        self.received = False
        self._ends = ends
        self._before: Any = None

    def __enter__(self) -> Self:
        """Install the handler if this is the main thread; Python allows it in no other."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the handler; if the process is ending, another Ctrl-C ends it at once without a traceback."""
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._ends else self._before)

    def ignore(self) -> None:
        """Ignore further Ctrl-C while the last message is printed."""
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was received and then swallowed by the code that ran."""
        if self.received:
            raise KeyboardInterrupt

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt
