"""Repeat the step at which a training run stopped because its loss was no number: `python scripts/replay.py FILE`."""

import argparse
import sys

from segkit.errors import InputError
from segkit.training.guards.nonfinite import replay


def main() -> int:
    """Print what the repeated step shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="nonfinite-step....pt of a run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    options = parser.parse_args()
    try:
        shown = replay(options.file, options.device)
    except InputError as error:
        print(f"replay: error: {error}", file=sys.stderr)
        return 2
    print(f"step      {shown.step}")
    print(f"images  {', '.join(shown.names)}")
    print(f"loss      {shown.loss}")
    print(f"weights   {'not finite: ' + ', '.join(shown.parameters[:5]) if shown.parameters else 'all finite'}")
    print(f"layers    {'first not finite: ' + shown.first if shown.first else 'all outputs are finite'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
