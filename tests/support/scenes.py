"""Options of a command for a tiny drawn data set."""

from pathlib import Path


def scenes(root: Path, **options: object) -> list[str]:
    """`--data synthetic` of these options, made in `root`, without workers."""
    given = {"root": root, "num_workers": 0} | options
    return ["--data", "synthetic", *(x for name, value in given.items() for x in (f"--data.{name}", str(value)))]
