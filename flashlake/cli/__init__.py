"""cli: the command `flashlake`. Results go to standard output and nothing else does; messages and progress go to standard error.

Exit status: 0 done, 1 refused or failed (one line says what, where, and what to do), 2 wrong usage.
"""

from flashlake.cli.main import main

__all__ = ["main"]
