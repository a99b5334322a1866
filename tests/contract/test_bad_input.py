"""Contract: each wrong call gives one error that names the thing and the remedy, and leaves the store as it was."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from storage_engine import TableBucket
from storage_engine.errors import (
    FlashlakeError,
    InvalidPartition,
    OffsetOutOfRange,
    SchemaMismatch,
    StatementRefused,
    UnknownTable,
    UserError,
)


@pytest.fixture
def pk(store, db):
    store.execute(f"""
        CREATE TABLE {db}.pk (id BIGINT NOT NULL, day STRING NOT NULL, n INT, name STRING, PRIMARY KEY (id, day) NOT ENFORCED)
        PARTITIONED BY (day) WITH ('bucket.num' = '2')
    """)
    return store.table(f"{db}.pk")


@pytest.fixture
def log(store, db):
    store.execute(f"CREATE TABLE {db}.log (x BIGINT NOT NULL, y STRING)")
    return store.table(f"{db}.log")


def test_an_unknown_table_is_named_with_those_that_look_alike(store, db, pk):
    with pytest.raises(UnknownTable, match=rf"{db}\.pkk.*{db}\.pk"):
        store.table(f"{db}.pkk")


GOOD = {"id": [1, 2, 3], "day": ["2017-01-01"] * 3, "n": [1, 2, 3], "name": ["a", "b", "c"]}


@pytest.mark.needs("journal")
@pytest.mark.parametrize(
    ("rows", "error", "named"),
    [
        ({**GOOD, "wrong": [1, 2, 3]}, SchemaMismatch, "wrong"),
        ({"id": [1], "n": [1], "name": ["a"]}, SchemaMismatch, "day"),
        ({**GOOD, "n": ["a", "b", "c"]}, SchemaMismatch, r"n\b"),
        ({**GOOD, "n": [1, 2, 1 << 40]}, SchemaMismatch, r"n\b.*row 2|row 2.*n\b"),
        ({**GOOD, "name": [1.5, 2.5, 3.5]}, SchemaMismatch, "name"),
        ({**GOOD, "id": [1, None, 3]}, SchemaMismatch, r"id\b.*row 1|row 1.*id\b"),
        ({**GOOD, "day": ["2017-01-01", "a/b", "x"]}, InvalidPartition, r"a/b.*row 1"),
        ({**GOOD, "day": ["2017-01-01", "", "x"]}, InvalidPartition, "row 1"),
        ({**GOOD, "day": ["x" * 201, "y", "x"]}, InvalidPartition, "row 0"),
    ],
    ids=["unknown column", "missing key", "text for int", "overflow", "float for text", "null key", "slash", "empty", "long"],
)
def test_rows_that_do_not_fit_are_refused_by_column_and_row_and_nothing_is_written(store, pk, rows, error, named):
    version = store.version()

    with pytest.raises(error, match=named):
        pk.upsert(rows)

    assert store.version() == version
    assert (pk.count(), pk.partitions()) == (0, [])


def test_a_null_in_a_column_that_forbids_it_is_refused_in_a_log_table(log):
    with pytest.raises(SchemaMismatch, match="x"):
        log.append({"x": [1, None], "y": ["a", "b"]})
    assert log.count() == 0


def test_a_date_where_text_is_declared_is_refused(log):
    with pytest.raises(SchemaMismatch, match="y"):
        log.append(pa.table({"x": [1], "y": [date(2017, 1, 1)]}))


@pytest.mark.parametrize("columns", [["id", "day", "nope"], ["id", "n"]], ids=["unknown", "without the key"])
def test_a_partial_update_of_wrong_columns_is_refused(pk, columns):
    with pytest.raises(SchemaMismatch):
        pk.upsert({name: [1] if name != "day" else ["d"] for name in columns}, columns=columns)
    assert pk.count() == 0


def test_appending_to_a_primary_key_table_is_refused_and_says_what_to_use(pk):
    with pytest.raises(UserError, match="upsert"):
        pk.append(GOOD)


def test_upserting_into_a_log_table_is_refused_and_says_what_to_use(log):
    with pytest.raises(UserError, match="append"):
        log.upsert({"x": [1], "y": ["a"]})


@pytest.mark.parametrize("call", ["scan", "read"])
def test_an_unknown_column_in_a_read_is_refused_by_its_name(pk, call):
    with pytest.raises(SchemaMismatch, match="nope"):
        getattr(pk, call)(columns=["id", "nope"])


@pytest.mark.parametrize("where", ["nope = 1", "n = = 1", "n = 'text'", "n"])
def test_a_predicate_that_does_not_fit_is_refused(pk, where):
    pk.upsert(GOOD)

    with pytest.raises(FlashlakeError):
        pk.scan(where=where).read_all()


@pytest.mark.parametrize("keys", [{"id": [1]}, {"id": ["a"], "day": ["d"]}, {"id": [None], "day": ["d"]}], ids=["part", "type", "null"])
def test_a_lookup_by_something_that_is_no_key_is_refused(pk, keys):
    with pytest.raises(SchemaMismatch):
        pk.lookup(keys)


def test_offsets_beyond_the_log_are_refused(log):
    log.append({"x": [1], "y": ["a"]})

    with pytest.raises(OffsetOutOfRange, match=r"log"):
        log.scan(start={TableBucket("", 0): 0}, stop={TableBucket("", 0): 99}).read_all()


def test_a_scan_from_beyond_the_log_or_from_a_bucket_that_is_not_there_is_refused(log):
    log.append({"x": [1, 2, 3], "y": ["a"] * 3})

    for start in ({TableBucket("", 0): 99}, {TableBucket("", 7): 0}):
        with pytest.raises(OffsetOutOfRange, match="is asked for"):
            log.scan(start=start)
    assert log.scan(start={TableBucket("", 0): 3}).read_all().num_rows == 0
    assert log.scan(start={TableBucket("", 0): 2, TableBucket("dropped", 0): 9}).read_all().num_rows == 1


@pytest.mark.needs("scan_from_timestamp")
def test_a_scan_from_before_1970_reads_everything(log):
    log.append({"x": [1], "y": ["a"]})

    assert log.scan(start=datetime(1, 1, 1, tzinfo=UTC)).read_all().num_rows == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda pk: pk.scan(start="newest"), "start = 'newest' is no position"),
        (lambda pk: pk.scan(start=7), "start = 7 is no position"),
        (lambda pk: pk.scan(stop="earliest"), "stop = 'earliest' is no position"),
        (lambda pk: pk.read(limit=-1), "limit = -1"),
        (lambda pk: pk.prefix_lookup({"id": [1]}, limit=-1), "limit = -1"),
        (lambda pk: pk.read(["n", "n"]), "column n is asked for twice"),
        (lambda pk: pk.scan(["n", "n"]), "column n is asked for twice"),
        (lambda pk: pk.consumer(None), "'None' cannot name a consumer"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(pk, call, named):
    with pytest.raises(UserError, match=named):
        call(pk)


@pytest.mark.parametrize("where", [" OR ".join(["x = 1"] * 3000), "(" * 2000 + "x = 1" + ")" * 2000], ids=["chain", "brackets"])
def test_a_condition_that_is_nested_too_deeply_is_refused_also_by_the_store_itself(log, where):
    log.append({"x": [1], "y": ["a"]})

    with pytest.raises(StatementRefused, match="nested too deeply"):
        log.scan(where=where)
    if "statistics" in log._backend.capabilities:
        with pytest.raises(StatementRefused, match="nested too deeply"):
            list(log._backend.fetch(log.name, {TableBucket("", 0): (0, 1)}, None, where))
    assert log.count() == 1


def test_bytes_that_are_no_text_are_refused_by_column_and_row_and_nothing_is_written(log, pk):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    text = pa.chunked_array([pa.array(["a"]), bad])
    x = pa.array([1, 2], pa.int64())

    for write in (
        lambda: log.append(pa.table({"x": x, "y": text})),
        lambda: pk.upsert(pa.table({"id": x, "day": ["d", "d"], "name": text})),
        lambda: pk.delete(pa.table({"id": x, "day": text})),
    ):
        with pytest.raises(SchemaMismatch, match=r"no UTF-8 text.*row 1"):
            write()
    assert (log.count(), pk.count()) == (0, 0)


@pytest.mark.needs("journal", "read_at_version")
def test_reading_at_a_version_that_is_not_there_yet_is_refused(store, pk):
    with pytest.raises(FlashlakeError, match=str(store.version() + 1000)):
        pk.read(at=store.version() + 1000)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE {db}.t (id BIGINT, PRIMARY KEY (nope) NOT ENFORCED)",
        "CREATE TABLE {db}.t (id BIGINT) PARTITIONED BY (nope)",
        "CREATE TABLE {db}.t (id BIGINT, id STRING)",
        "CREATE TABLE {db}.t (id BIGINT) WITH ('bucket.num' = '0')",
        "CREATE TABLE {db}.t (id BIGINT) WITH ('bucket.num' = 'many')",
        "CREATE TABLE {db}.t (id BIGINT) WITH ('bucket.key' = 'nope')",
        "CREATE TABLE {db}.t (_change_type STRING)",
        "CREATE TABEL {db}.t (id BIGINT)",
        "CREATE TABLE {db}.t (id BIGINT",
    ],
)
def test_a_table_that_cannot_be_is_refused_and_not_made(store, db, sql):
    with pytest.raises(UserError):
        store.execute(sql.format(db=db))
    assert f"{db}.t" not in store.tables()


def test_of_several_statements_those_before_the_wrong_one_stand(store, db):
    with pytest.raises((StatementRefused, UnknownTable)):
        store.execute(f"CREATE TABLE {db}.a (x BIGINT); DROP TABLE {db}.none; CREATE TABLE {db}.b (x BIGINT)")

    assert [name for name in store.tables() if name.startswith(f"{db}.")] == [f"{db}.a"]


def test_every_refusal_says_where_and_what_next(store, db, pk):
    with pytest.raises(SchemaMismatch) as caught:
        pk.upsert({**GOOD, "wrong": [1, 2, 3]})

    assert f"{db}.pk" in caught.value.where
    assert caught.value.next_step


def test_a_store_goes_on_after_a_refusal(pk):
    for _ in range(3):
        with pytest.raises(SchemaMismatch):
            pk.upsert({**GOOD, "wrong": [1, 2, 3]})

    pk.upsert(GOOD)

    assert pk.count() == 3
