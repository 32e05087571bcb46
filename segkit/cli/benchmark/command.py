"""`segkit benchmark`, and its subcommands `score` and `compare`, which need no network."""

from collections.abc import Sequence

from segkit.cli.benchmark.options import compare_parser, score_parser, table_parser


def main(args: Sequence[str]) -> int:
    """Run `segkit benchmark`; see `--help`, which is there before what the commands need could be imported."""
    command = args[0] if args else ""
    if "--help" in args or "-h" in args:
        {"score": score_parser, "compare": compare_parser}.get(command, table_parser)().print_help()
        return 0
    if command in ("score", "compare"):
        from segkit.cli.benchmark import score

        return score.score(args[1:]) if command == "score" else score.compare(args[1:])
    from segkit.cli.benchmark import table

    return table.main(args)
