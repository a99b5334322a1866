"""A join of two primary-key tables holds what one query over both says, whatever comes first, is corrected, deleted, or cut."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_job
from storage_engine.stream.jobs.job import plan_job
from storage_engine.stream.run.runner import JobRunner
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

VISITS = """CREATE TABLE db.visits (user_id STRING, first_page_time STRING, pv BIGINT, ds STRING, PRIMARY KEY (user_id, ds) NOT ENFORCED)
  PARTITIONED BY (ds) WITH ('bucket.key' = 'user_id', 'bucket.num' = '3')"""
ORDERS = """CREATE TABLE db.orders (order_id STRING, user_id STRING, order_time STRING, pay_amt BIGINT, ds STRING,
  PRIMARY KEY (user_id, ds, order_id) NOT ENFORCED) PARTITIONED BY (ds) WITH ('bucket.key' = 'user_id', 'bucket.num' = '2')"""
DETAIL = """CREATE TABLE db.s (user_id STRING, order_id STRING, ds STRING, first_page_time STRING, pv BIGINT, is_matched STRING,
  PRIMARY KEY (user_id, order_id, ds) NOT ENFORCED) WITH ('bucket.key' = 'user_id,order_id')"""
ATTRIBUTION = """SELECT l.user_id, o.order_id, l.ds, l.first_page_time, l.pv,
  CASE WHEN o.order_time >= l.first_page_time THEN '1' ELSE '0' END AS is_matched
  FROM {visits} l {kind} JOIN {orders} o ON l.user_id = o.user_id AND l.ds = o.ds"""
OTHER_KEYS = "SELECT o.user_id, o.order_id, o.ds"

CASES = {
    "inner": (DETAIL, ATTRIBUTION.format(visits="db.visits", orders="db.orders", kind=""), "ERROR"),
    "inner, keyed from the other side": (
        DETAIL,
        ATTRIBUTION.format(visits="db.visits", orders="db.orders", kind="").replace("SELECT l.user_id, o.order_id, l.ds", OTHER_KEYS),
        "ERROR",
    ),
    "left, with a name for a missing order": (
        "CREATE TABLE db.s (user_id STRING, order_id STRING, ds STRING, pv BIGINT, amt BIGINT, "
        "PRIMARY KEY (user_id, order_id, ds) NOT ENFORCED)",
        "SELECT l.user_id, COALESCE(o.order_id, 'none'), l.ds, l.pv, o.pay_amt FROM db.visits l LEFT JOIN db.orders o "
        "ON l.user_id = o.user_id AND l.ds = o.ds",
        "ERROR",
    ),
    "left, grouped, with a name for a missing order": (
        "CREATE TABLE db.s (order_id STRING, ds STRING, n BIGINT, pv BIGINT, PRIMARY KEY (order_id, ds) NOT ENFORCED)",
        "SELECT COALESCE(o.order_id, 'none'), l.ds, COUNT(*), SUM(l.pv) FROM db.visits l LEFT JOIN db.orders o "
        "ON l.user_id = o.user_id AND l.ds = o.ds GROUP BY o.order_id, l.ds",
        "ERROR",
    ),
    "left, unmatched visits dropped": (DETAIL, ATTRIBUTION.format(visits="db.visits", orders="db.orders", kind="LEFT"), "DROP"),
    "left, aggregated": (
        "CREATE TABLE db.s (ds STRING, visits BIGINT, orders BIGINT, buyers BIGINT, amt BIGINT, PRIMARY KEY (ds) NOT ENFORCED)",
        "SELECT l.ds, COUNT(*), COUNT(o.order_id), COUNT(DISTINCT o.user_id), SUM(o.pay_amt) FROM db.visits l LEFT JOIN db.orders o "
        "ON o.user_id = l.user_id AND o.ds = l.ds GROUP BY l.ds",
        "ERROR",
    ),
    "with filters and a further condition": (
        "CREATE TABLE db.s (user_id STRING, ds STRING, order_id STRING, pv BIGINT, PRIMARY KEY (user_id, ds, order_id) NOT ENFORCED)",
        "SELECT v.user_id, v.ds, o.order_id, v.pv FROM (SELECT user_id, ds, pv FROM db.visits WHERE pv > 2) v "
        "JOIN (SELECT * FROM db.orders WHERE pay_amt > 20) o ON v.user_id = o.user_id AND v.ds = o.ds AND o.pay_amt < v.pv * 20",
        "ERROR",
    ),
}  # fmt: skip
ORACLES = {
    "left, with a name for a missing order": "SELECT l.user_id, coalesce(o.order_id, 'none'), l.ds, l.pv, o.pay_amt "
    "FROM visits l LEFT JOIN orders o ON l.user_id = o.user_id AND l.ds = o.ds",
    "left, grouped, with a name for a missing order": "SELECT coalesce(o.order_id, 'none'), l.ds, count(*), sum(l.pv)::BIGINT "
    "FROM visits l LEFT JOIN orders o ON l.user_id = o.user_id AND l.ds = o.ds GROUP BY ALL",
    "left, aggregated": "SELECT l.ds, count(*), count(o.order_id), count(DISTINCT o.user_id), sum(o.pay_amt)::BIGINT FROM visits l "
    "LEFT JOIN orders o ON o.user_id = l.user_id AND o.ds = l.ds GROUP BY l.ds",
    "with filters and a further condition": "SELECT v.user_id, v.ds, o.order_id, v.pv FROM visits v JOIN orders o ON v.user_id = o.user_id "
    "AND v.ds = o.ds AND o.pay_amt < v.pv * 20 WHERE v.pv > 2 AND o.pay_amt > 20",
}  # fmt: skip
PLAIN = ATTRIBUTION.format(visits="visits", orders="orders", kind="")


def submit(store: Store, sink: str, select: str, enforcer: str) -> None:
    SqlSession(store).execute(
        f"{VISITS}; {ORDERS}; {sink}; SET 'table.exec.sink.not-null-enforcer' = '{enforcer}'; "
        f"SET 'pipeline.name' = 'job'; INSERT INTO db.s {select}"
    )


class History:
    """Random upserts and deletes on both tables, and the rows that are left."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._rng = random.Random(seed)
        self.visits: dict[tuple[str, str], dict[str, Any]] = {}
        self.orders: dict[tuple[str, str, str], dict[str, Any]] = {}

    def step(self) -> None:
        rng = self._rng
        user, ds = f"u{rng.randrange(8)}", f"2017-01-0{rng.randrange(1, 4)}"
        match rng.randrange(6):
            case 0 | 1:
                row = {"user_id": user, "first_page_time": f"{rng.randrange(24):02}", "pv": rng.randrange(6), "ds": ds}
                self.visits[user, ds] = row
                self._store.table("db.visits").upsert([row])
            case 2 | 3:
                rows = [self._order(user, ds) for _ in range(rng.randrange(1, 3))]
                for row in rows:
                    self.orders[user, ds, row["order_id"]] = row
                self._store.table("db.orders").upsert(rows)
            case 4 if self.visits:
                key = rng.choice(sorted(self.visits))
                del self.visits[key]
                self._store.table("db.visits").delete([{"user_id": key[0], "ds": key[1]}])
            case 5 if self.orders:
                order = rng.choice(sorted(self.orders))
                del self.orders[order]
                self._store.table("db.orders").delete([{"user_id": order[0], "ds": order[1], "order_id": order[2]}])

    def _order(self, user: str, ds: str) -> dict[str, Any]:
        rng = self._rng
        placed = {"order_id": f"o{rng.randrange(4)}", "order_time": f"{rng.randrange(24):02}", "pay_amt": rng.randrange(100)}
        return {**placed, "user_id": user, "ds": ds}

    def tables(self) -> dict[str, pa.Table]:
        visits = pa.schema([("user_id", pa.string()), ("first_page_time", pa.string()), ("pv", pa.int64()), ("ds", pa.string())])
        names = ("order_id", "user_id", "order_time", "pay_amt", "ds")
        orders = pa.schema([(name, pa.int64() if name == "pay_amt" else pa.string()) for name in names])
        return {
            "visits": pa.Table.from_pylist(list(self.visits.values()), visits),
            "orders": pa.Table.from_pylist(list(self.orders.values()), orders),
        }


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_a_delta_join_equals_one_query_over_the_rows_that_are_left(store: Store, case: str, seed: int) -> None:
    submit(store, *CASES[case])
    history = History(store, seed)
    worker = Worker(store, n_rows_max=[3, 17, 100_000][seed % 3])
    for i in range(80):
        history.step()
        if i % (2 + seed) == 0:
            worker.run_until_idle()
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == query_rows(ORACLES.get(case, PLAIN), **history.tables())
    assert differing_jobs(store) == []


def test_a_join_sees_its_input_and_nothing_later(store: Store) -> None:
    """The tables move on while a micro-batch is computed; its output is the join of what it has read."""
    submit(store, *CASES["inner"])
    history = History(store, 11)
    for _ in range(60):
        history.step()
    runner = JobRunner(store, load_job(store, "job"), n_rows_max=5)
    while runner.step():
        assert differing_jobs(store) == []  # more changes lie behind the offsets it has reached
    assert sink_rows(store, "db.s") == query_rows(PLAIN, **history.tables())


def test_unmatched_visits_are_counted_when_they_are_dropped(store: Store) -> None:
    submit(store, *CASES["left, unmatched visits dropped"])
    store.table("db.visits").upsert([{"user_id": "u1", "first_page_time": "10", "pv": 1, "ds": "2017-01-01"}])
    Worker(store).run_until_idle()
    store.table("db.orders").upsert([{"order_id": "o1", "user_id": "u1", "order_time": "11", "pay_amt": 5, "ds": "2017-01-01"}])
    Worker(store).run_until_idle()
    assert store.progress("job:job")["job:job"].detail["n_dropped_nulls"] == 1
    assert sink_rows(store, "db.s") == [("u1", "o1", "2017-01-01", "10", 1, "1")]


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        (
            "SELECT l.user_id, o.order_id, l.ds FROM db.visits l FULL JOIN db.orders o ON l.user_id = o.user_id AND l.ds = o.ds",
            "does not contain the query's key",
        ),
        ("SELECT l.user_id, o.order_id, l.ds FROM db.visits l JOIN db.orders o ON l.pv = o.ds", "compares BIGINT with STRING"),
        ("SELECT l.user_id, o.order_id, l.ds FROM db.visits l JOIN db.orders o ON l.pv < o.pay_amt", "no equality"),
        ("SELECT l.user_id, o.order_id, l.ds FROM db.visits l CROSS JOIN db.orders o", "no equality"),
    ],
)
def test_a_join_that_cannot_be_kept_is_refused_with_the_reason(store: Store, select: str, reason: str) -> None:
    session = SqlSession(store)
    session.execute(f"{VISITS}; {ORDERS}; {DETAIL}")
    with pytest.raises(StatementRefused, match=reason):
        session.execute(f"INSERT INTO db.s (user_id, order_id, ds) {select}")


def test_rows_that_a_table_holds_already_are_not_kept_again(store: Store) -> None:
    submit(store, *CASES["inner"])
    assert plan_job(store, load_job(store, "job")).state_tables == ()


def test_a_left_row_with_a_null_beside_its_key_is_in_the_result(store: Store) -> None:
    SqlSession(store).execute(
        """CREATE TABLE db.a (id BIGINT, shop BIGINT, PRIMARY KEY (id) NOT ENFORCED);
        CREATE TABLE db.b (id BIGINT, shop BIGINT, n BIGINT, PRIMARY KEY (id) NOT ENFORCED);
        CREATE TABLE db.s (id BIGINT, n BIGINT, PRIMARY KEY (id) NOT ENFORCED);
        INSERT INTO db.s SELECT a.id, b.n FROM db.a LEFT JOIN db.b ON a.id = b.id AND a.shop = b.shop"""
    )
    worker = Worker(store)
    store.table("db.b").upsert({"id": [1, 2], "shop": [7, 7], "n": [10, 20]})
    store.table("db.a").upsert({"id": [1, 2], "shop": pa.array([None, 7], pa.int64())})
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == [(1, None), (2, 20)]
    store.table("db.a").upsert({"id": [1, 2], "shop": pa.array([7, None], pa.int64())})
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == [(1, 10), (2, None)]
    store.table("db.a").delete({"id": [1, 2]})
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == []
