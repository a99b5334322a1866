"""Batch: the same statement computed at once over bounded inputs: what a job's output must equal.

Inputs are the sources up to given offsets (a job's recorded ones), read from the log: log tables as they are, primary-key
tables as the last change per key leaves them; without the rows that the job put into quarantine. Aggregates run over everything; no
state, no deltas, no micro-batches.
A log that an upgraded job has written holds the rows of each of its statements over the input of its time; a primary-key table those of
the newest statement, but for rows that did not change since (earlier_rows).
Lookup joins see the tables as they are now, or at a version; EXPLAIN says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.client.store import Store
from storage_engine.schema.descriptor import Offsets
from storage_engine.stream.dialect.sqltypes import parse_type
from storage_engine.stream.functions.bitmaps import open_connection
from storage_engine.stream.functions.python_functions import function_failure, register
from storage_engine.stream.jobs.job import JobDescriptor, plan_job
from storage_engine.stream.jobs.quarantine import is_kept, quarantined, without
from storage_engine.stream.jobs.upgrade import eras_of
from storage_engine.stream.operators.compile import ORDER, POSITION, lookup_name, quoted, relation, source_name
from storage_engine.stream.operators.compile_time import WATERMARK, watermark_name
from storage_engine.stream.operators.event_time import Clock, declared_of, least_watermark, mark, marked_batches, passed_ms
from storage_engine.stream.operators.execute import Outcome, enforce_not_null
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.operators.point_reads import newest_partition
from storage_engine.stream.plan.tree import LookupJoin, Scan, lookups, scans
from storage_engine.stream.plan.tree_time import Emission

END_MS = (1 << 63) - 1
"""The watermark of a log that ends."""


def batch_select(
    store: Store,
    job: JobDescriptor | JobPlan,
    *,
    offsets: Mapping[str, Offsets] | None = None,
    at_version: int | None = None,
    con: duckdb.DuckDBPyConnection | None = None,
    is_bounded: bool = False,
    rows_of: Callable[[Scan], pa.Table | None] | None = None,
) -> pa.Table:
    """The rows a job's sink must hold, in the sink's target columns and types.

    offsets     next offset per bucket of each source; None: those of `at_version`, else the job's recorded ones, else the newest
    at_version  a version of the store; primary-key tables of lookup joins are read at it
    rows_of     the rows of a source that are not to be read from its log; None for a source that is
    is_bounded  nothing comes after these offsets: every window is final, and no row is late (what batch mode means)
    Errors: OffsetOutOfRange when the log no longer reaches back to the start.
    """
    if isinstance(job, JobPlan):
        bounds = offsets if offsets is not None else _newest(store, job, at_version)
        return _select(store, job, bounds, at_version, con, {}, is_bounded=is_bounded, rows_of=rows_of)
    recorded = store.progress(job.owner).get(job.owner)
    if offsets is None and at_version is None:
        offsets = recorded.offsets if recorded else {}
    plan = plan_job(store, job)
    bounds = offsets if offsets is not None else _newest(store, plan, at_version)
    eras = eras_of(recorded)
    earlier = {item.epoch: item for item in job.earlier}
    epochs = (*(era.epoch for era in eras), job.epoch)
    keeps_position = job.start == "keep-position" or job.epoch == 0
    if plan.sink.has_primary_key:
        left_out = quarantined(store, job, epochs if keeps_position else (job.epoch,))
        return _select(store, plan, bounds, at_version, con, left_out, is_bounded=is_bounded)
    parts = []
    start = None
    for era in eras:
        of_era = earlier[era.epoch]
        begun = plan_job(store, of_era)
        begun = begun if start is None or of_era.start == "fresh" else replace(begun, starts=start)
        stop = _until(era.stop, bounds)
        parts.append(_select(store, begun, stop, at_version, con, quarantined(store, job, (era.epoch,))).select(list(begun.targets)))
        start = era.stop
    if start is not None and job.start == "keep-position":
        plan = replace(plan, starts=start)
    rows = _select(store, plan, bounds, at_version, con, quarantined(store, job, (job.epoch,)))
    return pa.concat_tables([*parts, rows], promote_options="default").select(rows.column_names) if parts else rows


def earlier_rows(store: Store, job: JobDescriptor, at_version: int | None = None) -> Iterator[pa.Table]:
    """What each statement before had written into a primary-key table when it stopped, the newest of them first.

    A job that kept its position leaves rows as they were until they change; one that began afresh left none.
    """
    if job.start != "keep-position":
        return
    eras = eras_of(store.progress(job.owner).get(job.owner))
    before = {item.epoch: item for item in job.earlier}
    for n in range(len(eras) - 1, -1, -1):
        left_out = quarantined(store, job, tuple(era.epoch for era in eras[: n + 1]))
        yield _select(store, plan_job(store, before[eras[n].epoch]), eras[n].stop, at_version, None, left_out)


def _newest(store: Store, plan: JobPlan, at_version: int | None) -> Mapping[str, Offsets]:
    return {name: store.backend.offsets(name, "latest", at_version) for name in plan.source_tables}


def _until(stop: Mapping[str, Offsets], bounds: Mapping[str, Offsets]) -> dict[str, Offsets]:
    """The smaller of two ends of each bucket."""
    return {table: {bucket: min(end, bounds.get(table, {}).get(bucket, 0)) for bucket, end in ends.items()} for table, ends in stop.items()}


def _select(
    store: Store,
    plan: JobPlan,
    bounds: Mapping[str, Offsets],
    at_version: int | None,
    con: duckdb.DuckDBPyConnection | None,
    left_out: Mapping[str, pa.Table],
    *,
    is_bounded: bool = False,
    rows_of: Callable[[Scan], pa.Table | None] | None = None,
) -> pa.Table:
    plan = plan.recomputed
    own = con is None
    connection = con or open_connection()
    names: list[str] = []
    what = f"batch of {plan.sink.name}"
    register(connection, plan.functions, what)
    try:
        for scan in scans(plan.root):
            ordered = plan.is_last_row or scan.id in plan.positioned_scans
            start, stop = plan.starts.get(scan.table.name, {}), bounds.get(scan.table.name, {})
            is_timed = scan.id in plan.timed_scans
            without_rows = left_out.get(scan.table.name)
            given = rows_of(scan) if rows_of is not None else None
            if given is not None:
                _register_given(connection, scan, given, is_timed=is_timed)
            elif is_bounded and at_version is not None and scan.table.has_primary_key:
                _register_rows(connection, store, scan, at_version)
            else:
                _register_scan(
                    connection, store, scan, start, stop, without_rows, ordered=ordered, is_timed=is_timed, is_bounded=is_bounded
                )
            names.append(source_name(scan))
        for emission in plan.emissions:
            ms = END_MS if is_bounded else _watermark_at(store, emission, plan, bounds, left_out)
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {watermark_name(emission)} AS SELECT CAST({_sql_number(ms)} AS BIGINT) AS ms")
            names.append(watermark_name(emission))
        for join in lookups(plan.root):
            _register_lookup(connection, store, join, at_version)
            names.append(lookup_name(join))
        return enforce_not_null(plan, connection.execute(batch_sql(plan)).to_arrow_table(), Outcome())
    except duckdb.Error as error:
        raise function_failure(error, what) or error from error
    finally:
        for name in names:
            connection.execute(f"DROP VIEW IF EXISTS {name}")
        if own:
            connection.close()


def batch_sql(plan: JobPlan) -> str:
    """The statement over whole inputs (relations src_ID and lk_ID), in the sink's columns and types."""
    listed = ", ".join(
        f"CAST({quoted(name)} AS {parse_type(plan.sink.column(name).type).duckdb}) AS {quoted(name)}" for name in plan.targets
    )
    body = relation(plan.root, batch=True, carried=(ORDER,) if plan.is_last_row else ())
    if plan.is_last_row:
        keys = ", ".join(quoted(name) for name in plan.sink.primary_key)
        body = f"SELECT * FROM ({body}) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {_kept_first(plan)}) = 1"
    return f"SELECT {listed} FROM ({body})"


def _kept_first(plan: JobPlan) -> str:
    """The order of a key's rows in which the one that the sink's merge engine keeps comes first."""
    match plan.sink.merge_engine:
        case "first_row":
            return ORDER
        case "versioned":
            version = quoted(plan.sink.version_column or "")
            return f"{version} DESC NULLS LAST, (CASE WHEN {version} IS NOT NULL THEN {ORDER} END) DESC, {ORDER}"
        case _:
            return f"{ORDER} DESC"


def _watermark_at(
    store: Store, emission: Emission, plan: JobPlan, bounds: Mapping[str, Offsets], left_out: Mapping[str, pa.Table]
) -> int | None:
    """The watermark of an emission's logs at the offsets that bound them, without rows that were left out."""
    if emission.by_commit:
        return least_watermark([passed_ms(_newest_commit(store, scan, plan, bounds, left_out)) for scan in emission.scans])
    marks = []
    for table in {scan.table.name: scan.table for scan in emission.scans}.values():
        declared = declared_of(table)
        start, stop = plan.starts.get(table.name, {}), dict(sorted(bounds.get(table.name, {}).items()))
        clock = Clock.at_begin(table)
        for batch in store.table(table.name).scan([declared.column], start=start, stop=stop, metadata=True):
            rows = pa.Table.from_batches([batch])
            rows = without(rows, left_out[table.name]) if table.name in left_out else rows
            clock = mark(table, rows[declared.column], rows["_commit_timestamp"], rows["_bucket"], clock)[2]
        marks.append(clock.watermark_ms(declared))
    return least_watermark(marks)


def _newest_commit(store: Store, scan: Scan, plan: JobPlan, bounds: Mapping[str, Offsets], left_out: Mapping[str, pa.Table]) -> int | None:
    """When the newest of a log's rows was committed; None without any."""
    name, newest = scan.table.name, None
    start, stop = plan.starts.get(name, {}), dict(sorted(bounds.get(name, {}).items()))
    for batch in store.table(name).scan(scan.stored_columns[:1], start=start, stop=stop, metadata=True):
        rows = pa.Table.from_batches([batch])
        rows = without(rows, left_out[name]) if name in left_out else rows
        if rows.num_rows:
            last = pc.max(rows["_commit_timestamp"].cast(pa.int64())).as_py()
            newest = last if newest is None else max(newest, last)
    return newest


def _sql_number(value: int | None) -> str:
    return "NULL" if value is None else str(value)


def _register_rows(con: duckdb.DuckDBPyConnection, store: Store, scan: Scan, at_version: int) -> None:
    """A primary-key table as its rows at a version: no changelog is replayed."""
    name = source_name(scan)
    con.register(f"{name}_log", store.table(scan.table.name).read(scan.stored_columns, at=at_version))
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM {name}_log")


def _register_given(con: duckdb.DuckDBPyConnection, scan: Scan, rows: pa.Table, *, is_timed: bool) -> None:
    """Rows that are at hand, of a log that ends: no row has a watermark before it."""
    name = source_name(scan)
    shown = [quoted(column) for column in scan.stored_columns]
    shown += [f"CAST(NULL AS TIMESTAMP_MS) AS {quoted(mark)}" for mark in scan.marks]
    shown += [f"CAST(NULL AS BIGINT) AS {WATERMARK}"] if is_timed else []
    con.register(f"{name}_log", rows)
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {', '.join(shown)} FROM {name}_log")


def _register_scan(
    con: duckdb.DuckDBPyConnection,
    store: Store,
    scan: Scan,
    start: Offsets,
    stop: Offsets,
    left_out: pa.Table | None,
    *,
    ordered: bool,
    is_timed: bool,
    is_bounded: bool,
) -> None:
    table = store.table(scan.table.name)
    name = source_name(scan)
    listed = ", ".join(quoted(column) for column in scan.stored_columns)
    if not scan.table.has_primary_key:
        rows = table.scan(scan.stored_columns, start=start, stop=dict(sorted(stop.items())), metadata=ordered or left_out is not None)
        if left_out is not None:
            rows = without(rows.read_all(), left_out).to_reader()
        order = ""
        if is_timed and not is_bounded:
            schema = rows.schema.append(pa.field(WATERMARK, pa.int64()))
            rows = pa.RecordBatchReader.from_batches(schema, marked_batches(scan.table, rows, ("_commit_timestamp", "_bucket"), schema))
        if is_timed:
            mark_ms = "CAST(NULL AS BIGINT)" if is_bounded else WATERMARK
            shown = [f"make_timestamp_ms({mark_ms}) AS {quoted(name)}" for name in scan.marks]
            order = "".join(f", {text}" for text in [f"{mark_ms} AS {WATERMARK}", *shown])
        con.register(f"{name}_log", rows)
        if ordered:
            order += f", epoch_ms(_commit_timestamp) AS {POSITION[0]}"
            metadata = ("_partition", "_bucket", "_log_offset")
            order += "".join(f", {given} AS {name}" for given, name in zip(metadata, POSITION[1:], strict=True))
        con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {listed}{order} FROM {name}_log")
        return
    columns = list(dict.fromkeys([*scan.columns, *scan.table.primary_key]))
    # in the order of the commits; a rescaled key has changes in two buckets. A key whose last change is in quarantine has no row
    changes = table.scan(columns, stop=stop, metadata=left_out is not None).read_all()
    if left_out is not None:
        places = changes.select(["_partition", "_bucket", "_log_offset"])
        poisoned = pc.invert(is_kept(places, left_out))
        kind = pc.if_else(poisoned, pa.scalar("-D"), changes["_change_type"].cast(pa.string()))
        changes = changes.set_column(changes.schema.get_field_index("_change_type"), "_change_type", kind)
    con.register(f"{name}_log", changes.append_column("_number", pa.array(np.arange(changes.num_rows))))
    keys = ", ".join(quoted(column) for column in scan.table.primary_key)
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {listed} FROM (SELECT * FROM {name}_log "
        f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY _number DESC) = 1) WHERE _change_type IN ('+I', '+U')"
    )


def _register_lookup(con: duckdb.DuckDBPyConnection, store: Store, join: LookupJoin, at_version: int | None) -> None:
    keys = [name for name, _ in join.keys]
    partition = [] if join.newest_of is None else [join.newest_of]
    table = store.table(join.table.name)
    rows = table.read(list(dict.fromkeys([*keys, *join.columns, *partition])), at=at_version)
    if join.newest_of is not None:
        newest = newest_partition(table.offsets("latest", at_version=at_version))
        rows = rows.filter(pc.equal(rows[join.newest_of], newest))
    name = lookup_name(join)
    con.register(f"{name}_rows", rows)
    listed = [f"{quoted(key)} AS {quoted(f'__k{i}')}" for i, key in enumerate(keys)]
    listed += [f"{quoted(column)} AS {quoted(item.name)}" for column, item in zip(join.columns, join.looked_up, strict=True)]
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {', '.join(listed)} FROM {name}_rows")
