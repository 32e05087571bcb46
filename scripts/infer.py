"""`segkit infer` as a script: `python scripts/infer.py IMAGE ... --checkpoint FILE --output DIR`."""

import sys

from segkit.cli.infer import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
