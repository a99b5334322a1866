"""Options: what several commands take, read the same way by all of them."""

from __future__ import annotations

import argparse
import importlib
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashlake.config import Config

FORMATS = ("table", "csv", "json")
_SPAN = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)$")
_SPAN_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def command(found: Any, name: str, run: str, *, summary: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """Add a command with the options that all have.

    run      MODULE.FUNCTION under flashlake.cli.commands, a function of the parsed options that returns the exit status; see run_of
    example  one line per example
    """
    description = f"{summary[:1].upper()}{summary[1:]}.{' ' if more else ''}{more}"
    examples = "examples:\n" + "\n".join(f"  {line}" for line in example.splitlines())
    layout = argparse.RawDescriptionHelpFormatter
    parser = found.add_parser(name, help=summary, description=description, epilog=examples, formatter_class=layout)
    parser.add_argument(
        "--project", type=Path, metavar="DIR", help="the project's folder (default: the nearest one upwards with a flashlake.toml)"
    )
    parser.set_defaults(run=run)
    return parser


def run_of(name: str) -> Any:
    """The function that runs a command: its module, and with it what the command needs, is loaded here."""
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"flashlake.cli.commands.{module}"), function)


def with_format(parser: argparse.ArgumentParser) -> None:
    """Add --format, for a command that prints results."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="how results are printed (default: table)")


def with_store(parser: argparse.ArgumentParser) -> None:
    """Add --store, for a command that opens a store."""
    parser.add_argument(
        "--store", metavar="URL", help="file:///path or flashlake://host:port (default: the running server, else the project's folder)"
    )


def config_of(options: argparse.Namespace) -> Config:
    """The configuration of the project that the command is about. With --store a project is not needed."""
    from flashlake.config import load_config

    if options.project is None and getattr(options, "store", None):
        return load_config(Path.cwd())
    return load_config(options.project)


def a_definition(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def a_day(text: str) -> date:
    """2017-01-31."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day; write it as 2017-01-31") from None


def a_moment(text: str) -> datetime:
    """2017-01-31, 2017-01-31T12:00:00 or now; without zone, as event times are."""
    if text == "now":
        return datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a moment; write it as 2017-01-31, 2017-01-31T12:00:00 or now") from None


def a_span(text: str) -> timedelta:
    """10s, 5m, 2h, 1d.

    >>> a_span("1.5h")
    datetime.timedelta(seconds=5400)
    """
    match = _SPAN.match(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a span; write it as 500ms, 10s, 5m, 2h or 1d")
    return timedelta(seconds=float(match.group(1)) * _SPAN_SECONDS[match.group(2)])


def a_count(text: str) -> int:
    """A whole number of at least 1; 1_000 and 1e6 are understood."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(value)


def a_rate(text: str) -> float:
    """Events per second; 1e6 and 250_000 are understood."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate; write events per second, for example 1000 or 1e6")
    return value


def a_share(text: str) -> float:
    """A share from 0 to below 0.5."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 0.5")
    return value
