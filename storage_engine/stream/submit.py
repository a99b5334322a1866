"""Submit: from a statement to a stored job: planned, its state tables made, its claims on sink columns checked.

Holds: what cannot run is refused before anything is stored. Submitting the same job again changes nothing (a stopped or failed
       one starts again where it was); another definition under the same name is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import duckdb

from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.errors import AlreadyExists, StatementRefused
from storage_engine.stream.bind import ViewDefinition
from storage_engine.stream.catalog import StoreCatalog
from storage_engine.stream.job import PLANNING_OPTIONS, JobDescriptor, load_jobs, owner_of, save_job, state_name
from storage_engine.stream.planner import JobPlan, plan_insert
from storage_engine.stream.python_functions import FunctionDefinition, register
from storage_engine.stream.startup import starts_of


def submit(
    store: Store,
    *,
    name: str,
    sink: str,
    columns: tuple[str, ...] | None,
    select: str,
    text: str,
    database: str,
    settings: Mapping[str, str],
    views: Mapping[str, ViewDefinition],
    functions: Mapping[str, FunctionDefinition],
    kind: str = "insert",
    refresh_s: float | None = 0.0,
    first_line: int = 1,
    alongside: Sequence[JobDescriptor] = (),
    stores: bool = True,
) -> tuple[JobDescriptor, str]:
    """Store a continuous job; the job and a message.

    alongside  jobs that are about to be stored with it; `stores` False: everything is checked and nothing stored
    Errors: StatementRefused, UnknownTable, AlreadyExists for another definition under the same name.
    """
    kept_settings = {key: settings[key] for key in PLANNING_OPTIONS if key in settings}
    existing = {**load_jobs(store), **{other.name: other for other in alongside}}
    if columns is None and name in existing and existing[name].sink == sink:
        columns = existing[name].targets  # the table may have grown since; the job writes what it wrote
    known = existing[name].known if name in existing else {}
    catalog = StoreCatalog(store, views, known, functions=functions)
    plan = plan_insert(
        catalog,
        store.describe(sink),
        columns,
        select,
        job=state_name(name),
        default_database=database,
        settings=kept_settings,
        first_line=first_line,
    )
    job = JobDescriptor(
        name=name,
        sink=sink,
        select=select,
        text=text,
        kind="view" if kind == "view" else "insert",
        database=database,
        settings=kept_settings,
        views=plan.views,
        functions=plan.functions,
        targets=plan.targets,
        kept=plan.kept_columns,
        known=known or _columns_read(catalog, plan),
        refresh_s=refresh_s,
        starts={} if name in existing else starts_of(store, plan.startups, f"job {name}"),
        submitted_ms=time.time_ns() // 1_000_000,
    )
    if name in existing and not stores:
        return job, ""
    if name in existing:
        return _again(store, existing[name], job)
    _check_claims(job, existing)
    _check_empty(store, plan, name)
    _check_name(name, existing)
    with closing(duckdb.connect()) as con:  # a function that cannot be imported here is said now, not in the worker's log
        register(con, plan.functions, f"job {name}")
    if not stores:
        return job, ""
    for table in plan.state_tables:
        store.create_table(table, if_not_exists=True)
    if job.starts:  # before the job, which would begin at the beginning without it
        store.commit((), [Progress(job.owner, job.starts)])
    save_job(store, job)
    return job, "; ".join([f"job {name} runs", *plan.notices])


def _columns_read(catalog: StoreCatalog, plan: JobPlan) -> dict[str, tuple[str, ...]]:
    """The columns of the tables that a job reads, as they are now."""
    tables = [table for name in (*plan.source_tables, *plan.lookup_tables) if (table := catalog.table(name)) is not None]
    return {table.name: table.column_names for table in tables}


def _again(store: Store, known: JobDescriptor, job: JobDescriptor) -> tuple[JobDescriptor, str]:
    if not known.is_same_definition(job):
        raise AlreadyExists(
            f"job {job.name} exists with another definition",
            where=f"job {job.name}",
            next_step="Name the new one with SET 'pipeline.name' = '...', or keep the old statement.",
        )
    if known.state == "RUNNING":
        return known, f"job {job.name} runs already"
    restarted = replace(known, state="RUNNING", last_error="")
    save_job(store, restarted)
    return restarted, f"job {job.name} runs again, from where it was"


def _check_claims(job: JobDescriptor, existing: Mapping[str, JobDescriptor]) -> None:
    """Columns that hold a job's state belong to that job."""
    for other in existing.values():
        if other.sink != job.sink:
            continue
        shared = sorted((set(job.kept) & set(other.targets)) | (set(other.kept) & set(job.targets)))
        if shared:
            raise StatementRefused(
                f"column {shared[0]} of {job.sink} is kept by job {other.name}: two jobs cannot add up in one column",
                where=f"job {job.name}",
                next_step="Write other columns, or a table with 'table.merge-engine' = 'aggregation', where several jobs may add up.",
            )


def _check_empty(store: Store, plan: JobPlan, name: str) -> None:
    """A running total starts from nothing: values that are there already would be added to."""
    if not plan.kept_columns or store.progress(owner_of(name)).get(owner_of(name)) is not None:
        return
    rows = store.table(plan.sink.name).read(list(plan.kept_columns))
    for column in plan.kept_columns:
        if rows[column].null_count < rows.num_rows:
            raise StatementRefused(
                f"column {column} of {plan.sink.name} has values already, and job {name} would add to them",
                where=f"job {name}",
                next_step="Write to an empty table or to new columns, or SET 'execution.runtime-mode' = 'batch' to overwrite them once.",
            )


def _check_name(name: str, existing: Mapping[str, JobDescriptor]) -> None:
    twin = next((other for other in existing if state_name(other) == state_name(name)), None)
    if twin is not None:
        raise AlreadyExists(
            f"job {name} would share its state tables with job {twin}", where=f"job {name}", next_step="Choose another name."
        )
