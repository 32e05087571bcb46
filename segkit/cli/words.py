"""Where the words of all commands go out: nothing in them, a file's name or a class's, can steer the terminal."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from segkit.errors import printable


def say(text: object = "", end: str = "\n", to: TextIO | None = None) -> None:
    """Print lines at once, to standard output unless `to` is another stream; control characters as escapes."""
    stream = sys.stdout if to is None else to
    try:
        stream.write("\n".join(printable(line) for line in str(text).split("\n")) + end)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from segkit.files import write_refusal  # only here, as what it imports takes time

        raise write_refusal(error, "standard output" if to is None else "standard error") or error from error


def open_streams() -> None:
    """Write to nowhere where the caller has closed standard output or error (`>&-`), as libraries need both."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open until the process ends)


def flush_streams() -> None:
    """Write what is left; what a closed or full standard output does not take is dropped, without noise at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say_above_bar(line: object, to: TextIO | None = None) -> None:
    """Print one line above a progress bar that is being drawn; on standard error unless `to` is another stream."""
    from segkit.bars import Bar

    Bar.write(printable(str(line)), file=sys.stderr if to is None else to)
