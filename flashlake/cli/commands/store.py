"""fsck, compact, backup, restore: the store's directory, verified, made smaller, copied while it is written, and brought back."""

from __future__ import annotations

import argparse

import pyarrow as pa

from flashlake.cli.options import config_of
from flashlake.cli.output import progress_bars, say, write_rows
from flashlake.sql import open_store
from storage_engine.api import BackupInfo

SPACE = pa.schema(
    [("table", pa.string())]
    + [(name, pa.int64()) for name in ("rows_expired", "rows_outlived", "files_removed", "bytes_rewritten", "bytes_given_back")]
)
FINDINGS = pa.schema([(name, pa.string()) for name in ("severity", "file")] + [("offset", pa.int64()), ("what", pa.string())])


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


def run_compact(options: argparse.Namespace) -> int:
    """One line per table, in whole log files: tables share them, so what one line gives back may have been another's."""
    with open_store(config_of(options), options.store) as store, progress_bars() as bars:
        names = options.tables or store.tables()
        task = bars.add_task("compact", total=len(names), note="")
        infos = []
        for name in names:
            bars.update(task, note=name)
            infos.append(store.table(name).compact())
            bars.advance(task)
    rows = [
        {
            "table": info.table, "rows_expired": info.n_rows_expired, "rows_outlived": info.n_rows_outlived,
            "files_removed": info.n_files_removed, "bytes_rewritten": info.n_bytes_rewritten, "bytes_given_back": info.n_bytes_reclaimed,
        }
        for info in infos
    ]  # fmt: skip
    write_rows(pa.Table.from_pylist(rows, schema=SPACE), options.format)
    given, copied = (sum(row[name] for row in rows) for name in ("bytes_given_back", "bytes_rewritten"))
    say(f"{given:,} bytes given back, {copied:,} written to do so")
    return 0


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
