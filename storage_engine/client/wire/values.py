"""Values of the Backend protocol as JSON values, and back.

Holds: each encode_ is undone by its decode_; a bucket is written "partition/bucket" (TableBucket's own text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_args

import pyarrow as pa

from storage_engine.api import CommitInfo, CommitRequest, EncodedAppend, EncodedRows, OpKind, Progress, WriteId, WriteOp
from storage_engine.client.wire.envelope import malformed, understood
from storage_engine.schema.descriptor import Offsets, TableBucket

_KINDS = ("encoded", *get_args(OpKind))
Ranges = Mapping[TableBucket, tuple[int, int]]
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _understood(decode: Callable[_P, _R]) -> Callable[_P, _R]:
    """A decoder that raises MalformedMessage for values that its encoder never writes."""

    @wraps(decode)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with understood(decode.__name__.removeprefix("decode_")):
            return decode(*args, **kwargs)

    return checked


def encode_offsets(offsets: Offsets) -> dict[str, int]:
    """Offsets by the text of their bucket.

    >>> encode_offsets({TableBucket("2017-01-01", 3): 42})
    {'2017-01-01/3': 42}
    """
    return {str(bucket): int(offset) for bucket, offset in offsets.items()}


@_understood
def decode_offsets(value: Mapping[str, int]) -> Offsets:
    """The inverse of encode_offsets(). Errors: MalformedMessage."""
    return {TableBucket.parse(text): offset for text, offset in value.items()}


def encode_ranges(ranges: Ranges) -> dict[str, list[int]]:
    """Half-open offset ranges per bucket."""
    return {str(bucket): [int(start), int(stop)] for bucket, (start, stop) in ranges.items()}


@_understood
def decode_ranges(value: Mapping[str, Sequence[int]]) -> dict[TableBucket, tuple[int, int]]:
    """The inverse of encode_ranges(). Errors: MalformedMessage."""
    return {TableBucket.parse(text): (start, stop) for text, (start, stop) in value.items()}


def encode_progress(progress: Progress) -> dict[str, Any]:
    """Progress as JSON; `expected` stays null where nothing is compared."""
    return {
        "owner": progress.owner,
        "offsets": _encode_by_table(progress.offsets),
        "expected": None if progress.expected is None else _encode_by_table(progress.expected),
        "detail": dict(progress.detail),
        "as_of": progress.as_of,
        "merges": progress.merges,
        "generation": progress.generation,
    }


@_understood
def decode_progress(value: Mapping[str, Any]) -> Progress:
    """The inverse of encode_progress(). Errors: MalformedMessage."""
    expected = value["expected"]
    return Progress(
        owner=value["owner"],
        offsets=_decode_by_table(value["offsets"]),
        expected=None if expected is None else _decode_by_table(expected),
        detail=value["detail"],
        as_of=value["as_of"],
        merges=value["merges"],
        generation=value["generation"],
    )


def encode_commit_info(info: CommitInfo) -> dict[str, Any]:
    """A commit of the journal as JSON; ranges are [start, stop) by table and bucket."""
    return {
        "version": info.version,
        "timestamp_ms": info.timestamp_ms,
        "ranges": {table: encode_ranges(ranges) for table, ranges in info.ranges.items()},
    }


@_understood
def decode_commit_info(value: Mapping[str, Any]) -> CommitInfo:
    """The inverse of encode_commit_info(). Errors: MalformedMessage."""
    return CommitInfo(
        version=value["version"],
        timestamp_ms=value["timestamp_ms"],
        ranges={table: decode_ranges(ranges) for table, ranges in value["ranges"].items()},
    )


def encode_commit(request: CommitRequest) -> tuple[dict[str, Any], list[pa.Table], list[pa.Buffer]]:
    """A commit as arguments, the tables and the encoded messages of its operations, in their order."""
    write_id = request.write_id
    arguments = {
        "ops": [_encode_op(op) for op in request.ops],
        "progress": [encode_progress(progress) for progress in request.progress],
        "write_id": None if write_id is None else _encode_write_id(write_id),
    }
    tables = [op.rows for op in request.ops if isinstance(op, WriteOp)]
    return arguments, tables, [frame.message for op in request.ops if isinstance(op, EncodedAppend) for frame in op.frames]


@_understood
def decode_commit(arguments: Mapping[str, Any], tables: Sequence[pa.Table], blobs: Sequence[pa.Buffer] = ()) -> CommitRequest:
    """Errors: MalformedMessage when the parts are not those of the operations."""
    left_tables, left_blobs = iter(tables), iter(blobs)
    try:
        ops = [_decode_op(op, left_tables, left_blobs) for op in arguments["ops"]]
    except (StopIteration, RuntimeError) as error:
        raise malformed(f"a commit's operations: {error}") from error
    if next(left_tables, None) is not None or next(left_blobs, None) is not None:
        raise malformed("a commit carries more than its operations")
    return CommitRequest(
        ops=ops,
        progress=[decode_progress(progress) for progress in arguments["progress"]],
        write_id=None if arguments["write_id"] is None else _decode_write_id(*arguments["write_id"]),
    )


def _encode_write_id(write_id: WriteId) -> list[Any]:
    named: list[Any] = [write_id.writer, write_id.sequence]
    return named if write_id.after is None else [*named, write_id.after]


def _decode_write_id(writer: Any, sequence: Any, after: Any = None) -> WriteId:
    if type(writer) is not str or type(sequence) is not int or (after is not None and type(after) is not int):
        raise TypeError("a writer's name, its sequence, and the one before it")
    return WriteId(writer, sequence, after)


def _encode_op(op: WriteOp | EncodedAppend) -> dict[str, Any]:
    if isinstance(op, EncodedAppend):
        frames = [[frame.partition, frame.bucket, frame.n_rows] for frame in op.frames]
        return {"table": op.table, "kind": "encoded", "schema_id": op.schema_id, "frames": frames, "n_buckets": op.n_buckets}
    return {"table": op.table, "kind": op.kind, "columns": None if op.columns is None else list(op.columns)}


def _decode_op(op: Mapping[str, Any], tables: Iterator[pa.Table], blobs: Iterator[pa.Buffer]) -> WriteOp | EncodedAppend:
    if type(op["table"]) is not str or op["kind"] not in _KINDS:
        raise TypeError("an operation's table and kind")
    if op["kind"] == "encoded":
        frames = [EncodedRows(partition, bucket, n_rows, next(blobs)) for partition, bucket, n_rows in op["frames"]]
        if not all(type(f.partition) is str and type(f.bucket) is int and type(f.n_rows) is int for f in frames):
            raise TypeError("a frame's partition, bucket and rows")
        return EncodedAppend(op["table"], op["schema_id"], frames, op["n_buckets"])
    return WriteOp(op["table"], op["kind"], next(tables), None if op["columns"] is None else tuple(op["columns"]))


def _encode_by_table(by_table: Mapping[str, Offsets]) -> dict[str, dict[str, int]]:
    return {table: encode_offsets(offsets) for table, offsets in by_table.items()}


def _decode_by_table(value: Mapping[str, Mapping[str, int]]) -> dict[str, Offsets]:
    return {table: decode_offsets(offsets) for table, offsets in value.items()}
