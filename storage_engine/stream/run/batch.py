"""Batch: the same statement computed at once over bounded inputs: what a job's output must equal.

Inputs are the sources up to given offsets (a job's recorded ones), read from the log: log tables as they are, primary-key
tables as the last change per key leaves them; without the rows that the job put into quarantine. Where a log's head has expired,
history.py says what stands in for it, or that nothing does. Aggregates run over everything; no state, no deltas, no micro-batches.
A log that an upgraded job has written holds the rows of each of its statements over the input of its time; a primary-key table those of
the newest statement, but for rows that did not change since (earlier_rows).
Lookup joins see the tables as they are now, or at a version; EXPLAIN says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.client.store import Store
from storage_engine.schema.descriptor import Offsets
from storage_engine.stream.functions.bitmaps import open_connection
from storage_engine.stream.functions.python_functions import function_failure, register
from storage_engine.stream.jobs.held import forgotten_input, gaps_of
from storage_engine.stream.jobs.job import JobDescriptor, plan_job
from storage_engine.stream.jobs.quarantine import is_kept, quarantined, without
from storage_engine.stream.jobs.upgrade import eras_of
from storage_engine.stream.operators.checked_key import sink_cast
from storage_engine.stream.operators.compile import ORDER, POSITION, lookup_name, quoted, relation, source_name
from storage_engine.stream.operators.compile_time import WATERMARK, watermark_name
from storage_engine.stream.operators.event_time import Clock, declared_of, least_watermark, mark, marked_batches, passed_ms
from storage_engine.stream.operators.execute import Outcome, enforce_not_null
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.operators.point_reads import newest_partition
from storage_engine.stream.plan.tree import LookupJoin, Scan, lookups, scans
from storage_engine.stream.plan.tree_time import Emission
from storage_engine.stream.run.history import History, Lake

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
    lake: Lake | None = None,
    column: str = "",
    partitions: frozenset[str] = frozenset(),
) -> pa.Table:
    """The rows a job's sink must hold, in the sink's target columns and types.

    offsets     next offset per bucket of each source; None: those of `at_version`, else the job's recorded ones, else the newest
    at_version  a version of the store; primary-key tables of lookup joins are read at it
    is_bounded  nothing comes after these offsets: every window is final, and no row is late (what batch mode means)
    lake        what holds the rows of tiered tables that have expired in the store
    column, partitions  the sink's partition column, and those of its values that the answer has to be right for; none: all rows
    Errors: InputGone when rows that the answer needs are held nowhere any more.
    """
    if isinstance(job, JobPlan):
        bounds = offsets if offsets is not None else _newest(store, job, at_version)
        return _select(History(store, lake, column, partitions), job, bounds, at_version, con, {}, is_bounded=is_bounded)
    recorded = store.progress(job.owner).get(job.owner)
    if offsets is None and at_version is None:
        offsets = recorded.offsets if recorded else {}
    plan = plan_job(store, job)
    history = History(store, lake, column, partitions, forgotten_input(store, job, recorded))
    bounds = offsets if offsets is not None else _newest(store, plan, at_version)
    eras = eras_of(recorded)
    earlier = {item.epoch: item for item in job.earlier}
    epochs = (*(era.epoch for era in eras), job.epoch)
    keeps_position = job.start == "keep-position" or job.epoch == 0
    if plan.sink.has_primary_key:
        left_out = quarantined(store, job, epochs if keeps_position else (job.epoch,))
        return _select(history, plan, bounds, at_version, con, left_out, is_bounded=is_bounded)
    parts = []
    start = None
    for era in eras:
        of_era = earlier[era.epoch]
        begun = plan_job(store, of_era)
        begun = begun if start is None or of_era.start == "fresh" else replace(begun, starts=start)
        stop = _until(era.stop, bounds)
        parts.append(_select(history, begun, stop, at_version, con, quarantined(store, job, (era.epoch,))).select(list(begun.targets)))
        start = era.stop
    if start is not None and job.start == "keep-position":
        plan = replace(plan, starts=start)
    rows = _select(history, plan, bounds, at_version, con, quarantined(store, job, (job.epoch,)))
    return pa.concat_tables([*parts, rows], promote_options="default").select(rows.column_names) if parts else rows


def earlier_rows(
    store: Store,
    job: JobDescriptor,
    at_version: int | None = None,
    *,
    lake: Lake | None = None,
    column: str = "",
    partitions: frozenset[str] = frozenset(),
) -> Iterator[pa.Table]:
    """What each statement before had written into a primary-key table when it stopped, the newest of them first.

    A job that kept its position leaves rows as they were until they change; one that began afresh left none.
    """
    if job.start != "keep-position":
        return
    recorded = store.progress(job.owner).get(job.owner)
    history = History(store, lake, column, partitions, forgotten_input(store, job, recorded))
    eras = eras_of(recorded)
    before = {item.epoch: item for item in job.earlier}
    for n in range(len(eras) - 1, -1, -1):
        left_out = quarantined(store, job, tuple(era.epoch for era in eras[: n + 1]))
        yield _select(history, plan_job(store, before[eras[n].epoch]), eras[n].stop, at_version, None, left_out)


def _newest(store: Store, plan: JobPlan, at_version: int | None) -> Mapping[str, Offsets]:
    return {name: store.backend.offsets(name, "latest", at_version) for name in plan.source_tables}


def _until(stop: Mapping[str, Offsets], bounds: Mapping[str, Offsets]) -> dict[str, Offsets]:
    """The smaller of two ends of each bucket."""
    return {table: {bucket: min(end, bounds.get(table, {}).get(bucket, 0)) for bucket, end in ends.items()} for table, ends in stop.items()}


def _select(
    history: History,
    plan: JobPlan,
    bounds: Mapping[str, Offsets],
    at_version: int | None,
    con: duckdb.DuckDBPyConnection | None,
    left_out: Mapping[str, pa.Table],
    *,
    is_bounded: bool = False,
) -> pa.Table:
    store, plan = history.store, plan.recomputed
    history.check_dropped(plan)
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
            shown = None
            if is_bounded and at_version is not None and not start:
                shown = history.shown(scan, list(dict.fromkeys(scan.stored_columns)), at_version)
            if not scan.table.has_primary_key:
                _register_log(
                    connection,
                    history,
                    plan,
                    scan,
                    start,
                    stop,
                    without_rows,
                    ordered=ordered,
                    is_timed=is_timed,
                    is_bounded=is_bounded,
                    shown=shown,
                )
            elif shown is not None:
                _register_rows(connection, scan, shown)
            else:
                _register_current(connection, history, plan, scan, stop, at_version, without_rows)
            names.append(source_name(scan))
        for emission in plan.emissions:
            ms = END_MS if is_bounded else _watermark_at(history, emission, plan, bounds, left_out)
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
    listed = ", ".join(f"{sink_cast(plan, name)} AS {quoted(name)}" for name in plan.targets)
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
    history: History, emission: Emission, plan: JobPlan, bounds: Mapping[str, Offsets], left_out: Mapping[str, pa.Table]
) -> int | None:
    """The watermark of an emission's logs at the offsets that bound them, without rows that were left out."""
    if emission.by_commit:
        return least_watermark([passed_ms(_newest_commit(history, scan, plan, bounds, left_out)) for scan in emission.scans])
    marks = []
    for scan in {scan.table.name: scan for scan in emission.scans}.values():
        table = scan.table
        declared = declared_of(table)
        start, stop = plan.starts.get(table.name, {}), bounds.get(table.name, {})
        clock = Clock.at_begin(table)
        for batch in history.log(plan, scan, [declared.column], start, stop, metadata=True, in_order=True):
            rows = pa.Table.from_batches([batch])
            rows = without(rows, left_out[table.name]) if table.name in left_out else rows
            clock = mark(table, rows[declared.column], rows["_commit_timestamp"], rows["_bucket"], clock)[2]
        marks.append(clock.watermark_ms(declared))
    return least_watermark(marks)


def _newest_commit(
    history: History, scan: Scan, plan: JobPlan, bounds: Mapping[str, Offsets], left_out: Mapping[str, pa.Table]
) -> int | None:
    """When the newest of a log's rows was committed; None without any. Errors: InputGone when all of them have expired."""
    name, newest = scan.table.name, None
    start, stop = plan.starts.get(name, {}), dict(sorted(bounds.get(name, {}).items()))
    table = history.store.table(name)
    gaps = gaps_of(table, start, stop)
    held = {**start, **{gap.bucket: gap.held for gap in gaps}}
    for batch in table.scan(scan.stored_columns[:1], start=held, stop=stop, metadata=True):
        rows = pa.Table.from_batches([batch])
        rows = without(rows, left_out[name]) if name in left_out else rows
        if rows.num_rows:
            last = pc.max(rows["_commit_timestamp"].cast(pa.int64())).as_py()
            newest = last if newest is None else max(newest, last)
    if newest is None and gaps:
        raise history.gone(plan, scan, gaps)
    return newest


def _sql_number(value: int | None) -> str:
    return "NULL" if value is None else str(value)


def _register_rows(con: duckdb.DuckDBPyConnection, scan: Scan, rows: pa.Table) -> None:
    """A primary-key table as its rows at a version: no changelog is replayed."""
    name = source_name(scan)
    con.register(f"{name}_log", rows)
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM {name}_log")


def _register_log(
    con: duckdb.DuckDBPyConnection,
    history: History,
    plan: JobPlan,
    scan: Scan,
    start: Offsets,
    stop: Offsets,
    left_out: pa.Table | None,
    *,
    ordered: bool,
    is_timed: bool,
    is_bounded: bool,
    shown: pa.Table | None,
) -> None:
    """A log; `shown`: its rows, where they are read as SELECT reads them."""
    name = source_name(scan)
    listed = ", ".join(quoted(column) for column in scan.stored_columns)
    needs_marks = is_timed and not is_bounded
    has_metadata = ordered or left_out is not None
    if shown is not None:
        rows = shown.to_reader()
    else:
        rows = history.log(plan, scan, scan.stored_columns, start, stop, metadata=has_metadata, in_order=needs_marks)
    if left_out is not None:
        rows = without(rows.read_all(), left_out).to_reader()
    order = ""
    if needs_marks:
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


def _register_current(
    con: duckdb.DuckDBPyConnection,
    history: History,
    plan: JobPlan,
    scan: Scan,
    stop: Offsets,
    at_version: int | None,
    left_out: pa.Table | None,
) -> None:
    """A primary-key table as its changelog leaves it at `stop`."""
    table = history.store.table(scan.table.name)
    name = source_name(scan)
    listed = ", ".join(quoted(column) for column in scan.stored_columns)
    columns = list(dict.fromkeys([*scan.columns, *scan.table.primary_key]))
    if gaps_of(table, {}, stop):
        con.register(f"{name}_log", history.rows(plan, scan, columns, stop, at_version, left_out))
        con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {listed} FROM {name}_log")
        return
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
