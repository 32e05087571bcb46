"""The one exception that segkit raises for what a user gave: no traceback is needed to understand it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what was wrong, where, what is allowed, what to do. The command line prints it
    without a traceback and ends with exit code 2; from Python it is a `ValueError`.
    """


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """For a message about a name that does not exist: "did you mean X? ", or nothing where none is like it."""
    close = difflib.get_close_matches(wrong, list(names), n=1)
    return f"did you mean {close[0]}? " if close else ""
