"""Frames and messages come back as they were, for all types and compressions; arbitrary bytes are damage and nothing else."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_engine.errors import BatchTooLarge, DamagedFrame, InvalidOption
from storage_engine.log import frame as frames
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.disk import Disk
from storage_engine.log.frame import (
    COMPRESSED_BYTES_MIN,
    HEADER_BYTES,
    ORIGIN,
    EncodedFrame,
    FrameKind,
    decode_batch,
    encode_commit_frame,
    encode_data_frame,
    encode_message,
    frame_of_message,
    parse_header,
    verify_payload,
)
from storage_engine.log.log_file import check_file_header, frames_after
from tests.log.batches import COMPRESSIONS, batches

PLACE: dict[str, Any] = {"table_id": 7, "partition_id": 3, "bucket": 2, "schema_id": 5, "base_offset": 10**12, "timestamp_ms": 10**12}


def bytes_of(frame: EncodedFrame, position: int = 0) -> bytes:
    return frame.header.encode(position) + b"".join(bytes(memoryview(buffer)) for buffer in frame.buffers)


def frame_of(batch: pa.RecordBatch, compression: str = "none", change_types: np.ndarray | None = None, **changes: int) -> EncodedFrame:
    return encode_data_frame(**(PLACE | changes), batch=batch, change_types=change_types, compression=compression)


@given(batch=batches(), compression=st.sampled_from(COMPRESSIONS), data=st.data(), position=st.integers(0, 2**50).map(lambda n: n * 64))
def test_a_frame_gives_back_its_header_change_types_and_rows(batch: pa.RecordBatch, compression: str, data: Any, position: int) -> None:
    codes = data.draw(st.none() | st.lists(st.integers(0, 4), min_size=batch.num_rows, max_size=batch.num_rows))
    change_types = None if codes is None else np.array(codes, np.uint8)

    message = encode_message(batch, compression, bytes_min=0)
    frame = frame_of_message(message, batch.num_rows, **PLACE, change_types=change_types)
    assert frame_of(batch, compression, change_types).header[5:] == frame.header[5:] or batch.nbytes < COMPRESSED_BYTES_MIN
    stored = pa.py_buffer(bytes(64) + bytes_of(frame, position))
    header = parse_header(stored, 64, position)
    verify_payload(stored, 64, header)

    assert stored.size == 64 + header.length
    assert header == frame.header._replace(position=position)
    assert (header.table_id, header.partition_id, header.bucket, header.schema_id) == (7, 3, 2, 5)
    assert (header.base_offset, header.end_offset, header.n_rows) == (10**12, 10**12 + batch.num_rows, batch.num_rows)
    assert header.has_change_types == (codes is not None)
    if codes is not None:
        assert list(stored.slice(64 + HEADER_BYTES, header.n_rows).to_pybytes()) == codes
    message = stored.slice(64 + header.message_start, header.payload_stop - header.message_start)
    assert decode_batch(message, batch.schema, untrusted=True).equals(batch)


def test_uncompressed_rows_of_a_large_frame_are_not_copied() -> None:
    batch = pa.record_batch({"a": np.arange(40_000), "s": ["x" * 10] * 40_000})
    change_types = np.zeros(40_000, np.uint8)
    stored = pa.py_buffer(bytes_of(frame_of(batch, change_types=change_types)))
    header = parse_header(stored, 0, 0)

    decoded = decode_batch(stored.slice(header.message_start), batch.schema)

    for column in decoded.columns:
        for buffer in column.buffers():
            assert buffer is None or stored.address <= buffer.address < stored.address + stored.size
    assert header.length % 64 == header.message_start % 8 == 0


def test_a_sliced_batch_stores_its_own_rows_only() -> None:
    batch = pa.record_batch({"s": [f"row {i}" for i in range(10000)]}).slice(5000, 3)

    for compression in COMPRESSIONS:
        message = encode_message(batch, compression, bytes_min=0)
        assert message.size < 1000
        assert decode_batch(message, batch.schema).equals(batch)


def test_a_frame_can_be_moved_to_other_offsets_without_encoding_its_rows_again() -> None:
    batch = pa.record_batch({"a": [1, 2]})
    moved = frame_of(batch).at(base_offset=5, timestamp_ms=6)

    assert bytes_of(moved, 640) == bytes_of(frame_of(batch, base_offset=5, timestamp_ms=6), 640)


def test_a_commit_frame_carries_its_record_the_number_of_frames_and_the_durable_position() -> None:
    stored = pa.py_buffer(bytes_of(encode_commit_frame(b'{"version": 3}', n_frames=4, durable=2**40), 128))
    header = parse_header(stored, 0, 128)

    assert (header.kind, header.n_rows, header.base_offset) == (FrameKind.COMMIT, 4, 2**40)
    assert stored.slice(HEADER_BYTES, header.payload_stop - HEADER_BYTES).to_pybytes() == b'{"version": 3}'


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_only_batches_worth_it_are_compressed(compression: str) -> None:
    small, large = pa.record_batch({"a": [0] * 10}), pa.record_batch({"a": [0] * 10_000})

    assert encode_message(small, compression) == encode_message(small, "none")
    assert encode_message(large, compression).size < encode_message(large, "none").size / 10
    assert decode_batch(encode_message(large, compression, 1 if compression == "zstd" else None), large.schema).equals(large)


def test_an_unknown_compression_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match="snappy"):
        encode_message(pa.record_batch({"a": [1]}), "snappy")


def test_a_batch_no_frame_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 1024)
    with pytest.raises(BatchTooLarge, match="1,000 rows"):
        frame_of(pa.record_batch({"a": np.arange(1000)}))


def test_the_checksum_is_computed_by_the_c_extension() -> None:
    assert google_crc32c.implementation == "c"
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the check value of CRC-32C


def test_every_type_a_table_may_have_round_trips() -> None:
    columns = {
        "bool": pa.array([True, None]), "int8": pa.array([-1, None], pa.int8()), "int16": pa.array([-1, None], pa.int16()),
        "int32": pa.array([-1, None], pa.int32()), "int64": pa.array([-1, None]), "float": pa.array([0.5, None], pa.float32()),
        "double": pa.array([float("inf"), None]), "string": pa.array(["é", None]), "bytes": pa.array([b"\xff", None]),
        "date": pa.array([datetime.date(2017, 1, 1), None]), "time": pa.array([datetime.time(1, 2, 3), None], pa.time32("ms")),
        "ts": pa.array([1483228800000, None], pa.timestamp("ms")),
        "ltz": pa.array([1483228800000, None], pa.timestamp("us", tz="UTC")),
        "decimal": pa.array([decimal.Decimal("1.25"), None], pa.decimal128(12, 2)),
        "list": pa.array([[1, None], None], pa.list_(pa.int64())), "struct": pa.array([{"a": "x"}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    }  # fmt: skip
    batch = pa.record_batch(columns)
    for compression in COMPRESSIONS:
        assert decode_batch(encode_message(batch, compression, bytes_min=0), batch.schema, untrusted=True).equals(batch)


# arbitrary bytes


@given(data=st.binary(max_size=300), offset=st.integers(-10, 310), position=st.integers(0, 1000))
def test_arbitrary_bytes_are_no_frame(data: bytes, offset: int, position: int) -> None:
    with pytest.raises(DamagedFrame):
        parse_header(pa.py_buffer(data), offset, position)
    with pytest.raises(DamagedFrame):
        check_file_header(pa.py_buffer(data), position, "a file")
    assert frames_after(pa.py_buffer(data), 0, max(0, offset)) == []


@given(flips=st.lists(st.tuples(st.integers(0, HEADER_BYTES * 8 - 1)), min_size=1, max_size=4, unique=True))
def test_every_flip_of_header_bits_is_damage(flips: list[tuple[int]]) -> None:
    good = bytes_of(frame_of(pa.record_batch({"a": [1, 2]})), 64)
    bad = bytearray(good)
    for (bit,) in flips:
        bad[bit // 8] ^= 1 << (bit % 8)

    with pytest.raises(DamagedFrame):
        parse_header(pa.py_buffer(bytes(bad)), 0, 64)


@given(fields=st.tuples(*[st.integers(0, 2**32 - 1)] * 2, st.just(0), *[st.integers(0, 255)] * 3, st.just(0), st.integers(0, 2**32 - 1)))
def test_a_header_with_a_valid_checksum_and_absurd_fields_never_reaches_outside_its_file(fields: tuple[int, ...]) -> None:
    after_crc = frames._AFTER_CRC.pack(*fields, 0, 0, 0, 0, 0, 0)
    data = pa.py_buffer(b"FLF1" + google_crc32c.value(after_crc).to_bytes(4, "little") + after_crc + bytes(256))
    try:
        header = parse_header(data, 0, 0)
    except DamagedFrame:
        return
    assert HEADER_BYTES <= header.message_start <= header.payload_stop <= header.length <= data.size


@given(data=st.binary(max_size=400))
def test_arbitrary_bytes_are_no_batch(data: bytes) -> None:
    with pytest.raises(DamagedFrame):
        decode_batch(pa.py_buffer(data), pa.schema([("a", pa.int64()), ("s", pa.string())]), untrusted=True)


@settings(max_examples=300)
@given(
    compression=st.sampled_from(COMPRESSIONS), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3)
)
def test_a_message_with_flipped_bytes_is_damage_or_a_valid_batch(compression: str, flips: list[tuple[int, int]]) -> None:
    batch = pa.record_batch({"a": [1, None, 3], "s": ["x", "yy", None], "l": [[1], None, [2, 3]]})
    bad = bytearray(encode_message(batch, compression, bytes_min=0))
    for at, mask in flips:
        bad[at % len(bad)] ^= mask
    try:
        decoded = decode_batch(pa.py_buffer(bytes(bad)), batch.schema, untrusted=True)
    except DamagedFrame:
        return
    decoded.validate(full=True)
    assert decoded.schema == batch.schema


def test_a_message_from_another_place_than_this_program_is_taken_as_it_is() -> None:
    batch = pa.record_batch({"a": [1, 2, 3]})
    message = batch.serialize()
    frame = frame_of_message(message, 3, table_id=1, partition_id=0, bucket=0, schema_id=0, base_offset=0, timestamp_ms=0)

    assert frame.buffers[0] is message


def test_offsets_of_a_sparse_frame_and_origins_of_a_joined_one_are_read_back(tmp_path: Path) -> None:
    batch = pa.record_batch({"a": pa.array([1, 2, 3], pa.int64())})
    origins = np.array([(2, 7, 1000), (3, 9, 2000)], ORIGIN)
    log = CommitLog.open(Disk(), tmp_path)
    list(log.recover())
    encoded = [
        frame_of_message(
            encode_message(batch), 3, table_id=1, partition_id=0, bucket=0, schema_id=0, base_offset=5, timestamp_ms=0,
            change_types=types, offsets=offsets, origins=found,
        )
        for types in (None, np.ones(3, np.uint8))
        for offsets in (None, np.array([5, 8, 1 << 40]))
        for found in (None, origins)
    ]  # fmt: skip
    for frame, at in zip(encoded, log.append(encoded, b"{}").locations, strict=True):
        stored = log.read(at)
        assert decode_batch(stored.message, batch.schema).equals(batch)
        assert (stored.change_types is not None) == bool(frame.header.flags & 1)
        assert (None if stored.offsets is None else stored.offsets.tolist()) == ([5, 8, 1 << 40] if frame.header.flags & 4 else None)
        assert (None if stored.origins is None else stored.origins.tolist()) == (origins.tolist() if frame.header.flags & 16 else None)
        assert log.read_encoded(at).header.payload_crc == frame.header.payload_crc
    log.close()
