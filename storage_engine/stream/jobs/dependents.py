"""Dependents: the jobs and views that an ALTER TABLE or a DROP TABLE would break; it is refused, with the first of them named.

A job depends on a column when it can no longer be planned without it, or is planned to something else. A stopped job depends on
nothing: it is planned again, or refused, when it is submitted again. A view depends on the columns that its text names, and on all of
them through `*`.
Holds: nothing is changed here. A job submitted at the same moment fails with the reason when it is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlglot import exp

from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError, StatementRefused
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.dialect.syntax import parse_select, table_name
from storage_engine.stream.jobs.job import JobDescriptor, load_jobs, plan_job, written_name
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.planning.explain import explain

_VIRTUAL = ("$changelog", "$binlog", "$lake")


def check_dependents(store: Store, current: TableDescriptor, wanted: TableDescriptor) -> None:
    """Errors: StatementRefused naming a running job, a view or a materialized view that uses a column which is renamed, dropped or
    retyped in a way that it cannot follow.
    """
    gone = _gone(current, wanted)
    kept = {column.field_id: column for column in wanted.columns}
    is_retyped = any(column.field_id in kept and kept[column.field_id].type != column.type for column in current.columns)
    if not gone and not is_retyped:
        return
    for job in load_jobs(store).values():
        if job.state in ("RUNNING", "PAUSED"):
            _check_job(store, job, current, wanted, gone)
    if gone:
        _check_views(store, current.name, gone)


def check_droppable(store: Store, table: str) -> None:
    """Errors: StatementRefused naming a job that runs or is paused, or a view, which reads or writes the table; or, whatever its state, the
    job that keeps its state in it.
    """
    where = f"DROP TABLE {table}"
    for job in load_jobs(store).values():
        if job.state == "DROPPING":
            continue
        name = written_name(job.name)
        if table in (job.state_tables or ()):
            raise StatementRefused(f"job {job.name} keeps its state in {table}", where=where, next_step=f"DROP JOB {name} drops it.")
        does = "writes" if job.sink == table else "reads" if table in _read_by(store, job) else ""
        if does and job.state in ("RUNNING", "PAUSED"):
            is_view = job.kind == "view"
            what = f"materialized view {job.name}" if is_view else f"job {job.name}"
            remedy = f"DROP MATERIALIZED VIEW {job.name} first." if is_view else f"STOP JOB {name}; DROP JOB {name} first."
            raise StatementRefused(f"{what} {does} {table}", where=where, next_step=remedy)
    for view_name, view in store.objects("view").items():
        if table in _tables_of_view(view):
            raise StatementRefused(f"view {view_name} reads {table}", where=where, next_step=f"DROP VIEW {view_name} first.")


def _read_by(store: Store, job: JobDescriptor) -> set[str]:
    if job.known:
        return set(job.known)
    try:  # stored before they were recorded
        plan = plan_job(store, job)
    except FlashlakeError:
        return set()
    return {*plan.source_tables, *plan.lookup_tables}


def _tables_of_view(view: Mapping[str, Any]) -> set[str]:
    """The tables that a view's text names; none for a text that cannot be read."""
    try:
        tree = parse_select(str(view["sql"]))
    except StatementRefused:
        return set()
    named = {table_name(node, str(view.get("database") or "")) for node in tree.find_all(exp.Table)}
    return {name.partition("$")[0] for name in named}


def _gone(current: TableDescriptor, wanted: TableDescriptor) -> set[str]:
    """Names under which a column is no longer to be found."""
    names = {column.field_id: column.name for column in wanted.columns}
    return {column.name for column in current.columns if names.get(column.field_id) != column.name}


def _check_job(store: Store, job: JobDescriptor, current: TableDescriptor, wanted: TableDescriptor, gone: set[str]) -> None:
    try:
        before = plan_job(store, job)
    except FlashlakeError:  # it does not run as things are: nothing can be broken
        return
    if any(table.name == current.name for table in before.state_tables):
        raise _refused(job, current, "it is a state table of the job")
    try:
        after = plan_job(store, job, altered=wanted)
    except FlashlakeError as error:
        raise _refused(job, current, error.what) from error
    if _states(before) != _states(after):
        raise _refused(job, current, "its stored state has another type")
    if gone and _meaning(before) != _meaning(after):
        raise _refused(job, current, "it would compute something else")


def _states(plan: JobPlan) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(table.name, [(column.name, column.type) for column in table.columns]) for table in plan.state_tables]


def _meaning(plan: JobPlan) -> list[str]:
    """The plan as text, but for which column a COUNT(*) happens to read."""
    return [line for line in explain(plan) if not line.lstrip().startswith("Scan ")]


def _check_views(store: Store, table: str, gone: set[str]) -> None:
    for name, view in store.objects("view").items():
        try:
            tree = parse_select(str(view["sql"]))
        except StatementRefused:  # it cannot be used as it is
            continue
        database = str(view.get("database") or "")
        reads = {table_name(node, database) for node in tree.find_all(exp.Table)}
        if reads.isdisjoint((table, *(table + suffix for suffix in _VIRTUAL))):
            continue
        named = {column.name for column in tree.find_all(exp.Column)}
        used = sorted(gone & named)
        if used or any(not isinstance(star.parent, exp.Anonymous | exp.Count) for star in tree.find_all(exp.Star)):
            column = used[0] if used else sorted(gone)[0]
            raise StatementRefused(
                f"view {name} uses column {column} of {table}",
                where=f"ALTER TABLE {table}",
                next_step=f"DROP VIEW {name} first, and create it again from the present columns.",
            )


def _refused(job: JobDescriptor, table: TableDescriptor, reason: str) -> StatementRefused:
    what, remedy = (
        ("materialized view", f"DROP MATERIALIZED VIEW {job.name} first, and create it again from the present columns.")
        if job.kind == "view"
        else ("job", f"STOP JOB {written_name(job.name)} first, and submit it again in terms of the present columns.")
    )
    return StatementRefused(
        f"{what} {job.name} depends on a column of {table.name}: {reason}", where=f"ALTER TABLE {table.name}", next_step=remedy
    )
