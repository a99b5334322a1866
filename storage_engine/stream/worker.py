"""Worker: runs every RUNNING job of a store, one micro-batch after another, and waits on the journal when there is nothing to do.

Holds: an error of one job marks that job FAILED with its last error; the others go on. Work that may succeed later
       (the store is away, the disk is full) is tried again with growing pauses.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError, ProgressConflict, RetriableError
from storage_engine.stream.flow import upstream_first
from storage_engine.stream.job import JobDescriptor, load_jobs, set_state
from storage_engine.stream.runner import N_ROWS_MAX, JobRunner

IDLE_WAIT_S = 0.5
RETRY_S_MAX = 10.0
CONFLICT_RETRY_S = 0.05
CATALOG_CHECK_S = 1.0

_log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One running job, and when it may run next (monotonic seconds)."""

    runner: JobRunner
    due_s: float = 0.0
    retry_s: float = 0.0


class Worker:
    """Runs jobs in this thread. Several workers may share a store: a micro-batch that another one took is given up."""

    def __init__(self, store: Store, *, n_rows_max: int = N_ROWS_MAX) -> None:
        self._store = store
        self._n_rows_max = n_rows_max
        self._slots: dict[str, _Slot] = {}
        self._catalog_checked_s = -CATALOG_CHECK_S

    def run_until_idle(self, timeout_s: float = 600.0) -> int:
        """Run all jobs (views too, whatever their refresh) until no source has rows left; the rows read.

        Errors: TimeoutError when there is still work after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        n_total = 0
        while True:
            n_rows = self.run_once(ignore_schedule=True)
            n_total += n_rows
            if n_rows == 0 and not any(slot.retry_s for slot in self._slots.values()):
                return n_total
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs still had work after {timeout_s} s")

    def run_forever(self, stop: threading.Event) -> None:
        """Run until `stop` is set; a store that is away is waited for."""
        try:
            while not stop.is_set():
                try:
                    version = self._store.version()
                    if self.run_once() == 0 and not stop.is_set():
                        self._store.await_version(version, self._pause_s())
                except RetriableError as error:
                    _log.warning("the store does not answer: %s", error)
                    stop.wait(IDLE_WAIT_S)
        finally:
            self.close()

    def run_once(self, *, ignore_schedule: bool = False) -> int:
        """One micro-batch of each job that is due; the rows read."""
        self._follow_catalog(force=ignore_schedule)
        now = time.monotonic()
        n_rows = 0
        for name, slot in list(self._slots.items()):
            if ignore_schedule or (slot.due_s <= now and slot.runner.job.refresh_s is not None):
                n_rows += self._step(name, slot)
        return n_rows

    def close(self) -> None:
        for slot in self._slots.values():
            slot.runner.close()
        self._slots.clear()

    # jobs

    def _follow_catalog(self, *, force: bool) -> None:
        """Start jobs that were submitted, drop those that were stopped, plan again those whose tables changed."""
        now = time.monotonic()
        if not force and now - self._catalog_checked_s < CATALOG_CHECK_S:
            return
        self._catalog_checked_s = now
        wanted = {name: job for name, job in load_jobs(self._store).items() if job.state == "RUNNING"}
        for name in [name for name, slot in self._slots.items() if name not in wanted or slot.runner.is_stale()]:
            self._slots.pop(name).runner.close()
        for name, job in wanted.items():
            if name not in self._slots and (job.refresh_s is not None or force):
                self._start(name, job)
        plans = {name: slot.runner.plan for name, slot in self._slots.items()}
        order = upstream_first(
            {name: plan.sink.name for name, plan in plans.items()},
            {name: (*plan.source_tables, *plan.lookup_tables) for name, plan in plans.items()},
        )
        self._slots = {name: self._slots[name] for name in order}

    def _start(self, name: str, job: JobDescriptor) -> None:
        try:
            self._slots[name] = _Slot(JobRunner(self._store, job, n_rows_max=self._n_rows_max))
        except RetriableError:
            raise
        except (FlashlakeError, duckdb.Error) as error:
            self._fail(name, error)

    def _step(self, name: str, slot: _Slot) -> int:
        try:
            n_rows = slot.runner.step()
        except ProgressConflict:
            _log.warning("job %s: another worker moved it, or a partition was dropped; continuing from there", name)
            slot.retry_s = CONFLICT_RETRY_S  # there may be rows left: not idle yet
            return 0
        except RetriableError as error:
            slot.retry_s = min(max(slot.retry_s * 2, 0.1), RETRY_S_MAX)
            slot.due_s = time.monotonic() + slot.retry_s
            _log.warning("job %s: %s; trying again in %.1f s", name, error, slot.retry_s)
            return 0
        except (FlashlakeError, duckdb.Error, pa.ArrowException) as error:
            runner = self._slots.pop(name).runner
            runner.close()
            if runner.is_stale():  # its tables were altered under it: it is planned again before it is judged
                _log.info("job %s is planned again, its tables were altered: %s", name, error)
                self._start(name, runner.job)
            else:
                self._fail(name, error)
            return 0
        slot.retry_s = 0.0
        if slot.runner.job.refresh_s:
            slot.due_s = time.monotonic() + slot.runner.job.refresh_s
        return n_rows

    def _fail(self, name: str, error: Exception) -> None:
        _log.error("job %s failed: %s", name, error)
        set_state(self._store, name, "FAILED", str(error))

    def _pause_s(self) -> float:
        """How long to wait for a commit: until the next scheduled refresh or retry."""
        now = time.monotonic()
        return min([IDLE_WAIT_S, *(max(slot.due_s - now, 0.01) for slot in self._slots.values() if slot.due_s > now)])
