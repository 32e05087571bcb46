"""What a check says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line that says what was found, and one that says what to do.

    Attributes:
        check: What was looked at.
        status: "note": works, but may not be what is wanted. "wrong": to be mended.
        found: One line.
        cure: One line; empty where nothing is to be done.
    """

    check: str
    status: Status
    found: str
    cure: str = ""


Check = Callable[[], Iterator[Finding]]


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; a failure of the check itself is also one: a broken package may fail in any way."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(name, "wrong", f"cannot be looked at: {in_one_line(error)}", "mend what is wrong above first")


def in_one_line(error: Exception) -> str:
    """Kind and message of an exception, without its traceback."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".rstrip(": ")
