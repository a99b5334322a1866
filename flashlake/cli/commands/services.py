"""up, down, status: the processes of a project."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pyarrow as pa

from flashlake.cli.options import command, config_of, with_format
from flashlake.cli.output import say, write_rows
from flashlake.config import Config
from flashlake.supervisor import SERVICE_NAMES, start_services, status_table, stay_in_foreground, stop_services

_SERVICES = f"services: {', '.join(SERVICE_NAMES)} (default: all)"


def add_to(found: Any) -> None:
    parser = command(
        found, "up", up, summary="start services and supervise them",
        more="It returns when all are healthy and prints where they are; they go on until `flashlake down`.\n"
        "With the stream worker the project's .sql definitions are brought into the store: tables, views, jobs.\n"
        "Each is restarted when it ends; its output goes to the log directory.",
        example="flashlake up\nflashlake up store\nFLASHLAKE__STORE__PORT=9700 flashlake up store stream",
    )  # fmt: skip
    parser.add_argument("services", nargs="*", metavar="SERVICE", help=_SERVICES)
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground until interrupted, then stop them")
    parser.add_argument("--no-deploy", action="store_true", help="do not bring the project's definitions into the store")
    with_format(parser)
    parser = command(
        found, "down", down, summary="stop services with all their processes", example="flashlake down\nflashlake down tiering"
    )
    parser.add_argument("services", nargs="*", metavar="SERVICE", help=_SERVICES)
    parser = command(
        found, "status", status, summary="show health, uptime and lag of services, stream jobs and tiering",
        more="Exit status 1 when something that was started is not healthy.", example="flashlake status\nflashlake status --format json",
    )  # fmt: skip
    with_format(parser)


def up(options: argparse.Namespace) -> int:
    config = config_of(options)
    records = start_services(config, options.services, say=say)
    if not options.no_deploy and any(record.name == "stream" for record in records):
        deploy_definitions(config)
    rows = [{"service": record.name, "pid": str(record.pid), "address": record.address, "log": record.log} for record in records]
    write_rows(pa.Table.from_pylist(rows), options.format)
    if options.foreground:
        sys.stdout.flush()
        stay_in_foreground(config)
    return 0


def deploy_definitions(config: Config) -> None:
    """The project's tables, views and jobs into the running store, so that the stream worker has something to do."""
    from flashlake.deploy import deploy
    from flashlake.sql import open_store

    folder = config.project / "assets"
    if any(folder.glob("*/*.sql")):
        with open_store(config) as store:
            say(f"definitions: {len(deploy(store, folder))} tables and views of {folder}")


def down(options: argparse.Namespace) -> int:
    if not stop_services(config_of(options), options.services, say=say):
        say("nothing was running")
    return 0


def status(options: argparse.Namespace) -> int:
    table, is_well = status_table(config_of(options))
    write_rows(table, options.format)
    return 0 if is_well else 1
