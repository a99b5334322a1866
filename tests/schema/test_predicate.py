"""Predicates: the filter keeps the rows that SQL keeps, and partitions are pruned only when no row can be in them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from storage_engine.errors import StatementRefused
from storage_engine.schema.predicate import matching_partitions, parse_predicate, partition_values, predicate_columns
from storage_engine.schema.skipping import FrameFilter

ROWS = pa.table(
    {
        "id": pa.array(range(6), pa.int64()),
        "n": pa.array([None, -1, 0, 1, 2, 300], pa.int32()),
        "s": pa.array(["a", "ab", None, "b%", "x_y", ""]),
        "x": pa.array([0.5, None, 1.5, -2.0, 1e10, 0.0]),
        "p": pa.array([None, *map(Decimal, ["1.50", "2.25", "-3.00", "0.00", "9.99"])], pa.decimal128(12, 2)),
        "d": pa.array([dt.date(2017, 1, day) for day in (1, 2, 3, 4, 5)] + [None]),
        "t": pa.array([dt.datetime(2017, 1, 1, hour) for hour in range(5)] + [None], pa.timestamp("ms")),  # noqa: DTZ001
        "z": pa.array([dt.datetime(2017, 1, 1, hour, tzinfo=dt.UTC) for hour in range(5)] + [None], pa.timestamp("us", "UTC")),
        "b": pa.array([True, False, None, True, False, None]),
        "ds": ["20170101", "20170101", "20170102", "20170102", "20170103", "20170103"],
    }
)


def kept(where: str) -> list[int]:
    return ROWS.filter(parse_predicate(where, ROWS.schema))["id"].to_pylist()


@pytest.mark.parametrize(
    "where",
    [
        "n = 1", "n <> 1", "n != 1", "n < 0", "n <= 0", "n > 0", "n >= 0", "0 < n", "n = -1", "n IS NULL", "n IS NOT NULL", "NOT n = 1",
        "NOT (n = 1 OR s = 'a')", "n IN (1, 2, 7)", "n NOT IN (1, 2)", "n BETWEEN 0 AND 2",
        "n NOT BETWEEN 0 AND 2", "s = 'a' AND n IS NULL",
        "s = 'a' OR n = 300 OR x > 1", "s LIKE 'a%'", "s NOT LIKE 'a%'", "s LIKE '%'", "s LIKE '_%'", "s = 'b%'", "s = ''", "x >= 1.5",
        "x = 10000000000", "p = 1.5", "p > 1", "d = DATE '2017-01-03'", "d >= '2017-01-03'", "t < TIMESTAMP '2017-01-01 02:00:00'", "b",
        "NOT b",
        "b = TRUE", "b IS TRUE", "ds IN ('20170101', '20170103') AND n > 0", "`n` = 1", '"n" = 1', "((n)) = (1)", "id = n", "TRUE", "FALSE",
        "b IS NOT TRUE", "b IS FALSE", "n = 1 OR n IS NULL", "NOT (n > 0 AND s = 'a')",
    ],
)  # fmt: skip
def test_the_filter_keeps_the_rows_that_sql_keeps(where):
    rows = ROWS  # read by DuckDB under this name

    expected = duckdb.sql(f"SELECT id FROM rows WHERE {where.replace('`', chr(34))} ORDER BY id").fetchall()

    assert rows is ROWS
    assert kept(where) == [row[0] for row in expected]


def test_an_instant_without_zone_is_read_as_utc_for_a_column_with_zone():
    assert kept("z = TIMESTAMP '2017-01-01 02:00:00'") == kept("z = '2017-01-01 03:00:00+01:00'") == [2]


ATOMS = hs.sampled_from(
    [
        "n = 1",
        "n > 0",
        "s = 'a'",
        "n IS NULL",
        "s IN ('a', 'b%')",
        "n NOT IN (1, 300)",
        "x BETWEEN 0 AND 1",
        "b",
        "ds = '20170102'",
        "ds > '20170101'",
    ]
)
CONDITIONS = hs.recursive(
    ATOMS,
    lambda inner: (
        hs.tuples(inner, inner).map(lambda p: f"({p[0]}) AND ({p[1]})")
        | hs.tuples(inner, inner).map(lambda p: f"{p[0]} OR {p[1]}")
        | inner.map(lambda c: f"NOT ({c})")
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(CONDITIONS)
def test_any_combination_keeps_the_rows_that_sql_keeps(where):
    rows = ROWS

    expected = duckdb.sql(f"SELECT id FROM rows WHERE {where} ORDER BY id").fetchall()

    assert rows is ROWS
    assert kept(where) == [row[0] for row in expected]


@settings(deadline=None, max_examples=60)
@given(CONDITIONS)
def test_pruning_never_leaves_out_a_partition_with_a_row(where):
    names = ["20170101", "20170102", "20170103"]
    holding = set(ROWS.filter(parse_predicate(where, ROWS.schema))["ds"].to_pylist())

    named = partition_values(where, "ds", pa.string())

    assert named is None or holding <= named
    assert holding <= set(matching_partitions(where, ROWS.schema, "ds", names))


@pytest.mark.parametrize(
    ("where", "named", "matching"),
    [
        ("ds = '20170102'", {"20170102"}, ["20170102"]),
        ("'20170102' = ds AND n > 1", {"20170102"}, ["20170102"]),
        ("ds IN ('20170101', 'x') OR ds = '20170103'", {"20170101", "20170103", "x"}, ["20170101", "20170103"]),
        ("ds = '20170101' AND ds = '20170102'", set(), []),
        ("ds = '20170101' OR n = 1", None, ["20170101", "20170102", "20170103"]),
        ("ds >= '20170102'", None, ["20170102", "20170103"]),
        ("ds BETWEEN '20170102' AND '20170102' AND n = 1", None, ["20170102"]),
        ("NOT ds = '20170102'", None, ["20170101", "20170103"]),
        ("NOT (ds = '20170102' AND n = 1)", None, ["20170101", "20170102", "20170103"]),
        ("n = 1", None, ["20170101", "20170102", "20170103"]),
    ],
)
def test_a_condition_on_the_partition_column_prunes(where, named, matching):
    assert partition_values(where, "ds", pa.string()) == named
    assert matching_partitions(where, ROWS.schema, "ds", ["20170101", "20170102", "20170103"]) == matching


def test_partitions_of_integers_and_dates_are_named_as_they_are_stored():
    assert partition_values("day = 20170131 OR day IN (-1)", "day", pa.int32()) == {"20170131", "-1"}
    for text in ("DATE '2017-01-31'", "'20170131'", "'2017-W05-2'"):
        assert partition_values(f"d = {text}", "d", pa.date32()) == {"2017-01-31"}
    assert partition_values("d = 'yesterday'", "d", pa.date32()) is None, "parse_predicate() refuses it"
    schema = pa.schema({"day": pa.int32(), "d": pa.date32()})
    assert matching_partitions("day > 9", schema, "day", ["9", "10", "100"]) == ["10", "100"]
    assert matching_partitions("d < DATE '2017-02-01'", schema, "d", ["2017-01-31", "2017-02-01"]) == ["2017-01-31"]


@pytest.mark.parametrize(
    "where", [" OR ".join(["n = 1"] * 3000), "(" * 2000 + "n = 1" + ")" * 2000, "NOT " * 3000 + "n = 1", " AND ".join(["ds = 'a'"] * 3000)]
)
def test_a_condition_nested_deeper_than_the_stack_is_refused_by_name(where):
    for use in (
        lambda: parse_predicate(where, ROWS.schema),
        lambda: partition_values(where, "ds", pa.string()),
        lambda: matching_partitions(where, ROWS.schema, "ds", ["a"]),
        lambda: FrameFilter(where, ROWS.schema),
    ):
        with pytest.raises(StatementRefused, match="nested too deeply"):
            use()


def test_the_columns_of_a_condition_are_named_once():
    assert predicate_columns("b = 1 AND (a > 2 OR b < 3)") == ["b", "a"]


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("n = ", "cannot read the condition"),
        ("", "the condition is empty"),
        ("m = 1", "unknown column m"),
        ("n = 'one'", "'one' is not a value of n (int32)"),
        ("n = 1.5", "1.5 is not a value of n (int32)"),
        ("n = 3000000000", "3000000000 is not a value of n"),
        ("n = 1e99999999", "1e99999999 is not a value of n"),  # written out, it would keep a server busy for minutes
        ("p = 1e99999999", "1e99999999 is not a value of p"),
        ("s = 1", "1 is not a value of s (string)"),
        ("p = 1.555", "1.555 is not a value of p"),
        ("d = 'today'", "'today' is not a value of d"),
        ("n = NULL", "n compared with NULL is never true"),
        ("n IN (1, NULL)", "n compared with NULL"),
        ("n IN (SELECT 1)", "IN needs a list of literals"),
        ("UPPER(s) = 'A'", "UPPER(s) = 'A' compares no column"),
        ("n + 1 = 2", "compares no column"),
        ("n", "column n is int32, not a condition"),
        ("1 = 1", "compares no column"),
        ("n LIKE '1%'", "LIKE needs a string column"),
        ("n = s", "compares int32 with string"),
        ("n = 1; DROP TABLE t", "cannot read the condition"),
        ("EXISTS (SELECT 1)", "is not understood"),
        ("n BETWEEN SYMMETRIC 2 AND 1", "is not understood (symmetric)"),
    ],
)
def test_a_condition_that_is_not_understood_is_refused_by_name(where, what):
    with pytest.raises(StatementRefused) as caught:
        parse_predicate(where, ROWS.schema)

    assert what in caught.value.what
    assert caught.value.next_step
