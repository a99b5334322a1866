"""Rows: every accepted form gives the same table, nothing is changed on the way, and the first offender is named."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as hs

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.rows import conform, conform_keys
from storage_engine.schema.validate import validate

T = validate(
    TableDescriptor(
        "db.t",
        (
            Column("k", "BIGINT"),
            Column("name", "STRING"),
            Column("price", "DECIMAL(12, 2)"),
            Column("d", "DATE"),
            Column("f", "FLOAT"),
            Column("n", "INT"),
        ),
        primary_key=("k",),
    )
)
MAPPING = validate(
    TableDescriptor(
        "db.m",
        (Column("user", "STRING"), Column("uid", "BIGINT"), Column("at", "TIMESTAMP(3)"), Column("seen", "TIMESTAMP_LTZ(3)")),
        primary_key=("user",),
        options={"auto-increment.fields": "uid"},
    )
)
DAY = dt.date(2017, 1, 31)
ROWS = pa.table(
    {
        "k": pa.array([1, 2], pa.int64()),
        "name": ["a", None],
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(12, 2)),
        "d": [DAY, None],
        "f": pa.array([0.5, None], pa.float32()),
        "n": pa.array([3, None], pa.int32()),
    }
)


def refused(rows, columns=None, descriptor=T) -> SchemaMismatch:
    with pytest.raises(SchemaMismatch) as caught:
        conform(descriptor, rows, columns)
    assert f"table {descriptor.name}" in caught.value.where
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ROWS.select(["n", "f", "d", "price", "name", "k"]),
        ROWS.to_batches()[0],
        ROWS.to_reader(),
        ROWS.to_batches(),
        ROWS.to_pydict(),
        ROWS.to_pylist(),
        [{"k": 1, "name": "a", "price": Decimal("1.5"), "d": DAY, "f": 0.5, "n": 3}, {"k": 2}],
        pa.concat_tables([ROWS.slice(0, 1), ROWS.slice(1)]),
        ROWS.set_column(1, "name", ROWS["name"].dictionary_encode()),
        ROWS.cast(
            pa.schema(
                {
                    "k": pa.int8(),
                    "name": pa.large_string(),
                    "price": pa.decimal128(20, 4),
                    "d": pa.date64(),
                    "f": pa.float64(),
                    "n": pa.uint16(),
                }
            )
        ),
        ROWS.to_pandas(),
    ],
    ids=[
        "table",
        "reordered",
        "batch",
        "reader",
        "batches",
        "dict",
        "records",
        "sparse records",
        "chunks",
        "dictionary",
        "other widths",
        "pandas",
    ],
)
def test_every_form_of_rows_gives_the_tables_types(rows):
    conformed = conform(T, rows)

    assert conformed.schema == T.arrow_schema
    assert conformed.to_pylist() == ROWS.to_pylist()
    assert all(column.num_chunks == 1 for column in conformed.columns)


def test_rows_of_the_right_types_are_not_copied():
    conformed = conform(T, ROWS)

    assert conformed["name"].chunk(0).buffers()[2].address == ROWS["name"].chunk(0).buffers()[2].address


def test_a_missing_nullable_column_becomes_null():
    assert conform(T, {"k": [1], "n": [2]}).to_pylist() == [{"k": 1, "name": None, "price": None, "d": None, "f": None, "n": 2}]


def test_a_partial_write_has_its_target_columns_in_table_order():
    conformed = conform(T, {"n": [2], "k": [1]}, columns=("n", "k"))

    assert conformed.column_names == ["k", "n"]
    assert "column name is missing" in refused({"k": [1]}, ("k", "name")).what
    assert "column n is not expected here" in refused({"k": [1], "name": ["a"], "n": [1]}, ("k", "name")).what
    assert "key column k is not among the target columns" in refused({"n": [1]}, ("n",)).what


def test_no_rows_conform_to_an_empty_table():
    for empty in ([], {}, {"k": []}, ROWS.slice(0, 0), ROWS.schema.empty_table()):
        assert conform(T, empty).schema == T.arrow_schema
        assert conform(T, empty).num_rows == 0


@pytest.mark.parametrize(
    ("rows", "what", "row"),
    [
        ({"k": [1], "x": [1]}, "unknown column x", None),
        ({"n": [1]}, "column k is missing and is in the key", None),
        ({"k": [1, None]}, "column k is null, and is a key column", 1),
        ({"k": ["one"]}, "column k: 'one' is not a int64", 0),
        ({"k": [1, 2], "n": [1]}, "column n has 1 values, others have 2", None),
        ({"k": [1, 2], "n": [7, 2**31]}, "column n: 2147483648 is not a int32", 1),
        ({"k": [1, 2], "n": [1.0, 1.5]}, "column n: 1.5 is not a int32", 1),
        ({"k": [1, 2], "price": [Decimal("1.5"), Decimal("1.555")]}, "column price: Decimal('1.555')", 1),
        ({"k": [1, 2, 3], "f": [0.1, float("inf"), 1e300]}, "column f: 1e+300 does not fit float without loss", 2),
        ({"k": [1, 2], "d": [DAY, dt.datetime(2017, 1, 31, 5)]}, "does not fit date32[day] without loss", 1),  # noqa: DTZ001
        ([{"k": 1}, 7], "row 1 (from 0) is a int", None),
        (7, "rows are a int", None),
        (pa.table({"k": ["1"]}), "column k is string, the table has int64", None),
        (pa.table({"k": [1], "name": [1]}), "column name is int64, the table has string", None),
        (pa.table({"k": [1], "price": [1.5]}), "column price is double, the table has decimal128(12, 2)", None),
        (pa.table({"k": [1], "d": [dt.datetime(2017, 1, 31)]}), "column d is timestamp[us], the table has date32[day]", None),  # noqa: DTZ001
        (pa.table({"k": [1, 2, 3], "n": [1, 2**31, 2**40]}), "column n: 2147483648 does not fit int32 without loss", 1),
        (pa.table({"k": [1, 2], "n": [1.0, 1.5]}), "column n: 1.5 does not fit int32 without loss", 1),
        (pa.table({"k": [1, 2], "f": [0.5, 0.1]}), "column f: 0.1 does not fit float without loss", 1),
        (
            pa.table({"k": [1, 2], "price": pa.array([Decimal("1.50"), Decimal("1.555")], pa.decimal128(9, 3))}),
            "does not fit decimal128(12, 2)",
            1,
        ),
        (pa.table([[1], [2]], names=["k", "k"]), "column k is given twice", None),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_rows_that_do_not_fit_are_refused_by_column_and_row(rows, what, row):
    error = refused(rows)

    assert what in error.what
    assert row is None or f"row {row} (from 0)" in error.where


def test_a_not_null_column_takes_no_nulls():
    strict = validate(TableDescriptor("db.s", (Column("a", "INT", nullable=False), Column("b", "INT"))))

    assert "column a is null, and is NOT NULL" in refused({"a": [1, None], "b": [1, 1]}, descriptor=strict).what
    assert "column a is missing and is NOT NULL" in refused({"b": [1]}, descriptor=strict).what


def test_an_auto_increment_column_is_left_to_the_store():
    assert conform(MAPPING, {"user": ["a"]})["uid"].to_pylist() == [None]
    assert conform(MAPPING, {"user": ["a"], "uid": pa.nulls(1, pa.int64())})["uid"].to_pylist() == [None]
    assert "column uid is filled by the store" in refused({"user": ["a"], "uid": [7]}, descriptor=MAPPING).what


def test_instants_are_neither_rounded_nor_moved_between_zones():
    fine = dt.datetime(2017, 1, 31, 12, 0, 0, 1)  # noqa: DTZ001
    whole = fine.replace(microsecond=0)
    assert conform(MAPPING, pa.table({"user": ["a"], "at": [whole]}))["at"].to_pylist() == [whole]
    assert "does not fit timestamp[ms]" in refused(pa.table({"user": ["a"], "at": [fine]}), descriptor=MAPPING).what
    assert "column seen is timestamp[us]" in refused(pa.table({"user": ["a"], "seen": [whole]}), descriptor=MAPPING).what
    for column, value in (("at", fine), ("seen", fine.replace(tzinfo=dt.UTC)), ("at", whole.replace(tzinfo=dt.UTC))):
        error = refused({"user": ["a", "b"], column: [None, value]}, descriptor=MAPPING)
        assert "does not fit timestamp[ms" in error.what
        assert "row 1 (from 0)" in error.where
    at_five = dt.datetime(2017, 1, 31, 12, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    assert conform(MAPPING, {"user": ["a", "b"], "seen": [at_five, None]})["seen"].to_pylist() == [at_five, None]
    berlin = pa.array([whole], pa.timestamp("ms", "Europe/Berlin"))
    conformed = conform(MAPPING, pa.table({"user": ["a"], "seen": berlin}))
    assert conformed["seen"].cast(pa.int64()).to_pylist() == berlin.cast(pa.int64()).to_pylist()


def test_bytes_that_are_no_text_are_refused_by_column_and_row():
    good, bad = (
        pa.array(["a", "ü"]),
        pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]),
    )
    text = pa.chunked_array([good, bad, good])

    error = refused(pa.table({"k": list(range(5)), "name": text}))
    assert "column name holds bytes that are no UTF-8 text" in error.what
    assert "row 2 (from 0)" in error.where
    assert (
        conform(T, pa.table({"k": list(range(4)), "name": pa.concat_arrays([text.chunk(0), text.chunk(2)])}))["name"].to_pylist()
        == ["a", "ü"] * 2
    )
    with pytest.raises(SchemaMismatch, match="no UTF-8"):
        conform_keys(MAPPING, bad)


def test_keys_come_in_key_order_and_a_single_key_may_be_a_plain_list():
    two = validate(TableDescriptor("db.t", (Column("b", "STRING"), Column("a", "BIGINT"), Column("n", "INT")), primary_key=("a", "b")))

    assert conform_keys(two, [{"b": "x", "a": 1}]).to_pydict() == {"a": [1], "b": ["x"]}
    assert conform_keys(two, {"a": [1]}, ("a",)).schema == pa.schema([pa.field("a", pa.int64(), nullable=False)])
    for keys in ([1, 2], (1, 2), pa.array([1, 2]), np.array([1, 2]), pd.Series([1, 2]), pa.chunked_array([[1], [2]])):
        assert conform_keys(T, keys).to_pydict() == {"k": [1, 2]}
    assert conform_keys(T, []).num_rows == 0
    for keys, what in [
        ({"a": [1]}, "column b is missing"),
        ({"a": [1], "b": [None]}, "column b is null"),
        ({"a": [1], "b": ["x"], "n": [1]}, "not expected"),
    ]:
        with pytest.raises(SchemaMismatch, match=what):
            conform_keys(two, keys)
    with pytest.raises(SchemaMismatch, match="no primary key"):
        conform_keys(validate(TableDescriptor("db.l", (Column("a", "INT"),))), [1])


INTEGERS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}


@given(hs.lists(hs.integers(-(2**63), 2**63 - 1) | hs.integers(-200, 200) | hs.none(), max_size=30))
def test_integers_keep_their_value_or_are_refused_at_the_first_that_does_not_fit(values):
    rows = pa.table({"k": pa.array(range(len(values)), pa.int64()), "n": pa.array(values, pa.int64())})
    too_wide = [row for row, value in enumerate(values) if value is not None and not -(2**31) <= value < 2**31]

    if too_wide:
        assert f"row {too_wide[0]} (from 0)" in refused(rows).where
    else:
        assert conform(T, rows)["n"].to_pylist() == values
