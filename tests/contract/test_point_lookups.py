"""Contract: a lookup of one key says what lookup() says; many lookups and many writes under way at once keep their order."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest

from storage_engine.errors import SchemaMismatch, UserError

AT = dt.datetime.fromisoformat("2026-01-02T03:04:05")
LONG = "a text that is longer than twelve bytes: é"
ROWS = [
    {"id": 1, "name": "milk", "price": 3, "weight": 1.5, "raw": b"\x00\xff", "at": AT, "day": AT.date()},
    {"id": 300, "name": "", "price": None, "weight": float("inf"), "raw": b"", "at": None, "day": dt.date(1969, 12, 31)},
    {"id": -7, "name": LONG, "price": -1, "weight": None, "raw": None, "at": AT.replace(year=1960), "day": None},
]


@pytest.fixture(params=["one bucket", "four buckets"])
def items(request, store, db):
    options = "WITH ('bucket.num' = '4')" if request.param == "four buckets" else ""
    store.execute(f"""
        CREATE TABLE {db}.items (id BIGINT NOT NULL, name STRING, price INT, weight DOUBLE, raw BYTES, at TIMESTAMP(3), day DATE,
          PRIMARY KEY (id) NOT ENFORCED) {options}
    """)
    table = store.table(f"{db}.items")
    table.upsert(ROWS)
    return table


@pytest.mark.needs("lookup")
def test_one_key_has_the_row_that_a_table_of_keys_has(items):
    assert [items.lookup_one(row["id"]) for row in ROWS] == ROWS
    assert items.lookup_one(300) == items.lookup([300]).to_pylist()[0]
    assert items.lookup_one(5) is None
    assert items.lookup_one(1, columns=["price", "name"]) == {"price": 3, "name": "milk"}
    assert items.lookup_one({"id": 1}, columns=["id"]) == {"id": 1}


@pytest.mark.needs("lookup")
def test_one_key_has_the_row_of_the_last_write(items):
    items.upsert([{"id": 1, "name": "tea"}])
    assert items.lookup_one(1, ["name", "price"]) == {"name": "tea", "price": None}
    items.delete({"id": [1]})
    assert items.lookup_one(1) is None
    items.upsert([{"id": 1, "name": "milk again"}])
    assert items.lookup_one(1, ["name"]) == {"name": "milk again"}


@pytest.mark.needs("lookup")
def test_a_key_that_is_none_is_refused_as_by_a_lookup(items):
    for key in ("one", None, (1, 2), {"name": "milk"}, 1 << 70):
        with pytest.raises(SchemaMismatch):
            items.lookup_one(key)
    with pytest.raises(SchemaMismatch, match="no column none"):
        items.lookup_one(1, ["none"])


@pytest.mark.needs("lookup")
def test_one_key_of_two_columns_is_a_tuple_or_a_dict(store, db):
    store.execute(f"""
        CREATE TABLE {db}.lines (shop STRING NOT NULL, line INT NOT NULL, n INT, PRIMARY KEY (shop, line) NOT ENFORCED)
        WITH ('bucket.num' = '4', 'bucket.key' = 'shop')
    """)
    table = store.table(f"{db}.lines")
    table.upsert([{"shop": f"s{i}", "line": i, "n": i * i} for i in range(50)])
    assert [table.lookup_one((f"s{i}", i))["n"] for i in range(50)] == [i * i for i in range(50)]
    assert table.lookup_one({"line": 3, "shop": "s3"}) == {"shop": "s3", "line": 3, "n": 9}
    assert table.lookup_one(("s3", 4)) is None


@pytest.mark.needs("lookup")
def test_one_key_is_found_where_rows_and_keys_are_of_rare_types(store, db):
    store.execute(f"""
        CREATE TABLE {db}.rare (day DATE NOT NULL, is_open BOOLEAN, total DECIMAL(10, 2), PRIMARY KEY (day) NOT ENFORCED)
    """)
    table = store.table(f"{db}.rare")
    row = {"day": dt.date(2026, 5, 1), "is_open": True, "total": Decimal("12.50")}
    table.upsert([row])
    assert table.lookup_one(row["day"]) == row
    assert table.lookup_one(dt.date(2026, 5, 2)) is None


@pytest.mark.needs("lookup")
def test_one_key_of_a_partitioned_table_is_found(store, db):
    store.execute(f"""
        CREATE TABLE {db}.daily (ds STRING NOT NULL, id BIGINT NOT NULL, n INT, PRIMARY KEY (ds, id) NOT ENFORCED) PARTITIONED BY (ds)
    """)
    table = store.table(f"{db}.daily")
    table.upsert([{"ds": "2026-01-01", "id": 1, "n": 10}])
    table.upsert([{"ds": "2026-01-02", "id": 1, "n": 20}])
    assert table.lookup_one(("2026-01-02", 1)) == {"ds": "2026-01-02", "id": 1, "n": 20}
    assert table.lookup_one(("2026-01-03", 1)) is None


@pytest.mark.needs("alter_table")
def test_one_key_is_found_after_a_column_was_added(store, db):
    store.execute(f"CREATE TABLE {db}.grown (id BIGINT NOT NULL, name STRING, PRIMARY KEY (id) NOT ENFORCED)")
    table = store.table(f"{db}.grown")
    table.upsert([{"id": 1, "name": "old"}])
    assert table.lookup_one(1) == {"id": 1, "name": "old"}
    store.execute(f"ALTER TABLE {db}.grown ADD COLUMN n INT")
    assert table.lookup_one(1) == {"id": 1, "name": "old"}  # as it was opened
    assert store.table(f"{db}.grown").lookup_one(1) == {"id": 1, "name": "old", "n": None}


@pytest.mark.needs("lookup")
def test_a_log_table_has_no_keys_to_look_up(store, db):
    store.execute(f"CREATE TABLE {db}.log (id BIGINT)")
    with pytest.raises(UserError):
        store.table(f"{db}.log").lookup_one(1)


@pytest.mark.needs("lookup")
def test_many_lookups_are_answered_in_order(items):
    batches = [[1], [5], [300, 1], [-7, 300, 1, 1, 5, 300, -7, 1], []]
    answers = [rows["id"].to_pylist() for rows in items.lookups(batches * 20, columns=["id"])]
    assert answers == [[1], [], [300, 1], [-7, 300, 1, 1, 300, -7, 1], []] * 20


@pytest.mark.needs("prefix_lookup")
def test_many_prefix_lookups_are_answered_in_order(store, db):
    store.execute(f"""
        CREATE TABLE {db}.p (user_id BIGINT NOT NULL, item BIGINT NOT NULL, n INT, PRIMARY KEY (user_id, item) NOT ENFORCED)
        WITH ('bucket.key' = 'user_id')
    """)
    table = store.table(f"{db}.p")
    table.upsert([{"user_id": u, "item": i, "n": u * i} for u in range(20) for i in range(3)])
    answers = table.prefix_lookups([{"user_id": [u, 99]} for u in range(20)], limit=2)
    assert [rows["n"].to_pylist() for rows in answers] == [[0, u] for u in range(20)]


@pytest.mark.needs("append")
def test_a_writer_keeps_the_order_of_its_batches(store, db):
    store.execute(f"CREATE TABLE {db}.events (n BIGINT NOT NULL, name STRING)")
    table = store.table(f"{db}.events")
    with table.writer() as writer:
        for i in range(120):
            writer.append({"n": [2 * i, 2 * i + 1], "name": [f"e{i}", None]})
    assert table.scan(["n"]).read_all()["n"].to_pylist() == list(range(240))
    assert table.count() == 240


@pytest.mark.needs("upsert")
def test_a_writer_raises_what_a_batch_did_wrong_and_writes_the_others(store, db):
    store.execute(f"CREATE TABLE {db}.kept (id BIGINT NOT NULL, n INT, PRIMARY KEY (id) NOT ENFORCED)")
    table = store.table(f"{db}.kept")
    writer = table.writer()
    writer.upsert({"id": [1], "n": [1]})

    def wrong():
        writer.upsert({"id": [2], "m": [1]})
        writer.flush()

    with pytest.raises(SchemaMismatch, match="unknown column m"):
        wrong()
    writer.upsert({"id": [3], "n": [3]})
    writer.close()
    assert sorted(table.read()["id"].to_pylist()) == [1, 3]


@pytest.mark.needs("append")
@pytest.mark.parametrize("codec", ["ZSTD", "LZ4_FRAME", "NONE"])
def test_appends_land_in_the_bucket_and_partition_of_their_rows(store, db, codec):
    store.execute(f"""
        CREATE TABLE {db}.routed (ds STRING NOT NULL, user_id BIGINT, name STRING) PARTITIONED BY (ds)
        WITH ('bucket.num' = '3', 'bucket.key' = 'user_id', 'table.log.arrow.compression.type' = '{codec}')
    """)
    table = store.table(f"{db}.routed")
    rows = [{"ds": f"2026-01-0{1 + i % 2}", "user_id": i % 40, "name": "x" * (i % 30)} for i in range(2000)]
    table.append(rows)
    found = table.scan(metadata=True).read_all()
    assert sorted(found.select(["ds", "user_id", "name"]).to_pylist(), key=str) == sorted(rows, key=str)
    assert found["_partition"].to_pylist() == found["ds"].to_pylist()
    bucket_of = {}
    for user, bucket in zip(found["user_id"].to_pylist(), found["_bucket"].to_pylist(), strict=True):
        assert bucket_of.setdefault(user, bucket) == bucket
    assert set(bucket_of.values()) == {0, 1, 2}


@pytest.mark.needs("append")
def test_an_append_that_does_not_fit_is_refused_whole(store, db):
    store.execute(f"CREATE TABLE {db}.strict (id BIGINT NOT NULL, n INT)")
    table = store.table(f"{db}.strict")
    for rows in ({"id": [1, None], "n": [1, 2]}, {"id": ["x"], "n": [1]}, {"n": [1]}, {"id": [1], "m": [1]}):
        with pytest.raises(SchemaMismatch):
            table.append(rows)
    assert table.count() == 0
    table.append(pa.table({"n": pa.array([1], pa.int32()), "id": [7]}))
    assert table.scan().read_all().to_pylist() == [{"id": 7, "n": 1}]


@pytest.mark.needs("alter_table")
def test_a_handle_from_before_a_column_was_added_still_appends(store, db):
    store.execute(f"CREATE TABLE {db}.wider (id BIGINT)")
    old = store.table(f"{db}.wider")
    old.append({"id": [1]})
    store.execute(f"ALTER TABLE {db}.wider ADD COLUMN n INT")
    old.append({"id": [2]})
    store.table(f"{db}.wider").append({"id": [3], "n": [3]})
    found = store.table(f"{db}.wider").scan().read_all().to_pylist()
    assert found == [{"id": 1, "n": None}, {"id": 2, "n": None}, {"id": 3, "n": 3}]
