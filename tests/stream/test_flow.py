"""Jobs run in the order in which rows flow through them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker
from storage_engine.stream.jobs.flow import upstream_first
from tests.stream.comparing import sink_rows

TABLES = [f"t{n}" for n in range(6)]
JOBS = st.lists(st.tuples(st.sampled_from(TABLES), st.sets(st.sampled_from(TABLES), max_size=3)), max_size=8)


@given(JOBS)
def test_every_job_once_and_after_its_writers_where_no_circle_forbids_it(jobs: list[tuple[str, set[str]]]) -> None:
    sinks = {f"j{n}": sink for n, (sink, _) in enumerate(jobs)}
    reads = {f"j{n}": tables for n, (_, tables) in enumerate(jobs)}
    order = upstream_first(sinks, reads)
    assert sorted(order) == sorted(sinks)

    def writes_for(job: str) -> set[str]:
        return {other for other, table in sinks.items() if table in reads[job]}

    def upstream(job: str, seen: set[str]) -> set[str]:
        for other in writes_for(job) - seen:
            seen |= {other}
            upstream(other, seen)
        return seen

    for job in order:
        for other in writes_for(job):
            if job not in upstream(other, set()):  # no circle through both
                assert order.index(other) < order.index(job)


def test_a_row_passes_a_chain_of_jobs_in_one_round(store: Store) -> None:
    session = SqlSession(store)
    session.execute("USE db; CREATE TABLE c1 (a BIGINT); CREATE TABLE b2 (a BIGINT); CREATE TABLE a3 (a BIGINT); CREATE TABLE z (a BIGINT)")
    for name, source, sink in (("1", "b2", "a3"), ("2", "c1", "b2"), ("3", "z", "c1")):  # named against the flow
        session.execute(f"SET 'pipeline.name' = '{name}'; INSERT INTO {sink} SELECT a FROM {source}")
    worker = Worker(store)
    worker.run_once(ignore_schedule=True)
    store.table("db.z").append([{"a": 7}])
    worker.run_once(ignore_schedule=True)
    assert sink_rows(store, "db.a3") == [(7,)]
