"""`segkit data check`: prints what `segkit.data.check.check` finds."""

import argparse

from segkit.cli.words import say
from segkit.data.check.check import check, splits_of
from segkit.data.check.report import PROBLEMS, Report
from segkit.data.check.words import lines
from segkit.data.layout.base import Layout
from segkit.files import check_new_file, write_json

OWN_DATA_OPTIONS = ()


def check_options(options: argparse.Namespace) -> None:
    """Refuse a report that cannot be written."""
    if options.json is not None:
        check_new_file(options.json, force=True)


def run(options: argparse.Namespace, layout: Layout) -> int:
    """Check the data, print the report, and write it to `--json`.

    Returns:
        0: nothing wrong. 1: problems.

    Raises:
        InputError: The command is wrong, or there is no data.
        KeyboardInterrupt: It was interrupted; what was found so far has been printed.
    """
    report = Report(layout)
    try:
        check(report, options.split or splits_of(report.layout), options.workers, options.limit)
    finally:
        if report.splits or report.findings.found:
            try:
                if options.json is not None:
                    write_json(options.json, report.to_dict())
            finally:  # printed even if the file cannot be written, and written even if the pipe is closed
                say("\n".join(lines(report)))
            if options.json is not None:
                say(options.json)
    return 1 if report.findings.count(PROBLEMS) else 0
