"""Statistics: what a frame says of its columns never hides a row, survives its bytes, and is refused when they are damaged."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from storage_engine.errors import DamagedFrame
from storage_engine.log.statistics import TEXT_BYTES_MAX, decode_statistics, encode_statistics
from storage_engine.schema.predicate import parse_predicate
from storage_engine.schema.skipping import FrameFilter

SCHEMA = pa.schema(
    [
        ("n", pa.int32()), ("big", pa.int64()), ("x", pa.float64()), ("f", pa.float32()), ("p", pa.decimal128(12, 2)), ("s", pa.string()),
        ("d", pa.date32()), ("t", pa.timestamp("ms")), ("z", pa.timestamp("us", "UTC")), ("c", pa.time32("ms")), ("b", pa.bool_()),
    ]
)  # fmt: skip
FIELDS = dict(enumerate(SCHEMA.names))
NAN = float("nan")
MOMENT = dt.datetime(2017, 1, 1, 12)  # noqa: DTZ001 - a TIMESTAMP has no zone

VALUES: dict[str, list[object]] = {
    "n": [-5, 0, 1, 2, 7],
    "big": [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1],
    "x": [-1.5, -0.0, 0.0, 2.5, NAN, float("inf")],
    "f": [-1.5, -0.0, 0.0, 0.1, NAN],
    "p": [Decimal("-1.50"), Decimal("0.00"), Decimal("2.25"), Decimal("9999999999.99")],
    "s": ["", "a", "ab", "b%", "x" * 40, "x" * 40 + "y", "é" * 20, "\U0010ffff" * 9],
    "d": [dt.date(1969, 12, 31), dt.date(2017, 1, 1), dt.date(2017, 1, 3)],
    "t": [MOMENT, MOMENT + dt.timedelta(milliseconds=1), MOMENT + dt.timedelta(days=1)],
    "z": [MOMENT.replace(tzinfo=dt.UTC), MOMENT.replace(tzinfo=dt.UTC) + dt.timedelta(microseconds=1)],
    "c": [dt.time(0), dt.time(12, 0, 0, 1000)],
    "b": [True, False],
}
LITERALS = {
    "n": ["-5", "0", "1", "3", "7.0"],
    "big": ["0", "-1", "9007199254740993", "9223372036854775807"],
    "x": ["-1.5", "0", "-0.0", "2.5", "1e300"],
    "f": ["-1.5", "0", "-0.0", "0.1", "0.10000000149011612"],
    "p": ["-1.5", "0", "2.25", "3", "9999999999.99"],
    "s": ["''", "'a'", "'ab'", "'b%'", "'" + "x" * 40 + "'", "'" + "x" * 32 + "'", "'é'"],
    "d": ["'2017-01-01'", "'2017-01-02'", "DATE '1969-12-31'"],
    "t": ["'2017-01-01 12:00:00'", "'2017-01-01 12:00:00.001'", "'2018-01-01'"],
    "z": ["'2017-01-01 12:00:00'", "'2017-01-01 12:00:00.000001'", "'2017-01-01 13:00:00+01:00'"],
    "c": ["'00:00:00'", "'12:00:00.001'", "'23:00:00'"],
    "b": ["TRUE", "FALSE"],
}


def ranges_of(batch: pa.RecordBatch) -> dict:
    block = encode_statistics(batch, [(name, i) for i, name in FIELDS.items()])
    return decode_statistics(pa.py_buffer(block), batch.num_rows, FIELDS)


def batch_of(**columns: list) -> pa.RecordBatch:
    n = len(next(iter(columns.values())))
    return pa.RecordBatch.from_arrays([pa.array(columns.get(item.name, [None] * n), item.type) for item in SCHEMA], schema=SCHEMA)


def leaves() -> hs.SearchStrategy[str]:
    def of(name: str) -> hs.SearchStrategy[str]:
        literal = hs.sampled_from(LITERALS[name])
        comparison = hs.builds(lambda op, value: f"{name} {op} {value}", hs.sampled_from(["=", "<>", "<", "<=", ">", ">="]), literal)
        listed = hs.builds(
            lambda no, values: f"{name} {no}IN ({', '.join(values)})",
            hs.sampled_from(["", "NOT "]),
            hs.lists(literal, min_size=1, max_size=3),
        )
        between = hs.builds(lambda no, a, b: f"{name} {no}BETWEEN {a} AND {b}", hs.sampled_from(["", "NOT "]), literal, literal)
        null = hs.sampled_from([f"{name} IS NULL", f"{name} IS NOT NULL"])
        forms = [comparison, listed, between, null]
        if name == "s":
            patterns = hs.sampled_from(["a%", "%", "x%", "x" * 32 + "%", "x" * 33 + "%", "a", "_b", "b\\%%", "é%"])
            forms.append(hs.builds(lambda no, text: f"s {no}LIKE '{text}'", hs.sampled_from(["", "NOT "]), patterns))
        if name == "b":
            return hs.one_of(null, hs.sampled_from(["b", "NOT b", "b = TRUE", "b IS TRUE", "b IS NOT TRUE", "b IS FALSE"]))
        return hs.one_of(forms)

    return hs.sampled_from(SCHEMA.names).flatmap(of)


def conditions() -> hs.SearchStrategy[str]:
    return hs.recursive(
        leaves(),
        lambda inner: hs.one_of(
            hs.builds(lambda a, op, b: f"({a} {op} {b})", inner, hs.sampled_from(["AND", "OR"]), inner), inner.map(lambda a: f"NOT ({a})")
        ),
        max_leaves=4,
    )


@settings(max_examples=400, deadline=None)
@given(hs.data(), conditions())
def test_a_frame_with_a_row_that_meets_the_condition_is_never_skipped(data, where):
    n_rows = data.draw(hs.integers(1, 4))
    columns = {
        name: data.draw(hs.lists(hs.sampled_from([None, *VALUES[name]]), min_size=n_rows, max_size=n_rows))
        for name in SCHEMA.names
        if f"{name} " in where or f"{name})" in where or where == name
    }
    batch = batch_of(**(columns or {"n": [None] * n_rows}))

    kept = batch.filter(parse_predicate(where, SCHEMA)).num_rows

    if kept:
        assert FrameFilter(where, SCHEMA).may_match(ranges_of(batch))


@pytest.mark.parametrize(
    ("where", "columns"),
    [
        ("n > 7", {"n": [1, 7]}), ("n < 1", {"n": [1, 7]}), ("n = 3 OR n = 9", {"n": [4, 8]}), ("n <> 3", {"n": [3, 3, None]}),
        ("n IN (1, 9)", {"n": [2, 8]}), ("n NOT IN (3, 4)", {"n": [3, 3]}), ("n BETWEEN 9 AND 12", {"n": [1, 8]}),
        ("n IS NULL", {"n": [1]}), ("n IS NOT NULL", {"n": [None, None]}), ("NOT n = 3", {"n": [3, None]}),
        ("NOT (n > 1 OR n IS NULL)", {"n": [2, 3]}),
        ("x > 1", {"x": [0.5, NAN]}), ("x = 1", {"x": [NAN, NAN]}), ("x > 0", {"x": [-0.0, 0.0]}), ("x < 0", {"x": [-0.0, 0.0]}),
        ("s LIKE 'b%'", {"s": ["a", "az"]}), ("s NOT LIKE 'a%'", {"s": ["a", "ab"]}), ("s LIKE 'b_'", {"s": ["a", "az"]}),
        ("s > '" + "y" * 50 + "'", {"s": ["x" * 50]}), ("s < '" + "x" * 30 + "'", {"s": ["x" * 50]}), ("s = ''", {"s": ["a"]}),
        ("p = 3", {"p": [Decimal(1), Decimal(2)]}), ("d < '2017-01-01'", {"d": [dt.date(2017, 1, 1)]}),
        ("t >= '2017-01-02'", {"t": [MOMENT]}), ("c > '12:00:01'", {"c": [dt.time(12)]}), ("NOT b", {"b": [True]}),
        ("b IS FALSE", {"b": [None]}),
        ("n = 1 AND s = 'x'", {"n": [1], "s": ["a"]}), ("FALSE", {"n": [1]}), ("big > 9007199254740993", {"big": [2**53 + 1]}),
    ],
)  # fmt: skip
def test_a_frame_that_its_values_rule_out_is_skipped(where, columns):
    assert not FrameFilter(where, SCHEMA).may_match(ranges_of(batch_of(**columns)))


@pytest.mark.parametrize(
    ("where", "columns"),
    [
        ("x <> 1", {"x": [1.0, NAN]}), ("NOT x > 1", {"x": [2.0, NAN]}), ("x NOT IN (1)", {"x": [1.0, NAN]}),
        ("x NOT IN (0)", {"x": [-0.0]}), ("x = 0", {"x": [-0.0]}), ("x IN (0)", {"x": [0.0]}),
        ("s = '" + "x" * 40 + "'", {"s": ["x" * 40]}), ("s > '" + "x" * 39 + "'", {"s": ["x" * 40]}), ("n = n", {"n": [1]}),
        ("unknown = 1 OR n = 1", {"n": [1]}),
    ],
)  # fmt: skip
def test_nan_negative_zero_long_texts_and_what_is_not_understood_keep_the_frame(where, columns):
    assert FrameFilter(where, SCHEMA).may_match(ranges_of(batch_of(**columns)))


def test_a_long_text_is_cut_to_bounds_that_hold_it():
    found = ranges_of(batch_of(s=["x" * 100, "é" * 100]))["s"]

    assert found.low == b"x" * TEXT_BYTES_MAX
    assert len(found.high) == TEXT_BYTES_MAX
    assert found.low <= ("x" * 100).encode()
    assert found.high >= ("é" * 100).encode()


def test_every_flipped_bit_of_a_block_is_noticed():
    block = bytearray(encode_statistics(batch_of(n=[1, 2], s=["a", None]), [("n", 0), ("s", 5)]))

    for position in range(len(block)):
        damaged = bytearray(block)
        damaged[position] ^= 0x10
        with pytest.raises(DamagedFrame):
            decode_statistics(pa.py_buffer(bytes(damaged)), 2, FIELDS)


def test_the_bounds_of_a_batch_are_those_of_its_values():
    rng = np.random.default_rng(1)
    numbers = rng.integers(-1000, 1000, 5000)

    found = ranges_of(batch_of(big=numbers.tolist()))["big"]

    assert (found.low, found.high, found.n_nulls) == (numbers.min(), numbers.max(), 0)
