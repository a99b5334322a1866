"""The warehouse's own definitions, run as jobs over small inputs, against plain queries over the same rows."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

ASSETS = Path(__file__).parents[2] / "assets"
ORDER = """
ods/transactions ods/products ods/households ods/page_visits ods/exposures
dwd/household_mapping dwd/order_line dwd/page_visit dwd/exposure
dws/store_hour_wide dws/store_day_uv features/product_minute views/department_day views/store_day_uv
""".split()
START_MS = 1_483_228_800_000

HOURS = """
SELECT store_id, ds, stat_hour, line_cnt, basket_cnt, quantity, sales_value, visit_cnt, cart_cnt, exposure_cnt FROM
  (SELECT store_id, ds, strftime(transaction_timestamp, '%H') AS stat_hour, count(*) AS line_cnt, count(DISTINCT basket_id) AS basket_cnt,
     CAST(sum(quantity) AS BIGINT) AS quantity, sum(sales_value) AS sales_value FROM lines GROUP BY ALL) AS l
  FULL JOIN (SELECT store_id, ds, strftime(event_time, '%H') AS stat_hour, 
     count(*) FILTER (event_type = 'view') AS visit_cnt,
     count(*) FILTER (event_type = 'cart_add') AS cart_cnt
     FROM (SELECT DISTINCT * FROM visits) GROUP BY ALL) AS v USING (store_id, ds, stat_hour)
  FULL JOIN (SELECT store_id, ds, strftime(event_time, '%H') AS stat_hour, count(*) AS exposure_cnt
     FROM (SELECT DISTINCT * FROM exposures) GROUP BY ALL) AS e
    USING (store_id, ds, stat_hour)
"""
MINUTES = """
SELECT product_id, ds, strftime(transaction_timestamp, '%H:%M'), count(*), CAST(sum(quantity) AS BIGINT), sum(sales_value),
  CAST(sum(retail_disc + coupon_disc + coupon_match_disc) AS DECIMAL(38, 2)), max(sales_value) FROM lines GROUP BY ALL
"""
DEPARTMENTS = """
SELECT COALESCE(department, 'UNKNOWN'), ds, count(*), sum(sales_value) FROM lines LEFT JOIN products USING (product_id) GROUP BY ALL
"""
UNIQUE = "SELECT store_id, ds, count(DISTINCT household_id) FROM lines GROUP BY ALL"


def money(rng: np.random.Generator, n: int) -> pa.Array:
    return pa.array([Decimal(int(cents)) / 100 for cents in rng.integers(0, 10_000, n)], pa.decimal128(12, 2))


def instants(rng: np.random.Generator, n: int) -> pa.Array:
    return pa.array(START_MS + rng.integers(0, 2 * 86_400_000, n), pa.timestamp("ms"))


def lines(rng: np.random.Generator, n: int) -> pa.Table:
    time = instants(rng, n)
    ids = {
        name: pa.array(rng.integers(1, high, n))
        for name, high in (("household_id", 60), ("store_id", 6), ("basket_id", 90), ("product_id", 40), ("quantity", 9))
    }
    values = {name: money(rng, n) for name in ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")}
    return pa.table(
        {**ids, **values, "week": pa.array(np.ones(n, np.int32)), "transaction_timestamp": time, "ds": pc.strftime(time, "%Y-%m-%d")}
    )


def events(rng: np.random.Generator, n: int, first_id: int) -> dict[str, pa.Array]:
    time = instants(rng, n)
    ids = {name: pa.array(rng.integers(1, high, n)) for name, high in (("household_id", 60), ("store_id", 6), ("product_id", 40))}
    return {
        "event_id": pa.array(np.arange(first_id, first_id + n)),
        **ids,
        "event_time": time,
        "origin": pa.array(["made:1"] * n),
        "ds": pc.strftime(time, "%Y-%m-%d"),
    }


@pytest.mark.parametrize("n_rows_max", [300, 262_144])
def test_the_warehouse_holds_what_plain_queries_say(store: Store, n_rows_max: int) -> None:
    session = SqlSession(store)
    for name in ORDER:
        session.execute((ASSETS / f"{name}.sql").read_text())
    rng = np.random.default_rng(1)
    products = pa.table({"product_id": pa.array(np.arange(1, 35)), "department": [f"D{i % 4}" for i in range(34)]})
    store.table("ods.products").upsert(products, columns=["product_id", "department"])
    worker = Worker(store, n_rows_max=n_rows_max)
    all_lines, all_visits, all_exposures = [], [], []
    for i in range(3):
        all_lines.append(lines(rng, 400))
        visits = pa.table({**events(rng, 200, i * 200), "event_type": np.where(rng.random(200) < 0.8, "view", "cart_add")})
        exposures = pa.table({**events(rng, 200, i * 200), "slot": pa.array(np.ones(200, np.int32))})
        all_visits.append(visits)
        all_exposures.append(exposures)
        store.table("ods.transactions").append(all_lines[-1])
        for table, rows in (("ods.page_visits", visits), ("ods.exposures", exposures)):
            store.table(table).append(rows)
            store.table(table).append(rows.slice(0, 50))  # delivered again
        if i != 1:
            worker.run_until_idle()
    inputs = {
        "lines": pa.concat_tables(all_lines),
        "visits": pa.concat_tables(all_visits),
        "exposures": pa.concat_tables(all_exposures),
        "products": products,
    }
    assert sink_rows(store, "dws.store_hour_wide") == query_rows(HOURS, **inputs)
    assert sink_rows(store, "features.product_minute") == query_rows(MINUTES, **inputs)
    assert sink_rows(store, "views.department_day") == query_rows(DEPARTMENTS, **inputs)
    assert sink_rows(store, "views.store_day_uv") == query_rows(UNIQUE, **inputs)
    assert store.table("dwd.order_line").count() == inputs["lines"].num_rows
    assert differing_jobs(store) == []
