"""`segkit benchmark` as a script: `python scripts/benchmark.py MODEL ... --data DATA.yaml`, or `--plan PLAN.yaml`."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
