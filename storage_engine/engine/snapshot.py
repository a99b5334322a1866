"""Snapshot: the rows of a primary-key table that were current at one set of offsets, with their places in the changelog, in batches.

Holds: the offsets of all rows are known before the first batch is read (8 bytes a row); rows are read a batch at a time, and cleaning may
       move them meanwhile. Rows that outlive `table.kv.ttl` in between are left out, as any read from then on leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from storage_engine.api import PLACE_FIELDS
from storage_engine.engine.buckets import Bucket, Buckets, origins_of
from storage_engine.engine.core import Core
from storage_engine.engine.incarnations import raise_if_dropped, require_as_of
from storage_engine.engine.schemas import Schemas
from storage_engine.engine.state import TableState
from storage_engine.errors import OffsetOutOfRange, UserError
from storage_engine.log.frame import FLAG_ORIGINS, FLAG_SPARSE
from storage_engine.log.frame_index import locate
from storage_engine.log.log_file import FrameMoved
from storage_engine.log.stored_frame import FrameLocation, StoredFrame
from storage_engine.schema.descriptor import Offsets
from storage_engine.schema.row_ttl import may_outlive

BATCH_ROWS: Final = 65_536
_ATTEMPTS: Final = 5

Steps = list[tuple[Bucket, np.ndarray]]


def read_snapshot(core: Core, table: str, columns: Sequence[str] | None, ends: Offsets, as_of: int | None) -> pa.RecordBatchReader:
    """The rows current before the offsets `ends`, in the columns of snapshot_schema; planned under the lock, read as they are asked for.

    as_of  the version at which the caller has seen `ends`: a partition that was dropped since then is refused
    """

    def plan() -> tuple[Buckets, Schemas, pa.Schema, Steps]:
        state = core.table(table)
        if as_of is not None:
            require_as_of(core.state, state, ends, as_of)
        return core.buckets, state.schemas, snapshot_schema(state.schemas, columns), plan_snapshot(core.buckets, state, ends)

    buckets, schemas, schema, steps = core.shown(plan, lambda: core.end_of(table))
    return pa.RecordBatchReader.from_batches(schema, snapshot_batches(buckets, schemas, steps, schema))


def plan_snapshot(buckets: Buckets, table: TableState, ends: Offsets) -> Steps:
    """Where the rows are that were current before the offsets `ends`; buckets that are not named have none. The caller holds the lock.

    Errors: UserError for a log table; OffsetOutOfRange for ends outside the log of their bucket.
    """
    name = table.descriptor.name
    if not table.descriptor.has_primary_key:
        raise UserError(f"{name} is a log table and has no current rows", where="snapshot", next_step="Use scan() to read its log.")
    by_name = {bucket.name: bucket for bucket in buckets.of_table(table)}
    steps: Steps = []
    for place, end in ends.items():
        bucket = by_name.get(place)
        low, high = (bucket.frames.start_offset, bucket.frames.end_offset) if bucket else (0, 0)
        if not low <= end <= high:
            raise OffsetOutOfRange(
                f"the rows current at offset {end} are asked for, the log holds {low} to {high}",
                where=f"{name}, bucket {place}",
                next_step="Ask again with the newest offsets.",
            )
        if bucket is not None and end:
            kv = buckets.kv_of(bucket) if end == high else buckets.kv_until(bucket, end)
            steps.append((bucket, kv.current_offsets()))
    return steps


def snapshot_schema(schemas: Schemas, columns: Sequence[str] | None) -> pa.Schema:
    """PLACE_FIELDS, then the columns. Errors: SchemaMismatch for a name that is no column."""
    names = list(schemas.descriptor.column_names) if columns is None else list(columns)
    schemas.require(names)
    return pa.schema([*PLACE_FIELDS, *(schemas.descriptor.arrow_schema.field(name) for name in names)])


def snapshot_batches(buckets: Buckets, schemas: Schemas, steps: Steps, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows that plan_snapshot found, at most BATCH_ROWS at a time.

    Errors: PartitionChanged when a partition is dropped meanwhile; OffsetOutOfRange when the log's start moved on beyond the rows.
    """
    for bucket, offsets in steps:
        for first in range(0, len(offsets), BATCH_ROWS):
            yield from _batches(buckets, schemas, bucket, offsets[first : first + BATCH_ROWS], schema)


def _batches(buckets: Buckets, schemas: Schemas, bucket: Bucket, offsets: np.ndarray, schema: pa.Schema) -> list[pa.RecordBatch]:
    names = schema.names[len(PLACE_FIELDS) :]
    for attempt in range(_ATTEMPTS):
        try:
            if attempt and may_outlive(schemas.descriptor):
                offsets = _present(buckets, bucket, offsets)
            if not len(offsets):
                return []
            times = _times(buckets, bucket, offsets)
            rows = buckets.rows_at(bucket, offsets, names, schemas)
        except (FrameMoved, OffsetOutOfRange) as moved:
            raise_if_dropped(buckets, schemas.descriptor.name, [bucket], moved)
            if attempt == _ATTEMPTS - 1:
                raise OffsetOutOfRange(
                    f"rows of bucket {bucket.name} were moved while they were read, {_ATTEMPTS} times in a row",
                    where=schemas.descriptor.name,
                    next_step="Read again.",
                ) from moved
            continue
        n = len(offsets)
        places = [
            pa.repeat(pa.scalar(bucket.name.partition, pa.string()), n),
            pa.repeat(pa.scalar(bucket.name.bucket, pa.int32()), n),
            pa.array(offsets, pa.int64()),
            pa.array(times, pa.int64()).cast(pa.timestamp("ms", "UTC")),
        ]
        return pa.Table.from_arrays([*places, *rows.columns], schema=schema).to_batches()
    raise AssertionError("the last attempt returned or raised")


def _frames_of(buckets: Buckets, bucket: Bucket, offsets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, StoredFrame | None]]:
    """Each frame that answers for some of `offsets`, which of them (positions), and the frame where more than its entry is needed."""
    entries = bucket.frames.entries
    if len(offsets) and (len(entries) == 0 or offsets.min() < entries["base_offset"][0]):
        raise FrameMoved(f"rows of {bucket.id} are gone")
    frame_of = locate(entries, offsets)
    for number in np.unique(frame_of).tolist():
        entry = entries[number]
        needed = entry["flags"] & (FLAG_SPARSE | FLAG_ORIGINS)
        stored = buckets.stored_frame(FrameLocation(int(entry["position"]), int(entry["length"]))) if needed else None
        yield entry, np.flatnonzero(frame_of == number), stored


def _times(buckets: Buckets, bucket: Bucket, offsets: np.ndarray) -> np.ndarray:
    """When the rows at `offsets` (n,) were committed, in milliseconds (n,)."""
    times = np.zeros(len(offsets), np.int64)
    for entry, at, stored in _frames_of(buckets, bucket, offsets):
        times[at] = int(entry["timestamp_ms"])
        if stored is not None and entry["flags"] & FLAG_ORIGINS:
            local = offsets[at] - int(entry["base_offset"]) if stored.offsets is None else np.searchsorted(stored.offsets, offsets[at])
            origins = origins_of(stored)
            times[at] = origins["timestamp_ms"].take(np.searchsorted(origins["row_end"], local, side="right"), mode="clip")
    return times


def _present(buckets: Buckets, bucket: Bucket, offsets: np.ndarray) -> np.ndarray:
    """Those of `offsets` that still have a row."""
    entries = bucket.frames.entries
    offsets = offsets[offsets >= entries["base_offset"][0]] if len(entries) else offsets[:0]
    is_there = np.ones(len(offsets), np.bool_)
    for _, at, stored in _frames_of(buckets, bucket, offsets):
        if stored is not None and stored.offsets is not None:
            is_there[at] = np.isin(offsets[at], stored.offsets)
    return offsets[is_there]
