"""However the input is cut into commits and micro-batches, a job's sink holds what one query over the whole input says."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

import storage_engine
from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, load_job
from tests.stream.cases import EVENTS, KEYED, KEYED_CASES, LOG_CASES, event, event_table, submit
from tests.stream.comparing import differing_jobs, query_rows, sink_rows


@pytest.mark.parametrize(("seed", "n_rows_max"), [(1, 7), (2, 100_000)])
@pytest.mark.parametrize("case", list(LOG_CASES))
def test_a_job_over_a_log_equals_one_query_however_it_is_cut(store: Store, case: str, seed: int, n_rows_max: int) -> None:
    rng = random.Random(seed)
    sink, select, oracle = LOG_CASES[case]
    submit(store, EVENTS, sink, select)
    events: list[dict[str, Any]] = []
    worker = Worker(store, n_rows_max=n_rows_max)
    for _ in range(8):
        batch = [event(rng, len(events) + i) for i in range(rng.randrange(1, 40))]
        events += batch
        store.table("db.events").append(event_table(batch))
        if rng.random() < 0.6:
            worker.run_until_idle()
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == query_rows(oracle, events=event_table(events))
    assert differing_jobs(store) == []


@pytest.mark.parametrize(("seed", "n_rows_max"), [(1, 5), (2, 32), (3, 100_000)])
@pytest.mark.parametrize("case", list(KEYED_CASES))
def test_a_job_over_a_changelog_equals_one_query_over_the_rows_that_are_left(store: Store, case: str, seed: int, n_rows_max: int) -> None:
    rng = random.Random(seed)
    sink, select, oracle = KEYED_CASES[case]
    submit(store, KEYED, sink, select)
    orders = store.table("db.orders")
    model: dict[int, dict[str, Any]] = {}
    worker = Worker(store, n_rows_max=n_rows_max)
    for _ in range(12):
        rows = {number: event(rng, number) for number in (rng.randrange(30) for _ in range(rng.randrange(1, 15)))}
        model.update(rows)
        orders.upsert(event_table(list(rows.values())).select(["id", "shop", "kind", "qty", "amount"]))
        gone = [number for number in model if rng.random() < 0.15]
        if gone:
            orders.delete({"id": gone})
            model = {number: row for number, row in model.items() if number not in gone}
        if rng.random() < 0.6:
            worker.run_until_idle()
    worker.run_until_idle()
    assert sink_rows(store, "db.s") == query_rows(oracle, orders=event_table(list(model.values())))
    assert differing_jobs(store) == []


def test_lookup_joins_add_what_is_known_when_the_row_arrives(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        f"""{EVENTS};
        CREATE TABLE db.shops (shop BIGINT, city STRING, PRIMARY KEY (shop) NOT ENFORCED);
        CREATE TABLE db.kinds (kind STRING, shop BIGINT, label STRING, PRIMARY KEY (kind, shop) NOT ENFORCED) WITH ('bucket.key' = 'kind');
        CREATE TABLE db.s (id BIGINT, city STRING, label STRING);
        INSERT INTO db.s SELECT e.id, s.city, k.label FROM db.events AS e
          LEFT JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() AS s ON e.shop = s.shop AND s.city <> 'C2'
          JOIN db.kinds FOR SYSTEM_TIME AS OF PROCTIME() AS k ON e.kind = k.kind AND k.shop < e.shop;"""
    )
    shops = [{"shop": n, "city": f"C{n}"} for n in (1, 2, 3)]
    kinds = [{"kind": kind, "shop": n, "label": f"{kind}{n}"} for kind in "ab" for n in (1, 2, 3)]
    store.table("db.shops").upsert(shops)
    store.table("db.kinds").upsert(kinds)
    rng = random.Random(5)
    events = event_table([event(rng, n) for n in range(200)])
    store.table("db.events").append(events)
    Worker(store, n_rows_max=64).run_until_idle()
    oracle = (
        "SELECT e.id, s.city, k.label FROM events e LEFT JOIN shops s ON e.shop = s.shop AND s.city <> 'C2' "
        "JOIN kinds k ON e.kind = k.kind AND k.shop < e.shop"
    )
    assert sink_rows(store, "db.s") == query_rows(oracle, events=events, shops=shops, kinds=kinds)
    assert differing_jobs(store) == []


def test_appended_rows_keep_their_order_through_lookups(store: Store) -> None:
    SqlSession(store).execute(
        """CREATE TABLE db.a (id BIGINT, shop BIGINT); CREATE TABLE db.shops (shop BIGINT, city STRING, PRIMARY KEY (shop) NOT ENFORCED);
        CREATE TABLE db.s (id BIGINT, city STRING);
        INSERT INTO db.s SELECT a.id, s.city FROM db.a LEFT JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() AS s ON a.shop = s.shop"""
    )
    store.table("db.shops").upsert({"shop": list(range(50)), "city": ["x"] * 50})
    store.table("db.a").append({"id": list(range(10_000)), "shop": [n % 70 for n in range(10_000)]})
    Worker(store).run_until_idle()
    assert store.table("db.s").scan().read_all()["id"].to_pylist() == list(range(10_000))


@pytest.mark.parametrize("n_rows_max", [3, 100_000])
def test_of_rows_of_several_logs_under_one_key_the_one_that_came_last_stays(store: Store, n_rows_max: int) -> None:
    store.execute("""
      CREATE TABLE db.a (k BIGINT, v BIGINT); CREATE TABLE db.b (k BIGINT, v BIGINT);
      CREATE TABLE db.s (k BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED);
      SET 'pipeline.name' = 'both'; INSERT INTO db.s SELECT k, v FROM db.a UNION ALL SELECT k, v + 0 FROM db.b;
    """)
    rng = random.Random(5)
    newest: dict[int, int] = {}
    for v in range(60):
        k = rng.randrange(8)
        store.table(rng.choice(["db.a", "db.b"])).append({"k": [k], "v": [v]})
        newest[k] = v
        committed_ms = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == committed_ms:
            pass  # commits of one millisecond have no order between logs

    Worker(store, n_rows_max=n_rows_max).run_until_idle()

    assert sink_rows(store, "db.s") == sorted(newest.items())
    assert differing_jobs(store) == []


def test_several_jobs_fill_their_columns_of_one_row(store: Store) -> None:
    SqlSession(store).execute(
        f"""{EVENTS}; {KEYED};
        CREATE TABLE db.wide (shop BIGINT, lines BIGINT, orders BIGINT, users BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
        SET 'pipeline.name' = 'lines';
        INSERT INTO db.wide (shop, lines) SELECT shop, COUNT(*) FROM db.events WHERE shop IS NOT NULL GROUP BY shop;
        SET 'pipeline.name' = 'orders';
        INSERT INTO db.wide (shop, orders) SELECT shop, COUNT(*) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop;
        SET 'pipeline.name' = 'users';
        INSERT INTO db.wide (shop, users) SELECT shop, COUNT(DISTINCT uid) FROM db.events WHERE shop IS NOT NULL GROUP BY shop"""
    )
    rng = random.Random(3)
    events = event_table([event(rng, n) for n in range(300)])
    orders = event_table([event(rng, n) for n in range(20)]).select(["id", "shop", "kind", "qty", "amount"])
    store.table("db.events").append(events)
    store.table("db.orders").upsert(orders)
    worker = Worker(store)
    worker.run_until_idle()
    store.table("db.orders").delete({"id": list(range(20))})
    worker.run_until_idle()
    oracle = "SELECT shop, count(*), CAST(NULL AS BIGINT), count(DISTINCT uid) FROM events WHERE shop IS NOT NULL GROUP BY shop"
    assert sink_rows(store, "db.wide") == query_rows(oracle, events=events)


def test_a_store_that_is_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    sink, select, oracle = LOG_CASES["distinct counts"]
    rng = random.Random(9)
    events: list[dict[str, Any]] = []
    with storage_engine.connect(url) as store:
        submit(store, EVENTS, sink, select)
    for _ in range(3):
        with storage_engine.connect(url) as store:
            batch = [event(rng, len(events) + i) for i in range(50)]
            events += batch
            store.table("db.events").append(event_table(batch))
            Worker(store, n_rows_max=20).run_until_idle()
    with storage_engine.connect(url) as store:
        assert sink_rows(store, "db.s") == query_rows(oracle, events=event_table(events))


def test_a_value_that_stands_for_null_and_occurs_in_the_data_stops_the_job(store: Store) -> None:
    """Its total would meet the total of the rows without a kind."""
    SqlSession(store).execute(
        "CREATE TABLE db.clicks (kind STRING); "
        "CREATE TABLE db.totals (gid BIGINT, kind STRING, n BIGINT, PRIMARY KEY (gid, kind) NOT ENFORCED);"
        "SET 'pipeline.name' = 'cube';"
        "INSERT INTO db.totals SELECT GROUPING_ID(kind), COALESCE(kind, 'ALL'), COUNT(*) FROM db.clicks GROUP BY CUBE (kind)"
    )
    store.table("db.clicks").append({"kind": ["a", None]})
    Worker(store).run_until_idle()
    before = sink_rows(store, "db.totals")
    store.table("db.clicks").append({"kind": ["ALL"]})

    Worker(store).run_until_idle()

    assert before == [(0, "ALL", 1), (0, "a", 1), (1, "ALL", 2)]
    assert sink_rows(store, "db.totals") == before
    assert "'ALL' stands for NULL, and the data has it as a value" in load_job(store, "cube").last_error


def test_a_second_row_under_the_key_of_an_over_aggregate_stops_the_job(store: Store) -> None:
    """Nothing says that ids are unique in a log: the sink's key is taken for it, and checked."""
    SqlSession(store).execute(
        """CREATE TABLE db.clicks (id BIGINT, qty INT); CREATE TABLE db.s (id BIGINT, total INT, PRIMARY KEY (id) NOT ENFORCED);
        SET 'pipeline.name' = 'over'; INSERT INTO db.s SELECT id, SUM(qty) OVER (ORDER BY id) FROM db.clicks"""
    )
    worker = Worker(store)
    for ids in ([2, 3], [1], [3]):
        store.table("db.clicks").append({"id": ids, "qty": [1] * len(ids)})
        worker.run_until_idle()
    assert sink_rows(store, "db.s") == [(1, 1), (2, 2), (3, 3)]
    assert "two rows of the result have the key id = 3" in load_job(store, "over").last_error


def test_of_equal_rows_the_one_that_came_first_stays_first(store: Store) -> None:
    SqlSession(store).execute(
        """CREATE TABLE db.clicks (shop BIGINT, id BIGINT, qty INT);
        CREATE TABLE db.s (shop BIGINT, id BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
        INSERT INTO db.s SELECT shop, id FROM
          (SELECT *, ROW_NUMBER() OVER (PARTITION BY shop ORDER BY qty) AS rn FROM db.clicks) WHERE rn = 1"""
    )
    worker = Worker(store)
    for ids in ([7, 8], [3], [5, 1]):
        store.table("db.clicks").append({"shop": [1] * len(ids), "id": ids, "qty": [4] * len(ids)})
        worker.run_until_idle()
    assert sink_rows(store, "db.s") == [(1, 7)]
    assert differing_jobs(store) == []
