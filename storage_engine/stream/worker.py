"""Worker: runs RUNNING jobs of a store, one micro-batch after another, and waits on the journal when there is nothing to do.

Holds: an error of one job marks that job FAILED with its last error; the others go on. Work that may succeed later
       (the store is away, the disk is full) is tried again with growing pauses.
       A job whose sources did not change sleeps and costs nothing: one look at the journal says for all jobs which tables changed.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError, ProgressConflict, RetriableError
from storage_engine.stream.flow import upstream_first
from storage_engine.stream.job import JobDescriptor, load_jobs, set_state
from storage_engine.stream.options import pause_s
from storage_engine.stream.quarantine import reason_of
from storage_engine.stream.runner import N_ROWS_MAX, JobRunner
from storage_engine.stream.upgrade import StaleDefinition

if TYPE_CHECKING:
    from storage_engine.stream.worker_group import WorkerGroup

IDLE_WAIT_S = 0.5
RETRY_S_MAX = 10.0
CONFLICT_RETRY_S = 0.05
CATALOG_CHECK_S = 1.0
LOOK_MAX = 100
"""Commits of one look at the journal; beyond that every job looks for itself."""
NAP_S_MAX = 0.05
"""Longest pause between two looks while commits come that wake no job."""

_log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One running job, and when it may run next (monotonic seconds). Asleep: its sources had no more rows when it last looked."""

    runner: JobRunner
    due_s: float = 0.0
    retry_s: float = 0.0
    is_awake: bool = True


class Worker:
    """Runs jobs in this thread. Several workers may share a store: with a group each runs its share; without one it tries all jobs, and
    a micro-batch that another one took is given up.
    """

    def __init__(self, store: Store, *, n_rows_max: int = N_ROWS_MAX, group: WorkerGroup | None = None) -> None:
        self._store = store
        self._n_rows_max = n_rows_max
        self._group = group
        self._slots: dict[str, _Slot] = {}
        self._catalog_checked_s = -CATALOG_CHECK_S
        self._is_catalog_new = True
        self._is_settled = group is None
        self._generation = 0
        self._looked = 0
        self._nap_s = 0.0

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
                    is_news = self._look(version)
                    self.run_once()
                    self._rest(stop, version, is_news=is_news)
                except RetriableError as error:
                    _log.warning("the store does not answer: %s", error)
                    stop.wait(IDLE_WAIT_S)
        finally:
            self.close()

    def run_once(self, *, ignore_schedule: bool = False) -> int:
        """One micro-batch of each job that is due; the rows read."""
        self._follow_catalog(force=ignore_schedule)
        n_rows = 0
        for name, slot in list(self._slots.items()):
            is_due = slot.is_awake and slot.due_s <= time.monotonic() and slot.runner.job.refresh_s is not None
            if ignore_schedule or is_due:
                n_rows += self._step(name, slot)
        return n_rows

    def close(self) -> None:
        for slot in self._slots.values():
            slot.runner.close()
        self._slots.clear()

    # the journal

    def _look(self, version: int) -> bool:
        """Wake the jobs whose sources changed since the last look; True when it woke one.

        A commit without rows is not listed: it may have changed the catalog. Where all commits are listed, none did.
        """
        if version == self._looked:
            return False
        looked = self._looked
        commits = self._store.commits(looked, LOOK_MAX) if version > looked else []
        self._looked = version
        is_all = version < looked or len(commits) >= LOOK_MAX  # a store that lost what was not synced, or one that is busy
        if is_all or sum(commit.version <= version for commit in commits) != version - looked:
            self._is_catalog_new = True
        changed = {table for commit in commits for table in commit.ranges}
        asleep = [slot for slot in self._slots.values() if not slot.is_awake]
        woken = [slot for slot in asleep if is_all or not changed.isdisjoint(slot.runner.plan.source_tables)]
        for slot in woken:
            slot.is_awake = True
        return bool(woken)

    def _rest(self, stop: threading.Event, version: int, *, is_news: bool) -> None:
        """Wait for the next commit, or for the next job that is due."""
        now = time.monotonic()
        waits = [max(slot.due_s - now, 0.0) for slot in self._slots.values() if slot.is_awake and slot.runner.job.refresh_s is not None]
        if waits:
            self._nap_s = 0.0
            stop.wait(min([*waits, 0.02]))  # not longer: a job that sleeps may have to be woken meanwhile
            return
        if self._store.await_version(version, IDLE_WAIT_S) == version or is_news:
            self._nap_s = 0.0
            return
        stop.wait(self._nap_s)  # others commit: look less often, as long as it concerns no job
        self._nap_s = min(max(self._nap_s * 2, 0.002), NAP_S_MAX)

    # jobs

    def _follow_catalog(self, *, force: bool) -> None:
        """Start jobs that were submitted, drop those that were stopped, plan again those whose tables changed."""
        now = time.monotonic()
        generation = self._group.generation if self._group is not None else 0
        if not force and now - self._catalog_checked_s < CATALOG_CHECK_S and generation == self._generation:
            return
        self._catalog_checked_s = now
        if not force and not self._is_catalog_new and self._is_settled and generation == self._generation:
            return
        jobs = load_jobs(self._store)
        ordered = sorted(jobs.values(), key=lambda job: (job.submitted_ms, job.name))
        mine = set(jobs)
        if self._group is not None:
            self._is_settled = self._group.is_settled  # asked first: a grace that ends in between is seen next time
            mine = self._group.mine([job.name for job in ordered], set(self._slots))
        wanted = {name: job for name, job in jobs.items() if job.state == "RUNNING" and name in mine}
        tables = self._store.backend.tables()
        self._generation, self._is_catalog_new = generation, False
        for name, slot in list(self._slots.items()):
            if wanted.get(name) != slot.runner.job or slot.runner.is_stale(tables):
                self._slots.pop(name).runner.close()
                _log.info("job %s: let go", name)
        for name, job in wanted.items():
            if name not in self._slots and (job.refresh_s is not None or force):
                self._start(name, job)
        plans = {name: slot.runner.plan for name, slot in self._slots.items()}
        order = upstream_first(
            {name: plan.sink.name for name, plan in plans.items()},
            {name: (*plan.source_tables, *plan.lookup_tables) for name, plan in plans.items()},
        )
        self._slots = {name: self._slots[name] for name in order}

    def _read_catalog_soon(self) -> None:
        self._is_catalog_new = True
        self._catalog_checked_s = -CATALOG_CHECK_S

    def _start(self, name: str, job: JobDescriptor) -> None:
        try:
            self._slots[name] = _Slot(JobRunner(self._store, job, n_rows_max=self._n_rows_max))
            _log.info("job %s: runs here", name)
        except (ProgressConflict, StaleDefinition):
            _log.info("job %s: somebody else took it up; looking again", name)
            self._is_catalog_new = True
        except RetriableError:
            self._is_catalog_new = True
            raise
        except (FlashlakeError, duckdb.Error) as error:
            self._fail(job, error)

    def _step(self, name: str, slot: _Slot) -> int:
        began = time.monotonic()
        try:
            n_rows = slot.runner.step()
        except ProgressConflict:
            _log.warning("job %s: another worker moved it, or a partition was dropped; continuing from there", name)
            slot.retry_s = CONFLICT_RETRY_S  # there may be rows left: not idle yet
            return 0
        except StaleDefinition:
            self._slots.pop(name).runner.close()
            self._read_catalog_soon()
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
                self._fail(runner.job, error)
            return 0
        slot.retry_s = 0.0
        slot.is_awake = n_rows > 0
        now = time.monotonic()
        slot.due_s = now + pause_s(n_rows, now - began, slot.runner.n_rows_max, slot.runner.options)
        if slot.runner.job.refresh_s:
            slot.due_s = now + slot.runner.job.refresh_s
        return n_rows

    def _fail(self, job: JobDescriptor, error: Exception) -> None:
        """Mark it, unless it has been stopped or upgraded meanwhile."""
        self._is_catalog_new = True  # whatever becomes of it, it does not run here now
        stored = load_jobs(self._store).get(job.name)
        if stored is None or stored.epoch != job.epoch or stored.state != "RUNNING":
            return
        _log.error("job %s failed: %s", job.name, error)
        set_state(self._store, job.name, "FAILED", reason_of(error))
