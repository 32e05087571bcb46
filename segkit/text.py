"""Numbers, names and tables as people read them: one of each, for every report of segkit."""

import math
from collections.abc import Collection, Iterable, Sequence

RULE: tuple[str, ...] = ()  # as a row of `aligned`: a line of dashes


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in percent, without the sign; a dash for None, NaN and infinity."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def points(value: float | None, digits: int = 2) -> str:
    """A difference of fractions in points, always signed; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{round(100 * value, digits) + 0.0:+.{digits}f}"  # + 0.0: never "-0.00"


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 image`, `2 images`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and an ellipsis where there are more: `road, sky, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def shorten(name: str, longest: int) -> str:
    """At most `longest` characters: drop the last synonyms ("car, auto, automobile, machine"), or else the end."""
    if len(name) <= longest:
        return name
    synonyms = name[: longest + 1].rpartition(",")[0]
    return synonyms or name[: longest - 3].rstrip() + "..."


def aligned(rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows as a text table, two spaces between the columns.

    Args:
        rows: Cells of each row, which may be fewer than those of other rows. `RULE` draws a line across the table.
        left: Columns that are flush left; all others are flush right.
    """
    table = [tuple(row) for row in rows]
    widths = _widths(table)
    lines = ["  ".join(_padded(row, widths, left)).rstrip() for row in table]
    rule = "-" * max(map(len, lines), default=0)
    return "\n".join(line if row != RULE else rule for row, line in zip(table, lines, strict=True))


def markdown(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows, of which the first is the heading, as a Markdown table; `left` as of `aligned`."""
    widths = [max(3, width) for width in _widths(rows)]
    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(_padded(row, widths, left))} |" for row in (rows[0], rule, *rows[1:]))


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    count = max(map(len, rows), default=0)
    return [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]


def _padded(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    cells = zip(row, widths, strict=False)
    return [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(cells)]
