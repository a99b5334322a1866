"""Metrics: what a store says of itself, as numbers. One plain function; who shows them (the server's page) is not known here.

Owner: EmbeddedBackend.metrics(). Background work adds its own counters to `backend.counters` (name -> number that only grows); they
become `maintenance_total{of=name}`.
Cost: one pass over tables, buckets and progress, under the readers' lock; meant for every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage_engine.engine import offset_of
from storage_engine.engine.buckets import Buckets
from storage_engine.engine.maintenance import TaskReport
from storage_engine.engine.state import StoreState
from storage_engine.log.commit_log import CommitLog


@dataclass(frozen=True)
class StoreMetric:
    """One number, or one per value of `label` (values[""] where there is none)."""

    name: str
    text: str
    values: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    is_counter: bool = False


def collect(
    log: CommitLog, state: StoreState, buckets: Buckets, tasks: Mapping[str, TaskReport], counters: Mapping[str, float]
) -> list[StoreMetric]:
    """The caller keeps state and buckets still meanwhile."""
    ends = {name: offset_of.offsets(buckets, table, "latest", None, None, state.timestamp_ms) for name, table in state.tables.items()}
    lags: dict[str, float] = {}
    for owner, progress in state.progress.items():
        lag = 0
        for table, reached in progress.offsets.items():
            lag += sum(end - reached.get(bucket, 0) for bucket, end in ends.get(table, {}).items())
        lags[owner] = lag
    index_bytes: dict[str, float] = {}
    for bucket in buckets.built():
        table = state.by_id(bucket.id.table_id)
        if table is not None and bucket.kv is not None:
            name = table.descriptor.name
            index_bytes[name] = index_bytes.get(name, 0) + bucket.kv.n_bytes
    return [
        StoreMetric("store_version", "Commits since the store was made.", {"": state.version}),
        StoreMetric("tables", "Tables.", {"": len(state.tables)}),
        StoreMetric("log_end_bytes", "Position after the last commit of the log.", {"": int(log.end)}),
        StoreMetric("log_durable_bytes", "Position below which the log survives power loss.", {"": int(log.durable)}),
        StoreMetric("fsync_seconds", "Seconds in fdatasync of the log.", {"": log.sync_s}, is_counter=True),
        StoreMetric("fsyncs", "Calls of fdatasync of the log.", {"": log.n_syncs}, is_counter=True),
        StoreMetric(
            "rows_written", "Rows of the log or changelog.", {name: sum(by.values()) for name, by in ends.items()}, "table", is_counter=True
        ),
        StoreMetric("index_bytes", "Bytes of loaded key indexes.", index_bytes, "table"),
        StoreMetric("lag_rows", "Rows after the recorded progress of a job, a consumer, or tiering.", lags, "owner"),
        StoreMetric("maintenance_runs", "Runs of a background task.", {t: r.n_runs for t, r in tasks.items()}, "task", is_counter=True),
        StoreMetric(
            "maintenance_failures", "Failures of a background task.", {t: r.n_failures for t, r in tasks.items()}, "task", is_counter=True
        ),
        StoreMetric("maintenance", "What background work did.", dict(counters), "of", is_counter=True),
    ]
