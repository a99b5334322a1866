"""Made events: deterministic, shaped by the real baskets, late and repeated at the stated rates, fast."""

import time
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flashlake.generate import KINDS, BasketSeries, Disorder, RateSeries, load_baskets, write_parquet, write_series
from storage_engine import connect
from storage_engine.errors import InvalidConfiguration
from storage_engine.schema.ddl import parse_statements

START = datetime.fromisoformat("2017-03-01")


@pytest.fixture(scope="module")
def baskets():
    return load_baskets()


def rate_series(baskets, kind="page_visits", *, rate=2_000, seconds=50, seed=1, disorder=None):
    return RateSeries(baskets, kind, rate=rate, span=timedelta(seconds=seconds), start=START, seed=seed, disorder=disorder)


def basket_series(baskets, kind="page_visits", *, days=2, seed=1, disorder=None):
    return BasketSeries(baskets, kind, first_day=date(2017, 1, 1), days=days, seed=seed, disorder=disorder)


def rows_of(series, batch_rows=10_000) -> pa.Table:
    return pa.Table.from_batches([batch.rows for part in series.parts() for batch in series.batches(part, 0, batch_rows)])


SERIES = [rate_series, basket_series]


@pytest.mark.parametrize("make", SERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_events_in_any_batches(baskets, make, kind):
    assert rows_of(make(baskets, kind), 10_000).equals(rows_of(make(baskets, kind), 777))


@pytest.mark.parametrize("make", SERIES)
def test_another_seed_makes_other_events(baskets, make):
    ids = [set(rows_of(make(baskets, seed=seed))["event_id"].to_pylist()) for seed in (1, 2)]

    assert not ids[0] & ids[1]


@pytest.mark.parametrize("make", SERIES)
def test_a_series_can_be_taken_up_in_the_middle(baskets, make):
    series = make(baskets)
    part = series.parts()[0]
    whole = pa.Table.from_batches([batch.rows for batch in series.batches(part, 0, 1_000)])

    rest = pa.Table.from_batches([batch.rows for batch in series.batches(part, 1_234, 1_000)])

    assert rest.equals(whole.slice(1_234))


@pytest.mark.parametrize("make", SERIES)
def test_late_and_repeated_events_come_at_the_stated_rates(baskets, make):
    series = make(baskets, disorder=Disorder(late=0.10, duplicated=0.05))
    batches = [batch for part in series.parts() for batch in series.batches(part, 0, 10_000)]
    n = sum(batch.rows.num_rows for batch in batches)

    n_distinct = pc.count_distinct(rows_of(series)["event_id"]).as_py()

    assert sum(batch.n_late for batch in batches) / n == pytest.approx(0.10, abs=0.01)
    assert sum(batch.n_duplicates for batch in batches) / n == pytest.approx(0.05, abs=0.01)
    assert n - n_distinct == sum(batch.n_duplicates for batch in batches)


@pytest.mark.parametrize("make", SERIES)
def test_without_disorder_nothing_is_repeated_and_time_ascends(baskets, make):
    series = make(baskets, disorder=Disorder(late=0, duplicated=0))
    rows = rows_of(series)

    assert pc.count_distinct(rows["event_id"]).as_py() == rows.num_rows
    for part in series.parts():
        times = np.concatenate([batch.rows["event_time"].cast(pa.int64()).to_numpy() for batch in series.batches(part, 0, 10_000)])
        assert (np.diff(times) >= 0).all()


def test_a_repeated_event_is_equal_to_its_first_delivery(baskets):
    rows = rows_of(rate_series(baskets, disorder=Disorder(late=0.1, duplicated=0.1)))

    distinct = rows.group_by(rows.column_names).aggregate([])

    assert distinct.num_rows == pc.count_distinct(rows["event_id"]).as_py()


def test_a_rate_series_has_rate_times_span_events_evenly_spread(baskets):
    rows = rows_of(rate_series(baskets, rate=1_000, seconds=30, disorder=Disorder(late=0, duplicated=0)))
    per_second = np.bincount((rows["event_time"].cast(pa.int64()).to_numpy() - 1_488_326_400_000) // 1000)

    assert rows.num_rows == 30_000
    assert (per_second == 1_000).all()


def test_every_cart_addition_precedes_a_purchase_of_that_product_by_that_household_in_that_store(baskets):
    rows = rows_of(basket_series(baskets)).filter(pc.field("event_type") == "cart_add")
    latest = {}
    for time_ms, *who in zip(baskets.times_ms, baskets.households, baskets.stores, baskets.products, strict=True):
        latest[tuple(who)] = int(time_ms)

    keys = zip(*(rows[name].to_pylist() for name in ("household_id", "store_id", "product_id")), strict=True)
    times = rows["event_time"].cast(pa.int64()).to_pylist()

    assert rows.num_rows > 1_000
    assert all(time_ms < latest[key] for key, time_ms in zip(keys, times, strict=True))


def test_events_of_a_day_follow_the_purchases_of_that_day(baskets):
    series = basket_series(baskets, days=1)
    rows = rows_of(series)
    start, stop = baskets.lines_of_day(1_483_228_800_000)

    assert set(rows["store_id"].to_pylist()) <= set(baskets.stores[start:stop].tolist())
    assert set(rows["household_id"].to_pylist()) <= set(baskets.households[start:stop].tolist())
    assert rows.num_rows > stop - start


@pytest.mark.parametrize("kind", KINDS)
def test_every_made_row_is_recognised_and_fits_its_table(baskets, kind, project):
    rows = rows_of(basket_series(baskets, kind, days=1, seed=9))
    (create,) = parse_statements((project / "assets" / "ods" / f"{kind}.sql").read_text(), default_database="ods")

    assert rows.column_names == list(create.descriptor.column_names)
    assert rows.schema.types == create.descriptor.arrow_schema.types
    assert set(rows["origin"].to_pylist()) == {"made:9"}
    assert rows["ds"].to_pylist() == pc.strftime(rows["event_time"], "%Y-%m-%d").to_pylist()


def test_a_span_beyond_the_real_year_repeats_it(baskets):
    series = RateSeries(baskets, "page_visits", rate=10, span=timedelta(days=1), start=datetime.fromisoformat("2026-11-21"), seed=1)

    rows = rows_of(series)

    assert rows.num_rows == 864_000
    assert set(rows["ds"].to_pylist()) <= {"2026-11-20", "2026-11-21"}


def test_a_million_events_are_made_in_a_second(baskets):
    series = rate_series(baskets, rate=1_000_000, seconds=2)
    fastest = min(timed(series) for _ in range(3))

    assert fastest < 2.0


def timed(series) -> float:
    started = time.process_time()
    n = sum(batch.rows.num_rows for batch in series.batches("", 0, 65_536))
    assert n == 2_000_000
    return time.process_time() - started


def test_writing_a_series_twice_counts_nothing_twice(baskets, project, tmp_path):
    with connect(f"file://{tmp_path}/store") as store:
        table = create(store, project, "page_visits")
        series = basket_series(baskets)

        first = write_series(series, store, "ods.page_visits", batch_rows=1_000)
        again = write_series(series, store, "ods.page_visits")

        assert first.n_new == first.n_events == table.count()
        assert (again.n_new, again.n_events) == (0, first.n_events)


def test_an_interrupted_series_goes_on_where_it_stopped(baskets, project, tmp_path):
    class Stop(Exception):
        pass

    def stop_after(n):
        seen = 0

        def on_rows(rows):
            nonlocal seen
            seen += rows
            if seen >= n:
                raise Stop

        return on_rows

    series = basket_series(baskets)
    with connect(f"file://{tmp_path}/store") as store:
        table = create(store, project, "page_visits")
        with pytest.raises(Stop):
            write_series(series, store, "ods.page_visits", batch_rows=700, on_rows=stop_after(5_000))
        n_before = table.count()

        write_series(series, store, "ods.page_visits", batch_rows=900)

        stored = table.scan(["event_id"]).read_all()["event_id"].to_pylist()
        assert 5_000 <= n_before < len(stored)
        assert sorted(stored) == sorted(rows_of(series)["event_id"].to_pylist())


def test_a_parquet_file_holds_the_series(baskets, tmp_path):
    import pyarrow.parquet as pq

    series = rate_series(baskets, seconds=5)

    report = write_parquet(series, tmp_path / "events.parquet")

    assert pq.read_table(tmp_path / "events.parquet").equals(rows_of(series))
    assert report.n_new == 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"seconds": 0}, {"kind": "clicks"}])
def test_a_series_of_nothing_is_refused(baskets, wrong):
    with pytest.raises(InvalidConfiguration):
        rate_series(baskets, **wrong)


def create(store, project, name):
    for statement in parse_statements((project / "assets" / "ods" / f"{name}.sql").read_text(), default_database="ods"):
        store.create_table(statement.descriptor)
    return store.table(f"ods.{name}")
