"""Main: finds the command, runs it, turns its errors into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flashlake import __version__
from flashlake.cli.options import run_of
from flashlake.cli.usage import add_commands

os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "reallocate")  # buffers that came over a wire; Arrow would warn about each
DONE, REFUSED = 0, 1
DESCRIPTION = "A streaming lakehouse on one machine: one .sql file per table is the stream job, the backfill, the asset and the proof."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Wrong usage ends in argparse with status 2."""
    options = build_parser().parse_args(arguments)
    from flashlake.cli.output import say  # after the words are understood: help answers without the platform
    from storage_engine.errors import FlashlakeError

    try:
        status: int = run_of(options.run)(options)
        sys.stdout.flush()
    except FlashlakeError as error:
        say(f"flashlake: {error}")
        return REFUSED
    except KeyboardInterrupt:
        say("flashlake: interrupted")
        return REFUSED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing is left to flush to
        return REFUSED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `run` of what it returns names the function of the command (options.run_of)."""
    parser = argparse.ArgumentParser(
        prog="flashlake", description=DESCRIPTION, epilog="flashlake COMMAND --help explains a command and shows an example."
    )
    parser.add_argument("--version", action="version", version=f"flashlake {__version__}")
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True, title="commands"))
    return parser
