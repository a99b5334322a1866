"""A worker runs several jobs at a time, and none of them misses what was written while it ran."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, udf
from storage_engine.stream.run.lanes import JOURNAL, Lanes, Report
from tests.waiting import await_true

ENTERED, RELEASED = threading.Event(), threading.Event()
N_SOURCES = 3


@udf(result="BIGINT", inputs=["BIGINT"], vectorised=True)
def held(values: pa.Array) -> pa.Array:
    """The values, but not before the test says so."""
    ENTERED.set()
    assert RELEASED.wait(60)
    return values


@contextmanager
def running(store: Store, **options: Any) -> Iterator[Worker]:
    """A worker in a thread of its own; what ends it by mistake is raised here."""
    stop, errors = threading.Event(), []
    worker = Worker(store, **options)

    def run() -> None:
        try:
            worker.run_forever(stop)
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        RELEASED.set()
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert errors == []


def count_job(session: SqlSession, name: str, source: str, expression: str = "n") -> None:
    session.execute(
        f"CREATE TABLE IF NOT EXISTS db.{source} (n BIGINT); CREATE TABLE db.{name} (n BIGINT); "
        f"SET 'pipeline.name' = '{name}'; INSERT INTO db.{name} SELECT {expression} FROM db.{source}"
    )


def test_a_job_goes_on_while_the_micro_batch_of_another_waits(store: Store) -> None:
    ENTERED.clear(), RELEASED.clear()
    session = SqlSession(store)
    session.execute("CREATE TEMPORARY FUNCTION held AS 'tests.stream.test_lanes.held' LANGUAGE PYTHON")
    count_job(session, "slow", "a", "held(n)")
    count_job(session, "quick", "b")
    store.table("db.a").append({"n": [1]})

    with running(store):
        await_true(ENTERED.is_set, "the slow job's micro-batch is in its function")
        store.table("db.b").append({"n": [2]})
        await_true(lambda: store.table("db.quick").count() == 1, "the quick job commits")
        assert store.table("db.slow").count() == 0
        RELEASED.set()
        await_true(lambda: store.table("db.slow").count() == 1, "the slow job commits")


def test_a_job_that_is_stopped_in_its_micro_batch_ends_with_it_and_can_be_resumed(store: Store) -> None:
    ENTERED.clear(), RELEASED.clear()
    session = SqlSession(store)
    session.execute("CREATE TEMPORARY FUNCTION held AS 'tests.stream.test_lanes.held' LANGUAGE PYTHON")
    count_job(session, "slow", "a", "held(n)")
    count_job(session, "quick", "b")
    store.table("db.a").append({"n": [1]})

    with running(store):
        await_true(ENTERED.is_set, "the slow job's micro-batch is in its function")
        store.execute("STOP JOB slow")
        RELEASED.set()
        await_true(lambda: store.table("db.slow").count() == 1, "the micro-batch that ran is committed")
        store.table("db.a").append({"n": [3]})
        store.table("db.b").append({"n": [2]})
        await_true(lambda: store.table("db.quick").count() == 1, "the quick job commits")
        store.execute("RESUME JOB slow")
        await_true(lambda: store.table("db.slow").count() == 2, "the resumed job reads on")
    assert sorted(row["n"] for row in store.table("db.slow").scan(["n"]).read_all().to_pylist()) == [1, 3]


class InTurn(Lanes):
    """Lanes without threads: a call has ended when it was begun. `after` runs between an end and its report.

    The first look at the journal reports before the jobs that ended before it.
    """

    def __init__(self, after: Callable[[str, Any], None]) -> None:
        super().__init__(1)
        self._after = after
        self._ended: list[Report] = []
        self._has_looked = False

    def run(self, name: str, call: Callable[[], Any]) -> None:
        outcome = call()
        self._ended.insert(len(self._ended) if name != JOURNAL or self._has_looked else 0, (name, outcome))
        self._has_looked = self._has_looked or name == JOURNAL
        self._after(name, outcome)

    def report(self, timeout_s: float) -> Report | None:
        return self._ended.pop(0) if self._ended else None


def test_a_job_that_found_nothing_does_not_sleep_through_what_came_before_it_said_so(store: Store) -> None:
    session = SqlSession(store)
    count_job(session, "late", "a")
    count_job(session, "asleep", "b")  # so that the journal is looked at
    written: list[str] = []

    def write_behind_its_back(name: str, outcome: Any) -> None:
        if name == "late" and outcome.n_rows == 0 and not written:
            store.table("db.a").append({"n": [1]})
            written.append(name)

    worker, lanes = Worker(store), InTurn(write_behind_its_back)
    try:
        await_true(lambda: worker._turn(lanes) is None and store.table("db.late").count() == 1, "the row is read")
        assert written
    finally:
        lanes.close()
        worker.close()


class Counting(InTurn):
    """Lanes without threads that note the rows of each micro-batch."""

    def __init__(self) -> None:
        super().__init__(self._note)
        self.rows: dict[str, list[int]] = {}

    def _note(self, name: str, outcome: Any) -> None:
        if name != JOURNAL:
            self.rows.setdefault(name, []).append(outcome.n_rows)


def test_a_job_whose_rows_come_singly_learns_not_to_ask_for_more_after_them(store: Store) -> None:
    count_job(SqlSession(store), "single", "a")
    worker, lanes = Worker(store), Counting()

    def has_rested() -> bool:
        worker._turn(lanes)
        slot = worker._slots["single"]
        return not slot.is_awake and slot.due_s < time.monotonic()

    try:
        for n in range(4):
            await_true(has_rested, "it sleeps")
            store.table("db.a").append({"n": [n]})
            await_true(lambda n=n: worker._turn(lanes) is None and store.table("db.single").count() == n + 1, "the row is read")
        await_true(has_rested, "it sleeps")
        assert lanes.rows == {"single": [0, 1, 1, 1, 1]}
    finally:
        lanes.close()
        worker.close()


def test_a_commit_of_a_job_wakes_who_reads_its_sink_without_the_journal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SqlSession(store)
    count_job(session, "first", "a")
    count_job(session, "second", "first")
    worker, lanes = Worker(store), Counting()
    try:
        await_true(lambda: worker._turn(lanes) is None and not any(s.is_awake for s in worker._slots.values()), "both sleep")
        store.table("db.a").append({"n": [1]})
        await_true(lambda: worker._turn(lanes) is None and lanes.rows["first"][-1] == 1, "the first job reads the row")
        monkeypatch.setattr(worker, "_look", lambda version: False)  # from now on the journal wakes nobody
        await_true(lambda: worker._turn(lanes) is None and store.table("db.second").count() == 1, "the second job reads it")
    finally:
        lanes.close()
        worker.close()


def test_jobs_that_share_lanes_read_every_row_once(store: Store) -> None:
    session = SqlSession(store)
    for n in range(8):
        count_job(session, f"sink{n}", f"source{n % N_SOURCES}")
    with running(store, n_lanes=3):
        for i in range(40):
            store.table(f"db.source{i % N_SOURCES}").append({"n": [i]})
        await_true(
            lambda: all(store.table(f"db.sink{n}").count() == len(range(n % N_SOURCES, 40, N_SOURCES)) for n in range(8)), "all is read"
        )
    for n in range(8):
        rows = store.table(f"db.sink{n}").scan(["n"]).read_all()["n"].to_pylist()
        assert sorted(rows) == list(range(n % N_SOURCES, 40, N_SOURCES))
