"""Operate: what people do with a stored job: stop, pause, resume, drop it, change how it is run. One function per statement.

Holds: a job that is being dropped is marked DROPPING before anything of it goes, and its definition goes last: cut short anywhere, it
       neither runs nor is resumed, and DROP JOB said again finishes it. What the job has written, and its rows in quarantine, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from storage_engine.client.store import Store
from storage_engine.errors import AccessDenied, FlashlakeError, InvalidOption, StatementRefused
from storage_engine.schema import statements as st
from storage_engine.stream.jobs.job import KIND, JobDescriptor, load_job, load_jobs, plan_job, save_job, set_state, written_name
from storage_engine.stream.jobs.options import JOB_SETTINGS, OPERATING_OPTIONS, check_value, parse_options
from storage_engine.stream.jobs.quarantine import check_quarantines, create_quarantine


def stop(store: Store, name: str) -> str:
    """Stop a job until it is resumed or submitted again; a message. Its tables may be altered meanwhile."""
    job = load_job(store, name)
    if job.state not in ("RUNNING", "PAUSED"):
        return f"job {name} is {job.state}"
    set_state(store, name, "STOPPED")
    return f"stopped job {name}"


def pause(store: Store, name: str) -> str:
    """Let a running job rest until it is resumed; a message."""
    job = load_job(store, name)
    if job.state != "RUNNING":
        return f"job {name} is {job.state}"
    set_state(store, name, "PAUSED")
    return f"paused job {name}"


def resume(store: Store, name: str) -> str:
    """Let a paused, stopped or failed job go on from where it was; a message. Errors: StatementRefused when it can no longer be planned."""
    job = load_job(store, name)
    check_not_dropping(job)
    if job.state == "RUNNING":
        return f"job {name} runs already"
    plan_job(store, job)
    set_state(store, name, "RUNNING")
    return f"resumed job {name}, which was {job.state}"


def drop(store: Store, name: str, *, if_exists: bool = False) -> str:
    """Forget a stopped or failed job: its definition, its progress and its state tables; a message. Its sink keeps its rows.

    Errors: UnknownTable when there is none; StatementRefused for one that runs or is paused, and for that of a materialized view.
    """
    jobs = load_jobs(store)
    if if_exists and name not in jobs:
        return f"there is no job {name}"
    job = jobs.get(name) or load_job(store, name)
    if job.kind == "view" and name in store.objects("materialized_view"):
        raise StatementRefused(f"job {name} keeps a materialized view", where=f"job {name}", next_step=f"DROP MATERIALIZED VIEW {name}.")
    if job.state in ("RUNNING", "PAUSED"):
        raise StatementRefused(f"job {name} is {job.state}", where=f"job {name}", next_step=f"STOP JOB {written_name(name)} first.")
    others = {table for other in jobs.values() if other.name != name for table in other.state_tables or ()}
    states = [table for table in _state_tables(store, job) if table not in others]
    save_job(store, replace(job, state="DROPPING"))
    dropped = 0
    try:
        for table in states:
            store.backend.drop_table(table, if_exists=True)
            dropped += 1
    except AccessDenied:
        if not dropped and job.state != "DROPPING":  # nothing is gone yet: the job is as it was
            save_job(store, job)
        raise
    store.backend.drop_progress(job.owner)
    store.drop_object(KIND, name)
    return f"dropped job {name}; its rows stay in table {job.sink}"


def _state_tables(store: Store, job: JobDescriptor) -> tuple[str, ...]:
    """The tables that hold only this job's state. Of a job stored before they were recorded: those of its plan, if there is one."""
    if job.state_tables is not None:
        return job.state_tables
    try:
        return tuple(table.name for table in plan_job(store, job).state_tables)
    except FlashlakeError:
        return ()


def alter(store: Store, name: str, sets: Mapping[str, str], resets: tuple[str, ...] = ()) -> str:
    """Change how a job is run, not what it computes; a message. A worker that runs it goes on with the new options within seconds.

    Errors: InvalidOption for a key or a value that is not known, StatementRefused for an option that does not fit the job.
    """
    job = load_job(store, name)
    check_not_dropping(job)
    for key in (*sets, *resets):
        if key not in OPERATING_OPTIONS:
            raise InvalidOption(
                f"'{key}' is no option of a running job", where=f"job {name}",
                next_step=f"ALTER JOB knows {', '.join(OPERATING_OPTIONS)}; what a job computes is changed by 'pipeline.upgrade'.",
            )  # fmt: skip
    for key, value in sets.items():
        check_value(key, value, JOB_SETTINGS[key], f"job {name}")
    altered = replace(job, settings={key: value for key, value in {**job.settings, **sets}.items() if key not in resets})
    parse_options(altered.settings, f"job {name}")
    if altered.options.quarantines and not job.options.quarantines:
        check_quarantines(altered, plan_job(store, altered))
        create_quarantine(store, altered)
    if altered != job:
        save_job(store, altered)
    return f"altered job {name}"


def check_not_dropping(job: JobDescriptor) -> None:
    """Errors: StatementRefused for a job whose DROP JOB was cut short."""
    if job.state == "DROPPING":
        raise StatementRefused(
            f"job {job.name} is being dropped: part of its state is gone",
            where=f"job {job.name}",
            next_step=f"DROP JOB {written_name(job.name)} again finishes it.",
        )


ANSWERS: dict[type, Callable[[Store, Any], str]] = {
    st.StopJob: lambda store, statement: stop(store, statement.name),
    st.PauseJob: lambda store, statement: pause(store, statement.name),
    st.ResumeJob: lambda store, statement: resume(store, statement.name),
    st.DropJob: lambda store, statement: drop(store, statement.name, if_exists=statement.if_exists),
    st.AlterJobSet: lambda store, statement: alter(store, statement.name, statement.options),
    st.AlterJobReset: lambda store, statement: alter(store, statement.name, {}, statement.keys),
}
"""What each statement does; the answer is its message."""
