"""Facts: how each job is doing, for SQL, the command line and the metrics' page: read in one pass, without planning.

    lag_rows        rows of the sources that the job has not read; lag_ms the age of the oldest of them, 0 without any
    rows_per_s      input rows per second over the last seconds, faded to now (rates.py)
    state_rows, state_bytes   what its state tables hold now, and the bytes of their changelogs; 0 where the state is in the sink
    watermark_ms    event time that the job has passed; None for a job without event time
    worker          the worker process that runs it, where workers are a group

Cost: offsets and statistics of every source, once per source, however many jobs read it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import pyarrow.compute as pc

from storage_engine.api import JOB_PREFIX, Progress
from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError
from storage_engine.schema.descriptor import Offsets
from storage_engine.stream.jobs.job import JobDescriptor, load_jobs, plan_job
from storage_engine.stream.jobs.rates import COUNTERS, rate
from storage_engine.stream.operators.inputs import rows_between
from storage_engine.stream.run.worker_group import OWNER as GROUP
from storage_engine.stream.run.worker_group import share_of


@dataclass(frozen=True)
class JobFacts:
    """One job. None: not known, as the lag of a job whose source is gone."""

    job: str
    state: str
    kind: str
    sink: str
    lag_rows: int | None
    lag_ms: int | None
    rows_per_s: float
    n_rows_in: int
    n_rows_out: int
    n_dropped_nulls: int
    n_late_rows: int
    n_quarantined: int
    n_batches: int
    batch_ms: float
    watermark_ms: int | None
    state_rows: int
    state_bytes: int
    version: int
    epoch: int
    worker: str
    last_error: str


FACTS = tuple(item.name for item in fields(JobFacts))


def facts_of(store: Store, jobs: Iterable[JobDescriptor] | None = None) -> list[JobFacts]:
    """The facts of these jobs (None: of all), by name."""
    everything = load_jobs(store)
    wanted = sorted(everything.values() if jobs is None else jobs, key=lambda job: job.name)
    progress = store.progress(JOB_PREFIX)
    workers = _workers(store, everything)
    latest: dict[str, Offsets] = {}
    return [_facts(store, job, progress.get(job.owner), workers.get(job.name, ""), latest) for job in wanted]


def _facts(store: Store, job: JobDescriptor, recorded: Progress | None, worker: str, latest: dict[str, Offsets]) -> JobFacts:
    detail = recorded.detail if recorded else {}
    lag_rows, lag_ms = _lag(store, job, recorded.offsets if recorded else {}, latest)
    state_rows, state_bytes = _state(store, job)
    watermark = detail.get("watermark_ms", detail.get("watermark"))
    return JobFacts(
        job=job.name,
        state=job.state,
        kind=job.kind,
        sink=job.sink,
        lag_rows=lag_rows,
        lag_ms=lag_ms,
        rows_per_s=round(rate(detail, time.time_ns() // 1_000_000), 1),
        **{name: int(detail.get(name, 0)) for name in COUNTERS},
        batch_ms=float(detail.get("batch_ms", 0.0)),
        watermark_ms=int(watermark) if isinstance(watermark, int | float) else None,
        state_rows=state_rows,
        state_bytes=state_bytes,
        version=int(detail.get("version", 0)),
        epoch=job.epoch,
        worker=worker if job.state == "RUNNING" else "",
        last_error=job.last_error,
    )


def _lag(store: Store, job: JobDescriptor, reached: Mapping[str, Offsets], latest: dict[str, Offsets]) -> tuple[int | None, int | None]:
    try:
        sources = reached or plan_job(store, job).source_tables
        for table in sources:
            if table not in latest:
                latest[table] = store.backend.offsets(table, "latest")
        n_rows = rows_between(reached, {table: latest[table] for table in sources})
        if n_rows == 0 or "statistics_of_buckets" not in store.capabilities:
            return n_rows, 0 if n_rows == 0 else None
        ages = [pc.max(store.backend.bucket_statistics(table, reached.get(table, {}))["unread_ms"]).as_py() for table in sources]
    except FlashlakeError:
        return None, None
    return n_rows, max((age for age in ages if age is not None), default=0)


def _state(store: Store, job: JobDescriptor) -> tuple[int, int]:
    n_rows = n_bytes = 0
    try:
        tables = job.state_tables if job.state_tables is not None else tuple(t.name for t in plan_job(store, job).state_tables)
        for table in tables:
            n_rows += store.backend.count(table)
            if "statistics_of_buckets" in store.capabilities:
                n_bytes += pc.sum(store.backend.bucket_statistics(table)["bytes"]).as_py() or 0
    except FlashlakeError:  # a state table of a job that was never run may be gone
        return n_rows, n_bytes
    return n_rows, n_bytes


def _workers(store: Store, jobs: Mapping[str, JobDescriptor]) -> dict[str, str]:
    recorded = store.progress(GROUP).get(GROUP)
    members = list(recorded.detail.get("members", ())) if recorded else []
    ordered = [job.name for job in sorted(jobs.values(), key=lambda job: (job.submitted_ms, job.name))]
    return {name: member for member in members for name in share_of(member, members, ordered)}
