"""The maintenance thread: due tasks run, a failing one is counted and tried again, idle costs nothing, and close ends it first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.maintenance import Maintenance
from tests.waiting import await_true, let_pass


class Task:
    """Counts its runs; `work` is what a run does."""

    def __init__(self, name: str = "count", interval_ms: int = 5, work: Callable[[int], None] = lambda now_ms: None) -> None:
        self.name = name
        self.interval_ms = interval_ms
        self.seen: list[int] = []
        self._work = work

    def run(self, now_ms: int) -> None:
        self.seen.append(now_ms)
        self._work(now_ms)


def fails(_: int) -> None:
    raise OSError("no space")


def test_tasks_run_again_and_again_and_are_told_the_stores_clock() -> None:
    maintenance = Maintenance(lambda: 77)
    fast, slow = Task("fast", 5), Task("slow", 3_600_000)
    maintenance.add(fast)
    maintenance.start()
    maintenance.add(slow)

    await_true(lambda: len(fast.seen) >= 5)
    maintenance.stop()

    assert set(fast.seen) == {77}
    assert slow.seen == []


def test_a_failing_task_is_logged_counted_and_tried_again_while_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    maintenance = Maintenance(lambda: 1)
    bad, good = Task("bad", work=fails), Task("good")
    maintenance.add(bad)
    maintenance.add(good)
    with caplog.at_level(logging.WARNING):
        maintenance.start()
        await_true(lambda: maintenance.reports()["bad"].n_failures >= 3 and maintenance.reports()["good"].n_runs >= 3)
        maintenance.stop()

    assert maintenance.reports()["bad"].last_failure == "no space"
    assert maintenance.reports()["good"].n_failures == 0
    assert any("maintenance task bad failed" in record.message and record.exc_info for record in caplog.records)


def test_run_once_runs_every_task_with_the_time_given_and_raises_what_a_task_raises() -> None:
    maintenance = Maintenance(lambda: 1)
    first, second = Task("first", 3_600_000), Task("second", 3_600_000)
    maintenance.add(first)
    maintenance.add(second)

    maintenance.run_once(5)
    maintenance.run_once(9)
    maintenance.add(Task("third", work=fails))

    assert (first.seen, second.seen) == ([5, 9], [5, 9])
    assert maintenance.reports()["first"].last_run_ms == 9
    with pytest.raises(OSError, match="no space"):
        maintenance.run_once(10)


def test_stop_waits_for_the_task_under_way_and_no_task_runs_after_it() -> None:
    maintenance, threads_before = Maintenance(lambda: 1), set(threading.enumerate())
    begun, release = threading.Event(), threading.Event()
    task = Task(work=lambda _: (begun.set(), release.wait(10))[0])
    maintenance.add(task)
    maintenance.start()
    assert begun.wait(10)

    stopper = threading.Thread(target=maintenance.stop)
    stopper.start()
    await_true(lambda: maintenance.is_stopping)
    assert stopper.is_alive()
    release.set()
    stopper.join(10)

    assert not stopper.is_alive()
    assert len(task.seen) == 1
    assert set(threading.enumerate()) <= threads_before


def test_a_closing_store_ends_its_tasks_before_the_log_closes(tmp_path: Path) -> None:
    backend = EmbeddedBackend.open(tmp_path / "s", sync="none")
    task = Task(work=lambda now_ms: backend.put_object("view", "clock", {"now": now_ms}))
    backend.maintenance.add(task)
    await_true(lambda: len(task.seen) >= 3)

    backend.close()
    backend.close()

    assert backend.maintenance.reports()["count"].n_failures == 0


def test_a_store_opened_without_maintenance_runs_tasks_only_when_asked(tmp_path: Path) -> None:
    backend = EmbeddedBackend.open(tmp_path / "s", sync="none", maintenance=False)
    task = Task()
    backend.maintenance.add(task)

    backend.maintenance.run_once(3)
    backend.close()

    assert task.seen == [3]


def test_a_hundred_idle_tables_wake_nothing(tmp_path: Path) -> None:
    with wrap(EmbeddedBackend.open(tmp_path / "s", sync="none")) as store:
        store.execute("; ".join(f"CREATE TABLE i.t{n} (id BIGINT, ds STRING) PARTITIONED BY (ds)" for n in range(100)))
        version, before_s = store.version(), time.process_time()
        let_pass(0.5)  # what is measured is what the store does while nobody asks for anything

        assert time.process_time() - before_s < 0.02
        assert store.version() == version
