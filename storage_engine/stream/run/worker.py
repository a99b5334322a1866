"""Worker: runs RUNNING jobs of a store, several micro-batches at a time, and waits on the journal for those that have nothing to do.

Holds: a job has one micro-batch at a time; while it waits for an answer or for the disk, other jobs compute (lanes.py).
       One thread owns the slots: it decides what runs, and alone takes up, lets go of and fails jobs.
       An error of one job marks that job FAILED with its last error; the others go on. Work that may succeed later
       (the store is away, the disk is full) is tried again with growing pauses.
       A job whose sources did not change sleeps and costs nothing: one look at the journal says for all jobs which tables changed.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError, ProgressConflict, RetriableError
from storage_engine.stream.jobs.flow import upstream_first
from storage_engine.stream.jobs.job import JobDescriptor, load_jobs, set_state
from storage_engine.stream.jobs.options import pause_s
from storage_engine.stream.jobs.quarantine import reason_of
from storage_engine.stream.jobs.upgrade import StaleDefinition
from storage_engine.stream.run.lanes import JOURNAL, Lanes
from storage_engine.stream.run.runner import N_ROWS_MAX, JobRunner

if TYPE_CHECKING:
    from storage_engine.stream.run.worker_group import WorkerGroup

IDLE_WAIT_S = 0.5
RETRY_S_MAX = 10.0
CONFLICT_RETRY_S = 0.05
CATALOG_CHECK_S = 1.0
LOOK_MAX = 100
"""Commits of one look at the journal; beyond that every job looks for itself."""
LOOK_S_MIN = 0.01
"""Least time between two looks: one look takes what many commits did."""
NAP_S_MAX = 0.05
"""Longest pause between two looks while commits come that wake no job."""
N_LANES = 2
"""Micro-batches at a time: while one waits for the server or the disk another computes. Each may hold n_rows_max rows in memory."""

_log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One running job, and when it may run next (monotonic seconds). Asleep: its sources had no more rows when it last looked.

    has_news    its sources changed while its micro-batch ran: that one may not have seen it
    sleeps_early  its rows come more slowly than it rests: it sleeps after a micro-batch that took all, and asks for no more
    in_lane     its micro-batch runs now; the slot is settled when it has ended
    is_leaving  it is let go of as soon as that has ended
    """

    runner: JobRunner
    due_s: float = 0.0
    retry_s: float = 0.0
    is_awake: bool = True
    has_news: bool = False
    sleeps_early: bool = False
    in_lane: bool = False
    is_leaving: bool = False

    @property
    def waits(self) -> bool:
        """True when it will run by itself, at due_s."""
        return self.is_awake and not self.in_lane and self.runner.job.refresh_s is not None

    def wake(self, version: int) -> bool:
        """A commit changed its sources; True when it slept. What it has read of them since then is no news."""
        if not self.in_lane and self.runner.as_of >= version:
            return False
        slept = not self.is_awake
        if slept and self.due_s > time.monotonic():
            self.sleeps_early = False
        self.is_awake = self.has_news = True
        return slept

    def settle(self, n_rows: int, seconds: float) -> None:
        """Its micro-batch took `n_rows` rows: when may the next one run?"""
        self.retry_s = 0.0
        takes_no_more = n_rows == 0 or (self.sleeps_early and self.runner.is_at_end)
        self.sleeps_early = self.sleeps_early or n_rows == 0
        self.is_awake = self.has_news or not takes_no_more
        rest_s = pause_s(n_rows, seconds, self.runner.n_rows_max, self.runner.options)
        self.due_s = time.monotonic() + (self.runner.job.refresh_s or rest_s)


@dataclass(frozen=True)
class _Step:
    """How a micro-batch ended: the rows it took, or why it failed."""

    seconds: float
    n_rows: int = 0
    error: Exception | None = None


class Worker:
    """Runs jobs. Several workers may share a store: with a group each runs its share; without one it tries all jobs, and
    a micro-batch that another one took is given up.
    """

    def __init__(self, store: Store, *, n_rows_max: int = N_ROWS_MAX, group: WorkerGroup | None = None, n_lanes: int = N_LANES) -> None:
        self._store = store
        self._n_rows_max = n_rows_max
        self._n_lanes = n_lanes
        self._group = group
        self._slots: dict[str, _Slot] = {}
        self._readers: dict[str, set[str]] = {}  # the jobs that read a table
        self._catalog_checked_s = -CATALOG_CHECK_S
        self._is_catalog_new = True
        self._is_settled = group is None
        self._generation = 0
        self._looked = 0
        self._looked_s = 0.0
        self._nap_s = 0.0
        self._is_awaiting = False

    def run_until_idle(self, timeout_s: float = 600.0) -> int:
        """Run all jobs (views too, whatever their refresh) until no source has rows left; the rows read.

        Errors: TimeoutError when there is still work after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        n_total = 0
        while True:
            n_rows = self._round(ignore_schedule=True)
            n_total += n_rows
            if n_rows == 0 and not any(slot.retry_s for slot in self._slots.values()):
                return n_total
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs still had work after {timeout_s} s")

    def run_forever(self, stop: threading.Event) -> None:
        """Run until `stop` is set; a store that is away is waited for."""
        lanes = Lanes(self._n_lanes)
        try:
            while not stop.is_set():
                try:
                    self._turn(lanes)
                except RetriableError as error:
                    _log.warning("the store does not answer: %s", error)
                    stop.wait(IDLE_WAIT_S)
        finally:
            lanes.close()
            self.close()

    def _turn(self, lanes: Lanes) -> None:
        """Begin what is due, then wait for what ends first: a micro-batch, the wait on the journal, or the pause of a job."""
        self._follow_catalog()
        now = time.monotonic()
        for name, slot in self._slots.items():
            if slot.waits and slot.due_s <= now:
                slot.in_lane, slot.has_news = True, False
                lanes.run(name, partial(self._attempt, slot))
        if not self._is_awaiting and self._next_look_s() <= now:
            self._is_awaiting = True
            lanes.run(JOURNAL, partial(self._store.await_version, self._looked, IDLE_WAIT_S))
        due = [slot.due_s for slot in self._slots.values() if slot.waits]
        if not self._is_awaiting:
            due.append(self._next_look_s())
        report = lanes.report(min(max(min(due, default=now + IDLE_WAIT_S) - now, 0.0), IDLE_WAIT_S))
        if report is not None:
            self._take(*report)

    def _take(self, name: str, outcome: Any) -> None:
        """What a call in a lane came to. Errors: those of the journal, and those that are bugs."""
        if name == JOURNAL:
            self._is_awaiting = False
        if isinstance(outcome, BaseException):
            raise outcome
        if name != JOURNAL:
            self._settle(name, self._slots[name], outcome)
        elif outcome == self._looked or self._look(outcome):
            self._nap_s = 0.0
        else:  # others commit: look less often, as long as it concerns no job
            self._nap_s = min(max(self._nap_s * 2, 0.002), NAP_S_MAX)
        if name == JOURNAL:
            self._looked_s = time.monotonic()

    def _next_look_s(self) -> float:
        """When to look at the journal: jobs that are awake find their rows themselves, and the catalog can wait."""
        is_any_asleep = not all(slot.is_awake for slot in self._slots.values())
        return self._looked_s + (max(self._nap_s, LOOK_S_MIN) if is_any_asleep or not self._slots else IDLE_WAIT_S)

    def run_once(self, *, ignore_schedule: bool = False) -> int:
        """One micro-batch of each job that is due, committed when it returns; the rows read."""
        return self._round(ignore_schedule=ignore_schedule, settles=True)

    def _round(self, *, ignore_schedule: bool, settles: bool = False) -> int:
        self._follow_catalog(force=ignore_schedule)
        n_rows = 0
        for name, slot in list(self._slots.items()):
            is_due = slot.is_awake and slot.due_s <= time.monotonic() and slot.runner.job.refresh_s is not None
            if ignore_schedule or is_due:
                n_rows += self._settle(name, slot, self._attempt(slot, settles=settles))
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
        if is_all:
            return any([slot.wake(sys.maxsize) for slot in self._slots.values()])
        return self._wake_readers({table: commit.version for commit in commits for table in commit.ranges})

    def _wake_readers(self, changed: Mapping[str, int]) -> bool:
        """Wake the jobs that read these tables, which a commit of that version changed; True when one slept."""
        found = [
            (slot, version)
            for table, version in changed.items()
            for name in self._readers.get(table, ())
            if (slot := self._slots.get(name)) is not None
        ]
        return any([slot.wake(version) for slot, version in found])

    # jobs

    def _follow_catalog(self, *, force: bool = False) -> None:
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
                slot.is_leaving = True
                if not slot.in_lane:
                    self._let_go(name)
        for name, job in wanted.items():
            if name not in self._slots and (job.refresh_s is not None or force):
                self._start(name, job)
        plans = {name: slot.runner.plan for name, slot in self._slots.items()}
        order = upstream_first(
            {name: plan.sink.name for name, plan in plans.items()},
            {name: (*plan.source_tables, *plan.lookup_tables) for name, plan in plans.items()},
        )
        self._slots = {name: self._slots[name] for name in order}
        self._readers = {}
        for name, plan in plans.items():
            for table in plan.source_tables:
                self._readers.setdefault(table, set()).add(name)

    def _let_go(self, name: str) -> None:
        self._slots.pop(name).runner.close()
        _log.info("job %s: let go", name)

    def _read_catalog_soon(self) -> None:
        self._is_catalog_new = True
        self._catalog_checked_s = -CATALOG_CHECK_S

    def _start(self, name: str, job: JobDescriptor) -> None:
        try:
            self._slots[name] = _Slot(JobRunner(self._store, job, n_rows_max=self._n_rows_max, overlaps=True))
            _log.info("job %s: runs here", name)
        except (ProgressConflict, StaleDefinition):
            _log.info("job %s: somebody else took it up; looking again", name)
            self._is_catalog_new = True
        except RetriableError:
            self._is_catalog_new = True
            raise
        except (FlashlakeError, duckdb.Error) as error:
            self._fail(job, error)

    def _attempt(self, slot: _Slot, *, settles: bool = False) -> _Step:
        """One micro-batch, in any thread. Errors: those that are bugs; all others are in what it returns."""
        began = time.monotonic()
        try:
            n_rows = slot.runner.step()
            if settles:
                slot.runner.settle()
        except (FlashlakeError, duckdb.Error, pa.ArrowException) as error:
            return _Step(time.monotonic() - began, error=error)
        return _Step(time.monotonic() - began, n_rows)

    def _settle(self, name: str, slot: _Slot, step: _Step) -> int:
        """What follows from how a micro-batch ended; the rows it took."""
        slot.in_lane = False
        if step.error is None:
            slot.settle(step.n_rows, step.seconds)
            if step.n_rows:  # who reads what it wrote need not wait for the journal
                self._wake_readers({slot.runner.plan.sink.name: slot.runner.committed})
        else:
            self._settle_failed(name, slot, step.error)
        if slot.is_leaving and name in self._slots:
            self._let_go(name)
            self._read_catalog_soon()  # it may run here again, as another one
        return step.n_rows

    def _settle_failed(self, name: str, slot: _Slot, error: Exception) -> None:
        if isinstance(error, ProgressConflict):
            _log.warning("job %s: another worker moved it, or a partition was dropped; continuing from there", name)
            slot.retry_s = CONFLICT_RETRY_S  # there may be rows left: not idle yet
        elif isinstance(error, StaleDefinition):
            self._slots.pop(name).runner.close()
            self._read_catalog_soon()
        elif isinstance(error, RetriableError):
            slot.retry_s = min(max(slot.retry_s * 2, 0.1), RETRY_S_MAX)
            slot.due_s = time.monotonic() + slot.retry_s
            _log.warning("job %s: %s; trying again in %.1f s", name, error, slot.retry_s)
        elif not slot.is_leaving:  # else it is not ours to judge any more
            runner = self._slots.pop(name).runner
            runner.close()
            if runner.is_stale():  # its tables were altered under it: it is planned again before it is judged
                _log.info("job %s is planned again, its tables were altered: %s", name, error)
                self._start(name, runner.job)
            else:
                self._fail(runner.job, error)

    def _fail(self, job: JobDescriptor, error: Exception) -> None:
        """Mark it, unless it has been stopped or upgraded meanwhile."""
        self._is_catalog_new = True  # whatever becomes of it, it does not run here now
        stored = load_jobs(self._store).get(job.name)
        if stored is None or stored.epoch != job.epoch or stored.state != "RUNNING":
            return
        _log.error("job %s failed: %s", job.name, error)
        set_state(self._store, job.name, "FAILED", reason_of(error))
