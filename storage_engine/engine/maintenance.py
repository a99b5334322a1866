"""Maintenance: the one background thread of a store, which runs named tasks at their intervals (auto-partition, cleaning, expiry).

Owner: engine/embedded.py adds the tasks, starts it, and stops it before the log closes.
State: per task, when it is next due and how its runs went.
Holds: one task runs at a time. A task that fails is named in the log of the process, counted, and tried again. Between runs the
       thread sleeps until the next task is due: a store without work costs one wake-up per task and interval.
Never: decides what a task does. Intervals are measured by the monotonic clock; the wall clock is only what a task is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from storage_engine.errors import StoreUnavailable

T = TypeVar("T")

FIRST_RUN_MS = 1_000
"""A task first runs so long after the start (or after its interval, when that is shorter): a store that opens answers first."""
RETRY_MS = 60_000
"""A task that failed runs again after so long (or after its interval, when that is shorter)."""
_logger = logging.getLogger(__name__)


class Task(Protocol):
    """Work that is due again and again. `run` must be safe to repeat, and may raise: it is then run again later."""

    @property
    def name(self) -> str: ...
    @property
    def interval_ms(self) -> int: ...
    def run(self, now_ms: int) -> None: ...


@dataclass(frozen=True)
class TaskReport:
    """How the runs of one task went, since the store was opened. Times are -1, and the failure empty, before the first."""

    n_runs: int = 0
    n_failures: int = 0
    last_run_ms: int = -1
    last_duration_ms: int = -1
    last_failure: str = ""


@dataclass
class _Entry:
    task: Task
    due_ms: int
    report: TaskReport


class Maintenance:
    """The tasks of one store and the thread that runs them; the thread begins with `start`, when there are tasks."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """`now_ms` is the store's wall clock."""
        self._now_ms = now_ms
        self._wake = threading.Condition()
        self._one_at_a_time = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._is_started = False
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    @property
    def is_stopping(self) -> bool:
        """A long task asks now and then, and returns early."""
        return self._is_stopping

    def add(self, task: Task) -> None:
        """Register a task, before or after the start."""
        assert task.interval_ms > 0, f"task {task.name} has no interval"
        with self._wake:
            assert task.name not in self._entries, f"task {task.name} is there already"
            self._entries[task.name] = _Entry(task, _monotonic_ms() + min(task.interval_ms, FIRST_RUN_MS), TaskReport())
            self._begin()

    def start(self) -> None:
        """Run the tasks from now on, in a thread of its own."""
        with self._wake:
            self._is_started = True
            self._begin()

    def stop(self) -> None:
        """End the thread and now() after the work under way; a second call does nothing. The caller holds no lock of the store."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            assert thread is not threading.current_thread(), "a task does not close its store"
            thread.join()
        with self._one_at_a_time:
            pass  # what was asked for is done, and nothing begins any more

    def now(self, work: Callable[[], T]) -> T:
        """Do what somebody asks for alone, as a task is run. Errors: StoreUnavailable after stop(); those of the work."""
        with self._one_at_a_time:
            if self._is_stopping:
                raise StoreUnavailable("the store is closing", where="maintenance", next_step="Ask again when it is open.")
            return work()

    def run_once(self, now_ms: int) -> None:
        """Run every task once, in the order added, as if the clock said `now_ms`. A task's failure is raised."""
        for entry in self._snapshot():
            failure = self._run(entry, now_ms)
            if failure is not None:
                raise failure

    def reports(self) -> dict[str, TaskReport]:
        """Task name -> how its runs went."""
        return {entry.task.name: entry.report for entry in self._snapshot()}

    def _snapshot(self) -> list[_Entry]:
        with self._wake:
            return list(self._entries.values())

    def _begin(self) -> None:
        if self._is_started and self._entries and self._thread is None and not self._is_stopping:
            self._thread = threading.Thread(target=self._loop, name="flashlake-maintenance", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def _loop(self) -> None:
        while True:
            with self._wake:
                if self._is_stopping:
                    return
                entry = min(self._entries.values(), key=lambda entry: entry.due_ms)
                wait_ms = entry.due_ms - _monotonic_ms()
                if wait_ms > 0:
                    self._wake.wait(wait_ms / 1000)
                    continue
            failure = self._run(entry, self._now_ms())
            interval_ms = entry.task.interval_ms
            entry.due_ms = _monotonic_ms() + (interval_ms if failure is None else min(interval_ms, RETRY_MS))

    def _run(self, entry: _Entry, now_ms: int) -> Exception | None:
        with self._one_at_a_time:
            begun_ms = _monotonic_ms()
            failure: Exception | None = None
            try:
                entry.task.run(now_ms)
            except Exception as error:  # the top of a worker loop: one failing task must not end the others
                _logger.warning("maintenance task %s failed, it will be tried again", entry.task.name, exc_info=True)
                failure = error
            report = entry.report
            entry.report = replace(
                report,
                n_runs=report.n_runs + 1,
                n_failures=report.n_failures + (failure is not None),
                last_run_ms=now_ms,
                last_duration_ms=_monotonic_ms() - begun_ms,
                last_failure=report.last_failure if failure is None else str(failure),
            )
            return failure


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
