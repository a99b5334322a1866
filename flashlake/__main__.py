"""`python -m flashlake` is the command `flashlake`."""

import sys

from flashlake.cli import main

if __name__ == "__main__":
    sys.exit(main())
