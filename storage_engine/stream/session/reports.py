"""Reports: what SHOW and DESCRIBE answer, as Arrow tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.client import groups
from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError
from storage_engine.schema.descriptor import Column, Offsets, TableDescriptor
from storage_engine.schema.watermark import render_watermark
from storage_engine.stream.jobs.job import JobDescriptor, plan_job
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.explain import explain
from storage_engine.stream.run.facts import facts_of

_TEXT = pa.string()


def tables(store: Store, database: str | None) -> pa.Table:
    """Tables of users: state tables of jobs are left out."""
    names = [name for name in store.tables() if "__state_" not in name and (database is None or name.partition(".")[0] == database)]
    return pa.table({"table": pa.array(names, _TEXT)})


def views(store: Store, temporary: Mapping[str, ViewDefinition]) -> pa.Table:
    """SHOW VIEWS: name and kind, sorted; temporary ones are of the session."""
    rows = [(name, "temporary") for name in temporary]
    rows += [(name, "view") for name in store.objects("view")] + [
        (name, "materialized view") for name in store.objects("materialized_view")
    ]
    rows.sort()
    return pa.table({"view": pa.array([name for name, _ in rows], _TEXT), "kind": pa.array([kind for _, kind in rows], _TEXT)})


def columns(descriptor: TableDescriptor, computed: Mapping[str, str]) -> pa.Table:
    """DESCRIBE table: a row per column; `computed`: the types of those that are not stored."""
    items = descriptor.shown_columns
    return pa.table(
        {
            "column": pa.array([item.name for item in items], _TEXT),
            "type": pa.array([item.type if isinstance(item, Column) else computed[item.name] for item in items], _TEXT),
            "nullable": pa.array([not isinstance(item, Column) or item.nullable for item in items], pa.bool_()),
            "key": pa.array(["primary key" if item.name in descriptor.primary_key else "" for item in items], _TEXT),
            "comment": pa.array([item.comment for item in items], _TEXT),
            "watermark": pa.array([_watermark(descriptor, item.name) for item in items], _TEXT),
            "computed": pa.array(["" if isinstance(item, Column) else f"AS {item.expression}" for item in items], _TEXT),
        }
    )


def _watermark(descriptor: TableDescriptor, column: str) -> str:
    """As Flink's DESCRIBE: the watermark's expression beside its column."""
    if descriptor.watermark is None or descriptor.watermark.column != column:
        return ""
    return render_watermark(descriptor, f"`{column}`").partition(" AS ")[2]


def partitions(store: Store, table: str) -> pa.Table:
    """One row per partition ("" for a table without): rows and bytes of its log, offsets per bucket, its newest commit.

    Where the backend tells nothing of its buckets: the names alone.
    """
    handle = store.table(table)
    names = handle.partitions() if handle.descriptor.partition_keys else [""]
    listed = pa.table({"partition": pa.array(names, _TEXT)})
    if "statistics_of_buckets" not in store.capabilities:
        return listed
    found = store.backend.bucket_statistics(table).sort_by([("partition", "ascending"), ("bucket", "ascending")])
    found = found.append_column("rows", pc.subtract(found["end_offset"], found["start_offset"]))
    grouped = found.group_by("partition", use_threads=False).aggregate(
        [("rows", "sum"), ("bytes", "sum"), ("bucket", "list"), ("start_offset", "list"), ("end_offset", "list"), ("last_commit_ms", "max")]
    )
    grouped = grouped.rename_columns([re.sub("_(sum|list|max)$", "", name) for name in grouped.column_names])
    beside = grouped.take(pc.index_in(listed["partition"], grouped["partition"].combine_chunks()))
    moments = beside["last_commit_ms"].cast(pa.timestamp("ms", "UTC"))
    counted = [pc.fill_null(beside[name], 0) for name in ("rows", "bytes")]
    columns = [listed["partition"], *counted, beside["bucket"], beside["start_offset"], beside["end_offset"], moments]
    return pa.table(columns, names=["partition", "rows", "bytes", "buckets", "start_offsets", "end_offsets", "last_commit"])


def consumers(store: Store, found: Iterable[groups.ConsumerGroup]) -> pa.Table:
    """One row per consumer and table: members, generation, lag, and when offsets were last committed."""
    rows = []
    for group in found:
        described = groups.describe(store.backend, group)
        lag = (pc.sum(described["lag_rows"]).as_py() or 0, pc.max(described["lag_ms"]).as_py() or 0)
        rows.append((group.name, group.table, len(group.members), group.generation, *lag, group.committed_ms))
    types = [_TEXT, _TEXT, pa.int64(), pa.int64(), pa.int64(), pa.int64(), pa.timestamp("ms", "UTC")]
    names = ["consumer", "table", "members", "generation", "lag_rows", "lag_ms", "committed"]
    return pa.table([pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)], names=names)


def jobs(store: Store) -> pa.Table:
    """One row per job: name, state, sink, counters, rates, lag and state, last error (facts.py says what each means)."""
    found = [asdict(item) for item in facts_of(store)]
    listed: list[tuple[str, pa.DataType]] = [
        ("job", _TEXT), ("state", _TEXT), ("kind", _TEXT), ("sink", _TEXT), ("n_rows_in", pa.int64()), ("n_rows_out", pa.int64()),
        ("lag_rows", pa.int64()), ("lag_ms", pa.int64()), ("rows_per_s", pa.float64()), ("watermark_ms", pa.int64()),
        ("state_rows", pa.int64()), ("state_bytes", pa.int64()), ("n_dropped_nulls", pa.int64()), ("n_quarantined", pa.int64()),
        ("worker", _TEXT), ("last_error", _TEXT),
    ]  # fmt: skip
    return pa.table({name: pa.array([row[name] for row in found], kind) for name, kind in listed})


def job(store: Store, of: JobDescriptor) -> pa.Table:
    """Everything about one job, as (property, value): state, lag, counters, rates, last error, offsets, options, plan, statement."""
    (found,) = facts_of(store, [of])
    rows: list[tuple[str, Any]] = [(name, "" if value is None else value) for name, value in asdict(found).items()]
    recorded = store.progress(of.owner).get(of.owner)
    for table, offsets in sorted((recorded.offsets if recorded else {}).items()):
        rows.append((f"offsets {table}", printed(offsets)))
    rows.extend((f"state table {table}", "") for table in of.state_tables or ())
    rows.extend((f"set {key}", value) for key, value in sorted(of.settings.items()))
    rows.extend(("plan", line) for line in _plan(store, of))
    rows.append(("statement", of.text))
    return pa.table({"property": pa.array([name for name, _ in rows], _TEXT), "value": pa.array([str(value) for _, value in rows], _TEXT)})


def _plan(store: Store, of: JobDescriptor) -> list[str]:
    try:
        return explain(plan_job(store, of))
    except FlashlakeError as error:
        return [f"cannot be planned: {error}"]


def printed(offsets: Offsets) -> str:
    """Offsets in one line."""
    return ", ".join(f"{bucket}:{offset}" for bucket, offset in sorted(offsets.items()))
