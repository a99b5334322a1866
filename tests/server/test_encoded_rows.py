"""What clients encode is checked before it is stored: mutated bytes are refused or decode to rows of the table, and nothing crashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage_engine
from storage_engine.api import CommitRequest, EncodedAppend, EncodedRows
from storage_engine.client.encoding import encode_append
from storage_engine.client.wire import decode_commit, encode_commit
from storage_engine.engine.encoded_rows import checked_batch
from storage_engine.errors import MalformedMessage, SchemaMismatch, UserError
from storage_engine.log.frame import encode_message
from storage_engine.schema.descriptor import Column, TableDescriptor

DESCRIPTOR = TableDescriptor(name="d.t", columns=(Column("id", "BIGINT", nullable=False), Column("name", "STRING"), Column("n", "INT")))
ROWS = pa.table(
    [pa.array(np.arange(300)), pa.array([None if i % 7 == 0 else f"name {i}" for i in range(300)]), pa.array([1] * 300, pa.int32())],
    schema=DESCRIPTOR.arrow_schema,
)
BATCH = ROWS.to_batches()[0]
MESSAGES = [encode_message(BATCH, codec, bytes_min=0).to_pybytes() for codec in ("none", "lz4", "zstd")]


def rows_of(message: bytes, n_rows: int = 300) -> pa.RecordBatch:
    return checked_batch(DESCRIPTOR, DESCRIPTOR.arrow_schema, EncodedRows("", 0, n_rows, pa.py_buffer(message)), 65_536)


@pytest.mark.parametrize("message", MESSAGES)
def test_what_is_whole_decodes_to_its_rows(message: bytes) -> None:
    assert rows_of(message).equals(BATCH)


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_mutated_bytes_are_refused_or_are_rows_of_the_table(message: bytes, changes: list[tuple[int, int]], stop: int | None) -> None:
    data = bytearray(message)
    for at, value in changes:
        # half of the changes hit the metadata, where lengths and offsets are
        data[at % (400 if at % 2 else len(data))] = value
    try:
        batch = rows_of(bytes(data if stop is None else data[: stop % (len(data) + 1)]))
    except (MalformedMessage, SchemaMismatch):
        return
    batch.validate(full=True)
    assert batch.num_rows == 300
    assert batch.column("id").null_count == 0


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=600))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((MalformedMessage, SchemaMismatch)):
        rows_of(data)


def test_a_frame_that_says_something_else_than_its_rows_is_refused() -> None:
    for n_rows in (0, 299, 301, -1, 70_000):
        with pytest.raises(MalformedMessage):
            rows_of(MESSAGES[0], n_rows)
    nulls = pa.record_batch([pa.array([1, None]), pa.array(["a", "b"]), pa.array([1, 2], pa.int32())], names=["id", "name", "n"])
    with pytest.raises(SchemaMismatch, match="NOT NULL"):
        rows_of(encode_message(nulls).to_pybytes(), 2)


def test_rows_of_another_bucket_partition_or_schema_are_refused(tmp_path: Path) -> None:
    with storage_engine.connect(tmp_path.as_uri()) as store:
        store.execute("CREATE TABLE d.p (ds STRING NOT NULL, id BIGINT) PARTITIONED BY (ds) WITH ('bucket.num' = '4', 'bucket.key' = 'id')")
        table = store.table("d.p")
        good = encode_append(table.descriptor, pa.table({"ds": ["2026-01-01"], "id": [5]}))
        (frame,) = good.frames
        for wrong in (
            EncodedRows("2026-01-02", frame.bucket, 1, frame.message),
            EncodedRows(frame.partition, (frame.bucket + 1) % 4, 1, frame.message),
            EncodedRows(frame.partition, -1, 1, frame.message),
        ):
            with pytest.raises(MalformedMessage):
                store.commit([EncodedAppend("d.p", good.schema_id, [wrong])])
        for schema_id, bucket in ((good.schema_id + 1, 0), (good.schema_id, 4), (good.schema_id, -2)):
            with pytest.raises(UserError):
                store.commit([EncodedAppend("d.p", schema_id, [EncodedRows(frame.partition, bucket, 1, frame.message)])])
        assert table.count() == 0
        assert table.partitions() == []
        store.commit([good])
        assert table.scan().read_all().to_pylist() == [{"ds": "2026-01-01", "id": 5}]


@settings(deadline=None, max_examples=200)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(
    ["table", "kind", "schema_id", "frames", "columns"]), x, max_size=5), max_leaves=8), st.integers(0, 2))  # fmt: skip
def test_operations_that_are_none_are_refused(ops: object, n_blobs: int) -> None:
    with pytest.raises(MalformedMessage):
        decode_commit({"ops": [ops], "progress": [], "write_id": None}, [ROWS], [pa.py_buffer(b"x")] * n_blobs)


def test_encoded_rows_travel_as_they_are() -> None:
    frames = [EncodedRows("p", -1, 3, pa.py_buffer(b"abc")), EncodedRows("", 2, 1, pa.py_buffer(b""))]
    request = CommitRequest((EncodedAppend("d.t", 1, frames),), [])
    arguments, tables, blobs = encode_commit(request)
    assert decode_commit(arguments, tables, blobs).ops == list(request.ops)
    with pytest.raises(MalformedMessage):
        decode_commit(arguments, tables, blobs[:1])
