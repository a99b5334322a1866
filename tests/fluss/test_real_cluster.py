"""Fluss, for real: the traps of its client are closed here, and what the contract does not reach. Runs with FLASHLAKE_TEST_FLUSS only."""

from __future__ import annotations

import os
import time
from itertools import count

import pyarrow as pa
import pytest

import storage_engine
from storage_engine import WriteId
from storage_engine.errors import FlashlakeError, InvalidPartition, StoreUnavailable, UnsupportedByBackend, UserError

FLUSS = os.environ.get("FLASHLAKE_TEST_FLUSS", "")
pytestmark = pytest.mark.skipif(not FLUSS, reason="FLASHLAKE_TEST_FLUSS is not set")
_numbers = count(1)


@pytest.fixture
def store(fluss_url):
    with storage_engine.connect(fluss_url, timeout_s=20) as opened:
        yield opened


@pytest.fixture
def db():
    return f"real{os.getpid()}_{next(_numbers)}"


def test_a_batch_of_two_partitions_lands_in_both(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT, day STRING NOT NULL) PARTITIONED BY (day)")
    table = store.table(f"{db}.t")

    table.append({"x": [1, 2, 3], "day": ["a", "b", "a"]})

    rows = table.scan(metadata=True).read_all().to_pylist()
    assert sorted((row["_partition"], row["day"], row["x"]) for row in rows) == [("a", "a", 1), ("a", "a", 3), ("b", "b", 2)]


def test_a_write_that_the_server_refuses_is_reported(store, db):
    store.execute(f"""
        CREATE TABLE {db}.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.delete.behavior' = 'disable')
    """)
    table = store.table(f"{db}.t")
    table.upsert({"id": [1], "v": ["a"]})

    with pytest.raises(UserError, match=r"[Dd]elet"):
        table.delete({"id": [1]})

    table.upsert({"id": [2], "v": ["b"]})
    assert sorted(table.read()["id"].to_pylist()) == [1, 2]


def test_a_write_into_a_partition_dropped_meanwhile_makes_it_again(store, fluss_url, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT, day STRING NOT NULL) PARTITIONED BY (day)")
    table = store.table(f"{db}.t")
    table.append({"x": [1], "day": ["a"]})
    with storage_engine.connect(fluss_url) as other:
        other.execute(f"ALTER TABLE {db}.t DROP PARTITION (day = 'a')")

    table.append({"x": [2], "day": ["a"]})

    assert table.scan(columns=["x"]).read_all()["x"].to_pylist() == [2]


def test_a_delete_in_a_partition_that_is_not_there_does_nothing(store, db):
    store.execute(f"""
        CREATE TABLE {db}.t (day STRING NOT NULL, id BIGINT NOT NULL, PRIMARY KEY (day, id) NOT ENFORCED) PARTITIONED BY (day)
    """)

    store.table(f"{db}.t").delete({"day": ["a"], "id": [1]})

    assert store.table(f"{db}.t").partitions() == []


def test_one_lookup_does_not_wait_for_the_clients_linger(store, db):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('bucket.num' = '3')")
    table = store.table(f"{db}.t")
    table.upsert({"id": list(range(500)), "v": [str(i) for i in range(500)]})
    table.lookup({"id": [1]})

    took = []
    for key in range(20):
        begin = time.monotonic()
        assert table.lookup({"id": [key]})["v"].to_pylist() == [str(key)]
        took.append(time.monotonic() - begin)

    assert sorted(took)[10] < 0.09, "the client waits 100 ms unless 128 lookups are queued"


def test_a_table_made_again_at_once_takes_writes(store, db):
    for round_ in range(3):
        store.execute(f"CREATE TABLE {db}.t (id BIGINT NOT NULL, PRIMARY KEY (id) NOT ENFORCED)")
        store.table(f"{db}.t").upsert({"id": [round_]})
        assert store.table(f"{db}.t").read()["id"].to_pylist() == [round_]
        store.execute(f"DROP TABLE {db}.t")


def test_offsets_that_hold_no_rows_are_passed_over(store, db):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED)")
    table = store.table(f"{db}.t")
    table.upsert({"id": [1], "v": ["a"]})
    table.delete({"id": [99]})

    assert table.scan().read_all()["id"].to_pylist() == [1]


@pytest.mark.parametrize("n", [1, 50_000])
def test_every_row_of_a_large_upsert_is_acknowledged_and_there(store, db, n):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('bucket.num' = '3')")
    table = store.table(f"{db}.t")

    table.upsert(pa.table({"id": list(range(n)), "v": ["v" * 40] * n}))

    assert table.count() == n
    assert table.scan(columns=["id"]).read_all().num_rows == n


@pytest.mark.parametrize(
    ("feature", "call"),
    [
        ("journal", lambda store, name: store.version()),
        ("journal", lambda store, name: store.await_version(0, 0.1)),
        ("journal", lambda store, name: store.commits(0)),
        ("jobs", lambda store, name: store.progress("job:")),
        ("consumers", lambda store, name: store.table(name).consumer("c")),
        ("objects", lambda store, name: store.put_object("view", "v", {})),
        ("alter_table", lambda store, name: store.execute(f"ALTER TABLE {name} ADD w STRING")),
        ("read_at_version", lambda store, name: store.table(name).read(at=1)),
        ("read_at_version", lambda store, name: store.table(name).offsets(at_version=1)),
        ("idempotent_writes", lambda store, name: store.table(name).upsert({"id": [1], "v": ["a"]}, write_id=WriteId("w", 1))),
        (
            "aggregation",
            lambda store, name: store.execute(f"""
                CREATE TABLE {name}2 (k BIGINT NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
                WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum')
            """),
        ),
        ("tiering", lambda store, name: store.execute(f"CREATE TABLE {name}3 (x BIGINT) WITH ('table.datalake.enabled' = 'true')")),
    ],
)
def test_what_fluss_lacks_is_refused_by_its_name_and_nothing_is_done(store, db, feature, call):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED)")

    with pytest.raises(UnsupportedByBackend, match=rf"lacks {feature}\b.*{store.url}"):
        call(store, f"{db}.t")

    assert [name for name in store.tables() if name.startswith(f"{db}.")] == [f"{db}.t"]
    assert store.table(f"{db}.t").count() == 0


@pytest.mark.parametrize("day", ["a/b", "", "x" * 201])
def test_a_value_that_cannot_name_a_partition_is_refused_and_nothing_is_written(store, db, day):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT, day STRING NOT NULL) PARTITIONED BY (day)")

    with pytest.raises(InvalidPartition, match="row 1"):
        store.table(f"{db}.t").append({"x": [1, 2], "day": ["ok", day]})

    assert store.table(f"{db}.t").partitions() == []


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(StoreUnavailable, match="localhost:1"):
        storage_engine.connect("fluss://localhost:1", connect_s=5)


def test_a_closed_store_refuses_calls(fluss_url):
    store = storage_engine.connect(fluss_url)
    store.close()

    with pytest.raises(FlashlakeError, match="closed"):
        store.tables()
