"""Values of the Backend protocol as JSON values, and back.

Holds: each encode_ is undone by its decode_; a bucket is written "partition/bucket" (TableBucket's own text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine.api import CommitInfo, CommitRequest, EncodedAppend, EncodedRows, Progress, WriteId, WriteOp
from storage_engine.client.wire.envelope import malformed
from storage_engine.schema.descriptor import Offsets, TableBucket

FRAMES_SCHEMA = pa.schema([("partition", pa.string()), ("bucket", pa.int32()), ("n_rows", pa.int64()), ("message", pa.large_binary())])
Ranges = Mapping[TableBucket, tuple[int, int]]


def encode_offsets(offsets: Offsets) -> dict[str, int]:
    """Offsets by the text of their bucket.

    >>> encode_offsets({TableBucket("2017-01-01", 3): 42})
    {'2017-01-01/3': 42}
    """
    return {str(bucket): int(offset) for bucket, offset in offsets.items()}


def decode_offsets(value: Mapping[str, int]) -> Offsets:
    return {TableBucket.parse(text): offset for text, offset in value.items()}


def encode_ranges(ranges: Ranges) -> dict[str, list[int]]:
    """Half-open offset ranges per bucket."""
    return {str(bucket): [int(start), int(stop)] for bucket, (start, stop) in ranges.items()}


def decode_ranges(value: Mapping[str, Sequence[int]]) -> dict[TableBucket, tuple[int, int]]:
    return {TableBucket.parse(text): (start, stop) for text, (start, stop) in value.items()}


def encode_progress(progress: Progress) -> dict[str, Any]:
    return {
        "owner": progress.owner,
        "offsets": _encode_by_table(progress.offsets),
        "expected": None if progress.expected is None else _encode_by_table(progress.expected),
        "detail": dict(progress.detail),
    }


def decode_progress(value: Mapping[str, Any]) -> Progress:
    expected = value["expected"]
    return Progress(
        owner=value["owner"],
        offsets=_decode_by_table(value["offsets"]),
        expected=None if expected is None else _decode_by_table(expected),
        detail=value["detail"],
    )


def encode_commit_info(info: CommitInfo) -> dict[str, Any]:
    return {
        "version": info.version,
        "timestamp_ms": info.timestamp_ms,
        "ranges": {table: encode_ranges(ranges) for table, ranges in info.ranges.items()},
    }


def decode_commit_info(value: Mapping[str, Any]) -> CommitInfo:
    return CommitInfo(
        version=value["version"],
        timestamp_ms=value["timestamp_ms"],
        ranges={table: decode_ranges(ranges) for table, ranges in value["ranges"].items()},
    )


def encode_commit(request: CommitRequest) -> tuple[dict[str, Any], list[pa.Table]]:
    """A commit as arguments and one table per operation, in the order of the operations."""
    write_id = request.write_id
    arguments = {
        "ops": [_encode_op(op) for op in request.ops],
        "progress": [encode_progress(progress) for progress in request.progress],
        "write_id": None if write_id is None else [write_id.writer, write_id.sequence],
    }
    return arguments, [_frames_table(op) if isinstance(op, EncodedAppend) else op.rows for op in request.ops]


def decode_commit(arguments: Mapping[str, Any], tables: Sequence[pa.Table]) -> CommitRequest:
    ops = [_decode_op(op, rows) for op, rows in zip(arguments["ops"], tables, strict=True)]
    write_id = arguments["write_id"]
    return CommitRequest(
        ops=ops,
        progress=[decode_progress(progress) for progress in arguments["progress"]],
        write_id=None if write_id is None else WriteId(write_id[0], write_id[1]),
    )


def _encode_op(op: WriteOp | EncodedAppend) -> dict[str, Any]:
    if isinstance(op, EncodedAppend):
        return {"table": op.table, "kind": "encoded", "schema_id": op.schema_id}
    return {"table": op.table, "kind": op.kind, "columns": None if op.columns is None else list(op.columns)}


def _decode_op(op: Mapping[str, Any], rows: pa.Table) -> WriteOp | EncodedAppend:
    if op["kind"] == "encoded":
        return EncodedAppend(op["table"], op["schema_id"], _frames(rows))
    return WriteOp(op["table"], op["kind"], rows, None if op["columns"] is None else tuple(op["columns"]))


def _frames_table(op: EncodedAppend) -> pa.Table:
    """One row per frame; its message is a cell."""
    columns = zip(*((frame.partition, frame.bucket, frame.n_rows) for frame in op.frames), strict=True)
    sizes = [frame.message.size for frame in op.frames]
    places = pa.py_buffer(np.cumsum([0, *sizes]).astype(np.int64))
    data = op.frames[0].message if len(sizes) == 1 else pa.py_buffer(b"".join(frame.message for frame in op.frames))
    messages = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sizes), [None, places, data])
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, FRAMES_SCHEMA, strict=False)] or [
        pa.array([], field.type) for field in FRAMES_SCHEMA
    ][:3]
    return pa.Table.from_arrays([*arrays, messages], schema=FRAMES_SCHEMA)


def _frames(rows: pa.Table) -> list[EncodedRows]:
    if not rows.schema.equals(FRAMES_SCHEMA) or any(column.null_count for column in rows.columns):
        raise malformed("encoded rows are no table of frames")
    cells = [cell.as_buffer() for chunk in rows.column(3).chunks for cell in chunk]
    partitions, buckets, counts = (rows.column(i).to_pylist() for i in range(3))
    return [EncodedRows(*fields) for fields in zip(partitions, buckets, counts, cells, strict=True)]


def _encode_by_table(by_table: Mapping[str, Offsets]) -> dict[str, dict[str, int]]:
    return {table: encode_offsets(offsets) for table, offsets in by_table.items()}


def _decode_by_table(value: Mapping[str, Mapping[str, int]]) -> dict[str, Offsets]:
    return {table: decode_offsets(offsets) for table, offsets in value.items()}
