"""Batch: the same statement computed at once over bounded inputs: what a job's output must equal.

Inputs are the sources up to given offsets (a job's recorded ones), read from the log: log tables as they are, primary-key
tables as the last change per key leaves them. Aggregates run over everything; no state, no deltas, no micro-batches.
Lookup joins see the tables as they are now, or at a version; EXPLAIN says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.client.store import Store
from storage_engine.schema.descriptor import Offsets
from storage_engine.stream.compile import POSITION, lookup_name, quoted, relation, source_name
from storage_engine.stream.execute import Outcome, enforce_not_null
from storage_engine.stream.functions import open_connection
from storage_engine.stream.job import JobDescriptor, plan_job
from storage_engine.stream.plan import LookupJoin, Scan, lookups, scans
from storage_engine.stream.planner import JobPlan
from storage_engine.stream.point_reads import newest_partition
from storage_engine.stream.python_functions import function_failure, register
from storage_engine.stream.sqltypes import parse_type

ORDER = "__order"


def batch_select(
    store: Store,
    job: JobDescriptor | JobPlan,
    *,
    offsets: Mapping[str, Offsets] | None = None,
    at_version: int | None = None,
    con: duckdb.DuckDBPyConnection | None = None,
) -> pa.Table:
    """The rows a job's sink must hold, in the sink's target columns and types.

    offsets     next offset per bucket of each source; None: those of `at_version`, else the job's recorded ones, else the newest
    at_version  a version of the store; primary-key tables of lookup joins are read at it
    Errors: OffsetOutOfRange when the log no longer reaches back to the start.
    """
    plan = job if isinstance(job, JobPlan) else plan_job(store, job)
    if offsets is None and at_version is None and isinstance(job, JobDescriptor):
        recorded = store.progress(job.owner).get(job.owner)
        offsets = recorded.offsets if recorded else {}
    bounds = offsets if offsets is not None else {name: store.backend.offsets(name, "latest", at_version) for name in plan.source_tables}
    own = con is None
    connection = con or open_connection()
    names: list[str] = []
    what = f"batch of {plan.sink.name}"
    register(connection, plan.functions, what)
    try:
        for scan in scans(plan.root):
            ordered = _is_last_row(plan) or scan.id in plan.positioned_scans
            start, stop = plan.starts.get(scan.table.name, {}), bounds.get(scan.table.name, {})
            _register_scan(connection, store, scan, start, stop, ordered=ordered)
            names.append(source_name(scan))
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
    body = relation(plan.root, batch=True, carried=(ORDER,) if _is_last_row(plan) else ())
    if _is_last_row(plan):
        keys = ", ".join(quoted(name) for name in plan.sink.primary_key)
        body = f"SELECT * FROM ({body}) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {_kept_first(plan)}) = 1"
    return f"SELECT {listed} FROM ({body})"


def _is_last_row(plan: JobPlan) -> bool:
    """True when appended rows meet by key and one of them stays as it is."""
    return plan.sink.has_primary_key and not plan.root.is_retracting and plan.sink.merge_engine != "aggregation"


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


def _register_scan(con: duckdb.DuckDBPyConnection, store: Store, scan: Scan, start: Offsets, stop: Offsets, *, ordered: bool) -> None:
    table = store.table(scan.table.name)
    name = source_name(scan)
    listed = ", ".join(quoted(column) for column in scan.columns)
    if not scan.table.has_primary_key:
        con.register(f"{name}_log", table.scan(list(scan.columns), start=start, stop=stop, metadata=ordered))
        order = ""
        if ordered:
            order = f", (_commit_timestamp, _bucket, _log_offset) AS {ORDER}, epoch_ms(_commit_timestamp) AS {POSITION[0]}"
            metadata = ("_partition", "_bucket", "_log_offset")
            order += "".join(f", {given} AS {name}" for given, name in zip(metadata, POSITION[1:], strict=True))
        con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {listed}{order} FROM {name}_log")
        return
    columns = list(dict.fromkeys([*scan.columns, *scan.table.primary_key]))
    changes = table.scan(columns, stop=stop).read_all()  # in the order of the commits; a rescaled key has changes in two buckets
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
