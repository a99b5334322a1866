"""Stored frames on the wire: a FetchedFrame's message passes as it is; nobody on the way looks into it.

Over Flight it is a binary cell of a batch with one row per frame. On the socket lane a group of frames is a JSON header and, behind it,
the parts of the messages as they lie in the log: they are copied once, into the socket.
Shapes: the lists of columns and types, which repeat from frame to frame, stand once in the JSON header; so do, over Flight, the timestamps
        of frames that hold several commits, by row.
Holds: decoded messages start at 64-byte aligned addresses; a frame that travels alone is sent without a copy, and on the socket every one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import FetchedFrame
from storage_engine.client.wire.envelope import Reply, understood
from storage_engine.schema.descriptor import TableBucket

FRAME_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.string(), nullable=False),
        pa.field("bucket", pa.int32(), nullable=False),
        pa.field("base_offset", pa.int64(), nullable=False),
        pa.field("n_rows", pa.int64(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("schema_id", pa.int32(), nullable=False),
        pa.field("columns_ref", pa.int32(), nullable=False),
        pa.field("n_message_bytes", pa.int64(), nullable=False),
        pa.field("change_types", pa.large_binary()),
        pa.field("message", pa.large_binary(), nullable=False),
    ]
)
_ALIGNMENT = 64


def encode_frames(frames: Sequence[FetchedFrame]) -> tuple[pa.RecordBatch, pa.Buffer]:
    """At least one frame -> one batch of FRAME_SCHEMA and its header."""
    references: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    columns_ref = [references.setdefault((frame.columns, frame.types), len(references)) for frame in frames]
    arrays = [
        pa.array([frame.bucket.partition for frame in frames], pa.string()),
        pa.array([frame.bucket.bucket for frame in frames], pa.int32()),
        pa.array([frame.base_offset for frame in frames], pa.int64()),
        pa.array([frame.n_rows for frame in frames], pa.int64()),
        pa.array([frame.timestamp_ms for frame in frames], pa.int64()),
        pa.array([frame.schema_id for frame in frames], pa.int32()),
        pa.array(columns_ref, pa.int32()),
        pa.array([frame.n_message_bytes for frame in frames], pa.int64()),
        pa.array([frame.change_types for frame in frames], pa.large_binary()),
        _message_cells(frames),
    ]
    values: dict[str, object] = {"columns": [columns for columns, _ in references], "types": [types for _, types in references]}
    timestamps = {str(row): frame.timestamps for row, frame in enumerate(frames) if frame.timestamps is not None}
    if timestamps:
        values["timestamps"] = timestamps
    header = json.dumps(values).encode()
    return pa.RecordBatch.from_arrays(arrays, schema=FRAME_SCHEMA), pa.py_buffer(header)


def decode_frames(batch: pa.RecordBatch, header: pa.Buffer) -> Iterator[FetchedFrame]:
    """The inverse of encode_frames. Errors: MalformedMessage."""
    with understood("frames"):
        lists = json.loads(header.to_pybytes())
    return _decoded(batch, lists)


def _decoded(batch: pa.RecordBatch, lists: Any) -> Iterator[FetchedFrame]:
    with understood("frames"):
        columns, types = ([tuple(names) for names in lists[key]] for key in ("columns", "types"))
        timestamps = {int(row): tuple((int(end), int(ms)) for end, ms in pairs) for row, pairs in lists.get("timestamps", {}).items()}
        batch.validate(full=True)
        has_nulls = any(batch.column(i).null_count for i, field in enumerate(FRAME_SCHEMA) if not field.nullable)
        if not batch.schema.equals(FRAME_SCHEMA) or has_nulls:
            raise ValueError("a batch of another schema")
        if not all(0 <= ref < min(len(columns), len(types)) for ref in batch.column("columns_ref").to_pylist()):
            raise ValueError("a frame refers to columns that are not there")
        sizes = batch.column("n_message_bytes").to_pylist()
        cells = pc.binary_length(batch.column("message")).to_pylist()
        if not all(0 <= size <= cell for size, cell in zip(sizes, cells, strict=True)):
            raise ValueError("a message is cut")
    values = [batch.column(index).to_pylist() for index in range(len(FRAME_SCHEMA) - 1)]
    messages = batch.column(len(FRAME_SCHEMA) - 1)
    _, offsets_buffer, data = messages.buffers()
    assert offsets_buffer is not None, "a batch of frames has at least one"
    assert data is not None, "a frame has a message"
    starts = np.frombuffer(offsets_buffer, np.int64)[messages.offset : messages.offset + len(messages)].tolist()
    data = _aligned(data)
    for number, row in enumerate(zip(*values, starts, strict=True)):
        partition, bucket, base_offset, n_rows, timestamp_ms, schema_id, ref, n_bytes, change_types, start = row
        yield FetchedFrame(
            bucket=TableBucket(partition, bucket),
            base_offset=base_offset,
            n_rows=n_rows,
            timestamp_ms=timestamp_ms,
            schema_id=schema_id,
            columns=columns[ref],
            types=types[ref],
            change_types=change_types,
            parts=(data.slice(start, n_bytes),),
            timestamps=timestamps.get(number),
        )


def reply_of_frames(frames: Sequence[FetchedFrame]) -> Reply:
    """The frames of a small fetch in one answer."""
    if not frames:
        return Reply()
    batch, header = encode_frames(frames)
    return Reply(json.loads(header.to_pybytes()), [pa.Table.from_batches([batch])])


def frames_of_reply(reply: Reply) -> list[FetchedFrame]:
    """The inverse of reply_of_frames. Errors: MalformedMessage."""
    if not reply.tables:
        return []
    with understood("frames"):
        (batch,) = reply.tables[0].to_batches()
    return list(_decoded(batch, reply.result))


def encode_group(frames: Sequence[FetchedFrame]) -> tuple[int, list[Any]]:
    """At least one frame -> the size of a header, padded to 64, and the header and what follows it, in parts that are not copied.

    What follows: the change types of each frame, where it has them, then its message, each padded to 64.
    """
    references: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    rows: list[list[Any]] = []
    parts: list[Any] = [b""]
    for frame in frames:
        n_codes, n_bytes = 0, frame.n_message_bytes
        if frame.change_types is not None:
            n_codes = len(frame.change_types)
            parts += (frame.change_types, bytes(-n_codes % _ALIGNMENT))
        parts += (*frame.parts, bytes(-n_bytes % _ALIGNMENT))
        ref = references.setdefault((frame.columns, frame.types), len(references))
        bucket, has_codes = frame.bucket, frame.change_types is not None
        rows.append([
            bucket.partition, bucket.bucket, frame.base_offset, frame.n_rows, frame.timestamp_ms, frame.schema_id,
            ref, n_codes if has_codes else -1, n_bytes, frame.timestamps,
        ])  # fmt: skip
    columns, types = zip(*references, strict=True)
    header = json.dumps({"columns": columns, "types": types, "frames": rows}).encode()
    parts[0] = header.ljust(len(header) + -len(header) % _ALIGNMENT)
    return len(parts[0]), parts


def decode_group(n_header: int, body: pa.Buffer) -> list[FetchedFrame]:
    """The inverse of encode_group; messages refer to `body`. Errors: MalformedMessage."""
    frames: list[FetchedFrame] = []
    with understood("frames"):
        header = json.loads(body.slice(0, n_header).to_pybytes())
        columns, types = ([tuple(names) for names in header[key]] for key in ("columns", "types"))
        if not all(isinstance(name, str) for names in (*columns, *types) for name in names):
            raise ValueError("a column or its type is no text")
        data = _aligned(body.slice(n_header))
        at = 0
        for partition, bucket, *numbers, timestamps in header["frames"]:
            base_offset, n_rows, timestamp_ms, schema_id, ref, n_codes, n_bytes = numbers
            if not isinstance(partition, str) or any(type(number) is not int for number in (bucket, *numbers)):
                raise ValueError("a frame's place or size is no number")
            if ref < 0 or n_rows < 0 or n_codes not in (-1, n_rows) or n_bytes < 0:
                raise ValueError("a frame's sizes do not fit each other")
            codes = None
            if n_codes >= 0:
                codes = data.slice(at, n_codes).to_pybytes()
                at += n_codes + -n_codes % _ALIGNMENT
            if at + n_bytes > data.size:
                raise ValueError("a message is cut")
            frames.append(
                FetchedFrame(
                    bucket=TableBucket(partition, bucket),
                    base_offset=base_offset,
                    n_rows=n_rows,
                    timestamp_ms=timestamp_ms,
                    schema_id=schema_id,
                    columns=columns[ref],
                    types=types[ref],
                    change_types=codes,
                    parts=(data.slice(at, n_bytes),),
                    timestamps=None if timestamps is None else tuple((int(end), int(ms)) for end, ms in timestamps),
                )
            )
            at += n_bytes + -n_bytes % _ALIGNMENT
    return frames


def _message_cells(frames: Sequence[FetchedFrame]) -> pa.LargeBinaryArray:
    if len(frames) == 1:
        data = frames[0].message
        offsets = np.array([0, data.size], np.int64)
    else:
        sizes = np.array([frame.n_message_bytes for frame in frames], np.int64)
        offsets = np.concatenate(([0], np.cumsum(-(-sizes // _ALIGNMENT) * _ALIGNMENT)))
        data = pa.allocate_buffer(int(offsets[-1]))
        view = memoryview(data).cast("B")
        for start, frame in zip(offsets.tolist(), frames, strict=False):
            for part in frame.parts:
                view[start : start + len(part)] = memoryview(part).cast("B")
                start += len(part)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(frames), [None, pa.py_buffer(offsets), data])


def _aligned(data: pa.Buffer) -> pa.Buffer:
    if data.address % _ALIGNMENT == 0:
        return data
    copy = pa.allocate_buffer(data.size)
    memoryview(copy)[:] = memoryview(data)
    return copy
