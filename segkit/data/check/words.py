"""A report of a check of a data set in words."""

from collections.abc import Iterator

from segkit.data.check.report import NOTES, PROBLEMS, WARNINGS, Report, SplitReport, rows_of
from segkit.errors import printable
from segkit.metadata.label_space import LabelSpace
from segkit.text import aligned, counted, percent

_SHOWN = 5  # files listed for each kind
_WIDTH = 160  # letters of a list of classes


def lines(report: Report) -> Iterator[str]:
    """The lines of the report: splits, the class of each raw value, findings, and a verdict."""
    space = report.label_space
    yield f"{report.layout.title}: {report.layout.root}"
    for split in report.splits:
        yield _split_line(split, space)
    labelled = [split for split in report.splits if split.pixels.any()]
    if space is not None and labelled:
        yield ""
        yield from _table(labelled, space)
    for kind, meaning in (PROBLEMS | WARNINGS | NOTES).items():
        cases = report.findings.found.get(kind, [])
        if cases:
            level = "warning: " if kind in WARNINGS else "note: " if kind in NOTES else ""
            yield ""
            yield f"{level}{kind} ({len(cases)}): {meaning}"
            yield from (f"  {printable(_clipped(case) if kind in NOTES else case)}" for case in cases[:_SHOWN])
            if len(cases) > _SHOWN:
                yield f"  ... and {len(cases) - _SHOWN} more (all of them: --json FILE)"
    yield ""
    yield _verdict(report)


def _split_line(split: SplitReport, space: LabelSpace | None) -> str:
    official = "" if split.official is None else f" (official: {split.official})"
    parts = [f"{split.images} images{official}"]
    parts.append(f"{split.masks} masks" if split.is_labelled else "masks not public")
    if split.pixels.any() and space is not None:
        parts.append(f"{split.pixels.sum() / 1e6:.1f} M pixels, {split.valid_share(space.table):.2%} valid")
    if split.opened < split.images:
        parts.append(f"{split.opened} opened{'' if split.opened == split.wanted else ' (interrupted)'}")
    return f"  {split.split:<6} {', '.join(parts)}"


def _table(splits: list[SplitReport], space: LabelSpace) -> list[str]:
    """A line for each raw value that occurs: its class, then pixels and masks of each split."""
    order = {row.raw: row for split in splits for row in rows_of(split, space) if row.pixels}
    ranks = {-1: 256}  # undeclared values last
    heads = (head for split in splits for head in (f"{split.split} pixels", "share", "masks"))
    table = [("raw", "id", "class", *heads)]
    for raw, row in sorted(order.items(), key=lambda item: (ranks.get(item[1].train_id, item[1].train_id), item[0])):
        label = "" if row.name in ("ignored", "undeclared") else str(row.train_id)
        cells: list[str] = []
        for split in splits:
            pixels, masks = int(split.pixels[raw]), int(split.having[raw])
            cells += [str(pixels), f"{percent(pixels / split.pixels.sum())}%", str(masks)]
        table.append((str(raw), label, row.name, *cells))
    return aligned(table, left=(2,)).splitlines()


def _clipped(text: str) -> str:
    return text if len(text) <= _WIDTH else text[:_WIDTH].rsplit(",", 1)[0] + ", ..."


def _verdict(report: Report) -> str:
    problems, warnings = report.findings.count(PROBLEMS), report.findings.count(WARNINGS)
    ending = f", {counted(warnings, 'warning')}" if warnings else ""
    partly = [split for split in report.splits if split.opened < split.images]
    where = " in the part that was opened" if partly else ""
    return f"{counted(problems, 'problem') if problems else 'nothing wrong'}{where}{ending}"
