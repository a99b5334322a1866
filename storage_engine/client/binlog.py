"""Binlog: a changelog as one row per change, with the row before and the row after it nested: what `db.t$binlog` shows.

Shapes: `_change_type` (insert, update, delete), `_log_offset`, `_commit_timestamp`, and the structs `before` and `after`.
Holds: an update takes the offset of its new row; it is in a range when that offset is. Where a changelog has no old rows (image WAL),
       `before` of an update is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from storage_engine.api import FetchedFrame
from storage_engine.log.frame import APPEND, DELETE, UPDATE_AFTER, UPDATE_BEFORE
from storage_engine.schema.descriptor import TableBucket

CHANGES = ("insert", "update", "delete")
_INSERT, _UPDATE, _DELETE = range(3)


def binlog_schema(columns: Sequence[pa.Field]) -> pa.Schema:
    """The schema of a binlog whose rows have these columns."""
    row = pa.struct([item.with_nullable(nullable=True) for item in columns])
    return pa.schema(
        [
            pa.field("_change_type", pa.string(), nullable=False),
            pa.field("_log_offset", pa.int64(), nullable=False),
            pa.field("_commit_timestamp", pa.timestamp("ms", "UTC"), nullable=False),
            pa.field("before", row),
            pa.field("after", row),
        ]
    )


@dataclass(frozen=True)
class _Piece:
    """Rows of a bucket's changelog: (n,) rows, change types, offsets."""

    rows: pa.RecordBatch
    types: np.ndarray
    offsets: np.ndarray


def binlog_batches(
    frames: Iterable[tuple[FetchedFrame, pa.RecordBatch]], ranges: dict[TableBucket, tuple[int, int]], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Frames, each with its decoded rows, as rows of the binlog whose offsets lie in `ranges`.

    An old row at the end of a frame waits for its new row in the bucket's next one.
    """
    waiting: dict[TableBucket, _Piece] = {}
    for frame, rows in frames:
        types = np.full(frame.n_rows, APPEND, np.uint8) if frame.change_types is None else np.frombuffer(frame.change_types, np.uint8)
        piece = _Piece(rows, types, np.arange(frame.base_offset, frame.base_offset + frame.n_rows))
        held = waiting.pop(frame.bucket, None)
        if held is not None:
            piece = _Piece(pa.concat_batches([held.rows, piece.rows]), np.r_[held.types, piece.types], np.r_[held.offsets, piece.offsets])
        if len(piece.types) and piece.types[-1] == UPDATE_BEFORE:
            waiting[frame.bucket] = _Piece(piece.rows.slice(len(piece.types) - 1), piece.types[-1:], piece.offsets[-1:])
        batch = _binlog_batch(piece, frame.timestamp_ms, ranges[frame.bucket], schema)
        if batch.num_rows:
            yield batch


def _binlog_batch(piece: _Piece, timestamp_ms: int, wanted: tuple[int, int], schema: pa.Schema) -> pa.RecordBatch:
    types, offsets = piece.types, piece.offsets
    begin, end = wanted
    at = np.flatnonzero((types != UPDATE_BEFORE) & (offsets >= begin) & (offsets < end))
    kinds = np.where(types[at] == DELETE, _DELETE, np.where(types[at] == UPDATE_AFTER, _UPDATE, _INSERT))
    follows_old = (kinds == _UPDATE) & (at > 0) & (types[at - 1] == UPDATE_BEFORE)
    row_type = schema.field("before").type
    before = _structs(piece.rows, np.where(kinds == _DELETE, at, at - 1), (kinds == _DELETE) | follows_old, row_type)
    after = _structs(piece.rows, at, kinds != _DELETE, row_type)
    stamps = pa.repeat(pa.scalar(timestamp_ms, pa.timestamp("ms", "UTC")), len(at))
    changes = pa.array(CHANGES, pa.string()).take(pa.array(kinds))
    return pa.RecordBatch.from_arrays([changes, pa.array(offsets[at]), stamps, before, after], schema=schema)


def _structs(rows: pa.RecordBatch, positions: np.ndarray, is_there: np.ndarray, row_type: pa.StructType) -> pa.StructArray:
    """The rows at `positions` (n,) as structs, null where not `is_there`."""
    picked = rows.take(pa.array(np.where(is_there, positions, 0)))
    return pa.StructArray.from_arrays(picked.columns, fields=list(row_type), mask=pa.array(~is_there))
