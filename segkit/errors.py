"""The one exception that segkit raises for wrong input, which needs no traceback to be understood."""

import difflib
import importlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

DISTRIBUTION = "segkit-torch"  # what is installed: `segkit` on PyPI is another's; import and command are segkit

_STEERING = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no UTF-8, ends of lines and paragraphs
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # right to left

_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]+:/{1,2}[^/\s:@]*):[^/\s@]+@")  # of an address
_URL_AS_PATH = re.compile(r"\b(https?|ftp|s3|gs|hf):/(?!/)")


def printable(text: str) -> str:
    r"""`text` in one line, its control characters as escapes such as \x1b and \n.

    Names of files, archive members and classes may come from anybody: printed as they are, they could overwrite what a
    terminal shows, or pretend to be a line of segkit's.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _STEERING or char in _TURNING else char
        for char in text
    )


def one_line(error: BaseException, longest: int = 120) -> str:
    """The message of an exception in one line of at most `longest` characters, or its kind if it has none."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def import_extra(module: str, extra: str) -> Any:
    """Import a package that only an extra installs.

    Raises:
        InputError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed: {install_extra(extra)}") from error


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what was wrong, where, what is allowed, what to do. The command line prints it
    without a traceback and ends with exit code 2; from Python it is a `ValueError`.
    """

    def __str__(self) -> str:
        """The message, in one line whatever the names in it are, without the passwords of addresses."""
        text = _PASSWORD.sub(r"\1:***@", printable(super().__str__()))
        # Of a URL that was taken for a path, the path has one slash less.
        urls, count = _URL_AS_PATH.subn(r"\1://", text)
        return f"{urls}; a URL is not read: download the file, and give its path" if count else text


def about(path: object, error: Exception) -> InputError:
    """An error with the path that it is about before it, unless its message, as it was written, has it."""
    said = ValueError.__str__(error) if isinstance(error, InputError) else str(error)
    return InputError(said if str(path) in said else f"{path}: {said}")


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """For a message about a name that does not exist: "did you mean X? ", or nothing where none is like it."""
    close = difflib.get_close_matches(wrong, list(names), n=1)
    return f"did you mean {close[0]}? " if close else ""


def install_extra(name: str) -> str:
    """The command that installs what an option needs, for a message: `pip install 'segkit-torch[large-images]'`."""
    return f"pip install '{DISTRIBUTION}[{name}]'"
