"""A bucket rebuilt from its changelog is the bucket that wrote it; readers beside the writer see whole, current rows."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_engine.kv import KeyIndex, KvBucket
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.keys import hash64
from tests.kv.model import RowLog, table

ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 9)), max_size=6)
OPS = st.lists(st.tuples(st.sampled_from(["upsert", "delete"]), ROWS), max_size=10)


@pytest.mark.parametrize("hash_bits", [64, 1], ids=["hash64", "colliding"])
@settings(deadline=None)
@given(ops=OPS)
def test_a_bucket_is_the_same_however_its_changelog_is_cut(ops, hash_bits):
    def hash_keys(keys: pa.Array) -> np.ndarray:
        return hash64(keys) >> np.uint64(64 - hash_bits)

    descriptor = table("last_row")
    log = RowLog(descriptor.arrow_schema)
    live = KvBucket(descriptor, log.fetch, hash_keys=hash_keys)
    for kind, rows in ops:
        keys = {"k1": pa.array([k1 for k1, _, _ in rows], pa.int32()), "k2": pa.array([k2 for _, k2, _ in rows], pa.string())}
        if kind == "upsert":
            values = {**keys, "a": pa.array([a for _, _, a in rows], pa.int64())}
            change = live.upsert(pa.table(values), list(values))
        else:
            change = live.delete(pa.table(keys))
        live.apply(change, log.append(change))

    in_one_run, frame_by_frame = (KvBucket(descriptor, log.fetch, hash_keys=hash_keys) for _ in range(2))
    in_one_run.rebuild(log.frames)
    for frame in log.frames:
        frame_by_frame.rebuild([frame])

    for rebuilt in (in_one_run, frame_by_frame):
        assert rebuilt.current_offsets().tolist() == live.current_offsets().tolist()
        assert rebuilt.snapshot().homeless == live.snapshot().homeless
        prefixes = pa.table({"k1": pa.array([0, 1, 2], pa.int32())})
        assert rebuilt.prefix_get(prefixes)[0].equals(live.prefix_get(prefixes)[0])


def test_a_column_added_later_is_null_in_the_rows_before_it():
    before = TableDescriptor("t.t", (Column("k", "BIGINT", nullable=False), Column("a", "BIGINT")), primary_key=("k",), bucket_keys=("k",))
    after = TableDescriptor("t.t", (*before.columns, Column("b", "STRING")), primary_key=("k",), bucket_keys=("k",), schema_id=1)
    log = RowLog(before.arrow_schema)
    bucket = KvBucket(before, lambda offsets, columns=None: log.fetch(offsets, columns))
    change = bucket.upsert(pa.table({"k": [1, 2], "a": [10, 20]}, schema=before.arrow_schema))
    bucket.apply(change, log.append(change))

    widened = RowLog(after.arrow_schema)
    for base, types, rows in log.frames:
        widened.frames.append((base, types, rows.append_column(after.arrow_schema.field("b"), pa.nulls(rows.num_rows, pa.string()))))
    widened.end_offset = log.end_offset
    log = widened
    bucket.alter(after)

    change = bucket.upsert(pa.table({"k": [2], "b": ["x"]}), ["k", "b"])
    bucket.apply(change, log.append(change))
    assert change.rows.to_pylist() == [{"k": 2, "a": 20, "b": None}, {"k": 2, "a": 20, "b": "x"}]
    assert bucket.get(pa.table({"k": [1, 2]}))[0]["b"].to_pylist() == [None, "x"]


def test_a_prefix_whose_hash_only_others_have_is_answered_with_no_rows():
    descriptor = table("last_row")
    log = RowLog(descriptor.arrow_schema)
    bucket = KvBucket(descriptor, log.fetch, hash_keys=lambda keys: np.ones(len(keys), np.uint64))
    change = bucket.upsert(
        pa.Table.from_pylist([{"k1": 1, "k2": "a"}, {"k1": 1, "k2": "b"}, {"k1": 1, "k2": "c"}], descriptor.arrow_schema)
    )
    bucket.apply(change, log.append(change))

    for limit in (None, 2):
        rows, position = bucket.prefix_get(pa.table({"k1": pa.array([2], pa.int32())}), limit)
        assert (rows.num_rows, rows.schema, len(position)) == (0, descriptor.arrow_schema, 0)


def test_a_key_that_arrives_takes_the_hash_of_one_that_leaves_in_the_same_transaction():
    descriptor = table("last_row")
    log = RowLog(descriptor.arrow_schema)

    def one_hash(keys: pa.Array) -> np.ndarray:
        return np.ones(len(keys), np.uint64)

    live = KvBucket(descriptor, log.fetch, hash_keys=one_hash)
    old, new = (pa.Table.from_pylist([{"k1": 1, "k2": name}], descriptor.arrow_schema) for name in ("old", "new"))
    change = live.upsert(old)
    live.apply(change, log.append(change))
    for moved, rows in ((live.leaving, old), (live.arriving, new)):
        change = moved(rows)
        live.stage(change, log.append(change))
    live.commit()

    rebuilt = KvBucket(descriptor, log.fetch, hash_keys=one_hash)
    rebuilt.rebuild(log.frames)
    for bucket in (live, rebuilt):
        assert bucket.get(new)[0]["k2"].to_pylist() == ["new"]
        assert bucket.n_homeless == 0


def test_a_reader_beside_a_growing_index_never_misses_a_key():
    rng = np.random.default_rng(3)
    hashes = np.unique(rng.integers(1, 2**64 - 1, 60_000, dtype=np.uint64))
    rng.shuffle(hashes)
    index = KeyIndex()
    done, wrong = threading.Event(), []
    n_visible = 0

    def read() -> None:
        while not done.is_set():
            n = n_visible
            offsets = index.get(hashes[:n])
            if not (offsets % len(hashes) == np.arange(n)).all():
                wrong.append(n)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for generation in range(3):
            for start in range(0, len(hashes), 501):
                part = np.arange(start, min(start + 501, len(hashes)))
                index.put(hashes[part], part + generation * len(hashes))
                n_visible = max(n_visible, start + len(part))
    finally:
        done.set()
        reader.join(timeout=30)
    assert wrong == []
    assert index.n_keys == len(hashes)
