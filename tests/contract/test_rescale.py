"""Contract: a table gets another number of buckets while it is used; rows, offsets, consumers and older versions stay as they are."""

from __future__ import annotations

import pytest

from storage_engine import TableBucket

pytestmark = pytest.mark.needs("alter_table", "read_at_version", "consumers", "journal", "aggregation")

N = 500


@pytest.fixture(params=["", "PARTITIONED BY (day)"], ids=["whole", "partitioned"])
def items(request, store, db):
    key = "day, shop, id" if request.param else "shop, id, day"
    store.execute(f"""
        CREATE TABLE {db}.items (
          day STRING NOT NULL, shop BIGINT NOT NULL, id BIGINT NOT NULL, n BIGINT, note STRING, PRIMARY KEY ({key}) NOT ENFORCED
        ) {request.param} WITH ('bucket.num' = '2', 'bucket.key' = 'shop')
    """)
    table = store.table(f"{db}.items")
    table.upsert(rows(range(N)))
    table.upsert(rows(range(0, N, 3), n=7))
    table.delete({key: values for key, values in rows(range(0, N, 5)).items() if key in ("day", "shop", "id")})
    return table


def rows(ids, n: int = 1) -> dict:
    ids = list(ids)
    return {
        "day": [f"d{i % 2}" for i in ids],
        "shop": [i % 40 for i in ids],
        "id": ids,
        "n": [i * n for i in ids],
        "note": [None if i % 4 else f"note {i}" for i in ids],
    }


def current(table) -> list[dict]:
    return table.read().sort_by("id").to_pylist()


def changes(table) -> list[tuple]:
    found = table.scan(metadata=True).read_all().drop_columns(["_commit_timestamp"])
    return [tuple(row.values()) for row in found.to_pylist()]


@pytest.mark.parametrize("n_buckets", [5, 1])
def test_rows_move_and_nothing_else_is_seen_of_it(store, items, n_buckets):
    before, log, version, n_rows = current(items), changes(items), store.version(), items.count()

    store.execute(f"ALTER TABLE {items.name} SET ('bucket.num' = '{n_buckets}')")
    table = store.table(items.name)

    assert table.descriptor.n_buckets == n_buckets
    assert current(table) == before
    assert table.count() == n_rows
    assert changes(table) == log
    assert table.read(at=version).sort_by("id").to_pylist() == before
    keys = {key: values for key, values in rows(range(N)).items() if key in ("day", "shop", "id")}
    found = table.lookup(keys, missing="null")
    assert [found["_found"][i].as_py() for i in range(N)] == [i % 5 != 0 for i in range(N)]
    assert table.lookup({"day": ["d1"], "shop": [1], "id": [1]}).to_pylist() == [row for row in before if row["id"] == 1]
    prefix = {"day": ["d1"], "shop": [7]} if table.descriptor.partition_keys else {"shop": [7]}
    assert sorted(table.prefix_lookup(prefix)["id"].to_pylist()) == [row["id"] for row in before if row["shop"] == 7]


def test_rows_are_written_merged_and_deleted_where_they_are_now(store, items):
    store.execute(f"ALTER TABLE {items.name} SET ('bucket.num' = '7')")
    store.execute(f"ALTER TABLE {items.name} SET ('bucket.num' = '3')")
    latest = items.offsets()

    items.upsert({"day": ["d1", "d1"], "shop": [1, 2], "id": [1, 9999], "n": [-1, -2]}, columns=["day", "shop", "id", "n"])
    items.delete({"day": ["d0"], "shop": [2], "id": [2]})

    expected = {i: i * (7 if i % 3 == 0 else 1) for i in range(N) if i % 5} | {1: -1, 9999: -2}
    del expected[2]
    assert {row["id"]: row["n"] for row in current(items)} == expected
    news = items.scan(["id", "n"], start=latest).read_all().to_pylist()
    assert sorted((row["_change_type"], row["id"], row["n"]) for row in news) == [
        ("+I", 9999, -2), ("+U", 1, -1), ("-D", 2, 2), ("-U", 1, 1),
    ]  # fmt: skip


def test_a_consumer_sees_every_change_once_across_the_move(store, items):
    consumer = items.consumer("c")
    seen = []
    while (polled := consumer.poll(100)) is not None:
        seen += polled.to_pylist()
    consumer.commit()

    store.execute(f"ALTER TABLE {items.name} SET ('bucket.num' = '5')")
    items.upsert(rows(range(1, N, 2), n=3))
    consumer = items.consumer("c")
    while (polled := consumer.poll(100)) is not None:
        assert polled.num_rows
        seen += polled.to_pylist()
    consumer.commit()

    assert consumer.lag() == 0
    placed = {(row["_partition"], row["_bucket"], row["_log_offset"]) for row in seen}
    assert len(placed) == len(seen)
    assert sorted((row["id"], row["_change_type"], row["n"]) for row in seen) == sorted(
        (row["id"], row["_change_type"], row["n"]) for row in items.scan().read_all().to_pylist()
    )
    net = {}
    for row in seen:
        net[row["id"]] = net.get(row["id"], 0) + {"+I": 1, "+U": 1, "-U": -1, "-D": -1}[row["_change_type"]]
    assert {i for i, n in net.items() if n} == {row["id"] for row in current(items)}


@pytest.mark.parametrize("max_rows", [7, 1000])
def test_a_consumer_that_is_behind_sees_the_changes_of_a_moved_key_in_their_order(store, db, max_rows):
    store.execute(f"CREATE TABLE {db}.t (k BIGINT NOT NULL, v BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '5')")
    table, seen = store.table(f"{db}.t"), {}
    for v in range(6):
        if v in (2, 4):
            store.execute(f"ALTER TABLE {table.name} SET ('bucket.num' = '{7 if v == 2 else 2}')")
        table.upsert({"k": list(range(20)), "v": [v] * 20})
    consumer = table.consumer("behind")

    while (polled := consumer.poll(max_rows)) is not None:
        for row in polled.to_pylist():
            seen.setdefault(row["k"], []).append((row["_change_type"], row["v"]))

    changes = [("+I", 0), *((kind, v + (kind == "+U")) for v in range(5) for kind in ("-U", "+U"))]
    assert seen == dict.fromkeys(range(20), changes)


def test_a_move_is_no_entry_of_the_journal(store, items):
    version = store.version()

    store.execute(f"ALTER TABLE {items.name} SET ('bucket.num' = '4')")
    assert store.version() > version
    assert store.commits(version) == []

    items.upsert(rows([1], n=100))
    (commit,) = store.commits(version)
    assert [stop - start for start, stop in commit.ranges[items.name].values()] == [2]


def test_ids_and_totals_go_on_in_the_new_buckets(store, db):
    store.execute(f"""
        CREATE TABLE {db}.ids (name STRING NOT NULL, no BIGINT, PRIMARY KEY (name) NOT ENFORCED)
          WITH ('auto-increment.fields' = 'no', 'bucket.num' = '2');
        CREATE TABLE {db}.sums (k BIGINT NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
          WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'bucket.num' = '4')
    """)
    ids, sums = store.table(f"{db}.ids"), store.table(f"{db}.sums")
    names = [f"n{i}" for i in range(50)]
    given = ids.lookup(names, insert_if_not_exists=True)["no"].to_pylist()
    sums.upsert({"k": list(range(50)), "n": list(range(50))})

    store.execute(f"ALTER TABLE {db}.ids SET ('bucket.num' = '5'); ALTER TABLE {db}.sums SET ('bucket.num' = '3')")
    sums.upsert({"k": list(range(50)), "n": [1] * 50})

    assert ids.lookup([*names, "new"], insert_if_not_exists=True)["no"].to_pylist() == [*given, 51]
    assert sums.read().sort_by("k")["n"].to_pylist() == [i + 1 for i in range(50)]


@pytest.mark.parametrize("key", ["", ", 'bucket.key' = 'x'"], ids=["in turn", "by key"])
def test_a_log_keeps_its_offsets_and_routes_new_rows_over_the_new_buckets(store, db, key):
    store.execute(f"CREATE TABLE {db}.log (x BIGINT, s STRING) WITH ('bucket.num' = '4'{key})")
    log = store.table(f"{db}.log")
    for i in range(8):
        log.append({"x": list(range(i * 10, i * 10 + 10)), "s": ["a"] * 10})
    before, latest = changes(log), log.offsets()

    store.execute(f"ALTER TABLE {log.name} SET ('bucket.num' = '2')")
    for i in range(8, 12):
        log.append({"x": list(range(i * 10, i * 10 + 10)), "s": ["b"] * 10})

    assert changes(log)[: len(before)] == before
    assert sorted(log.scan(["x"]).read_all()["x"].to_pylist()) == list(range(120))
    assert {bucket.bucket for bucket, end in log.offsets().items() if end > latest.get(bucket, 0)} == {0, 1}
    assert log.count() == 120
    store.execute(f"ALTER TABLE {log.name} SET ('bucket.num' = '9')")
    for i in range(12, 40):
        log.append({"x": list(range(i * 10, i * 10 + 10)), "s": ["c"] * 10})
    assert set(log.offsets()) == {TableBucket("", i) for i in range(9)}
    assert log.count() == 400


def test_new_partitions_have_the_new_number_of_buckets_and_all_of_it_is_there_after_a_restart(own):
    own.store.execute("""
        CREATE TABLE a.t (day STRING NOT NULL, id BIGINT NOT NULL, v STRING, PRIMARY KEY (day, id) NOT ENFORCED)
        PARTITIONED BY (day) WITH ('bucket.num' = '2')
    """)
    table = own.store.table("a.t")
    table.upsert({"day": ["d1"] * 50 + ["d2"] * 50, "id": list(range(100)), "v": ["x"] * 100})
    own.store.execute("ALTER TABLE a.t SET ('bucket.num' = '6')")
    own.store.table("a.t").upsert({"day": ["d3"] * 50, "id": list(range(100, 150)), "v": ["y"] * 50})
    before, log = current(own.store.table("a.t")), changes(own.store.table("a.t"))
    assert {bucket.partition for bucket in table.offsets() if bucket.bucket > 1} == {"d1", "d2", "d3"}

    own.restart()

    table = own.store.table("a.t")
    assert (current(table), changes(table), table.count()) == (before, log, 150)
    own.store.execute("ALTER TABLE a.t DROP PARTITION (day = 'd1'); ALTER TABLE a.t SET ('bucket.num' = '1')")
    table.upsert({"day": ["d1"], "id": [1], "v": ["again"]})
    assert table.count() == 101
    assert table.lookup({"day": ["d2", "d3", "d1"], "id": [60, 120, 1]})["v"].to_pylist() == ["x", "y", "again"]
