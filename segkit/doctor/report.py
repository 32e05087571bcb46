"""The findings of `segkit doctor` as lines of text."""

import textwrap
from collections.abc import Iterator, Sequence

from segkit.doctor.finding import Finding
from segkit.text import counted

_NAME = 27  # letters of the longest check
_INDENT = " " * (6 + _NAME + 1)


def finding_lines(finding: Finding, columns: int) -> Iterator[str]:
    """Status, check and finding in one line; what to do is below it.

    Args:
        finding: What was found.
        columns: Width of the terminal, to which both are wrapped unless it is too narrow.
    """
    status = finding.status.upper() if finding.status == "wrong" else finding.status
    head = f"{status:<6}{finding.check:<{_NAME}} "
    for start, text in ((head, finding.found), (f"{_INDENT}-> ", finding.cure)):
        if text and columns >= len(_INDENT) + 30:
            after = _INDENT if start == head else f"{_INDENT}   "
            wrapper = textwrap.TextWrapper(columns, start, after, break_long_words=False, break_on_hyphens=False)
            yield from wrapper.wrap(text)
        elif text:
            yield start + text


def count_by_status(findings: Sequence[Finding]) -> dict[str, int]:
    """Count the findings that are "ok", a "note", and "wrong"."""
    return {status: sum(one.status == status for one in findings) for status in ("ok", "note", "wrong")}


def verdict(counts: dict[str, int]) -> str:
    """The last line: the number of checks, and of findings that are wrong or notes."""
    notes = f", {counted(counts['note'], 'note')}" if counts["note"] else ""
    wrong = f"{counts['wrong']} wrong" if counts["wrong"] else "nothing wrong"
    return f"{counted(sum(counts.values()), 'check')}: {wrong}{notes}"
