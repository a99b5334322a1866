"""Equal parts of a plan are computed and kept once; windows that come whole on both sides are joined without state; and a job goes on with
the layout of state that it was submitted under.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, load_job, plan_job
from storage_engine.stream.jobs.job import JobDescriptor, save_job
from storage_engine.stream.planning.explain import explain
from storage_engine.stream.planning.planner import LAYOUT
from tests.stream.comparing import differing_jobs, sink_rows
from tests.stream.event_times import EVENTS, drifting, lived, table

HOP = "TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND))"
SINK = "CREATE TABLE db.s (k STRING, n BIGINT, start TIMESTAMP(3), PRIMARY KEY (k, start) NOT ENFORCED)"
NAME = "SET 'pipeline.name' = 'job'"
OTHER_SIZE = HOP.replace("'9'", "'6'")


def hottest(left: str = HOP, right: str = HOP, where: str = "", count: str = "COUNT(*)") -> str:
    """Per window the keys with the most events (Nexmark's q5): the same counts twice, keys in another order."""
    return (
        f"SELECT A.k, A.n, A.start FROM (SELECT k, COUNT(*) AS n, window_start AS start FROM {left} GROUP BY window_start, k) A JOIN "
        f"(SELECT MAX(c) AS high, start FROM (SELECT {count} AS c, window_start AS start FROM {right}{where} GROUP BY k, window_start) C "
        "GROUP BY start) B ON A.start = B.start AND A.n >= B.high"
    )


def submit(store: Store, late: str, select: str) -> JobDescriptor:
    SqlSession(store).execute(";".join([EVENTS.format(late), SINK, NAME, f"INSERT INTO db.s {select}"]))
    return load_job(store, "job")


@pytest.mark.parametrize("late", ["drop", "update"])
@pytest.mark.parametrize("seed", range(2))
def test_equal_counts_are_kept_once_and_the_result_is_the_statement_s(tmp_path: Path, late: str, seed: int) -> None:
    def check(store: Store) -> None:
        assert differing_jobs(store) == []  # the recomputation counts twice
        found.extend(sink_rows(store, "db.s"))

    found: list[object] = []
    create = [EVENTS.format(late), SINK, NAME, f"INSERT INTO db.s {hottest()}"]
    lived(tmp_path / "store", random.Random(seed), drifting(random.Random(seed), 150), create, check)
    assert len(found) > 20


def test_explain_tells_what_is_shared_counted_by_pane_and_joined_whole(store: Store) -> None:
    plan = plan_job(store, submit(store, "drop", hottest()))
    text = "\n".join(explain(plan))
    assert text.count("[shared: computed once, told above]") == 1
    assert text.count("counted by pane") == 2  # where it is, and where it is read again
    assert "a window comes whole" in text
    assert "one row per group and pane" in text
    assert [table.name for table in plan.state_tables] == ["db.s__state_job_2"]


def test_what_is_kept_without_a_watermark_is_shared_too(store: Store) -> None:
    plan = plan_job(store, submit(store, "update", hottest()))
    assert sum("__state_job_" in item.name for item in plan.state_tables) == 1  # the counts
    assert sum("__rows_job_" in item.name for item in plan.state_tables) == 3  # the two sides, and what the maximum is of


@pytest.mark.parametrize(
    "select",
    [
        hottest(right=OTHER_SIZE),
        hottest(where=" WHERE v > 2"),
        hottest(count="COUNT(v)"),
        hottest(count="COUNT(*) FILTER (WHERE v > 2)"),
    ],
)
def test_parts_that_differ_are_not_shared(store: Store, select: str) -> None:
    plan = plan_job(store, submit(store, "drop", select))
    assert "shared" not in "\n".join(explain(plan))
    for rows in (drifting(random.Random(3), 120)[:60], drifting(random.Random(3), 120)[60:]):
        store.table("db.ev").append(table(rows))
        Worker(store).run_until_idle()
    assert differing_jobs(store) == []


def test_sides_that_different_windows_send_are_kept(store: Store) -> None:
    text = "\n".join(explain(plan_job(store, submit(store, "drop", hottest(right=OTHER_SIZE)))))
    assert "a window comes whole" not in text


def as_of_an_older_release(store: Store, job: JobDescriptor) -> JobDescriptor:
    """The job as it was stored before layouts were told apart, with the state that it kept."""
    stored = job.to_json()
    del stored["layout"]
    older = JobDescriptor.from_json(stored)
    tables = plan_job(store, older).state_tables
    for name in job.state_tables or ():
        store.backend.drop_table(name, if_exists=False)
    for item in tables:
        store.create_table(item)
    older = replace(older, state_tables=tuple(item.name for item in tables))
    save_job(store, older)
    return older


def test_a_job_of_an_older_release_goes_on_with_its_own_state(store: Store) -> None:
    older = as_of_an_older_release(store, submit(store, "drop", hottest()))
    assert sum("__state_job_" in name for name in older.state_tables or ()) == 2
    rows = drifting(random.Random(5), 160)
    for at in range(0, 160, 40):
        store.table("db.ev").append(table(rows[at : at + 40]))
        Worker(store).run_until_idle()
        assert load_job(store, "job").last_error == ""
        assert differing_jobs(store) == []
    assert sink_rows(store, "db.s")


@pytest.mark.parametrize(("choice", "layout"), [("keep-position", 0), ("replay", LAYOUT)])
def test_an_upgrade_that_keeps_its_state_keeps_its_layout(store: Store, choice: str, layout: int) -> None:
    as_of_an_older_release(store, submit(store, "drop", hottest()))
    store.table("db.ev").append(table(drifting(random.Random(6), 80)))
    Worker(store).run_until_idle()
    changed = hottest().replace("A.n, A.start", "A.n + 0, A.start")
    SqlSession(store).execute(f"{NAME}; SET 'pipeline.upgrade' = '{choice}'; INSERT INTO db.s {changed}")
    assert load_job(store, "job").layout == layout
    store.table("db.ev").append(table(drifting(random.Random(7), 80)))
    Worker(store).run_until_idle()
    assert load_job(store, "job").last_error == ""
    assert differing_jobs(store) == []
