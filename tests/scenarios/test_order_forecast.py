"""Scenario 3: forecasts are orders over the baseline's share, of the newest partition at that moment; the model is the Python function."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage_engine
from assets.scenarios.order_forecast import model
from assets.scenarios.order_forecast.events import YESTERDAY, Events
from assets.scenarios.order_forecast.expected import day_errors
from assets.scenarios.order_forecast.scenario import FUNCTIONS, TABLE, add_baseline, check, deploy, writer
from storage_engine import Store
from storage_engine.errors import InvalidOption, StatementRefused
from storage_engine.stream import Worker
from storage_engine.stream.functions import python_functions
from storage_engine.stream.functions.python_functions import FunctionSources, configure
from tests.stream.comparing import differing_jobs

NOW = datetime(2017, 1, 2, 12, tzinfo=UTC)
N = 30_000


@pytest.fixture
def today(tmp_path: Path) -> Iterator[Store]:
    """The tables keep the partitions of two days: the clock of the store stands on the day of the events."""
    before = python_functions._sources
    configure(FunctionSources(None, FUNCTIONS))
    now_ms = int(NOW.timestamp() * 1000)
    with storage_engine.connect((tmp_path / "store").as_uri(), sync="none", now_ms=lambda: now_ms) as store:
        yield store
    configure(before)


def test_forecasts_follow_the_newest_baseline(today: Store) -> None:
    events = Events(8, n_events=N, day="20170102")
    deploy(today, events, NOW)
    write, worker = writer(today, events), Worker(today, n_rows_max=2_000)
    for begin in range(0, N // 2, 1_500):
        write(begin, begin + 1_500)
        worker.run_until_idle()
    assert check(today, events, N // 2, N).holds
    assert differing_jobs(today) == []  # recomputed at once, with the partition that is the newest
    add_baseline(today, events, "yesterday", YESTERDAY, NOW - timedelta(days=1))
    for begin in range(N // 2, N, 1_500):
        write(begin, begin + 1_500)
    worker.run_until_idle()
    found = check(today, events, N, N // 2)
    assert found.holds
    assert found.n_expected > 3_000
    errors = day_errors(events, N // 2)
    assert errors["21:00"] < 0.01 < errors["12:00"]


def test_without_a_baseline_there_is_no_forecast(today: Store) -> None:
    events = Events(8, n_events=2_000, day="20170102")
    deploy(today, events, NOW)
    today.execute("ALTER TABLE db.order_mm_his_str DROP PARTITION (ds = '20161226')")
    writer(today, events)(0, 2_000)
    Worker(today).run_until_idle()
    forecasts = today.table(TABLE).read(["forecast_daily_order_cnt"])["forecast_daily_order_cnt"]
    assert forecasts.null_count == len(forecasts) > 100


@pytest.mark.parametrize(
    ("hints", "reason"),
    [
        ("'scan.partitions' = 'min_pt()'", "is not known"),
        ("'scan.partitions' = 'max_pt()', 'lookup.dynamic-partition.refresh-interval' = 'often'", "often"),
        ("'scan.partition' = 'max_pt()'", "is not known"),
    ],
)
def test_a_hint_that_means_nothing_is_refused(today: Store, hints: str, reason: str) -> None:
    deploy(today, Events(8, n_events=2_000, day="20170102"), NOW)
    text = "INSERT INTO db.order_dtm SELECT o.ds, o.mm, t.channel_id, o.order_cnt FROM db.order_dtm o JOIN db.order_mm_his_str "
    with pytest.raises((StatementRefused, InvalidOption), match=reason):
        today.execute(f"{text} /*+ OPTIONS({hints}) */ FOR SYSTEM_TIME AS OF PROCTIME() AS t ON o.order_source = t.channel_id")


def test_max_pt_needs_the_rest_of_the_key(today: Store) -> None:
    deploy(today, Events(8, n_events=2_000, day="20170102"), NOW)
    text = "INSERT INTO db.order_dtm SELECT o.ds, o.mm, t.channel_id, o.order_cnt FROM db.order_dtm o JOIN db.order_mm_his_str "
    with pytest.raises(StatementRefused, match="join with equality on channel_id"):
        today.execute(f"{text} /*+ OPTIONS('scan.partitions' = 'max_pt()') */ FOR SYSTEM_TIME AS OF PROCTIME() AS t ON o.ds = t.ds")


def test_the_model_divides_by_the_share_of_the_minute() -> None:
    shares = np.linspace(0.0, 1.0, model.MINUTES)
    feature = model.feature_of(shares)
    counts, minutes = pa.array([0, 50, 77, 10]), pa.array(["0000", "1200", "2359", "1200"])
    found = model.predict_hour_gmv(counts, minutes, pa.array([feature, feature, feature, None]))
    assert found.to_pylist() == [None, str(round(50 / shares[720])), "77", None]
