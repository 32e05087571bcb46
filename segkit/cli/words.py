"""Where the words of all commands go out: nothing in them, a file's name or a class's, can steer the terminal."""

import sys
from typing import TextIO

from segkit.errors import printable


def say(text: object = "", end: str = "\n", to: TextIO | None = None) -> None:
    """Print lines at once, to standard output unless `to` is another stream; control characters as escapes."""
    stream = sys.stdout if to is None else to
    stream.write("\n".join(printable(line) for line in str(text).split("\n")) + end)
    stream.flush()


def say_above_bar(line: object, to: TextIO | None = None) -> None:
    """Print one line above a progress bar that is being drawn; on standard error unless `to` is another stream."""
    from tqdm import tqdm

    tqdm.write(printable(str(line)), file=sys.stderr if to is None else to)
