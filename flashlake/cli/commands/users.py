"""user, token: who may come to the store's server. A password is typed or piped in, never an argument."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from flashlake.cli.options import config_of
from flashlake.cli.output import say, write_rows
from flashlake.cli.usage import SERVICE_RIGHTS
from flashlake.sql import open_store
from storage_engine.access import Grant, Scope, Users
from storage_engine.errors import AlreadyExists, UserError

_TIME = pa.timestamp("ms", "UTC")
TOKENS = pa.schema([("token", pa.string()), ("user", pa.string()), ("label", pa.string()), ("created", _TIME), ("expires", _TIME)])


def run_user(options: argparse.Namespace) -> int:
    _require_name(options, nameless="list")
    with open_store(config_of(options), options.store) as store:
        users = Users(store.backend)
        if options.action == "add":
            users.create(options.name, None if options.service else read_password())
            rights = ("ADMIN",) if options.admin else SERVICE_RIGHTS if options.service else ()
            users.grant(options.name, [Grant(right, Scope("CLUSTER")) for right in rights])
            say(f"user {options.name}" + (f": {', '.join(rights)} on the cluster" if rights else ": no rights yet"))
        elif options.action == "password":
            users.set_password(options.name, read_password())
            say(f"user {options.name}: the password is changed")
        elif options.action == "drop":
            users.drop(options.name)
            say(f"dropped user {options.name}")
        else:
            _write(store, "SHOW USERS", options.format)
    return 0


def run_token(options: argparse.Namespace) -> int:
    _require_name(options, nameless="list")
    with open_store(config_of(options), options.store) as store:
        users = Users(store.backend)
        if options.action == "create":
            lifetime_ms = None if options.expires is None else int(options.expires.total_seconds() * 1000)
            if options.out is not None and options.out.exists():
                raise AlreadyExists(f"{options.out} exists", where="token", next_step="Name a new file, or remove it.")
            text = users.create_token(options.name, options.label, lifetime_ms=lifetime_ms)
            if options.out is None:
                sys.stdout.write(text + "\n")
            else:
                write_secret(options.out, text)
                say(f"wrote {options.out}")
        elif options.action == "revoke":
            users.revoke_token(options.name)
            say(f"revoked token {options.name}")
        else:
            rows = [
                {"token": name, "user": record.user, "label": record.label, "created": record.created_ms, "expires": record.expires_ms}
                for name, record in sorted(users.tokens().items())
            ]
            write_rows(pa.Table.from_pylist(rows, TOKENS), options.format)
    return 0


def read_password() -> str:
    """From the terminal, twice; else the first line of standard input. Errors: UserError."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("password: ")
    if getpass.getpass("again: ") != first:
        raise UserError("the two passwords differ", where="password", next_step="Repeat the command.")
    return first


def write_secret(file: Path, text: str) -> None:
    """A new file that only its owner reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text + "\n")


def _require_name(options: argparse.Namespace, *, nameless: str) -> None:
    if bool(options.name) == (options.action == nameless):
        what = "takes no name" if options.name else "needs a name"
        raise UserError(f"{options.action} {what}", where="command line", next_step="flashlake user --help shows examples.")


def _write(store: Any, statement: str, form: str) -> None:
    write_rows(store.execute(statement)[0].rows, form)
