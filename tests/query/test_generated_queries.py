"""Generated statements (tests/stream/random_queries.py) as queries: the same rows as the planner's batch computation of the same text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from query_engine import QueryEngine
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, batch_select
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import plan_select
from tests.engine.cleaning import Clock, opened
from tests.stream.comparing import rows_of
from tests.stream.random_histories import DIMENSIONS, SHOPS, History
from tests.stream.random_queries import make_case
from tests.stream.test_stream_equals_batch import EVENTS, KEYED

N_SEEDS = 120
EQUAL_MIN = 100


def test_a_generated_query_gives_the_rows_that_its_job_in_batch_mode_gives(tmp_path: Path) -> None:
    clock, outcomes = Clock(), Counter[str]()
    with opened(tmp_path / "store", clock) as store:
        SqlSession(store).execute(f"{EVENTS}; {KEYED}; {SHOPS}; {DIMENSIONS}")
        history = History(store, clock, 7)
        for _ in range(8):
            history.step()
        engine = QueryEngine(store, tmp_path / "lake")
        for seed in range(N_SEEDS):
            text = make_case(seed).flink
            try:
                plan = plan_select(StoreCatalog(store), text)
            except StatementRefused:  # a job keeps less than a query answers
                outcomes["refused"] += 1
                continue
            expected = rows_of(batch_select(store, plan, at_version=store.version(), is_bounded=True))
            assert rows_of(engine.query(text)) == expected, f"seed {seed}\n{text}"
            outcomes["equal"] += bool(expected)
        engine.close()
    assert outcomes["equal"] >= EQUAL_MIN, outcomes
