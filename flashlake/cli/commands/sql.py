"""sql: statements and queries over store, lake and both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flashlake.cli.options import config_of
from flashlake.cli.output import say, write_rows
from flashlake.sql import fill_in, open_session, open_store
from storage_engine.errors import UserError


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
