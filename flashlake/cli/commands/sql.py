"""sql: statements and queries over store, lake and both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flashlake.cli.options import command, config_of, with_format, with_store
from flashlake.cli.output import say, write_rows
from flashlake.sql import fill_in, open_session, open_store
from storage_engine.errors import UserError


def add_to(found: Any) -> None:
    parser = command(
        found, "sql", run_sql, summary="run SQL: tables, stream jobs, views, queries over store and lake",
        more="Rows go to standard output, one result after another; messages to standard error.\n"
        "The first statement that is refused ends the run; those before it are done.",
        example="flashlake sql -e \"SELECT store_id, SUM(line_cnt) AS lines FROM dws.store_hour_wide GROUP BY store_id\" --format csv\n"
        "flashlake sql -f assets/dws/store_hour_wide.sql\nflashlake sql -e 'SHOW JOBS'\n"
        "flashlake sql -f report.sql -D day=2017-01-03",
    )  # fmt: skip
    place = parser.add_mutually_exclusive_group()
    place.add_argument("-f", "--file", help="file of statements, - for standard input")
    place.add_argument("-e", "--execute", metavar="STATEMENT", help="statements as text, separated by semicolons")
    parser.add_argument(
        "-D", "--define", action="append", default=[], type=a_definition, metavar="NAME=VALUE", help="value of ${NAME} in the statements"
    )
    with_store(parser)
    with_format(parser)


def a_definition(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def run_sql(options: argparse.Namespace) -> int:
    config = config_of(options)
    text = fill_in(read_statements(options), dict(options.define))
    with open_store(config, options.store) as store:
        n_printed = 0
        for result in open_session(config, store).execute(text):
            if result.rows is not None:
                if n_printed and options.format != "json":
                    sys.stdout.write("\n")
                write_rows(result.rows, options.format)
                n_printed += 1
            elif result.message:
                say(result.message)
    return 0


def read_statements(options: argparse.Namespace) -> str:
    """The text of -e, of the file of -f, or of standard input."""
    if options.execute is not None:
        return options.execute
    if options.file not in (None, "-"):
        try:
            return Path(options.file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the file cannot be read: {error}", where=options.file, next_step="Name a readable file of SQL.") from error
    if options.file is None and sys.stdin.isatty():
        raise UserError("there is no statement", where="flashlake sql", next_step="Give one with -e, a file with -f, or pipe it in.")
    return sys.stdin.read()
