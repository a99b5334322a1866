"""Compaction: below the start of a primary-key bucket's log only the rows that were current there are kept, in sparse frames.

A sparse frame names the offset of each of its rows: the key index (hash -> offset) stays as it is, and so does every read at a version
that the log still reaches. Its rows are +I: whatever came before them is gone. Everything below the log's start is written again in one
pass and published in one commit, so that each -D goes together with all that it took back.
Holds: a pass runs when more than two rows are held there per living key: space stays below about twice, and what is written again
       below what was written. A bucket with homeless keys is left as it is: their replay depends on every row of their hash.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.engine import upkeep
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.mover import Copy, Mover
from storage_engine.engine.repacking import resting_compression
from storage_engine.engine.state import TableState
from storage_engine.engine.transaction import FRAME_ROWS_MAX, one_batch
from storage_engine.log.frame import INSERT, ORIGIN, decode_batch, encode_message, frame_of_message
from storage_engine.schema.row_ttl import TIME_COLUMN, row_ttl_ms

FRAME_BYTES = 4 * 1024 * 1024
_MINUTE_MS = 60_000
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Rows taken out of one frame: their offsets (n,), and when each was committed, in ms (n,)."""

    batch: pa.RecordBatch
    offsets: np.ndarray
    times: np.ndarray
    schema_id: int
    version: int


@dataclass
class Pass:
    """What has been found out about a bucket, so that it is not found out again in each round."""

    n_rows: int = -1
    n_live: int = 0
    looked_ms: int = 0


def is_due(buckets: Buckets, below: np.ndarray, bucket: Bucket, last: Pass, bytes_min: int, rows_per_key: int) -> bool:
    """Whether the frames below the log's start hold more than `rows_per_key` rows per living key. `last` remembers what was counted.

    Cost: none where the key index is there; else a replay, each time the rows have grown by a quarter of the living ones.
    """
    n_rows, end = int(below["n_rows"].sum()), int(below["end_offset"][-1])
    if n_rows == 0 or int(below["length"].sum()) < bytes_min or (rows_per_key > 1 and n_rows <= last.n_rows + last.n_live // 4):
        return False
    if bucket.kv is not None:
        return n_rows > rows_per_key * bucket.kv.n_keys
    last.n_rows, last.n_live = n_rows, buckets.kv_until(bucket, end).n_keys
    return n_rows > rows_per_key * last.n_live


def compact(mover: Mover, table: TableState, bucket: Bucket, below: np.ndarray, now_ms: int) -> bool:
    """Write the frames `below` the log's start again, without what is dead or has outlived `table.kv.ttl`. False: nothing was changed.

    Errors: DamagedFrame; WriteFailed.
    """
    end = int(below["end_offset"][-1])
    kv = mover.buckets.kv_until(bucket, end)
    if kv.n_homeless:
        _logger.warning("%s, bucket %s has keys that share a hash: it is not compacted", table.descriptor.name, bucket.name)
        mover.stats.n_buckets_kept += 1
        return False
    live = kv.current_offsets()
    outlived: list[tuple[pa.Table, np.ndarray]] = []
    copies: list[Copy] = []
    entries: list[np.ndarray] = []
    at = int(below["base_offset"][0])
    for rows in _frames(_without_outlived(table, _living(mover, table, below, live), now_ms, outlived)):
        copies.append(_sparse_frame(table, bucket, rows, at))
        at = copies[-1].end_offset
        if sum(copy.frame.header.length for copy in copies) >= mover.chunk_bytes:
            entries.append(mover.prepare(copies))
            copies = []
    entries.append(mover.prepare(copies))
    moved = np.concatenate(entries)
    if len(moved):
        moved["end_offset"][-1] = end

    def expire(bucket: Bucket) -> None:
        for keys, offsets in outlived:
            if bucket.kv is not None:
                mover.stats.n_rows_outlived += bucket.kv.expire(keys, offsets)

    with mover.checkpointer.copying:  # a key snapshot taken before would lead to rows that are gone
        mover.snapshots.forget(bucket.id)
        return mover.publish([upkeep.Move(bucket.id, int(below["base_offset"][0]), end, moved)], expire)


def _living(mover: Mover, table: TableState, below: np.ndarray, live: np.ndarray) -> Iterator[Rows]:
    """The rows at the offsets `live`, frame by frame, in order."""
    bounds = np.searchsorted(live, np.r_[below["base_offset"][:1], below["end_offset"]])
    for entry, first, stop in zip(below, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if first == stop:
            continue
        stored = mover.read(entry)
        offsets = live[first:stop]
        local = offsets - int(entry["base_offset"]) if stored.offsets is None else np.searchsorted(stored.offsets, offsets)
        batch = decode_batch(stored.message, table.schemas.arrow_schema(int(entry["schema_id"])))
        if len(local) < batch.num_rows:
            batch = batch.take(pa.array(local))
        times = np.full(len(local), int(entry["timestamp_ms"]), np.int64)
        if stored.origins is not None:
            times = stored.origins["timestamp_ms"][np.searchsorted(stored.origins["row_end"], local, side="right")]
        yield Rows(batch, offsets, times, int(entry["schema_id"]), int(entry["version"]))


def n_outlived(mover: Mover, table: TableState, below: np.ndarray, cutoff_ms: int) -> int:
    """Rows, dead ones too, whose time is before a cutoff. Errors: DamagedFrame."""
    column = table.descriptor.options.get(TIME_COLUMN)
    found = 0
    for entry in below:
        stored = mover.read(entry)
        if column is None:
            ages = ((stored.header.n_rows, int(entry["timestamp_ms"])),)
            if stored.origins is not None:
                ages = tuple(zip(np.diff(stored.origins["row_end"], prepend=0), stored.origins["timestamp_ms"], strict=True))
            found += sum(int(n) for n, ms in ages if ms < cutoff_ms)
            continue
        batch = decode_batch(stored.message, table.schemas.arrow_schema(int(entry["schema_id"])))
        found += int((_milliseconds(batch.column(column), cutoff_ms) < cutoff_ms).sum())
    return found


def _without_outlived(
    table: TableState, frames: Iterator[Rows], now_ms: int, outlived: list[tuple[pa.Table, np.ndarray]]
) -> Iterator[Rows]:
    """Leave out rows older than `table.kv.ttl`; their keys and offsets are added to `outlived`. Rows without a time stay."""
    ttl_ms = row_ttl_ms(table.descriptor)
    if ttl_ms is None:
        yield from frames
        return
    column = table.descriptor.options.get(TIME_COLUMN)
    names = list(table.descriptor.physical_primary_key)
    for rows in frames:
        times = rows.times if column is None else _milliseconds(rows.batch.column(column), now_ms)
        is_over = times < now_ms - ttl_ms
        if not is_over.any():
            yield rows
            continue
        gone, kept = pa.array(is_over), pa.array(~is_over)
        outlived.append((pa.Table.from_batches([rows.batch.select(names).filter(gone)]), rows.offsets[is_over]))
        if not is_over.all():
            yield Rows(rows.batch.filter(kept), rows.offsets[~is_over], rows.times[~is_over], rows.schema_id, rows.version)


def _milliseconds(values: pa.Array, default: int) -> np.ndarray:
    """A time column as milliseconds since 1970: a BIGINT holds them, a TIMESTAMP is cast; null is `default`."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("ms", values.type.tz), safe=False).cast(pa.int64())
    return pc.fill_null(values, default).to_numpy(zero_copy_only=False)


def _frames(parts: Iterator[Rows]) -> Iterator[list[Rows]]:
    """Parts of one schema that make a frame of about FRAME_ROWS_MAX rows or FRAME_BYTES bytes."""
    held: list[Rows] = []
    n_rows = n_bytes = 0
    for rows in parts:
        if held and (rows.schema_id != held[0].schema_id or n_rows + len(rows.offsets) > FRAME_ROWS_MAX or n_bytes > FRAME_BYTES):
            yield held
            held, n_rows, n_bytes = [], 0, 0
        held.append(rows)
        n_rows += len(rows.offsets)
        n_bytes += rows.batch.nbytes
    if held:
        yield held


def _sparse_frame(table: TableState, bucket: Bucket, parts: list[Rows], base_offset: int) -> Copy:
    batch = one_batch(pa.Table.from_batches([part.batch for part in parts]))
    offsets = np.concatenate([part.offsets for part in parts])
    times = np.concatenate([part.times for part in parts])
    frame = frame_of_message(
        encode_message(batch, *resting_compression(table.descriptor)),
        len(offsets),
        table_id=bucket.id.table_id,
        partition_id=bucket.id.partition_id,
        bucket=bucket.id.bucket,
        schema_id=parts[0].schema_id,
        base_offset=base_offset,
        timestamp_ms=int(times.max()),
        change_types=np.full(len(offsets), INSERT, np.uint8),
        offsets=offsets,
        origins=_ages(times, parts[-1].version) if _needs_ages(table) else None,
    )
    return Copy(frame, int(offsets[-1]) + 1, parts[-1].version)


def _needs_ages(table: TableState) -> bool:
    return row_ttl_ms(table.descriptor) is not None and TIME_COLUMN not in table.descriptor.options


def _ages(times: np.ndarray, version: int) -> np.ndarray:
    """When rows were committed, in runs of a minute, rounded up: a row never outlives too early."""
    minutes = -(-times // _MINUTE_MS) * _MINUTE_MS
    ends = np.flatnonzero(np.r_[minutes[1:] != minutes[:-1], True]) + 1
    ages = np.zeros(len(ends), ORIGIN)
    ages["row_end"], ages["version"], ages["timestamp_ms"] = ends, version, minutes[ends - 1]
    return ages
