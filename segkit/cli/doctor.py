"""`segkit doctor`: prints what `segkit.doctor` finds."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from segkit.cli.parser import Parser, Switch
from segkit.cli.words import say
from segkit.doctor.examination import examine
from segkit.doctor.report import count_by_status, finding_lines, verdict

_DESCRIPTION = """\
Look at what segkit depends on: versions (those that are known to be bad, too), OpenCV's wheels, the processor and the
precision that `auto` takes, threads, memory, disks, GPUs, each Triton kernel against PyTorch's operations, SEGKIT_
variables of the environment, and the data sets. Two lines at most for each: what was found, and what to do.

The exit code is 1 when something is wrong; a note is not. Nothing is changed, and nothing asks the network."""


def main(args: Sequence[str]) -> int:
    """Run `segkit doctor`; see `--help`."""
    parser = Parser("segkit doctor", description=_DESCRIPTION)
    parser.add_argument("data", nargs="*", type=Path, metavar="FOLDER", help="data roots; default: datasets")
    parser.add_argument("--json", action=Switch, help="print one JSON object instead")
    options = parser.parse_args(args)
    findings = []
    for finding in examine(options.data):
        findings.append(finding)
        if not options.json:
            say("\n".join(finding_lines(finding, _columns())))
    counts = count_by_status(findings)
    if options.json:
        say(json.dumps({**counts, "checks": [asdict(one) for one in findings]}, indent=2, ensure_ascii=False))
    else:
        say(f"\n{verdict(counts)}")
    return 1 if counts["wrong"] else 0


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
