"""Status: one table of what runs and how far behind it is. Reads records, probes and the store; changes nothing.

Columns: kind (service, job, tiering, consumer), name, health, pid, uptime_s, lag_rows, restarts, detail.
lag_rows of a job: rows between its recorded progress and the end of the tables it reads; of tiering: rows not yet in the lake;
of a consumer: rows after its committed offsets, with the age of the oldest of them beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

import storage_engine
from flashlake.access import access_of
from flashlake.config import Config
from flashlake.supervisor.probes import port_answers
from flashlake.supervisor.records import RunDir, ServiceRecord
from flashlake.supervisor.services import services
from storage_engine.api import Progress
from storage_engine.client import groups
from storage_engine.client.endpoint import endpoint_of
from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError
from storage_engine.schema.descriptor import Offsets
from storage_engine.stream.run.facts import JobFacts, facts_of
from storage_engine.stream.session.reports import consumers

SCHEMA = pa.schema(
    [
        ("kind", pa.string()), ("name", pa.string()), ("health", pa.string()), ("pid", pa.string()),
        ("uptime_s", pa.int64()), ("lag_rows", pa.int64()), ("restarts", pa.int64()), ("detail", pa.string()),
    ]
)  # fmt: skip
JOB_OWNER = "job:"
TIER_OWNER = "tier:"


def status_table(config: Config) -> tuple[pa.Table, bool]:
    """The table, and whether everything that was asked for is healthy."""
    run_dir = RunDir(config.services.run_dir)
    wanted = run_dir.wanted()
    lines, note = store_lines(config, run_dir)
    lags = {
        kind: [line["lag_rows"] for line in lines if line["kind"] == kind and line["lag_rows"] is not None] for kind in ("job", "tiering")
    }
    rows = []
    for name in dict.fromkeys([*services(config), *sorted(wanted)]):
        record = run_dir.service(name)
        lag = {"stream": lags["job"], "tiering": lags["tiering"]}.get(name)
        rows.append(service_line(record, name in wanted, sum(lag) if lag and record.is_running else None))
    if note and rows and rows[0]["name"] == "store" and rows[0]["health"] != "stopped":
        rows[0]["detail"] = note
    rows += lines
    is_well = all(run_dir.service(name).state == "healthy" for name in wanted) and not any(line["health"] == "failed" for line in lines)
    return pa.Table.from_pylist(rows, schema=SCHEMA), is_well


def service_line(record: ServiceRecord, is_wanted: bool, lag_rows: int | None) -> dict[str, Any]:  # noqa: FBT001 - a plain fact
    """One line of `flashlake status` for a service: `down` is one that should run and does not."""
    is_running = record.is_running
    health = record.state if is_running or record.state == "waiting" else ("down" if is_wanted else "stopped")
    return {
        "kind": "service", "name": record.name, "health": health, "pid": str(record.pid) if is_running else None,
        "uptime_s": int(time.time() - record.since_s) if is_running else None, "lag_rows": lag_rows,
        "restarts": record.n_restarts if is_wanted else None, "detail": record.address or record.log,
    }  # fmt: skip


def store_lines(config: Config, run_dir: RunDir) -> tuple[list[dict[str, Any]], str]:
    """One line per stream job, per tiered table and per consumer, from the running store; and why there are none, if it does not answer."""
    is_ours = run_dir.service("store").is_running
    if not (is_ours or config.store.url):
        return [], "does not answer"
    endpoint = endpoint_of(config.server_url)
    if not port_answers(endpoint.host.strip("[]"), endpoint.port):
        return [], "does not answer"
    try:
        with storage_engine.connect(config.server_url, **access_of(config, config.server_url)) as store:
            return job_lines(store) + tiering_lines(store) + consumer_lines(store), ""
    except FlashlakeError as error:
        return [], str(error)


def job_lines(store: Store) -> list[dict[str, Any]]:
    """One line per stream job: its state, its lag, and what it does or why it failed."""
    return [line("job", of.job, of.state.lower(), of.lag_rows, job_detail(of)) for of in facts_of(store)]


def job_detail(of: JobFacts) -> str:
    """What there is to say of a job beside state and lag: its error, or its sink, rate, age of the oldest unread row, and state."""
    if of.last_error:
        return of.last_error
    parts = [of.sink, f"{of.rows_per_s:,.0f} rows/s"]
    if of.lag_ms:
        parts.append(f"oldest unread row: {of.lag_ms / 1000:.1f} s")
    if of.state_rows:
        parts.append(f"state: {of.state_rows:,} rows, {of.state_bytes / 1e6:.1f} MB")
    if of.n_quarantined:
        parts.append(f"{of.n_quarantined:,} rows in quarantine")
    if of.watermark_ms is not None:
        parts.append(f"watermark {datetime.fromtimestamp(of.watermark_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}")
    return "; ".join(parts)


def tiering_lines(store: Store) -> list[dict[str, Any]]:
    """One line per table that is tiered into the lake."""
    progress = store.progress(TIER_OWNER)
    lines = []
    for name in store.tables():
        table = store.table(name)
        if table.descriptor.is_tiered:
            made = progress.get(TIER_OWNER + name) or Progress(TIER_OWNER + name, {name: {}})
            freshness = table.descriptor.options.get("table.datalake.freshness", "")
            lines.append(line("tiering", name, "tiered", lag_rows(store, made, (name,)), f"freshness {freshness}" if freshness else ""))
    return lines


def consumer_lines(store: Store) -> list[dict[str, Any]]:
    """One line per consumer and table."""
    if "consumers" not in store.capabilities:
        return []
    lines = []
    for row in consumers(store, groups.find(store.backend)).to_pylist():
        detail = f"oldest row not committed: {row['lag_ms'] / 1000:.1f} s" if row["lag_rows"] else ""
        if row["members"]:
            detail = "; ".join(filter(None, (f"{row['members']} members", detail)))
        lines.append(line("consumer", f"{row['consumer']} on {row['table']}", "known", row["lag_rows"], detail))
    return lines


def line(kind: str, name: str, health: str, lag: int | None, detail: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "health": health, "lag_rows": lag, "detail": detail}


def lag_rows(store: Store, progress: Progress | None, tables: tuple[str, ...] = ()) -> int | None:
    """Rows between the recorded offsets and the end of each table; None when nothing is recorded."""
    if progress is None:
        return None
    names = [name for name in (*progress.offsets, *tables) if name in set(store.tables())]
    return sum(rows_between(store, name, progress.offsets.get(name, {})) for name in dict.fromkeys(names))


def rows_between(store: Store, table: str, reached: Mapping[Any, int]) -> int:
    """Rows of a table that whoever has `reached` these offsets has yet to read; what has expired does not count."""
    latest: Offsets = store.table(table).offsets("latest")
    earliest: Offsets = store.table(table).offsets("earliest")
    return sum(end - max(reached.get(bucket, 0), earliest.get(bucket, 0)) for bucket, end in latest.items())
