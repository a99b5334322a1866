"""A job commits one micro-batch while it computes the next: its sink is what it would be one by one, whatever happens to a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage_engine import Store
from storage_engine.api import CommitResult
from storage_engine.errors import ProgressConflict, SchemaMismatch, StoreUnavailable
from storage_engine.stream import JobRunner, SqlSession, Worker, load_job
from tests.waiting import let_pass

N_ROWS = 500
SUMS = "INSERT INTO db.sums SELECT shop, COUNT(*) AS n, SUM(qty) AS qty FROM db.events GROUP BY shop"
COPY = "INSERT INTO db.copy SELECT id, shop, qty * 2 AS qty FROM db.events"


@pytest.fixture
def db(session: SqlSession, store: Store) -> SqlSession:
    session.execute("""
        CREATE DATABASE db;
        CREATE TABLE db.events (id BIGINT, shop INT, qty BIGINT);
        CREATE TABLE db.sums (shop INT NOT NULL, n BIGINT, qty BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
        CREATE TABLE db.copy (id BIGINT, shop INT, qty BIGINT);
        SET 'pipeline.name' = 'job';
    """)
    for start in range(0, N_ROWS, 25):
        sell(store, start, 25)
    return session


def sell(store: Store, start: int, n_rows: int) -> None:
    ids = np.arange(start, start + n_rows)
    store.table("db.events").append(pa.table({"id": ids, "shop": (ids % 7).astype(np.int32), "qty": ids}))


def expected_sums(n_rows: int = N_ROWS) -> dict[int, tuple[int, int]]:
    ids = [list(range(shop, n_rows, 7)) for shop in range(7)]
    return {shop: (len(mine), sum(mine)) for shop, mine in enumerate(ids)}


def sums(store: Store) -> dict[int, tuple[int, int]]:
    return {row["shop"]: (row["n"], row["qty"]) for row in store.table("db.sums").read().to_pylist()}


def runner_of(store: Store, *, overlaps: bool = True) -> JobRunner:
    return JobRunner(store, load_job(store, "job"), n_rows_max=50, overlaps=overlaps)


def drain(runner: JobRunner) -> int:
    n_rows = 0
    while taken := runner.step():
        n_rows += taken
    return n_rows


Change = Callable[[int, Callable[[], CommitResult]], CommitResult]


def commits_through(store: Store, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Have commits of the job go through `change`, with their number from 0."""
    commit, numbers = store.commit, iter(range(1_000_000))

    def changed(ops: Any = (), progress: Any = (), write_id: Any = None) -> CommitResult:
        if not progress:
            return commit(ops, progress, write_id)
        return change(next(numbers), lambda: commit(ops, progress, write_id))

    monkeypatch.setattr(store, "commit", changed)


def test_the_next_micro_batch_is_computed_while_a_commit_is_on_its_way(
    db: SqlSession, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute(COPY)
    may_end, began = threading.Event(), threading.Event()

    def wait_first(number: int, commit: Callable[[], CommitResult]) -> CommitResult:
        began.set()
        assert number or may_end.wait(60)
        return commit()

    commits_through(store, monkeypatch, wait_first)
    runner = runner_of(store)
    assert runner.step() == 50  # returns, its commit does not
    assert began.wait(60)
    assert store.table("db.copy").count() == 0
    computed = threading.Event()
    compute = runner._executor.run

    def computing(*given: Any) -> Any:
        outcome = compute(*given)
        computed.set()
        return outcome

    monkeypatch.setattr(runner._executor, "run", computing)
    second = threading.Thread(target=runner.step)
    second.start()
    try:
        assert computed.wait(60), "the second micro-batch waits for the commit of the first"
        assert store.table("db.copy").count() == 0
    finally:
        may_end.set()
        second.join()
    drain(runner)
    runner.close()
    assert store.table("db.copy").count() == N_ROWS


def test_state_is_read_only_when_the_commit_that_writes_it_is_done(db: SqlSession, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    db.execute(SUMS)

    def slow(_number: int, commit: Callable[[], CommitResult]) -> CommitResult:
        let_pass(0.02)
        return commit()

    commits_through(store, monkeypatch, slow)
    runner = runner_of(store)
    assert drain(runner) == N_ROWS
    runner.close()
    assert sums(store) == expected_sums()


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_done_twice(
    db: SqlSession, store: Store, monkeypatch: pytest.MonkeyPatch, number: int, is_done: bool
) -> None:
    db.execute(SUMS)

    def losing(at: int, commit: Callable[[], CommitResult]) -> CommitResult:
        if at != number:
            return commit()
        if is_done:
            commit()
        raise StoreUnavailable("no answer", where="test", next_step="Try again.")

    commits_through(store, monkeypatch, losing)
    runner = runner_of(store)
    with pytest.raises(StoreUnavailable):
        drain(runner)
    drain(runner)
    runner.close()
    assert sums(store) == expected_sums()


def test_two_runners_of_a_job_that_overlap_count_each_row_once(db: SqlSession, store: Store) -> None:
    db.execute(SUMS)
    runners = [runner_of(store), runner_of(store)]
    n_conflicts, left = 0, set(runners)
    while left:
        for runner in list(left):
            try:
                if runner.step() == 0:
                    left.discard(runner)
            except ProgressConflict:
                n_conflicts += 1
    for runner in runners:
        runner.close()
    assert n_conflicts > 0
    assert sums(store) == expected_sums()


def test_closing_waits_for_what_is_on_its_way(db: SqlSession, store: Store) -> None:
    db.execute(COPY)
    runner = runner_of(store)
    runner.step()
    runner.step()
    runner.close()
    assert store.table("db.copy").count() == 100


def test_a_commit_that_is_refused_fails_the_job_and_the_rows_before_it_are_there(
    db: SqlSession, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute(COPY)

    def refuses(number: int, commit: Callable[[], CommitResult]) -> CommitResult:
        if number >= 4:
            raise SchemaMismatch("refused", where="test", next_step="None.")
        return commit()

    commits_through(store, monkeypatch, refuses)
    worker = Worker(store, n_rows_max=50)
    worker.run_until_idle()
    worker.close()
    assert load_job(store, "job").state == "FAILED"
    assert store.table("db.copy").count() == 200


def test_what_one_round_of_a_worker_did_is_there_when_it_returns(db: SqlSession, store: Store) -> None:
    db.execute(COPY)
    worker = Worker(store, n_rows_max=50)
    for n_rounds in range(1, 5):
        worker.run_once()
        assert store.table("db.copy").count() == 50 * n_rounds
    worker.close()


def test_a_job_that_quarantines_waits_for_each_commit(db: SqlSession, store: Store) -> None:
    db.execute(f"SET 'pipeline.poison-row' = 'quarantine'; {COPY}")
    runner = runner_of(store)
    runner.step()
    assert store.table("db.copy").count() == 50
    runner.close()
