"""`segkit doctor`: prints what `segkit.doctor` finds."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from segkit.cli.parser import Parser, Switch
from segkit.cli.words import say
from segkit.doctor.examination import examine
from segkit.doctor.finding import Finding
from segkit.text import counted

_DESCRIPTION = """\
Look at what segkit depends on: versions (those that are known to be bad, too), OpenCV's wheels, the processor and the
precision that `auto` takes, threads, memory, disks, GPUs, each Triton kernel against PyTorch's operations, SEGKIT_
variables of the environment, and the data sets. Two lines at most for each: what was found, and what to do.

The exit code is 1 when something is wrong; a note is not. Nothing is changed, and nothing asks the network."""

_NAME = 27  # letters of the longest check
_INDENT = " " * (6 + _NAME + 1)


def main(args: Sequence[str]) -> int:
    """Run `segkit doctor`; see `--help`."""
    options = _parser().parse_args(args)
    findings = []
    for finding in examine(options.data):
        findings.append(finding)
        if not options.json:
            say("\n".join(_lines(finding, _width())))
    counts = {status: sum(one.status == status for one in findings) for status in ("ok", "note", "wrong")}
    if options.json:
        say(json.dumps({**counts, "checks": [asdict(one) for one in findings]}, indent=2, ensure_ascii=False))
    else:
        notes = f", {counted(counts['note'], 'note')}" if counts["note"] else ""
        wrong = f"{counts['wrong']} wrong" if counts["wrong"] else "nothing wrong"
        say(f"\n{counted(len(findings), 'check')}: {wrong}{notes}")
    return 1 if counts["wrong"] else 0


def _lines(finding: Finding, width: int | None) -> Iterator[str]:
    """Status, check and what was found; below it what to do. Wrapped within their column where there is a width."""
    status = finding.status.upper() if finding.status == "wrong" else finding.status
    head = f"{status:<6}{finding.check:<{_NAME}} "
    for start, text in ((head, finding.found), (f"{_INDENT}-> ", finding.cure)):
        if text and width is not None:
            after = _INDENT if start == head else f"{_INDENT}   "
            wrapper = textwrap.TextWrapper(width, start, after, break_long_words=False, break_on_hyphens=False)
            yield from wrapper.wrap(text)
        elif text:
            yield start + text


def _width() -> int | None:
    """Of the terminal, where it has room for two columns; None where lines stay whole, as in a file."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return columns if columns >= len(_INDENT) + 30 else None


def _parser() -> Parser:
    parser = Parser("segkit doctor", description=_DESCRIPTION)
    parser.add_argument(
        "data", nargs="*", type=Path, metavar="FOLDER", help="data roots to look into; default: datasets"
    )
    parser.add_argument("--json", action=Switch, help="print one JSON object instead")
    return parser
