"""`segkit report`: its options. Nothing here needs PyTorch, which takes seconds to import."""

from collections.abc import Sequence
from pathlib import Path

from segkit.cli.parser import Parser, add_data_options, split_options, whole_number

_DESCRIPTION = """\
Make one HTML file about one evaluation or several, to look at and to send: scores with intervals, every class, the
confusion matrix, calibration, curves of the run, the worst, least sure and random images, and masks to check. What
is not there is left out, and the report says so.

Exit code: 0 all was read, 1 an input or some images could not be (the report has the rest), 2 nothing could be."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `segkit report`; see `--help`.

    Returns:
        0: everything was read. 1: an input or some images could not be; the report has the rest.

    Raises:
        InputError: The command is wrong, or nothing could be read.
    """
    own, of_data = split_options(list(args or ()))
    options = _parser().parse_args(own)
    # Here, because they need PyTorch.
    from segkit.cli.report.sources import Wanted
    from segkit.cli.report.subjects import make_report

    wanted = Wanted(of_data, options.split, options.prediction_ids, options.examples)
    return make_report(options.inputs, options.baseline, options.output, options.title, wanted)


def _parser() -> Parser:
    parser = Parser("segkit report", description=_DESCRIPTION)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="a run's folder, a result.json of segkit test, validate or benchmark score, or a folder of label maps",
    )
    add("--baseline", type=Path, metavar="INPUT", help="what the others are compared with; also one of these")
    add("-o", "--output", type=Path, default=Path("report.html"), help="default: report.html, or report-2.html, ...")
    add("--examples", type=whole_number(0), default=20, help="images to show for each reason, at most; default: 20")
    add("--title", help="heading of the page; default: names of the inputs")
    add_data_options(parser)
    add("--split", choices=("train", "val", "test"), help="of the data; by default that of the label maps, or test")
    add("--prediction_ids", choices=("train", "raw"), default="train", help="label maps hold train ids, or raw ones")
    return parser
