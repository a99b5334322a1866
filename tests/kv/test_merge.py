"""Merging columns: the ends of the types, nulls, not-a-number, and Roaring bitmaps as other programs write them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from storage_engine.errors import SchemaMismatch, StatementRefused
from storage_engine.kv import AutoIncrement, KvBucket, checked_bitmaps, items_of
from storage_engine.schema.descriptor import Column, TableDescriptor
from tests.kv.model import RowLog, bitmap, bitmap64

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "roaring_format_spec"
NAN = float("nan")


def one_column(sql_type: str, function: str | None, **options: str) -> TableDescriptor:
    if function is not None:
        options |= {"table.merge-engine": "aggregation", "fields.v.agg": function}
    columns = (Column("k", "BIGINT", nullable=False), Column("v", sql_type))
    return TableDescriptor("t.t", columns, primary_key=("k",), bucket_keys=("k",), options=options)


class Bucket:
    """A bucket with its changelog, written one batch of (k, v) at a time."""

    def __init__(self, descriptor: TableDescriptor) -> None:
        self.descriptor = descriptor
        self.log = RowLog(descriptor.arrow_schema)
        self.kv = KvBucket(descriptor, self.log.fetch)

    def upsert(self, *values, key=1) -> int:
        rows = pa.table({"k": [key] * len(values), "v": pa.array(values, self.descriptor.arrow_schema.field("v").type)})
        return self.take(self.kv.upsert(rows.cast(self.descriptor.arrow_schema)))

    def delete(self, *keys: int) -> int:
        return self.take(self.kv.delete(pa.table({"k": keys})))

    def take(self, change) -> int:
        self.kv.apply(change, self.log.append(change))
        return change.n_rows

    def value(self, key=1):
        return self.kv.get(pa.table({"k": [key]}))[0]["v"].to_pylist()[0]


@pytest.mark.parametrize(
    ("sql_type", "values", "total"),
    [
        ("TINYINT", [100, 27], 127),
        ("INT", [2**31 - 1, None], 2**31 - 1),
        ("BIGINT", [-(2**63), 2**63 - 1, 5], 4),
        ("FLOAT", [0.5, None, 0.25], 0.75),
        ("DECIMAL(12, 2)", [Decimal("9999999999.98"), Decimal("0.01")], Decimal("9999999999.99")),
        ("DECIMAL(38, 0)", [Decimal(10**38 - 2), Decimal(1)], Decimal(10**38 - 1)),
        ("BIGINT", [None, None], None),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_a_sum_is_exact_up_to_the_end_of_its_type(sql_type, values, total, together):
    bucket = Bucket(one_column(sql_type, "sum"))
    for batch in [values] if together else [[value] for value in values]:
        bucket.upsert(*batch)
    assert bucket.value() == total


@pytest.mark.parametrize(
    ("sql_type", "stored", "batch", "total"),
    [
        ("INT", -(2**31), [2**31 - 1, 2**31 - 1], 2**31 - 2),
        ("BIGINT", -(2**63), [2**63 - 1, 2**63 - 1], 2**63 - 2),
        ("DECIMAL(3, 1)", Decimal("-99.9"), [Decimal("99.9"), Decimal("99.9")], Decimal("99.9")),
        ("DECIMAL(38, 0)", Decimal(1 - 10**38), [Decimal(10**38 - 1), Decimal(10**38 - 1)], Decimal(10**38 - 1)),
    ],
)
def test_part_of_a_sum_may_leave_the_type_when_the_whole_does_not(sql_type, stored, batch, total):
    bucket = Bucket(one_column(sql_type, "sum"))
    bucket.upsert(stored)
    bucket.upsert(*batch)
    assert bucket.value() == total


@pytest.mark.parametrize(
    ("sql_type", "most"),
    [
        ("TINYINT", 127),
        ("INT", 2**31 - 1),
        ("BIGINT", 2**63 - 1),
        ("DECIMAL(4, 2)", Decimal("99.99")),
        ("DECIMAL(38, 0)", Decimal(10**38 - 1)),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_a_sum_beyond_its_type_is_refused_and_changes_nothing(sql_type, most, together):
    bucket = Bucket(one_column(sql_type, "sum"))
    bucket.upsert(0)
    if not together:
        bucket.upsert(most)
    with pytest.raises(SchemaMismatch, match=r"table t\.t, column v"):
        bucket.upsert(most, type(most)(1))
    assert bucket.value() == (0 if together else most)
    assert bucket.kv.n_keys == 1


@pytest.mark.parametrize(
    ("sql_type", "function", "values", "result"),
    [
        ("BIGINT", "product", [2**31, None, -(2**31)], -(2**62)),
        ("BIGINT", "product", [2**62, 2**62, 0], 0),
        ("TINYINT", "product", [3, 5, 7], 105),
        ("DOUBLE", "product", [0.5, 4.0, 3.0], 6.0),
        ("DECIMAL(12, 2)", "product", [Decimal("0.15"), Decimal("0.10"), Decimal("10.00")], Decimal("0.20")),
        ("DECIMAL(37, 0)", "product", [Decimal(10**18), Decimal(10**18)], Decimal(10**36)),
        ("INT", "count", [7, None, 0, -1], 3),
        ("INT", "count", [None], None),
        ("STRING", "listagg", ["a", None, "", "b"], "a,,b"),
        ("BOOLEAN", "bool_and", [True, None, False, True], False),
        ("BOOLEAN", "bool_or", [False, None, False], False),
        ("BYTES", "rbm64", [bitmap64(1, 2**63), None, bitmap64(1)], bitmap64(1, 2**63)),
    ],
)
def test_a_function_gives_the_same_in_one_batch_and_row_by_row(sql_type, function, values, result):
    for cut in range(len(values)):
        if function == "product" and result == 0 and cut:
            continue  # row by row, what precedes the zero does not fit
        bucket = Bucket(one_column(sql_type, function))
        for batch in (values[:cut], values[cut:]):
            bucket.upsert(*batch)
        assert bucket.value() == result, f"cut at {cut}"


@pytest.mark.parametrize(("sql_type", "factor"), [("TINYINT", 12), ("BIGINT", 2**32), ("DECIMAL(4, 2)", Decimal("10.00"))])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_a_product_beyond_its_type_is_refused(sql_type, factor, together):
    bucket = Bucket(one_column(sql_type, "product"))
    if not together:
        bucket.upsert(factor)
    with pytest.raises(SchemaMismatch, match="a product does not fit"):
        bucket.upsert(*([factor, factor] if together else [factor]))


def test_bytes_that_are_no_64_bit_bitmap_are_refused():
    with pytest.raises(SchemaMismatch, match="row 0 is not a 64-bit Roaring bitmap"):
        Bucket(one_column("BYTES", "rbm64")).upsert(b"no bitmap")


def test_an_insert_whose_values_add_up_beyond_the_type_is_refused():
    bucket = Bucket(one_column("INT", "sum"))
    with pytest.raises(SchemaMismatch, match="does not fit int32"):
        bucket.upsert(2**31 - 1, 1)
    assert bucket.value() is None


@pytest.mark.parametrize("function", ["max", "min"])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_not_a_number_is_neither_largest_nor_smallest(function, together):
    bucket = Bucket(one_column("DOUBLE", function))
    for batch in [[NAN, 1.5, None]] if together else [[NAN], [1.5], [None], [NAN]]:
        bucket.upsert(*batch)
    assert bucket.value() == 1.5


@pytest.mark.parametrize("function", ["max", "min"])
@pytest.mark.parametrize("sql_type", ["TIMESTAMP(3)", "TIMESTAMP(6)", "TIMESTAMP_LTZ(3)", "TIMESTAMP_LTZ(6)"])
def test_instants_compare_with_and_without_zone(sql_type, function):
    zone = UTC if "LTZ" in sql_type else None
    early, late = (datetime(1960 + 50 * n, 1, 1, tzinfo=zone) for n in range(2))
    bucket = Bucket(one_column(sql_type, function))
    for value in (early, None, late, early):
        bucket.upsert(value)
    assert bucket.value() == (late if function == "max" else early)


def test_writing_not_a_number_again_changes_nothing():
    bucket = Bucket(one_column("DOUBLE", None))
    assert bucket.upsert(NAN) == 1
    assert bucket.upsert(NAN) == 0
    assert bucket.upsert(None) == 2
    assert bucket.upsert(None) == 0


def test_a_row_written_again_as_it_is_leaves_no_change():
    bucket = Bucket(one_column("STRING", None))
    assert bucket.upsert("a") == 1
    assert bucket.upsert("b", "a") == 0
    assert bucket.upsert("b") == 2


def test_deletes_follow_the_tables_behavior():
    for options, removed in ({}, True), ({"table.delete.behavior": "ignore"}, False):
        bucket = Bucket(one_column("STRING", None, **options))
        bucket.upsert("a")
        assert bucket.delete(1, 1, 2) == (1 if removed else 0)
        assert bucket.kv.n_keys == (0 if removed else 1)
    bucket = Bucket(one_column("STRING", None, **{"table.delete.behavior": "disable"}))
    bucket.upsert("a")
    with pytest.raises(StatementRefused, match="deletes are disabled"):
        bucket.delete(1)
    aggregating = Bucket(one_column("BIGINT", "sum"))
    aggregating.upsert(1)
    assert aggregating.delete(1) == 0


def test_a_partial_delete_of_a_not_null_column_is_refused():
    columns = (Column("k", "BIGINT", nullable=False), Column("v", "BIGINT", nullable=False))
    bucket = Bucket(TableDescriptor("t.t", columns, primary_key=("k",), bucket_keys=("k",)))
    bucket.upsert(1)
    with pytest.raises(SchemaMismatch, match="v is NOT NULL"):
        bucket.kv.delete(pa.table({"k": [1]}), ["k", "v"])


# bitmaps


def spec_members() -> BitMap:
    members = BitMap(range(0, 100_000, 1_000))
    members.update(range(3 * 100_000, 3 * 200_000, 3))
    members.add_range(700_000, 800_000)
    return members


@pytest.mark.parametrize("name", ["bitmapwithoutruns.bin", "bitmapwithruns.bin"])
def test_bitmaps_of_the_format_specification_merge_to_their_members(name):
    stored = (VECTORS / name).read_bytes()
    bucket = Bucket(one_column("BYTES", "rbm32"))
    bucket.upsert(stored)
    assert bucket.value() == stored, "a first bitmap keeps its bytes"
    assert bucket.upsert(bitmap(1_000, 799_999), bitmap()) == 0, "members it has change nothing"
    assert bucket.upsert(bitmap(1, 2**32 - 1)) == 2
    assert BitMap.deserialize(bucket.value()) == spec_members() | BitMap([1, 2**32 - 1])
    assert bucket.upsert((VECTORS / "bitmapwithoutruns.bin").read_bytes(), (VECTORS / "bitmapwithruns.bin").read_bytes()) == 0


def test_a_merged_bitmap_is_run_optimised():
    bucket = Bucket(one_column("BYTES", "rbm32"))
    bucket.upsert(BitMap(range(0, 50_000)).serialize(), BitMap(range(50_000, 100_000)).serialize())
    assert len(bucket.value()) < 64


@pytest.mark.parametrize("stored", [None, bitmap(1)])
@pytest.mark.parametrize("batch", [[b"no bitmap"], [bitmap(1), b""], [b"\x3a\x30", bitmap(3)]])
def test_bytes_that_are_no_bitmap_are_refused(stored, batch):
    bucket = Bucket(one_column("BYTES", "rbm32"))
    if stored is not None:
        bucket.upsert(stored)
    with pytest.raises(SchemaMismatch, match="not a 32-bit Roaring bitmap"):
        bucket.upsert(*batch)
    assert bucket.value() == stored


def test_the_row_that_is_no_bitmap_is_named():
    with pytest.raises(SchemaMismatch, match="row 2 is not"):
        checked_bitmaps(pa.array([None, bitmap(1), b"x"]), "here")


@given(st.lists(st.lists(st.none() | st.frozensets(st.integers(0, 2**32 - 1) | st.integers(0, 300), max_size=40), max_size=5), max_size=5))
def test_bitmaps_unite_like_sets_however_they_are_batched(batches):
    bucket = Bucket(one_column("BYTES", "rbm32"))
    members: set[int] | None = None
    for batch in batches:
        bucket.upsert(*(None if value is None else bitmap(*value) for value in batch))
        for value in batch:
            members = members if value is None else (members or set()) | value
    value = bucket.value()
    assert (None if value is None else set(BitMap.deserialize(value))) == members


# auto-increment


def serial(sql_type: str) -> TableDescriptor:
    columns = (Column("k", "STRING", nullable=False), Column("uid", sql_type), Column("v", "BIGINT"))
    return TableDescriptor("t.t", columns, primary_key=("k",), bucket_keys=("k",), options={"auto-increment.fields": "uid"})


def test_two_buckets_share_one_series_of_ids_without_gaps():
    descriptor = serial("BIGINT")
    ids = AutoIncrement(descriptor, last_id=41)
    seen = []
    for names in (["a", "b", "a"], ["c"]):
        log = RowLog(descriptor.arrow_schema)
        change = KvBucket(descriptor, log.fetch, ids=ids).upsert(pa.table({"k": names}), ["k"])
        seen += change.rows["uid"].to_pylist()
    assert seen == [42, 43, 44]
    ids.rollback()
    assert ids.take(1).to_pylist() == [42]


def test_an_explicit_id_is_refused():
    descriptor = serial("INT")
    bucket = KvBucket(descriptor, RowLog(descriptor.arrow_schema).fetch, ids=AutoIncrement(descriptor))
    rows = pa.table({"k": ["a"], "uid": pa.array([7], pa.int32()), "v": [1]})
    with pytest.raises(SchemaMismatch, match="uid is filled by the store"):
        bucket.upsert(rows)
    with pytest.raises(SchemaMismatch, match="uid is filled by the store"):
        bucket.upsert(rows, ["k", "uid"])


def test_ids_end_where_their_type_ends():
    descriptor = serial("INT")
    ids = AutoIncrement(descriptor, last_id=2**31 - 2)
    assert ids.take(1).to_pylist() == [2**31 - 1]
    with pytest.raises(SchemaMismatch, match=r"the column ends at 2,147,483,647"):
        ids.take(1)


# what a reader sees


def test_a_snapshot_taken_beside_a_failed_transaction_has_only_what_was_committed():
    bucket = Bucket(one_column("BIGINT", None))
    bucket.upsert(1)
    change = bucket.kv.upsert(pa.table({"k": [1, 2], "v": [5, 6]}))
    bucket.kv.stage(change, 1)
    assert bucket.value() == 1
    assert bucket.value(key=2) is None
    bucket.kv.rollback()
    assert items_of(bucket.kv.snapshot().keys)[1].tolist() == [0]
    assert np.array_equal(bucket.kv.current_offsets(), [0])
