"""Scenario 3: a log of orders fills counts and sums by minute; forecasts are what models make of them and of the then newest baseline."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage_engine
from assets.scenarios.order_forecast import model
from assets.scenarios.order_forecast.day import Day
from assets.scenarios.order_forecast.events import LAST_WEEK, SOURCES, YESTERDAY, Events
from assets.scenarios.order_forecast.expected import COLUMNS, GMV_COLUMNS
from assets.scenarios.order_forecast.scenario import (
    BASELINE,
    FUNCTIONS,
    GMV_BASELINE,
    GMV_TABLE,
    TABLE,
    add_baselines,
    check,
    deploy,
    writer,
)
from storage_engine import Store
from storage_engine.errors import InvalidOption, StatementRefused
from storage_engine.stream import Worker
from storage_engine.stream.functions import python_functions
from storage_engine.stream.functions.python_functions import FunctionSources, configure
from tests.stream.comparing import differing_jobs

NOW = datetime(2017, 1, 2, 12, tzinfo=UTC)
N = 30_000
PAST = (("last week", LAST_WEEK), ("yesterday", YESTERDAY))


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
    assert [found.n_differing for found in check(today, events, N // 2, N)] == [0, 0, 0, 0]
    assert differing_jobs(today) == []  # recomputed at once, with the partition that is the newest
    add_baselines(today, events, "yesterday", YESTERDAY, NOW - timedelta(days=1))
    for begin in range(N // 2, N, 1_500):
        write(begin, begin + 1_500)
    worker.run_until_idle()
    for found in check(today, events, N, N // 2):
        assert found.holds, found.name
        assert found.n_expected > 3_000
    orders = Day.of(today.table(TABLE).read(COLUMNS), "cumulative_order_cnt", "forecast_daily_order_cnt")
    gmv = Day.of(today.table(GMV_TABLE).read(GMV_COLUMNS), "cumulative_gmv", "forecast_daily_gmv")
    assert orders.actual == N
    assert round(gmv.actual * 100) == events.cents.sum()
    for day in (orders, gmv):
        assert abs(day.error_at(21)) < 0.01 < abs(day.error_at(15))


def test_a_late_order_corrects_every_minute_behind_it(today: Store) -> None:
    events = Events(8, n_events=4_000, day="20170102")
    deploy(today, events, NOW)
    worker = Worker(today)
    writer(today, events)(0, 4_000)
    worker.run_until_idle()
    before = {(row["mm"], row["order_source"]): row["gmv"] for row in today.table("db.gmv_dtm").read().to_pylist()}
    today.execute("INSERT INTO db.order_log VALUES (-1, TIMESTAMP '2017-01-02 12:00:30', 'web', 7.35)")
    worker.run_until_idle()
    after = {(row["mm"], row["order_source"]): row["gmv"] for row in today.table("db.gmv_dtm").read().to_pylist()}
    for (minute, source), gmv in before.items():
        assert after[minute, source] - gmv == (Decimal("7.35") if source == "web" and minute >= "1200" else 0)
    forecasts = today.table(GMV_TABLE).read(["mm", "order_source", "cumulative_gmv"]).to_pylist()
    assert {(row["mm"], row["order_source"]): row["cumulative_gmv"] for row in forecasts} == after
    assert differing_jobs(today) == []


def test_without_a_baseline_there_is_no_forecast(today: Store) -> None:
    events = Events(8, n_events=2_000, day="20170102")
    deploy(today, events, NOW)
    for baseline in (BASELINE, GMV_BASELINE):
        today.execute(f"ALTER TABLE {baseline} DROP PARTITION (ds = '20161226')")
    writer(today, events)(0, 2_000)
    Worker(today).run_until_idle()
    for table, column in ((TABLE, "forecast_daily_order_cnt"), (GMV_TABLE, "forecast_daily_gmv")):
        forecasts = today.table(table).read([column])[column]
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


def test_the_model_of_orders_divides_by_the_share_of_the_minute() -> None:
    shares = np.linspace(0.0, 1.0, model.MINUTES)
    feature = model.feature_of(shares)
    counts, minutes = pa.array([0, 50, 77, 10]), pa.array(["0000", "1200", "2359", "1200"])
    found = model.predict_day_orders(counts, minutes, pa.array([feature, feature, feature, None]))
    assert found.to_pylist() == [None, str(round(50 / shares[720])), "77", None]


def test_the_model_of_gmv_is_the_past_day_at_first_and_the_present_one_at_last() -> None:
    money = pa.decimal128(18, 2)

    def predicted(gmv: str | None, share: float | None, past: str | None) -> Decimal | None:
        given = [None if text is None else Decimal(text) for text in (gmv, past)]
        return model.predict_day_gmv(pa.array(given[:1], money), pa.array([share], pa.float64()), pa.array(given[1:], money))[0].as_py()

    assert predicted("0", 0.0, "1000") == Decimal("1000.00")  # nothing is known of the day
    assert predicted("123.45", 1.0, "1000") == Decimal("123.45")  # all is
    assert predicted("500", 0.5, "1000") == Decimal("1000.00")  # as the past day was
    at_noon = predicted("750", 0.5, "1000")
    assert at_noon is not None
    assert Decimal(1_400) < at_noon < Decimal(1_500)  # half as strong again, less what the past day weighs
    assert [predicted(None, 0.5, "1000"), predicted("1", None, None), predicted("0", 0.0, "0")] == [None, None, None]


def test_amounts_follow_neither_the_count_nor_a_past_day() -> None:
    events = Events(8, n_events=200_000, day="20170102")
    assert events.cents.min() > 0
    means = [np.bincount(events.minutes[mine] // 60, events.cents[mine], 24) / np.bincount(events.minutes[mine] // 60, minlength=24)
             for mine in (events.sources == source for source in range(4))]  # fmt: skip
    assert min(mean.max() / mean.min() for mean in means) > 1.5  # by hour
    old, new = (gmv / gmv[:, -1:] for gmv in (events.gmv_of_day(name, *day) for name, day in PAST))
    assert np.abs(old - new).max() > 0.03  # the past days are no copies of each other


def test_a_day_takes_the_last_row_of_each_source() -> None:
    rows = [(minute, source, 10.0 * (place + 1), 100.0) for place, source in enumerate(SOURCES) for minute in ("0000", "0300")]
    rows += [("0500", "app", 50.0, 140.0)]
    day = Day.of(pa.table(list(zip(*rows, strict=True)), ["mm", "order_source", "so_far", "forecast"]), "so_far", "forecast")
    assert [day.at(1), day.at(5), day.at(6)] == [400.0, 400.0, 440.0]
    assert day.actual == 50 + 20 + 30 + 40
    late = Day.of(pa.table(list(zip(*rows[1:], strict=True)), ["mm", "order_source", "so_far", "forecast"]), "so_far", "forecast")
    assert np.isnan(late.at(1))  # a source without a row yet
    assert late.at(4) == 400.0


def test_orders_are_the_same_however_they_are_cut() -> None:
    events = Events(9, n_events=5_000, day="20170102")
    whole = events.rows(0, 1_000)
    assert pa.concat_tables([events.rows(a, b) for a, b in ((0, 1), (1, 437), (437, 1_000))]) == whole
    assert whole.schema.field("amount").type == pa.decimal128(10, 2)
