"""Scenario 5: both paths are the exact count at every stop, with workers that end and begin in between."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

import storage_engine
from assets.scenarios.unique_visitors.events import MINUTE_EVENTS, Events, Seen
from assets.scenarios.unique_visitors.scenario import check_ids, check_path_a, check_path_b, deploy, first_visits
from query_engine import QueryEngine
from storage_engine.lake import Tierer
from storage_engine.stream import SqlSession, Worker

NOW = datetime(2017, 1, 2, 12, tzinfo=UTC)
DAY = "20170102"


def test_both_paths_equal_the_exact_count_at_every_stop(tmp_path: Path) -> None:
    """The tables keep the partitions of seven days: the clock of the store stands on the day of the events."""
    now_ms = int(NOW.timestamp() * 1000)
    events = Events(6, n_users=20_000, day=DAY)
    seen = Seen(events)
    stops = np.linspace(0, int(MINUTE_EVENTS * 1.2), 5).astype(int).tolist()  # two minutes of event time
    for number, (begin, end) in enumerate(itertools.pairwise(stops)):
        with storage_engine.connect((tmp_path / "store").as_uri(), sync="none", now_ms=lambda: now_ms) as store:  # each time anew
            session = SqlSession(store, query=QueryEngine(store, tmp_path / "lake", spill_dir=tmp_path / "spill").query)
            if number == 0:
                deploy(store, DAY)
            worker = Worker(store, n_rows_max=7_000)
            for start in range(begin, end, 4_000):
                store.table("db.log_exp_ri").append(events.rows(start, min(start + 4_000, end)))
                if number % 2:
                    worker.run_once()  # the jobs read the log at paces of their own
            worker.run_until_idle()
            with Tierer(store, tmp_path / "lake") as tierer:
                tierer.run_once(force=True)
            seen.advance(end)

            def query(text: str, session: SqlSession = session) -> pa.Table:
                rows = session.execute(text)[-1].rows
                return pa.table({}) if rows is None else rows

            found = [*check_path_a(store, seen, query, str(end)), *check_path_b(seen, query, str(end)), check_ids(store, seen)]
            assert [check for check in found if not check.holds] == []
            assert len(found) == 6
            worker.close()
    assert seen.of_day()["users"][0].as_py() > 15_000
    assert seen.per_minute().num_rows == 2


def test_users_have_ids_of_their_own() -> None:
    events = Events(6, n_users=400_000, day=DAY)
    assert len(np.unique(events.user_ids(np.arange(400_000)))) == 400_000


def test_events_are_the_same_however_they_are_cut() -> None:
    events = Events(6, n_users=1_000, day=DAY)
    cut = pa.concat_tables([events.rows(a, b) for a, b in ((0, 1), (1, 437), (437, 1_000))])
    assert cut.equals(events.rows(0, 1_000))


def test_first_visits_are_counted_once() -> None:
    assert first_visits(np.array([5, 3, 5, 4, 3])).tolist() == [0, 1, 3]
