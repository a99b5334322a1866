"""Scenario 1: attribution, unmatched visits, conversion and lake are what one join over the last events of each key says."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from assets.scenarios.comparing import compare
from assets.scenarios.conversion_attribution.events import History
from assets.scenarios.conversion_attribution.expected import expected
from assets.scenarios.conversion_attribution.scenario import (
    DETAIL,
    DETAIL_COLUMNS,
    checks,
    deploy,
    history_of,
    later_events,
    writer,
)
from storage_engine import Store
from storage_engine.lake import Tierer, table_path
from storage_engine.stream import Worker
from tests.scenarios.conftest import Query

N_USERS, DISTANCE = 3_000, 400


def small_history(seed: int) -> History:
    return history_of(seed, datetime.now().astimezone(), 20_000, n_users=N_USERS, distance=DISTANCE)


def test_every_table_equals_the_independent_answer_at_every_stop(store: Store, lake: Path, query: Query) -> None:
    deploy(store)
    history = small_history(3)
    write, worker = writer(store, history), Worker(store)
    cuts = np.sort(np.random.default_rng(3).choice(np.arange(1, 12_000), 18, replace=False)).tolist()
    start = 0
    for number, stop in enumerate([*cuts, 12_000]):
        for begin in range(start, stop, 1_900):
            write(begin, min(begin + 1_900, stop))
        start = stop
        if number % 3 == 0:
            worker.run_until_idle()
            assert [check for check in checks(store, history, stop, query) if not check.holds] == []
    right = expected(history, start)
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)
    in_lake = deltalake.DeltaTable(str(table_path(lake, DETAIL))).to_pyarrow_table(columns=DETAIL_COLUMNS)
    assert compare("lake", right.detail, in_lake).holds
    assert right.detail.num_rows > 500
    assert right.unmatched.num_rows > 500
    assert store.progress("job:attribution")["job:attribution"].detail["n_dropped_nulls"] >= right.unmatched.num_rows


def test_events_are_the_same_however_they_are_cut() -> None:
    one, other = small_history(5), small_history(5)

    def joined(history: History, steps: list[int]) -> list[pa.Table]:
        cuts = np.cumsum([0, *steps]).tolist()
        batches = [history.batch(start, stop) for start, stop in itertools.pairwise(cuts)]
        names = ("visits", "gone_visits", "orders", "gone_orders")
        return [pa.concat_tables([getattr(batch, name) for batch in batches]).drop_columns(["ds"]) for name in names]

    def untimed(tables: list[pa.Table]) -> list[pa.Table]:
        return [table.select([name for name in table.column_names if not name.endswith("_time")]) for table in tables]

    assert untimed(joined(one, [2_000, 2_000, 2_000])) == untimed(joined(other, [1, 1_999, 700, 1_300, 1_950, 50]))


def test_the_history_has_every_kind_of_trouble() -> None:
    history = small_history(1)
    batches = [history.batch(start, start + 2_000) for start in range(0, 20_000, 2_000)]
    orders = pa.concat_tables([batch.orders for batch in batches])
    assert sum(batch.gone_visits.num_rows for batch in batches) > 10
    assert sum(batch.gone_orders.num_rows for batch in batches) > 50
    assert orders.num_rows - len(orders["order_id"].unique()) > 100  # corrections
    assert len(pa.concat_tables([batch.visits for batch in batches])["ds"].unique()) == 2
    first_order = {row["user_id"]: number for number, batch in reversed(list(enumerate(batches))) for row in batch.orders.to_pylist()}
    first_visit = {row["user_id"]: number for number, batch in reversed(list(enumerate(batches))) for row in batch.visits.to_pylist()}
    assert sum(number < first_visit.get(user, 99) for user, number in first_order.items()) > 5  # orders before any visit


def test_a_row_names_the_events_that_made_it() -> None:
    history = small_history(2)
    for start in range(0, 20_000, 500):
        batch = history.batch(start, start + 500)
        placed = batch.orders.filter(
            pa.compute.is_in(batch.orders["order_id"], pa.array([f"o{n // 5}" for n in range(start, start + 500)]))
        )
        visits = history.visit_event(
            np.array([int(user[1:]) for user in batch.visits["user_id"].to_pylist()]), batch.visits["pv"].to_numpy()
        )
        assert np.all((visits >= start) & (visits < start + 500))
        rows = pa.table({"user_id": placed["user_id"], "order_id": placed["order_id"], "pv": pa.repeat(1, placed.num_rows)})
        assert np.all(later_events(history, rows) >= start)


def test_a_batch_that_could_hold_an_order_and_its_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 2000"):
        small_history(1).batch(0, 2_001)
