"""Partition names: values to names and back; what cannot be a name is refused with its row."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as hs

from storage_engine.errors import InvalidPartition, SchemaMismatch
from storage_engine.schema.partitions import encode_partitions, partition_names, partition_values_of


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array(["20170131", "a_b-C"]), ["20170131", "a_b-C"]),
        (pa.array([7, -7], pa.int32()), ["7", "-7"]),
        (pa.array([2**40]), [str(2**40)]),
        (pa.array([dt.date(2017, 1, 31)]), ["2017-01-31"]),
        (pa.chunked_array([["a"], ["b", "a"]]), ["a", "b", "a"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([], pa.string()), []),
        (pa.array(["x" * 200]), ["x" * 200]),
    ],
)
def test_a_value_names_its_partition(values, names):
    assert partition_names(values).to_pylist() == names


@pytest.mark.parametrize("value", ["", "__a", "a b", "a/b", "..", "ä", "a\n", "x" * 201, "a=b"])
def test_a_value_that_cannot_be_a_name_is_refused_with_its_row(value):
    with pytest.raises(InvalidPartition, match="cannot name a partition") as caught:
        partition_names(pa.array(["ok", "ok", value, value]), table="db.t")

    assert caught.value.where == "table db.t, row 2 (from 0)"


def test_null_names_no_partition():
    with pytest.raises(InvalidPartition, match=r"null cannot name a partition \[row 1 "):
        partition_names(pa.array(["a", None]))


def test_a_double_names_no_partition():
    with pytest.raises(SchemaMismatch, match="double"):
        partition_names(pa.array([1.5]))


def test_each_partition_is_named_once_in_the_encoded_form():
    encoded = encode_partitions(pa.array([3, 1, 3, 3]))

    assert encoded.dictionary.to_pylist() == ["3", "1"]
    assert encoded.indices.to_pylist() == [0, 1, 0, 0]


@given(hs.lists(hs.dates(dt.date(1, 1, 1)), min_size=1))
def test_dates_come_back_from_their_names(days):
    values = pa.array(days, pa.date32())

    assert partition_values_of(partition_names(values).to_pylist(), pa.date32()) == values


@pytest.mark.parametrize(("name", "kind"), [("x", pa.int32()), ("007", pa.int32()), ("2017-1-31", pa.date32()), ("2017", pa.date32())])
def test_a_name_that_no_value_has_is_refused(name, kind):
    with pytest.raises(InvalidPartition, match=repr(name)):
        partition_values_of([name], kind)
