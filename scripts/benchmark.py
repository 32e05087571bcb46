"""`segkit benchmark` as a script: `python scripts/benchmark.py CHECKPOINT ... --data DATA.yaml --protocol whole`."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
