"""up, down, status: the processes of a project."""

from __future__ import annotations

import argparse
import sys

import pyarrow as pa

from flashlake.cli.options import config_of
from flashlake.cli.output import say, write_rows
from flashlake.config import Config
from flashlake.supervisor import start_services, status_table, stay_in_foreground, stop_services


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
