"""`python -m modelfs` is the command `modelfs`."""

import sys

from modelfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
