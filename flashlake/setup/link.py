"""Link: makes the running environment import this project and gives it the command `flashlake`, without network or build.

A .pth file names the project's folder; a launcher stands in the environment's bin. Both are rewritten only when they differ.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from storage_engine.errors import InvalidConfiguration

LAUNCHER = """#!{python}
import sys

from flashlake.cli import main

sys.exit(main())
"""


def link_project(project: Path) -> bool:
    """Link `project` (the folder that holds flashlake/) into the running virtual environment; True if anything changed.

    Errors: InvalidConfiguration outside a virtual environment (a system Python is not ours to change).
    """
    if sys.prefix == sys.base_prefix:
        raise InvalidConfiguration("this Python is not a virtual environment", where=sys.prefix, next_step="Run `make setup`.")
    pth = Path(sysconfig.get_paths()["purelib"]) / "flashlake-project.pth"
    launcher = Path(sysconfig.get_paths()["scripts"]) / "flashlake"
    changed = _write_if_different(pth, f"{project.resolve()}\n")
    changed |= _write_if_different(launcher, LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    return changed


def _write_if_different(path: Path, text: str) -> bool:
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    return True
