"""Contract: a primary-key table is the replay of its changelog; upserts, partial updates and deletes say what they changed."""

from __future__ import annotations

import pyarrow as pa
import pytest

from storage_engine.errors import OffsetOutOfRange, UserError


@pytest.fixture
def items(store, db):
    """One bucket, so that the changelog has one order."""
    store.execute(f"CREATE TABLE {db}.items (id BIGINT NOT NULL, name STRING, price INT, PRIMARY KEY (id) NOT ENFORCED)")
    return store.table(f"{db}.items")


@pytest.fixture
def lines(store, db):
    """A composite key, bucketed by its prefix, in several buckets."""
    store.execute(f"""
        CREATE TABLE {db}.lines (shop_id BIGINT NOT NULL, line STRING NOT NULL, n INT, PRIMARY KEY (shop_id, line) NOT ENFORCED)
        WITH ('bucket.num' = '4', 'bucket.key' = 'shop_id')
    """)
    return store.table(f"{db}.lines")


@pytest.fixture
def daily(store, db):
    store.execute(f"""
        CREATE TABLE {db}.daily (day STRING NOT NULL, id BIGINT NOT NULL, n INT, PRIMARY KEY (day, id) NOT ENFORCED)
        PARTITIONED BY (day) WITH ('bucket.num' = '2')
    """)
    return store.table(f"{db}.daily")


def changes(table, start="earliest"):
    """The changelog as (change type, values...) in order."""
    return [tuple(row.values()) for row in table.scan(start=start).read_all().to_pylist()]


def current(table):
    return sorted((tuple(row.values()) for row in table.read().to_pylist()), key=lambda row: row[:2])


def test_new_keys_are_inserts_and_known_keys_are_updates_with_the_old_row_before_the_new(items):
    items.upsert({"id": [1, 2], "name": ["a", "b"], "price": [10, 20]})
    items.upsert({"id": [2, 3], "name": ["B", "c"], "price": [21, 30]})

    assert changes(items) == [
        ("+I", 1, "a", 10),
        ("+I", 2, "b", 20),
        ("-U", 2, "b", 20),
        ("+U", 2, "B", 21),
        ("+I", 3, "c", 30),
    ]
    assert current(items) == [(1, "a", 10), (2, "B", 21), (3, "c", 30)]


def test_an_upsert_that_changes_nothing_writes_nothing(items):
    items.upsert({"id": [1], "name": ["a"], "price": [None]})
    before = items.offsets()

    items.upsert({"id": [1], "name": ["a"], "price": [None]})

    assert items.offsets() == before
    assert len(changes(items)) == 1


def test_the_last_row_of_a_key_in_one_batch_wins(items):
    items.upsert({"id": [1, 2, 1], "name": ["first", "x", "last"], "price": [1, 2, 3]})

    assert current(items) == [(1, "last", 3), (2, "x", 2)]


@pytest.mark.needs("partial_update")
def test_a_partial_update_keeps_the_other_columns(items):
    items.upsert({"id": [1], "name": ["a"], "price": [10]})

    items.upsert({"id": [1, 2], "price": [11, 22]}, columns=["id", "price"])

    assert current(items) == [(1, "a", 11), (2, None, 22)]
    assert changes(items)[1:] == [("-U", 1, "a", 10), ("+U", 1, "a", 11), ("+I", 2, None, 22)]


@pytest.mark.needs("partial_update")
def test_writers_of_different_columns_build_one_row(items):
    items.upsert({"id": [7], "name": ["seven"]}, columns=["id", "name"])
    items.upsert({"id": [7], "price": [70]}, columns=["id", "price"])

    assert current(items) == [(7, "seven", 70)]


def test_a_deleted_key_is_gone_and_its_old_row_is_in_the_changelog(items):
    items.upsert({"id": [1, 2], "name": ["a", "b"], "price": [10, 20]})

    items.delete({"id": [1, 99]})

    assert current(items) == [(2, "b", 20)]
    assert changes(items)[2:] == [("-D", 1, "a", 10)]
    assert items.count() == 1


def test_a_deleted_key_can_be_inserted_again(items):
    items.upsert({"id": [1], "name": ["a"], "price": [1]})
    items.delete({"id": [1]})

    items.upsert({"id": [1], "name": ["again"], "price": [2]})

    assert current(items) == [(1, "again", 2)]
    assert [change for change, *_ in changes(items)] == ["+I", "-D", "+I"]


@pytest.mark.needs("partial_update")
def test_a_partial_delete_nulls_its_columns_and_the_row_goes_with_its_last_value(items):
    items.upsert({"id": [1], "name": ["a"], "price": [10]})

    items.delete({"id": [1]}, columns=["name"])
    assert current(items) == [(1, None, 10)]

    items.delete({"id": [1]}, columns=["price"])
    assert current(items) == []
    assert [change for change, *_ in changes(items)] == ["+I", "-U", "+U", "-D"]


def test_replaying_the_changelog_gives_the_current_rows(lines):
    for round_ in range(5):
        keys = range(round_, 40, 1 + round_)
        lines.upsert({"shop_id": [k % 7 for k in keys], "line": [f"l{k}" for k in keys], "n": [k * round_ for k in keys]})
        lines.delete({"shop_id": [3], "line": ["l3"]})

    replayed = {}
    for row in lines.scan().read_all().to_pylist():
        key = (row["shop_id"], row["line"])
        if row["_change_type"] in ("-U", "-D"):
            assert replayed.pop(key) == row["n"]
        else:
            assert key not in replayed
            replayed[key] = row["n"]

    assert sorted((*key, n) for key, n in replayed.items()) == current(lines)
    assert lines.count() == len(replayed)


@pytest.mark.needs("lookup")
def test_a_lookup_returns_rows_in_the_order_of_its_keys_and_skips_missing_ones(lines):
    lines.upsert({"shop_id": [1, 1, 2], "line": ["a", "b", "a"], "n": [11, 12, 21]})

    found = lines.lookup({"shop_id": [2, 9, 1], "line": ["a", "a", "b"]})

    assert found.to_pylist() == [{"shop_id": 2, "line": "a", "n": 21}, {"shop_id": 1, "line": "b", "n": 12}]


@pytest.mark.needs("lookup")
def test_a_lookup_can_answer_missing_keys_with_nulls(lines):
    lines.upsert({"shop_id": [1], "line": ["a"], "n": [11]})

    found = lines.lookup({"shop_id": [1, 9], "line": ["a", "a"]}, columns=["n"], missing="null")

    assert found.to_pydict() == {"n": [11, None], "_found": [True, False]}


@pytest.mark.needs("lookup")
def test_a_lookup_sees_the_write_that_was_acknowledged_before_it(items):
    for price in range(30):
        items.upsert({"id": [1], "name": ["a"], "price": [price]})
        assert items.lookup({"id": [1]}, columns=["price"])["price"].to_pylist() == [price]


@pytest.mark.needs("lookup")
def test_a_lookup_of_no_keys_finds_no_rows(items):
    assert items.lookup({"id": pa.array([], pa.int64())}).num_rows == 0


@pytest.mark.needs("lookup")
def test_a_key_asked_for_twice_is_answered_twice(items):
    items.upsert({"id": [1], "name": ["a"], "price": [10]})

    assert items.lookup({"id": [1, 1]}, columns=["price"])["price"].to_pylist() == [10, 10]


@pytest.mark.needs("lookup")
def test_a_lookup_in_a_partitioned_table_names_the_partition(daily):
    daily.upsert({"day": ["2017-01-01", "2017-01-02"], "id": [1, 1], "n": [10, 20]})

    found = daily.lookup({"day": ["2017-01-02", "2017-01-09"], "id": [1, 1]})

    assert found.to_pylist() == [{"day": "2017-01-02", "id": 1, "n": 20}]


@pytest.mark.needs("prefix_lookup")
def test_a_prefix_lookup_returns_all_rows_of_each_prefix(lines):
    lines.upsert({"shop_id": [1, 1, 2, 3], "line": ["a", "b", "a", "a"], "n": [11, 12, 21, 31]})
    lines.delete({"shop_id": [1], "line": ["a"]})

    found = lines.prefix_lookup({"shop_id": [1, 3, 9]})

    assert sorted(found.to_pylist(), key=str) == [{"shop_id": 1, "line": "b", "n": 12}, {"shop_id": 3, "line": "a", "n": 31}]


@pytest.mark.needs("prefix_lookup")
def test_a_prefix_lookup_returns_at_most_limit_rows_per_prefix(lines):
    lines.upsert({"shop_id": [1] * 10 + [2] * 10, "line": [f"l{i}" for i in range(20)], "n": list(range(20))})

    found = lines.prefix_lookup({"shop_id": [1, 2]}, columns=["shop_id"], limit=3)

    assert sorted(found["shop_id"].to_pylist()) == [1, 1, 1, 2, 2, 2]


@pytest.mark.needs("prefix_lookup")
def test_a_prefix_lookup_on_a_table_whose_bucket_key_is_its_whole_key_is_refused(items):
    with pytest.raises(UserError, match=r"items"):
        items.prefix_lookup({"id": [1]})


@pytest.mark.needs("read")
def test_a_read_filters_and_prunes_columns(lines):
    lines.upsert({"shop_id": [1, 1, 2], "line": ["a", "b", "a"], "n": [11, 12, 21]})

    rows = lines.read(columns=["n"], where="shop_id = 1 AND line <> 'a'")

    assert rows.to_pydict() == {"n": [12]}


@pytest.mark.needs("read")
def test_a_read_of_one_partition_returns_only_that(daily):
    daily.upsert({"day": ["2017-01-01", "2017-01-02", "2017-01-02"], "id": [1, 1, 2], "n": [10, 20, 21]})

    rows = daily.read(where="day = '2017-01-02'").sort_by("id")

    assert rows.to_pydict() == {"day": ["2017-01-02"] * 2, "id": [1, 2], "n": [20, 21]}
    assert daily.partitions() == ["2017-01-01", "2017-01-02"]


@pytest.mark.needs("read_at_version")
def test_a_read_at_an_older_version_returns_the_rows_of_then(items):
    first = items.upsert({"id": [1, 2], "name": ["a", "b"], "price": [1, 2]}).version
    second = items.upsert({"id": [2, 3], "name": ["B", "c"], "price": [22, 3]}).version
    third = items.delete({"id": [1]}).version

    def at(version):
        return sorted(tuple(row.values()) for row in items.read(at=version).to_pylist())

    assert at(first) == [(1, "a", 1), (2, "b", 2)]
    assert at(second) == [(1, "a", 1), (2, "B", 22), (3, "c", 3)]
    assert at(third) == [(2, "B", 22), (3, "c", 3)]
    assert at(first - 1) == []


@pytest.mark.needs("read_at_version", "journal")
def test_a_snapshot_holds_the_rows_of_its_offsets_with_their_places(items):
    items.upsert({"id": [1, 2], "name": ["a", "b"], "price": [1, 2]})
    items.upsert({"id": [2, 3], "name": ["B", "c"], "price": [22, 3]})
    ends, version = items.offsets(), items._backend.version()
    items.delete({"id": [1]})

    rows = items.snapshot(["price", "id"], ends=ends, as_of=version).read_all()

    assert sorted(zip(rows["id"].to_pylist(), rows["price"].to_pylist(), strict=True)) == [(1, 1), (2, 22), (3, 3)]
    places = items.scan(["id", "price"], metadata=True).read_all().to_pylist()
    written = {(row.pop("_change_type"), *row.values())[1:] for row in places}
    assert {tuple(row[name] for name in places[0]) for row in rows.to_pylist()} <= written
    with pytest.raises(OffsetOutOfRange):
        items.snapshot(ends={bucket: end + 1_000 for bucket, end in ends.items()})


@pytest.mark.needs("read")
def test_reading_current_rows_of_a_log_table_is_refused_and_says_what_to_use(store, db):
    store.execute(f"CREATE TABLE {db}.log (x BIGINT)")

    with pytest.raises(UserError, match=r"log.*scan\(\)"):
        store.table(f"{db}.log").read()


def test_a_large_read_arrives_whole(lines):
    n = 150_000
    lines.upsert(pa.table({"shop_id": pa.array(range(n)), "line": ["x"] * n, "n": pa.array(range(n), pa.int32())}))

    rows = lines.read(columns=["n"])

    assert rows.num_rows == n == lines.count()
    assert sum(rows["n"].to_pylist()) == n * (n - 1) // 2


def test_keys_of_every_kind_are_told_apart(store, db):
    store.execute(f"""
        CREATE TABLE {db}.keyed (a STRING NOT NULL, b INT NOT NULL, c STRING NOT NULL, v BIGINT, PRIMARY KEY (a, b, c) NOT ENFORCED)
        WITH ('bucket.num' = '3')
    """)
    table = store.table(f"{db}.keyed")
    keys = [("1", 2, "3"), ("12", 3, ""), ("1", 23, ""), ("", 123, ""), ("", 1, "23"), ("é", -1, "\x00"), ("", -1, "é\x00")]

    table.upsert([{"a": a, "b": b, "c": c, "v": i} for i, (a, b, c) in enumerate(keys)])

    assert table.count() == len(keys)
    assert table.lookup([{"a": a, "b": b, "c": c} for a, b, c in keys])["v"].to_pylist() == list(range(len(keys)))
