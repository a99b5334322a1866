"""Submit: from a statement to a stored job: planned, its state tables made, its claims on sink columns checked.

Holds: what cannot run is refused before anything is stored. Submitting the same job again changes its options at most (a stopped,
       paused or failed one starts again where it was); another definition under the same name is an upgrade (upgrade.py), or refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import duckdb

from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.errors import AlreadyExists, StatementRefused
from storage_engine.stream.functions.python_functions import FunctionDefinition, register
from storage_engine.stream.jobs.job import (
    PLANNING_OPTIONS,
    JobDescriptor,
    canonical,
    check_same_tables,
    load_jobs,
    plan_job,
    save_job,
    state_name,
)
from storage_engine.stream.jobs.operate import check_not_dropping
from storage_engine.stream.jobs.options import OPERATING_OPTIONS, UPGRADE_OPTION, parse_options
from storage_engine.stream.jobs.quarantine import check_quarantines, create_quarantine, next_epoch
from storage_engine.stream.jobs.upgrade import CHOICES, upgraded
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.startup import starts_of
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import LAYOUT, plan_insert


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
    kept_settings = {key: settings[key] for key in (*PLANNING_OPTIONS, *OPERATING_OPTIONS) if key in settings}
    parse_options(kept_settings, f"job {name}")
    existing = {**load_jobs(store), **{other.name: other for other in alongside}}
    statement = _Statement(name, sink, columns, select, text, database, kept_settings, functions, kind, refresh_s, first_line)
    known = existing.get(name)
    if known is not None:
        check_not_dropping(known)
        if _may_be_same(known, statement):
            again, _ = statement.planned(store, views, known)
            if known.is_same_definition(again):
                return _again(store, known, again) if stores else (again, "")
        return _replaced(store, known, statement, views, settings, existing, stores=stores)
    job, plan = statement.planned(store, views, None)
    job = replace(job, starts=starts_of(store, plan.startups, f"job {name}"), epoch=next_epoch(store, job))
    _check_claims(job, existing)
    _check_empty(store, plan, name)
    _check_name(job, existing)
    _check_functions(plan, name)
    if not stores:
        return job, ""
    is_recorded = store.progress(job.owner).get(job.owner) is not None  # asked first: a store without jobs says so before it has new tables
    _make_tables(store, job, plan)
    if is_recorded:  # of a submission that was cut short, or a dropped job's last micro-batch
        store.backend.drop_progress(job.owner)
    if job.starts:  # before the job, which would begin at the beginning without it
        store.commit((), [Progress(job.owner, job.starts)])
    save_job(store, job)
    return job, "; ".join([f"job {name} runs", *plan.notices])


@dataclass(frozen=True)
class _Statement:
    """A job as it was written."""

    name: str
    sink: str
    columns: tuple[str, ...] | None
    select: str
    text: str
    database: str
    settings: Mapping[str, str]
    functions: Mapping[str, FunctionDefinition]
    kind: str
    refresh_s: float | None
    first_line: int

    def planned(
        self,
        store: Store,
        views: Mapping[str, ViewDefinition],
        known: JobDescriptor | None,
        prefix: str | None = None,
        layout: int = LAYOUT,
    ) -> tuple[JobDescriptor, JobPlan]:
        """The job and its plan. `known`: the job of this name, whose table may have grown since: it writes and reads what it did.

        prefix, layout  of its state tables, where they are not those of `known` or of a new job
        """
        catalog = StoreCatalog(store, views, known.known if known else {}, functions=self.functions)
        layout = known.layout if known else layout
        plan = plan_insert(
            catalog,
            store.describe(self.sink),
            self.columns or (known.targets if known else None),
            self.select,
            job=prefix or (known.state_prefix if known else state_name(self.name)),
            default_database=self.database,
            settings=self.settings,
            first_line=self.first_line,
            layout=layout,
        )
        job = JobDescriptor(
            name=self.name,
            sink=self.sink,
            select=self.select,
            text=self.text,
            kind="view" if self.kind == "view" else "insert",
            database=self.database,
            settings=self.settings,
            views=plan.views,
            functions=plan.functions,
            targets=plan.targets,
            kept=plan.kept_columns,
            known=(known.known if known else {}) or _columns_read(catalog, plan),
            refresh_s=self.refresh_s,
            submitted_ms=time.time_ns() // 1_000_000,
            state_tables=tuple(table.name for table in plan.state_tables),
            layout=layout,
            table_ids=_ids_of(catalog, plan),
        )
        return job, plan


def _may_be_same(known: JobDescriptor, statement: _Statement) -> bool:
    """False when the texts differ already; a text that is the same may still mean another thing, through its views."""
    is_same_text = known.sink == statement.sink and canonical(known.select) == canonical(statement.select)
    return is_same_text and statement.columns in (None, known.targets)


def _replaced(
    store: Store,
    known: JobDescriptor,
    statement: _Statement,
    views: Mapping[str, ViewDefinition],
    settings: Mapping[str, str],
    existing: Mapping[str, JobDescriptor],
    *,
    stores: bool,
) -> tuple[JobDescriptor, str]:
    """Another statement under the name of a job: an upgrade, as the setting says. Errors: AlreadyExists when it says nothing."""
    choice = settings.get(UPGRADE_OPTION, "refuse").lower()
    keeps = choice == "keep-position"
    prefix = known.state_prefix if keeps else replace(known, state_epoch=known.epoch + 1).state_prefix
    job, plan = statement.planned(store, views, None, prefix, known.layout if keeps else LAYOUT)
    if statement.sink != known.sink:
        raise StatementRefused(
            f"job {known.name} writes {known.sink}, the new statement writes {statement.sink}",
            where=f"job {known.name}",
            next_step="STOP JOB, and give the job of the other table another name.",
        )
    if choice == "refuse" or known.kind == "view":
        step = CHOICES if known.kind == "insert" else f"DROP MATERIALIZED VIEW {known.name} first."
        raise AlreadyExists(f"job {known.name} exists with another definition", where=f"job {known.name}", next_step=step)
    others = {name: other for name, other in existing.items() if name != known.name}
    _check_claims(job, others)
    if not keeps and plan.sink.has_primary_key:
        _check_alone(job, plan, others)
    job = upgraded(store, known, job, plan, plan_job(store, known) if keeps else plan, settings)
    _check_name(job, others)
    _check_functions(plan, job.name)
    if not stores:
        return job, ""
    _make_tables(store, job, plan)
    save_job(store, job)
    for table in set(known.state_tables or ()) - set(job.state_tables or ()):
        store.backend.drop_table(table, if_exists=True)
    begins = {"keep-position": "from where it was", "replay": "from the beginning", "latest": "from now on"}.get(choice, "from the moment")
    return job, "; ".join([f"job {job.name} is upgraded and goes on {begins}", *plan.notices])


def _check_functions(plan: JobPlan, name: str) -> None:
    """A function that cannot be imported here is said now, not in the worker's log."""
    with closing(duckdb.connect()) as con:
        register(con, plan.functions, f"job {name}")


def _make_tables(store: Store, job: JobDescriptor, plan: JobPlan) -> None:
    if job.options.quarantines:
        check_quarantines(job, plan)
        create_quarantine(store, job)
    for table in plan.state_tables:
        store.create_table(table, if_not_exists=True)


def _check_alone(job: JobDescriptor, plan: JobPlan, others: Mapping[str, JobDescriptor]) -> None:
    """What a job has written can leave the sink only when no other job writes the same columns."""
    for other in others.values():
        shared = sorted(set(plan.value_columns) & set(other.targets))
        if other.sink == job.sink and (shared or not plan.value_columns):
            raise StatementRefused(
                f"job {other.name} writes {job.sink} too: whose rows are whose cannot be told, so those of {job.name} cannot be taken out",
                where=f"job {job.name}",
                next_step=f"SET '{UPGRADE_OPTION}' = 'keep-position', or write to another table.",
            )


def _columns_read(catalog: StoreCatalog, plan: JobPlan) -> dict[str, tuple[str, ...]]:
    """The columns of the tables that a job reads, as they are now."""
    tables = [table for name in (*plan.source_tables, *plan.lookup_tables) if (table := catalog.table(name)) is not None]
    return {table.name: table.column_names for table in tables}


def _ids_of(catalog: StoreCatalog, plan: JobPlan) -> dict[str, int]:
    """Which tables the job takes rows from and writes. A looked-up table may be replaced: a lookup sees what is there at its moment."""
    tables = [table for name in (*plan.source_tables, plan.sink.name) if (table := catalog.table(name)) is not None]
    return {table.name: table.table_id for table in tables}


def _again(store: Store, known: JobDescriptor, job: JobDescriptor) -> tuple[JobDescriptor, str]:
    """The same statement: the job runs, with the options of now."""
    check_same_tables(known, job.table_ids)
    if known.state == "RUNNING" and known.options == job.options:
        return known, f"job {job.name} runs already"
    restarted = replace(known, state="RUNNING", last_error="", settings=job.settings)
    if restarted.options.quarantines:
        check_quarantines(restarted, plan_job(store, restarted))
        create_quarantine(store, restarted)
    save_job(store, restarted)
    if known.state == "RUNNING":
        return restarted, f"job {job.name} goes on with other options"
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
    if not plan.kept_columns:
        return
    rows = store.table(plan.sink.name).read(list(plan.kept_columns))
    for column in plan.kept_columns:
        if rows[column].null_count < rows.num_rows:
            raise StatementRefused(
                f"column {column} of {plan.sink.name} has values already, and job {name} would add to them",
                where=f"job {name}",
                next_step="Write to an empty table or to new columns, or SET 'execution.runtime-mode' = 'batch' to overwrite them once.",
            )


def _check_name(job: JobDescriptor, existing: Mapping[str, JobDescriptor]) -> None:
    twin = next((other.name for other in existing.values() if other.state_prefix == job.state_prefix), None)
    if twin is not None:
        raise AlreadyExists(
            f"job {job.name} would share its state tables with job {twin}", where=f"job {job.name}", next_step="Choose another name."
        )
