"""Job metrics: what the page of numbers says of each stream job, from the store alone: workers have no page of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from storage_engine.api import Backend
from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError
from storage_engine.stream.run.facts import JobFacts, facts_of
from storage_engine.stream.session.session import SqlSession

logger = logging.getLogger(__name__)

GAUGES: dict[str, tuple[str, Callable[[JobFacts], float | None]]] = {
    "job_lag_rows": ("Rows of its sources that a job has not read.", lambda of: of.lag_rows),
    "job_lag_seconds": ("Age of the oldest of these rows.", lambda of: None if of.lag_ms is None else of.lag_ms / 1000),
    "job_rows_per_second": ("Input rows per second over the last seconds.", lambda of: of.rows_per_s),
    "job_batch_seconds": ("How long the last micro-batch took.", lambda of: of.batch_ms / 1000),
    "job_watermark_seconds": (
        "Event time that a job has passed, since 1970.", lambda of: None if of.watermark_ms is None else of.watermark_ms / 1000
    ),
    "job_state_rows": ("Rows of a job's state tables.", lambda of: of.state_rows),
    "job_state_bytes": ("Bytes of the changelogs of a job's state tables.", lambda of: of.state_bytes),
    "job_running": ("1 while a job runs, 0 while it is paused, stopped or failed.", lambda of: float(of.state == "RUNNING")),
    "job_failed": ("1 for a job that an error stopped.", lambda of: float(of.state == "FAILED")),
}  # fmt: skip
COUNTERS: dict[str, tuple[str, Callable[[JobFacts], float]]] = {
    "job_rows_in": ("Rows that a job read.", lambda of: of.n_rows_in),
    "job_rows_out": ("Rows that a job wrote.", lambda of: of.n_rows_out),
    "job_batches": ("Micro-batches that a job committed.", lambda of: of.n_batches),
    "job_quarantined_rows": ("Rows that a job put into quarantine.", lambda of: of.n_quarantined),
    "job_dropped_null_rows": ("Result rows that a job left out for a null in a key.", lambda of: of.n_dropped_nulls),
}


def job_metrics(backend: Backend) -> Iterator[Metric]:
    """One value per job of each name. A page without them when the store cannot be asked: the other numbers say why."""
    if "jobs" not in backend.capabilities:
        return
    try:
        facts = facts_of(Store(backend, SqlSession))
    except FlashlakeError as error:
        logger.warning("no metrics of jobs: %s", error)
        return
    for name, (text, read) in GAUGES.items():
        gauge = GaugeMetricFamily(f"flashlake_{name}", text, labels=["job"])
        for of in facts:
            if (value := read(of)) is not None:
                gauge.add_metric([of.job], value)
        yield gauge
    for name, (text, count) in COUNTERS.items():
        counter = CounterMetricFamily(f"flashlake_{name}", text, labels=["job"])
        for of in facts:
            counter.add_metric([of.job], count(of))
        yield counter
