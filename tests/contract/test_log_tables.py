"""Contract: log tables keep what is appended, per bucket in order, and scans return exactly what they are asked for."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest

from storage_engine import TableBucket


@pytest.fixture
def events(store, db):
    store.execute(f"""
        CREATE TABLE {db}.events (id BIGINT NOT NULL, day STRING NOT NULL, name STRING, amount DECIMAL(12, 2))
        PARTITIONED BY (day) WITH ('bucket.num' = '3', 'bucket.key' = 'id')
    """)
    return store.table(f"{db}.events")


@pytest.fixture
def numbers(store, db):
    """A log of one bucket, so that offsets are row numbers."""
    store.execute(f"CREATE TABLE {db}.numbers (x BIGINT, name STRING)")
    return store.table(f"{db}.numbers")


def days(n_rows: int) -> dict:
    return {
        "id": list(range(n_rows)),
        "day": [f"2017-01-0{1 + i % 2}" for i in range(n_rows)],
        "name": [f"n{i}" for i in range(n_rows)],
        "amount": [Decimal(i).scaleb(-2) for i in range(n_rows)],
    }


def test_appended_rows_are_scanned_unchanged(events):
    rows = pa.table(days(100), schema=events.descriptor.arrow_schema)

    events.append(rows)

    assert events.scan().read_all().sort_by("id") == rows


@pytest.mark.parametrize("form", ["table", "batch", "reader", "dict", "list", "pandas"])
def test_rows_of_any_arrow_shape_are_accepted(numbers, form):
    rows = pa.table({"x": [1, 2], "name": ["a", None]})
    shapes = {
        "table": lambda: rows,
        "batch": lambda: rows.to_batches()[0],
        "reader": lambda: rows.to_reader(),
        "dict": lambda: rows.to_pydict(),
        "list": lambda: rows.to_pylist(),
        "pandas": lambda: rows.to_pandas(),
    }

    numbers.append(shapes[form]())

    assert numbers.scan().read_all() == rows


def test_partitions_appear_with_their_first_row(events):
    assert events.partitions() == []

    events.append(days(4))

    assert events.partitions() == ["2017-01-01", "2017-01-02"]


def test_a_row_always_goes_to_the_bucket_of_its_key(events):
    events.append(days(60))
    events.append(days(60))

    rows = events.scan(columns=["id"], metadata=True).read_all().to_pylist()

    buckets_of_id = {}
    for row in rows:
        buckets_of_id.setdefault(row["id"], set()).add((row["_partition"], row["_bucket"]))
    assert len(rows) == 120
    assert all(len(buckets) == 1 for buckets in buckets_of_id.values())
    assert {bucket for buckets in buckets_of_id.values() for _, bucket in buckets} == {0, 1, 2}


def test_offsets_are_dense_per_bucket_and_latest_is_the_next_one(events):
    events.append(days(50))
    events.append(days(7))

    seen = {}
    for row in events.scan(metadata=True).read_all().to_pylist():
        seen.setdefault(TableBucket(row["_partition"], row["_bucket"]), []).append(row["_log_offset"])

    assert {bucket: list(range(len(offsets))) for bucket, offsets in seen.items()} == seen
    assert {bucket: end for bucket, end in events.offsets("latest").items() if end} == {b: len(offsets) for b, offsets in seen.items()}
    assert set(events.offsets("earliest").values()) == {0}


def test_metadata_columns_say_where_a_row_is(numbers):
    numbers.append({"x": [1], "name": ["a"]})

    (row,) = numbers.scan(metadata=True).read_all().to_pylist()

    assert {name: row[name] for name in ("_change_type", "_partition", "_bucket", "_log_offset", "x")} == {
        "_change_type": "+A", "_partition": "", "_bucket": 0, "_log_offset": 0, "x": 1,
    }  # fmt: skip
    assert row["_commit_timestamp"].year >= 2024


def test_a_scan_covers_exactly_the_offsets_between_start_and_stop(numbers):
    for first in (0, 10, 20):
        numbers.append({"x": list(range(first, first + 10)), "name": [None] * 10})
    bucket = TableBucket("", 0)

    def scanned(**bounds):
        return numbers.scan(columns=["x"], **bounds).read_all()["x"].to_pylist()

    assert scanned(start={bucket: 5}, stop={bucket: 25}) == list(range(5, 25))
    assert scanned(start={bucket: 12}) == list(range(12, 30))
    assert scanned(stop={bucket: 3}) == [0, 1, 2]
    assert scanned(start={bucket: 30}) == []
    assert scanned(start="latest") == []
    assert scanned(stop={}) == []


def test_a_bucket_that_the_start_does_not_name_begins_at_its_earliest_offset(events):
    events.append(days(30))
    latest = events.offsets("latest")
    left_out = max(latest, key=lambda bucket: latest[bucket])
    start = {bucket: end for bucket, end in latest.items() if bucket != left_out}

    rows = events.scan(start=start, metadata=True).read_all()

    assert rows.num_rows == latest[left_out]
    assert {(row["_partition"], row["_bucket"]) for row in rows.to_pylist()} == {tuple(left_out)}


def test_a_scan_returns_the_columns_asked_for_in_the_order_asked(events):
    events.append(days(3))

    rows = events.scan(columns=["amount", "id"]).read_all()

    assert rows.column_names == ["amount", "id"]
    assert rows.sort_by("id").to_pydict() == {"amount": [Decimal("0.00"), Decimal("0.01"), Decimal("0.02")], "id": [0, 1, 2]}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("id >= 8", [8, 9]),
        ("day = '2017-01-02' AND id < 4", [1, 3]),
        ("name IN ('n2', 'n5')", [2, 5]),
        ("NOT (id > 0)", [0]),
        ("amount = 0.07", [7]),
        ("name IS NULL", []),
    ],
)
def test_a_predicate_keeps_the_rows_that_fulfil_it_even_when_its_columns_are_not_asked_for(events, where, expected):
    events.append(days(10))

    rows = events.scan(columns=["id"], where=where).read_all()

    assert sorted(rows["id"].to_pylist()) == expected
    assert rows.column_names == ["id"]


@pytest.mark.needs("read_at_version")
def test_offsets_at_a_version_are_those_of_that_version(numbers):
    first = numbers.append({"x": [1, 2], "name": ["a", "b"]})
    numbers.append({"x": [3], "name": ["c"]})

    assert numbers.offsets("latest", at_version=first.version) == {TableBucket("", 0): 2}
    assert numbers.offsets("latest") == {TableBucket("", 0): 3}


def test_the_count_of_a_log_table_is_its_rows(events):
    events.append(days(13))

    assert events.count() == 13


def test_appending_no_rows_changes_nothing(numbers):
    numbers.append({"x": pa.array([], pa.int64()), "name": pa.array([], pa.string())})

    assert numbers.scan().read_all().num_rows == 0


def test_a_commit_timestamp_never_goes_back(numbers):
    for x in range(20):
        numbers.append({"x": [x], "name": [None]})

    stamps = numbers.scan(metadata=True).read_all()["_commit_timestamp"].to_pylist()

    assert stamps == sorted(stamps)


def test_rows_larger_than_a_message_arrive_whole(numbers):
    big = pa.table({"x": [1, 2, 3], "name": ["a" * 9_000_000, "b" * 9_000_000, "c" * 9_000_000]})

    numbers.append(big)

    assert numbers.scan().read_all() == big


def test_many_small_commits_are_scanned_in_their_order(numbers):
    for x in range(300):
        numbers.append({"x": [x], "name": [str(x)]})

    assert numbers.scan().read_all().to_pydict() == {"x": list(range(300)), "name": [str(x) for x in range(300)]}


def test_a_scan_that_is_left_early_does_not_disturb_the_next_one(numbers):
    for x in range(50):
        numbers.append({"x": [x], "name": ["n" * 100_000]})

    numbers.scan().read_next_batch()

    assert numbers.scan(columns=["x"]).read_all().num_rows == 50


@pytest.mark.parametrize(
    ("sql_type", "values"),
    [
        ("BOOLEAN", [True, None]),
        ("TINYINT", [-128, None]),
        ("SMALLINT", [32767, None]),
        ("INT", [-1, None]),
        ("BIGINT", [1 << 62, None]),
        ("FLOAT", [0.5, None]),
        ("DOUBLE", [1e300, None]),
        ("STRING", ["käse", None]),
        ("VARCHAR(5)", ["abc", None]),
        ("BYTES", [b"\x00\xff", None]),
        ("DECIMAL(12, 2)", [Decimal("-9999999999.99"), None]),
    ],
)
def test_every_type_survives_append_and_scan(store, db, sql_type, values):
    store.execute(f"CREATE TABLE {db}.typed (v {sql_type})")
    table = store.table(f"{db}.typed")
    rows = pa.table({"v": pa.array(values, table.descriptor.arrow_schema.field("v").type)})

    table.append(rows)

    assert table.scan().read_all() == rows


@pytest.mark.parametrize("sql_type", ["DATE", "TIME", "TIMESTAMP(3)", "TIMESTAMP(6)", "TIMESTAMP_LTZ(3)"])
def test_every_type_of_time_survives_append_and_scan(store, db, sql_type):
    store.execute(f"CREATE TABLE {db}.timed (v {sql_type})")
    table = store.table(f"{db}.timed")
    kind = table.descriptor.arrow_schema.field("v").type
    ticks = pa.array([0, 19_000, None], pa.int32() if kind.bit_width == 32 else pa.int64())
    rows = pa.table({"v": ticks.cast(kind)})

    table.append(rows)

    assert table.scan().read_all() == rows
