"""The findings of the checks, and a guard for checks that fail themselves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line that says what was found, and one that says what to do.

    Attributes:
        check: The name of the check.
        status: "ok"; "note": works, but may not be intended; or "wrong": must be fixed.
        found: One line on what was found.
        cure: One line on what to do; empty if there is nothing to do.
    """

    check: str
    status: Status
    found: str
    cure: str = ""


Check = Callable[[], Iterator[Finding]]


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check. Its own failure is one, too, because a broken package may fail in any way."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(name, "wrong", f"cannot be checked: {in_one_line(error)}", "fix the problems above first")


def in_one_line(error: Exception) -> str:
    """Kind and message of an exception, without its traceback."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".rstrip(": ")
