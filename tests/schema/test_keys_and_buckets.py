"""Key bytes, bucket ids and key hashes: Fluss's published vectors, and the naive form on random keys."""

from __future__ import annotations

import datetime as dt
import json
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as hs

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.bucketing import bucket_ids, murmur
from storage_engine.schema.keys import encode_keys, has_exact_hash, hash64, hash64_of

sys.path.insert(0, str(Path(__file__).parent))
import fluss_oracle as oracle

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/fluss/hash_and_bucket_vectors.json").read_text())


def _bytes(key: dict) -> bytes:
    return bytes.fromhex(key["hex"]) if "hex" in key else key["utf8"].encode()


@pytest.mark.parametrize("case", [c for c in VECTORS["fluss_flink_murmur"]["cases"] if "utf8" in c], ids=str)
def test_the_first_hash_is_the_published_one(case):
    assert murmur(pa.array([case["utf8"].encode()]), case["seed"]).tolist() == [int(case["hash"], 16)]


@pytest.mark.parametrize("case", [c for c in VECTORS["fluss_flink_murmur"]["cases"] if "int32" in c], ids=str)
def test_the_oracles_second_hash_is_the_published_one(case):
    assert oracle.second_round(case["int32"]) == int(case["hash"], 16)


@pytest.mark.parametrize("case", VECTORS["bucketing"]["cases"], ids=str)
def test_a_key_goes_to_the_bucket_that_fluss_chooses(case):
    key = _bytes(case["key"])

    assert bucket_ids(pa.array([key]), case["buckets"]).tolist() == [case["default"]]
    assert oracle.bucket(key, case["buckets"]) == case["default"]


def test_all_types_encode_to_the_published_key_bytes():
    moment = dt.datetime(2023, 10, 25, 12, 1, 13, 182_000)  # noqa: DTZ001 - TIMESTAMP has no zone
    instant = moment.replace(tzinfo=dt.UTC)
    columns = [
        pa.array([True]),
        pa.array([2], pa.int8()),
        pa.array([10], pa.int16()),
        pa.array([100], pa.int32()),
        pa.array([-6101065172474983726], pa.int64()),
        pa.array([13.2], pa.float32()),
        pa.array([15.21], pa.float64()),
        pa.array([dt.date(2023, 10, 25)]),
        pa.array([dt.time(9, 30)], pa.time32("ms")),
        pa.array([b"1234567890"]),
        pa.array([b"20"]),
        pa.array(["1"]),
        pa.array(["hello"]),
        pa.array([Decimal("0.09")], pa.decimal128(5, 2)),
        pa.array([Decimal(10)], pa.decimal128(20, 0)),
        pa.array([moment], pa.timestamp("ms")),
        pa.array([moment], pa.timestamp("us")),
        pa.array([instant], pa.timestamp("ms", "UTC")),
        pa.array([instant], pa.timestamp("us", "UTC")),
    ]
    without_arrays = VECTORS["compacted_key_encoder"]["whole_key_hex"].split("3009000000")[0]

    assert encode_keys(columns)[0].as_py().hex() == without_arrays


KEY_VALUES = {
    pa.bool_(): hs.booleans(),
    pa.int8(): hs.integers(-(2**7), 2**7 - 1),
    pa.int16(): hs.integers(-(2**15), 2**15 - 1),
    pa.int32(): hs.integers(-(2**31), 2**31 - 1) | hs.integers(-3, 300),
    pa.int64(): hs.integers(-(2**63), 2**63 - 1) | hs.integers(-3, 300),
    pa.float32(): hs.floats(width=32, allow_nan=False),
    pa.float64(): hs.floats(allow_nan=False),
    pa.date32(): hs.dates(),
    pa.time32("ms"): hs.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)),
    pa.string(): hs.text(max_size=40),
    pa.binary(): hs.binary(max_size=200),
    pa.decimal128(12, 2): hs.decimals(-9999999999, 9999999999, places=2),
    pa.decimal128(38, 0): hs.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
    pa.timestamp("ms"): hs.datetimes().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)),
    pa.timestamp("us", "UTC"): hs.datetimes(timezones=hs.just(dt.UTC)),
}


@hs.composite
def keys(draw) -> tuple[tuple[pa.DataType, ...], list[tuple]]:
    kinds = tuple(draw(hs.lists(hs.sampled_from(list(KEY_VALUES)), min_size=1, max_size=4)))
    return kinds, draw(hs.lists(hs.tuples(*(KEY_VALUES[kind] for kind in kinds)), min_size=1, max_size=20))


def _columns(kinds, rows) -> list[pa.Array]:
    return [pa.array([row[index] for row in rows], kind) for index, kind in enumerate(kinds)]


@given(keys())
def test_encoded_keys_equal_the_naive_encoding(drawn):
    kinds, rows = drawn

    encoded = encode_keys(_columns(kinds, rows))

    assert encoded.to_pylist() == [oracle.encode_key(row, kinds) for row in rows]


@given(keys())
def test_slices_and_chunks_encode_like_the_whole(drawn):
    kinds, rows = drawn
    columns = _columns(kinds, rows)
    middle = len(rows) // 2

    whole = encode_keys(columns).to_pylist()

    assert encode_keys([column.slice(middle) for column in columns]).to_pylist() == whole[middle:]
    assert encode_keys([pa.chunked_array([column[:middle], column[middle:]]) for column in columns]).to_pylist() == whole


@given(keys())
def test_the_encoding_of_a_prefix_begins_exactly_the_keys_with_that_prefix(drawn):
    kinds, rows = drawn
    columns = _columns(kinds, rows)
    prefixes, whole = encode_keys(columns[:1]).to_pylist(), encode_keys(columns).to_pylist()

    for prefix in prefixes:
        for other, key in zip(prefixes, whole, strict=True):
            assert key.startswith(prefix) == (prefix == other)


@given(hs.lists(hs.binary(max_size=70), min_size=1, max_size=30), hs.integers(1, 4096))
def test_bucket_ids_equal_the_naive_form(encoded, n_buckets):
    array = pa.array([b"before", *encoded])[1:]

    assert bucket_ids(array, n_buckets).tolist() == [oracle.bucket(key, n_buckets) for key in encoded]
    assert bucket_ids(array.cast(pa.large_binary()), n_buckets).tolist() == bucket_ids(array, n_buckets).tolist()


@given(hs.lists(hs.binary(max_size=40), min_size=2, max_size=40))
def test_hashes_depend_on_the_bytes_of_the_key_alone(encoded):
    hashes = hash64(pa.array(encoded))

    assert [int(hash64(pa.array([key]))[0]) for key in encoded] == hashes.tolist()
    assert len(set(hashes.tolist())) == len(set(encoded))


def test_a_key_and_the_same_key_with_zero_bytes_added_hash_differently():
    hashes = hash64(pa.array([b"a" + b"\0" * n for n in range(40)]))

    assert len(set(hashes.tolist())) == 40


def test_hashes_of_many_keys_spread_over_both_ends_of_the_word():
    hashes = hash64(pa.array([f"user-{n}".encode() for n in range(100_000)]))

    assert len(np.unique(hashes)) == 100_000
    for shift in (0, 56):
        counts = np.bincount(((hashes >> np.uint64(shift)) & np.uint64(255)).astype(np.int64), minlength=256)
        assert counts.min() > 290, "each of 256 slots expects 390 keys"
        assert counts.max() < 500


@given(hs.lists(hs.tuples(hs.integers(-(2**31), 2**31 - 1), hs.integers(-(2**15), 2**15 - 1)), unique=True, max_size=50))
def test_an_exact_hash_never_confuses_two_keys(rows):
    kinds = (pa.int32(), pa.int16())

    assert has_exact_hash(kinds)
    assert len(set(hash64_of(_columns(kinds, rows)).tolist())) == len(rows)


def test_strings_and_wide_keys_have_no_exact_hash():
    assert not has_exact_hash([pa.string()])
    assert not has_exact_hash([pa.int64(), pa.int8()])
    assert not has_exact_hash([pa.float64()])


def test_more_rows_than_a_block_encode_row_by_row_alike():
    numbers, names = pa.array(range(40_000)), pa.array([f"user-{n}" for n in range(40_000)])

    encoded = encode_keys([numbers, names])

    for row in (0, 16_383, 16_384, 32_768, 39_999):
        assert encoded[row].as_py() == oracle.encode_key((row, f"user-{row}"), (pa.int64(), pa.string()))


def test_no_keys_give_no_bytes_no_buckets_and_no_hashes():
    for kind in KEY_VALUES:
        empty = encode_keys([pa.array([], kind)])
        assert len(empty) == len(bucket_ids(empty, 7)) == len(hash64(empty)) == 0


def test_a_null_in_a_key_is_refused_with_its_row():
    with pytest.raises(SchemaMismatch, match=r"null \[row 1 "):
        encode_keys([pa.array([1, None])])


def test_a_nested_column_cannot_be_in_a_key():
    with pytest.raises(SchemaMismatch, match="list"):
        encode_keys([pa.array([[1]])])
