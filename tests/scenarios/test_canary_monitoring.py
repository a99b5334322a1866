"""Scenario 4: canary rows, cubes and alerts are what DuckDB says of the same events; the monitoring reads 30 of 95 columns."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage_engine
from assets.scenarios.canary_monitoring import events as made
from assets.scenarios.canary_monitoring import scenario
from assets.scenarios.canary_monitoring.events import Events
from storage_engine.stream import Worker, load_job, plan_job
from storage_engine.stream.plan.tree import scans

NOW = datetime(2017, 1, 2, 12, tzinfo=UTC)
DAY = "20170102"


@pytest.fixture
def short_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of 8,000 events: four of them in a test."""
    monkeypatch.setattr(made, "MINUTE_EVENTS", 8_000)
    monkeypatch.setattr(scenario, "MINUTE_EVENTS", 8_000)


@pytest.mark.usefixtures("short_minutes")
def test_cubes_and_alerts_equal_the_independent_answer(tmp_path: Path) -> None:
    """The log keeps the partitions of one day: the clock of the store stands on the day of the events."""
    now_ms = int(NOW.timestamp() * 1000)
    with storage_engine.connect((tmp_path / "store").as_uri(), sync="none", now_ms=lambda: now_ms) as store:
        scenario.deploy(store)
        events = Events(5, day=DAY)
        write, worker = scenario.writer(store, events), Worker(store, n_rows_max=9_000)
        for begin in range(0, 26_000, 2_600):
            write(begin, begin + 2_600)
            if begin % 3:
                worker.run_once()
        worker.run_until_idle()
        found = scenario.checks(store, events, 26_000)
        assert [check for check in found if not check.holds] == []
        alerts = found[3]
        assert alerts.n_expected > 5
        assert scenario.broken_pages(26_000) == {("0002", "search")} == scenario.broken_pages(26_000, whole_minutes=False)
        assert scenario.broken_pages(23_000) == set()  # the minute is not over
        assert scenario.broken_pages(23_000, whole_minutes=False) == {("0002", "search")}
        pruned, whole = scenario.bytes_read(store, scenario.READ), scenario.bytes_read(store, None)
        assert pruned < whole / 2
        for name in ("gray_monitoring", "base_cube"):
            (scan,) = scans(plan_job(store, load_job(store, name)).root)
            assert set(scan.columns) <= set(scenario.READ)
        (scan,) = scans(plan_job(store, load_job(store, "gray_monitoring")).root)
        assert len(scan.columns) == 30
        assert len(store.describe(scenario.LOG).columns) == 95


def test_events_are_the_same_however_they_are_cut() -> None:
    events = Events(5, day=DAY)
    start = made.POOL - 700  # over the end of the pool
    cut = [events.rows(start + a, start + b) for a, b in ((0, 1), (1, 699), (699, 1_500))]
    assert pa.concat_tables(cut).equals(events.rows(start, start + 1_500))


def test_a_broken_page_fails_where_it_should_and_nowhere_else() -> None:
    events = Events(5, day=DAY)
    n = made.MINUTE_EVENTS * 3
    minutes, _, failed = events.measures(0, n)
    numbers = np.arange(n)
    hit = (minutes == 2) & (numbers % made.MINUTE_EVENTS >= made.MINUTE_EVENTS // 3)
    hit &= events.is_canary[numbers % made.POOL] & (events.pages[numbers % made.POOL] == made.broken_page(2))
    assert 0.25 < failed[hit].mean() < 0.45
    assert failed[~hit].mean() < 0.012
