"""Materialized views: created with their table and job, refreshed, dropped; and what other statements may not do to them.

Holds: a view is a job whose sink is the view's table (docs/sql.md). Only that job writes the table: a statement of a user is refused.
       A view that is refreshed by hand is filled when it is created; the others are filled by the worker, which begins at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from storage_engine.client.store import Store
from storage_engine.errors import AlreadyExists, InvalidOption, ProgressConflict, StatementRefused, UnknownTable
from storage_engine.schema import statements as st
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.jobs.job import canonical, load_job, load_jobs, set_state
from storage_engine.stream.jobs.options import parse_options
from storage_engine.stream.jobs.submit import submit
from storage_engine.stream.plan.startup import starts_of
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import ENFORCER_OPTION, plan_insert
from storage_engine.stream.planning.view_table import plan_view
from storage_engine.stream.run.runner import JobRunner

KIND = "materialized_view"
_CONFLICTS_MAX = 200
_CONFLICT_PAUSE_S = 0.02


def create(
    store: Store,
    statement: st.CreateMaterializedView,
    settings: Mapping[str, str],
    views: Mapping[str, ViewDefinition],
    functions: Mapping[str, FunctionDefinition],
) -> str:
    """CREATE MATERIALIZED VIEW; a message. Errors: StatementRefused, AlreadyExists."""
    name, where = statement.name, f"line {statement.line}"
    existing = store.objects(KIND)
    if name in existing and (statement.if_not_exists or existing[name].get("sql") == statement.sql):
        return f"materialized view {name} exists"
    _check_clauses(statement, where)
    catalog = StoreCatalog(store, views, functions=functions)
    is_lenient = settings.get(ENFORCER_OPTION, "ERROR").upper() == "DROP" or parse_options(settings, where).quarantines
    backing = plan_view(catalog, name, statement.sql, default_database=statement.database, settings=settings, sets_nulls_aside=is_lenient)
    _check_name(store, statement, backing, catalog.table(name), where)
    plan = plan_insert(catalog, backing, None, statement.sql, job=name, default_database=statement.database, settings=settings)
    starts_of(store, plan.startups, f"materialized view {name}")
    store.create_table(backing, if_not_exists=True)
    submit(
        store,
        name=name,
        sink=name,
        columns=None,
        select=statement.sql,
        text=statement.text,
        database=statement.database,
        settings=settings,
        views=views,
        functions=functions,
        kind="view",
        refresh_s=statement.refresh,
    )
    definition = {
        "sql": statement.sql,
        "refresh_s": statement.refresh,
        "properties": dict(statement.properties),
        "comment": statement.comment,
        "job": name,
        "table": name,
    }
    store.put_object(KIND, name, definition)
    if statement.refresh is not None:
        return f"materialized view {name}"
    return f"materialized view {name}, filled from {_fill(store, name, where)} rows; REFRESH MATERIALIZED VIEW {name} does it again"


def _check_clauses(statement: st.CreateMaterializedView, where: str) -> None:
    """Errors: StatementRefused, InvalidOption for a clause that is understood and would have no effect."""
    if statement.partition_by:
        what = f"PARTITION BY {', '.join(statement.partition_by)}: the table of a materialized view has no partitions"
        remedy = "Leave it out; for Dagster's partitions say 'asset.partitions' in PROPERTIES."
        raise StatementRefused(what, where=where, next_step=remedy)
    for key in statement.properties:
        if not key.startswith("asset."):
            raise InvalidOption(f"property '{key}' of a materialized view is not known", where=where,
                                next_step="Leave it out: PROPERTIES takes asset.* (docs/sql.md, Options of a table).")  # fmt: skip


def _check_name(
    store: Store, statement: st.CreateMaterializedView, backing: TableDescriptor, table: TableDescriptor | None, where: str
) -> None:
    """Errors: AlreadyExists for a view of that name, and for a table or job of that name which is not this view's."""
    name = statement.name
    if name in store.objects(KIND):
        raise AlreadyExists(f"materialized view {name} exists with another query", where=where,
                            next_step=f"DROP MATERIALIZED VIEW {name}; DROP JOB {name}; DROP TABLE {name} before it.")  # fmt: skip
    job = load_jobs(store).get(name)
    if job is not None and job.kind == "view" and (table is None or canonical(job.select) != canonical(statement.sql)):
        forgotten = f"DROP JOB {name}" + (f"; DROP TABLE {name}" if table is not None else "")
        raise AlreadyExists(f"{name} was a materialized view with another query, whose job and rows are still there", where=where,
                            next_step=f"{forgotten} before it.")  # fmt: skip
    if table is not None and not _is_same_table(table, backing):
        raise AlreadyExists(f"table {name} exists", where=where, next_step="Choose another name for the view.")


def _is_same_table(left: TableDescriptor, right: TableDescriptor) -> bool:
    """True when both have the same columns and key: left over from a statement that was cut short, or from a view that was dropped."""
    return [(c.name, c.type) for c in left.columns] == [(c.name, c.type) for c in right.columns] and left.primary_key == right.primary_key


def drop(store: Store, statement: st.DropView) -> str:
    """DROP MATERIALIZED VIEW; a message. Errors: UnknownTable."""
    name = statement.name
    view = store.objects(KIND).get(name)
    if view is None:
        if statement.if_exists:
            return f"there is no materialized view {name}"
        raise _unknown(name, statement.line)
    set_state(store, load_job(store, view["job"]).name, "STOPPED")
    store.drop_object(KIND, name)
    return f"dropped materialized view {name}; its rows stay in table {name}, until DROP JOB {name}; DROP TABLE {name}"


def refresh(store: Store, statement: st.RefreshMaterializedView) -> str:
    """REFRESH MATERIALIZED VIEW: its job runs here until its sources have no more rows; a message.

    Errors: UnknownTable, StatementRefused.
    """
    view = store.objects(KIND).get(statement.name)
    if view is None:
        raise _unknown(statement.name, statement.line)
    return f"refreshed {statement.name}: {_fill(store, view['job'], f'line {statement.line}')} rows read"


def _fill(store: Store, job: str, where: str) -> int:
    """The rows read. A worker may run the job as well: who comes second goes on from where the first has left it."""
    n_rows = n_conflicts = 0
    runner: JobRunner | None = None
    try:
        while True:
            try:
                runner = runner or JobRunner(store, load_job(store, job))
                taken = runner.step()
            except ProgressConflict:
                n_conflicts += 1
                if n_conflicts == _CONFLICTS_MAX:
                    raise
                time.sleep(_CONFLICT_PAUSE_S)
                continue
            if not taken:
                return n_rows
            n_rows += taken
    except (duckdb.Error, pa.ArrowException) as error:
        what = f"materialized view {job} cannot be filled: {str(error).splitlines()[0]}"
        remedy = f"DROP MATERIALIZED VIEW {job}, and write its query so that such rows do not fail (TRY_CAST, COALESCE, WHERE)."
        raise StatementRefused(what, where=where, next_step=remedy) from error
    finally:
        if runner is not None:
            runner.close()


def check_is_no_view(store: Store, table: str, where: str) -> None:
    """Errors: StatementRefused when a user's statement would write, or drop, the table of a materialized view."""
    for name, view in store.objects(KIND).items():
        if view.get("table", name) == table:
            raise StatementRefused(f"{table} holds the rows of materialized view {name}: only the view's job writes it", where=where,
                                   next_step=f"Write the tables that the view reads, or DROP MATERIALIZED VIEW {name} first.")  # fmt: skip


def _unknown(name: str, line: int) -> UnknownTable:
    return UnknownTable(f"there is no materialized view {name}", where=f"line {line}", next_step="SHOW VIEWS lists them.")
