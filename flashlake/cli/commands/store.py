"""fsck, backup, restore: the store's directory, verified, copied while it is written, and brought back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa

from flashlake.cli.options import command, config_of, with_format, with_store
from flashlake.cli.output import say, write_rows
from flashlake.sql import open_store
from storage_engine.api import BackupInfo

FINDINGS = pa.schema([(name, pa.string()) for name in ("severity", "file")] + [("offset", pa.int64()), ("what", pa.string())])


def add_to(found: Any) -> None:
    parser = command(
        found, "fsck", run_fsck, summary="verify a store directory: every frame, offsets, checkpoint and key snapshots",
        more="It changes nothing and works where the store refuses to open; a directory in use is refused.\n"
        "Exit status 1 when something is damaged; notes (a torn tail that the next start cuts off) are no damage.",
        example="flashlake fsck data/store\nflashlake fsck data/store --keys --format json",
    )  # fmt: skip
    parser.add_argument("directory", type=Path, metavar="DIR", help="the store's directory: the one with FORMAT and log/")
    parser.add_argument("--keys", action="store_true", help="also replay each changelog and compare its rows and key snapshots with it")
    with_format(parser)
    parser = command(
        found, "backup", run_backup, summary="copy the store as it is now, while writers go on",
        more="TARGET must be new or empty, on the machine of the store. Finished log files become hard links where possible.",
        example="flashlake backup /backups/monday\nflashlake backup /mnt/usb/monday --copy --store flashlake://127.0.0.1:9650",
    )  # fmt: skip
    parser.add_argument("target", type=Path, metavar="TARGET", help="the backup's directory")
    parser.add_argument("--copy", action="store_true", help="copy every byte; a hard link shares the disk's faults with the store")
    with_store(parser)
    with_format(parser)
    parser = command(
        found, "restore", run_restore, summary="make a store of a backup, every frame checked before it gets its name",
        more="DIR must be new or empty: nothing is overwritten. Point the project's store.dir to it, or name it in --store.",
        example="flashlake restore /backups/monday data/restored",
    )  # fmt: skip
    parser.add_argument("backup", type=Path, metavar="BACKUP", help="a directory that `flashlake backup` wrote")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the new store's directory")
    with_format(parser)


def run_fsck(options: argparse.Namespace) -> int:
    from storage_engine.engine.fsck import check_store

    report = check_store(options.directory, keys=options.keys)
    rows = [{"severity": f.severity, "file": f.file, "offset": f.offset, "what": f.what} for f in report.findings]
    if rows or options.format != "table":
        write_rows(pa.Table.from_pylist(rows, schema=FINDINGS), options.format)
    keys = f", {report.n_keys:,} keys" if options.keys else ""
    say(
        f"{report.directory}: {report.n_files} log files, {report.n_bytes:,} bytes, {report.n_frames:,} frames, "
        f"{report.n_commits:,} commits (version {report.version}), {report.n_tables} tables, {report.n_buckets} buckets{keys}"
    )
    for next_step in dict.fromkeys(finding.next_step for finding in report.damages):
        say(f"damage: {next_step}")
    say(f"{len(report.damages)} damages, {len(report.findings) - len(report.damages)} notes")
    return 1 if report.damages else 0


def run_backup(options: argparse.Namespace) -> int:
    with open_store(config_of(options), options.store) as store:
        _write_info(store.backup(options.target.absolute(), links=not options.copy), options.format)
    return 0


def run_restore(options: argparse.Namespace) -> int:
    from storage_engine.engine.backup import restore

    _write_info(restore(options.backup, options.directory), options.format)
    return 0


def _write_info(info: BackupInfo, form: str) -> None:
    row = {"directory": info.target, "version": info.version, "position": info.position, "bytes": info.n_bytes}
    write_rows(pa.Table.from_pylist([row]), form)
