"""Subqueries, Top-N over everything, set operations, RIGHT and FULL joins: however the input is cut, what one query says of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.stream.cases import EVENTS, KEYED, event, event_table, submit
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

BY_KIND = "CREATE TABLE db.s (kind STRING, n BIGINT, q BIGINT, PRIMARY KEY (kind) NOT ENFORCED)"
COUNTED = "SELECT kind, COUNT(*), SUM(CAST(qty AS BIGINT)) FROM db.events WHERE kind IS NOT NULL AND {} GROUP BY kind"
COUNTS = "SELECT kind, count(*), sum(qty)::BIGINT FROM events AS o WHERE kind IS NOT NULL AND {} GROUP BY kind"
BY_ID = "CREATE TABLE db.s (id BIGINT, shop BIGINT, qty INT, PRIMARY KEY (id) NOT ENFORCED)"
ROWS = "SELECT id, shop, qty FROM db.orders AS o WHERE {}"

LOG_CONDITIONS = {
    "in": "uid IN (SELECT uid FROM db.events WHERE kind = 'b' AND qty > 3)",
    "not in, with nulls sooner or later": "qty NOT IN (SELECT uid FROM db.events WHERE kind = 'c' AND shop = 1)",
    "not in without nulls": "qty NOT IN (SELECT uid FROM db.events WHERE uid IS NOT NULL AND shop = 2 AND uid > 4)",
    "not in an empty set": "qty NOT IN (SELECT uid FROM db.events WHERE shop = 77)",
    "exists, correlated": "EXISTS (SELECT 1 FROM db.events b WHERE b.kind = 'b' AND b.uid = events.qty)",
    "not exists, correlated": "NOT EXISTS (SELECT * FROM db.events b WHERE b.kind = 'b' AND b.uid = events.uid)",
    "exists with a further comparison": "EXISTS (SELECT 1 FROM db.events b WHERE b.uid = events.uid AND b.qty < events.qty)",
    "not exists with a further comparison": "NOT EXISTS (SELECT 1 FROM db.events b WHERE b.uid = events.uid AND b.qty < events.qty)",
    "exists of anything": "EXISTS (SELECT 1 FROM db.events b WHERE b.qty = 9 AND b.shop = 1)",
    "more than the mean": "qty * 10 > (SELECT AVG(b.qty * 10) FROM db.events b WHERE b.shop = 2)",
    "more than the count of the same user": "qty > (SELECT COUNT(*) FROM db.events b WHERE b.uid = events.uid)",
    "one of two": "(qty IN (SELECT uid FROM db.events WHERE shop = 3) OR EXISTS (SELECT 1 FROM db.events b WHERE b.uid = events.qty))",
    "in of a case, negated": "CASE WHEN qty IN (SELECT uid FROM db.events WHERE shop = 3 AND kind = 'c') THEN FALSE ELSE TRUE END",
    "not in among rows of the same shop": "qty NOT IN (SELECT b.uid FROM db.events b WHERE b.shop = events.shop AND b.kind = 'c')",
    "in a union": "qty IN (SELECT uid FROM db.events WHERE shop = 3 UNION ALL SELECT shop FROM db.events)",
}  # fmt: skip


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("case", list(LOG_CONDITIONS))
def test_a_condition_with_a_subquery_over_a_log(store: Store, case: str, seed: int) -> None:
    condition = LOG_CONDITIONS[case]
    oracle = condition.replace("events.", "o.").replace("db.o.", "db.").replace("db.events", "events")
    check_log(store, seed, BY_KIND, COUNTED.format(condition), COUNTS.format(oracle))


LOG_CASES = {
    "in, appended to a log": (
        "CREATE TABLE db.s (id BIGINT, qty INT)",
        "SELECT id, qty FROM db.events WHERE uid IN (SELECT uid FROM db.events WHERE kind = 'b')",
        "SELECT id, qty FROM events WHERE uid IN (SELECT uid FROM events WHERE kind = 'b')",
    ),
    "values from elsewhere": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, best INT, others BIGINT, known BOOLEAN, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(*), (SELECT MAX(b.qty) FROM db.events b WHERE b.uid = e.shop), (SELECT COUNT(*) FROM db.events b WHERE "
        "b.uid = e.shop), shop IN (SELECT uid FROM db.events WHERE kind = 'a') FROM db.events e WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(*), (SELECT max(b.qty) FROM events b WHERE b.uid = e.shop), (SELECT count(*) FROM events b WHERE "
        "b.uid = e.shop), shop IN (SELECT uid FROM events WHERE kind = 'a') FROM events e WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "groups above the mean": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(*) FROM db.events WHERE shop IS NOT NULL GROUP BY shop "
        "HAVING COUNT(*) >= (SELECT COUNT(*) / COUNT(DISTINCT shop) FROM db.events)",
        "SELECT shop, count(*) FROM events WHERE shop IS NOT NULL GROUP BY shop "
        "HAVING count(*) >= (SELECT count(*) // count(DISTINCT shop) FROM events)",
    ),
    "the five with most, but for the first": (
        "CREATE TABLE db.s (shop BIGINT, kind STRING, n BIGINT, PRIMARY KEY (shop, kind) NOT ENFORCED)",
        "SELECT shop, kind, COUNT(*) AS n FROM db.events WHERE shop IS NOT NULL AND kind IS NOT NULL GROUP BY shop, kind "
        "ORDER BY n DESC, SUM(qty), 1, kind LIMIT 4 OFFSET 1",
        "SELECT shop, kind, count(*) AS n FROM events WHERE shop IS NOT NULL AND kind IS NOT NULL GROUP BY shop, kind "
        "ORDER BY n DESC, sum(qty) NULLS FIRST, 1, kind LIMIT 4 OFFSET 1",
    ),
    "rows of both": (
        "CREATE TABLE db.s (a STRING, b BIGINT, PRIMARY KEY (a, b) NOT ENFORCED)",
        "SELECT COALESCE(kind, '-'), COALESCE(q, -1) FROM (SELECT kind, CAST(qty AS BIGINT) AS q FROM db.events WHERE shop = 1 "
        "INTERSECT SELECT kind, uid FROM db.events WHERE shop = 2)",
        "SELECT coalesce(kind, '-'), coalesce(q, -1) FROM (SELECT kind, qty::BIGINT AS q FROM events WHERE shop = 1 "
        "INTERSECT SELECT kind, uid FROM events WHERE shop = 2)",
    ),
    "rows of the first only": (
        "CREATE TABLE db.s (a STRING, b BIGINT, PRIMARY KEY (a, b) NOT ENFORCED)",
        "SELECT COALESCE(kind, '-'), COALESCE(q, -1) FROM (SELECT kind, CAST(qty AS BIGINT) AS q FROM db.events WHERE shop <> 2 "
        "EXCEPT SELECT kind, uid FROM db.events WHERE shop = 2)",
        "SELECT coalesce(kind, '-'), coalesce(q, -1) FROM (SELECT kind, qty::BIGINT AS q FROM events WHERE shop <> 2 "
        "EXCEPT SELECT kind, uid FROM events WHERE shop = 2)",
    ),
    "a right join, aggregated": (
        BY_KIND,
        "SELECT COALESCE(b.kind, '-'), COUNT(a.id), SUM(CAST(b.qty AS BIGINT)) FROM (SELECT * FROM db.events WHERE kind = 'b') a "
        "RIGHT JOIN db.events b ON a.uid = b.uid AND a.qty < b.qty GROUP BY b.kind",
        "SELECT coalesce(b.kind, '-'), count(a.id), sum(b.qty)::BIGINT FROM (SELECT * FROM events WHERE kind = 'b') a "
        "RIGHT JOIN events b ON a.uid = b.uid AND a.qty < b.qty GROUP BY b.kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("case", list(LOG_CASES))
def test_a_query_over_a_log(store: Store, case: str, seed: int) -> None:
    check_log(store, seed, *LOG_CASES[case])


def check_log(store: Store, seed: int, sink: str, select: str, oracle: str) -> None:
    rng = random.Random(seed)
    submit(store, EVENTS, sink, select)
    events: list[dict[str, Any]] = []
    worker = Worker(store, n_rows_max=7)
    for _ in range(6):
        batch = [event(rng, len(events) + i) for i in range(rng.randrange(1, 25))]
        events += batch
        store.table("db.events").append(event_table(batch))
        if rng.random() < 0.6:
            worker.run_until_idle()
            assert sink_rows(store, "db.s") == query_rows(oracle, events=event_table(events)), load_jobs(store)["job"].last_error
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == query_rows(oracle, events=event_table(events)), load_jobs(store)["job"].last_error
    assert differing_jobs(store) == []


KEYED_CASES = {
    **{
        name: (BY_ID, ROWS.format(condition), ROWS.format(condition).replace("db.orders", "orders"))
        for name, condition in {
            "in": "shop IN (SELECT b.qty FROM db.orders b WHERE b.kind = 'b')",
            "not in, nulls come and go": "qty NOT IN (SELECT b.shop FROM db.orders b WHERE b.kind = 'b')",
            "not in among the same kind": "qty NOT IN (SELECT b.shop FROM db.orders b WHERE b.kind = o.kind AND b.qty > 7)",
            "exists": "EXISTS (SELECT 1 FROM db.orders b WHERE b.shop = o.shop AND b.kind = 'c')",
            "not exists by the key": "NOT EXISTS (SELECT 1 FROM db.orders b WHERE b.id = o.qty)",
            "exists with more": "EXISTS (SELECT 1 FROM db.orders b WHERE b.shop = o.shop AND b.qty > o.qty)",
            "not exists with more": "NOT EXISTS (SELECT 1 FROM db.orders b WHERE b.shop = o.shop AND b.qty > o.qty)",
            "the largest": "qty = (SELECT MAX(b.qty) FROM db.orders b)",
            "the largest of its shop": "qty = (SELECT MAX(b.qty) FROM db.orders b WHERE b.shop = o.shop)",
            "a value by the whole key": "'c' = (SELECT b.kind FROM db.orders b WHERE b.id = o.qty)",
            "nested": "shop IN (SELECT b.qty FROM db.orders b WHERE b.id NOT IN (SELECT c.qty FROM db.orders c WHERE c.qty IS NOT NULL))",
        }.items()
    },
    "top of all": (
        BY_ID,
        "SELECT id, shop, qty FROM db.orders ORDER BY qty DESC, id LIMIT 5",
        "SELECT id, shop, qty FROM orders ORDER BY qty DESC NULLS LAST, id LIMIT 5",
    ),
    "a full join by keys": (
        "CREATE TABLE db.s (id BIGINT, a INT, b INT, PRIMARY KEY (id) NOT ENFORCED)",
        "SELECT COALESCE(x.id, y.id), x.qty, y.qty FROM (SELECT * FROM db.orders WHERE kind <> 'a') x "
        "FULL OUTER JOIN (SELECT * FROM db.orders WHERE qty > 4) y ON x.id = y.id",
        "SELECT coalesce(x.id, y.id), x.qty, y.qty AS b FROM (SELECT * FROM orders WHERE kind <> 'a') x "
        "FULL OUTER JOIN (SELECT * FROM orders WHERE qty > 4) y ON x.id = y.id",
    ),
    "a full join by others, aggregated": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, a BIGINT, b BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT COALESCE(x.shop, -1), COUNT(*), COUNT(y.id), COUNT(y.qty) FROM (SELECT * FROM db.orders WHERE kind <> 'a') x "
        "FULL JOIN (SELECT * FROM db.orders WHERE qty > 4) y ON x.shop = y.qty GROUP BY x.shop",
        "SELECT coalesce(x.shop, -1), count(*), count(y.id), count(y.qty) FROM (SELECT * FROM orders WHERE kind <> 'a') x "
        "FULL JOIN (SELECT * FROM orders WHERE qty > 4) y ON x.shop = y.qty GROUP BY x.shop",
    ),
    "a right join": (
        "CREATE TABLE db.s (a BIGINT, b BIGINT, PRIMARY KEY (a, b) NOT ENFORCED)",
        "SELECT COALESCE(x.id, -1), y.id FROM (SELECT * FROM db.orders WHERE kind <> 'a') x "
        "RIGHT JOIN db.orders y ON x.shop = y.qty",
        "SELECT coalesce(x.id, -1), y.id AS b FROM (SELECT * FROM orders WHERE kind <> 'a') x RIGHT JOIN orders y ON x.shop = y.qty",
    ),
    "intersect": (
        "CREATE TABLE db.s (a BIGINT, PRIMARY KEY (a) NOT ENFORCED)",
        "SELECT COALESCE(shop, -1) FROM (SELECT shop FROM db.orders WHERE kind = 'a' INTERSECT SELECT qty FROM db.orders)",
        "SELECT coalesce(shop, -1) FROM (SELECT shop FROM orders WHERE kind = 'a' INTERSECT SELECT qty FROM orders)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("seed", "n_rows_max"), [(1, 5), (2, 32)])
@pytest.mark.parametrize("case", list(KEYED_CASES))
def test_a_query_over_a_changelog(store: Store, case: str, seed: int, n_rows_max: int) -> None:
    rng = random.Random(seed)
    sink, select, oracle = KEYED_CASES[case]
    submit(store, KEYED, sink, select)
    orders = store.table("db.orders")
    model: dict[int, dict[str, Any]] = {}
    worker = Worker(store, n_rows_max=n_rows_max)
    for _ in range(10):
        rows = {number: event(rng, number) for number in (rng.randrange(20) for _ in range(rng.randrange(1, 12)))}
        model.update(rows)
        orders.upsert(event_table(list(rows.values())).select(["id", "shop", "kind", "qty", "amount"]))
        gone = [number for number in model if rng.random() < 0.15]
        if gone:
            orders.delete({"id": gone})
            model = {number: row for number, row in model.items() if number not in gone}
        if rng.random() < 0.6:
            worker.run_until_idle()
    worker.run_until_idle()
    assert load_jobs(store)["job"].last_error == ""
    assert sink_rows(store, "db.s") == query_rows(oracle, orders=event_table(list(model.values())))
    assert differing_jobs(store) == []


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("qty = (SELECT b.qty FROM db.orders b WHERE b.shop = o.shop)", "may give several rows"),
        ("qty = (SELECT b.qty, b.id FROM db.orders b)", "has 2 columns"),
        ("qty IN (SELECT b.qty, b.id FROM db.orders b)", "has 2 columns"),
        ("kind IN (SELECT b.qty FROM db.orders b)", "a subquery's INT is compared with STRING"),
        ("qty > (SELECT MAX(b.qty) FROM db.orders b WHERE b.id < o.id)", "by more than equality"),
        ("(id = 1 OR EXISTS (SELECT 1 FROM db.orders b WHERE b.id < o.id))", "by more than equality"),
        ("EXISTS (SELECT MAX(b.qty) FROM db.orders b)", "always true"),
        ("qty IN (SELECT b.qty FROM db.orders b WHERE b.id = o.id LIMIT 3)", "LIMIT or DISTINCT inside a correlated"),
        ("qty IN (SELECT o.qty FROM db.orders b)", "no table in FROM is called o"),
    ],
)
def test_a_subquery_that_cannot_be_kept_is_refused_with_the_reason(store: Store, condition: str, reason: str) -> None:
    with pytest.raises(StatementRefused, match=reason):
        SqlSession(store).execute(f"{KEYED}; {BY_ID}; INSERT INTO db.s {ROWS.format(condition)}")


def test_values_in_the_order_of_the_log_and_their_spread(store: Store) -> None:
    """One bucket: rows come in the order of their ids."""
    session = SqlSession(store)
    session.execute(
        f"""{EVENTS.partition(" WITH")[0].replace("WITH", "")};
        CREATE TABLE db.s (shop BIGINT, a INT, b INT, c STRING, d STRING, n INT, sd INT, vp DECIMAL(38, 6), vs DOUBLE,
          PRIMARY KEY (shop) NOT ENFORCED);
        SET 'pipeline.name' = 'job'; INSERT INTO db.s SELECT shop, FIRST_VALUE(qty), LAST_VALUE(qty) FILTER (WHERE kind = 'a'),
          LISTAGG(kind), STRING_AGG(CAST(id AS STRING), '|') FILTER (WHERE qty > 4), CARDINALITY(ARRAY_AGG(qty)), STDDEV_SAMP(qty),
          VAR_POP(amount), VARIANCE(CAST(qty AS DOUBLE)) FROM db.events WHERE shop IS NOT NULL GROUP BY shop"""
    )
    oracle = """SELECT shop, first(qty ORDER BY id) FILTER (qty IS NOT NULL), last(qty ORDER BY id) FILTER (qty IS NOT NULL AND kind = 'a'),
      string_agg(kind, ',' ORDER BY id), string_agg(id, '|' ORDER BY id) FILTER (qty > 4), count(*)::INT,
      trunc(sqrt((sum(qty * qty)::BIGINT - sum(qty)::BIGINT * sum(qty)::BIGINT // count(qty)) // nullif(count(qty) - 1, 0)))::INT,
      var_pop(amount)::DECIMAL(38, 6), var_samp(qty) FROM events WHERE shop IS NOT NULL GROUP BY shop"""
    rng = random.Random(8)
    events: list[dict[str, Any]] = []
    worker = Worker(store, n_rows_max=11)
    for _ in range(8):
        batch = [event(rng, len(events) + i) for i in range(rng.randrange(1, 25))]
        events += batch
        store.table("db.events").append(event_table(batch))
        if rng.random() < 0.6:
            worker.run_until_idle()
    worker.run_until_idle()
    assert load_jobs(store)["job"].last_error == ""
    rounded = [(*row[:-1], round(row[-1], 9) if row[-1] is not None else None) for row in sink_rows(store, "db.s")]
    wanted = query_rows(oracle, events=event_table(events))
    assert rounded == [(*row[:-1], round(row[-1], 9) if row[-1] is not None else None) for row in wanted]
