"""`python -m benchmarks`: the table of ratios."""

import sys

from benchmarks.store import main

sys.exit(main())
