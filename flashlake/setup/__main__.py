"""`python -m flashlake.setup`: the part of `make setup` that runs inside the environment. Says on stderr what it did."""

from __future__ import annotations

import sys
from pathlib import Path

from flashlake.setup.jars import ensure_jars
from flashlake.setup.java import find_java
from flashlake.setup.link import link_project
from storage_engine.errors import FlashlakeError


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is a command


def main() -> int:
    """Link the project into its environment, fetch the jars, find Java; the exit status."""
    project = Path.cwd()
    try:
        if link_project(project):
            say(f"linked {project} into {sys.prefix}")
        java = find_java()
        if ensure_jars(project / "jars", java, say=say):
            say(f"Java {java.version} from {java.source}")
    except FlashlakeError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
