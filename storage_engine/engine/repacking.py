"""Repacking: runs of small frames of a bucket become frames of up to 65,536 rows, with the codec for rows at rest.

Pure but for Mover. Offsets, versions and times of the rows stay: a re-packed frame carries the commits its rows came from.
Holds: only frames older than the settled horizon are touched. Each pass over a row at least multiplies the rows of its frame by
       RUN_FRAMES_MIN, or fills the frame: a row is written again a few times in its life, however small its commit was.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from storage_engine.engine import upkeep
from storage_engine.engine.buckets import Bucket
from storage_engine.engine.mover import Copy, Mover
from storage_engine.engine.retention import log_ttl_ms
from storage_engine.engine.state import TableState
from storage_engine.engine.transaction import FRAME_ROWS_MAX, compression_of, one_batch
from storage_engine.log.frame import (
    FLAG_CHANGE_TYPES,
    FLAG_INTERNAL,
    FLAG_ORIGINS,
    FLAG_SPARSE,
    FLAG_STATISTICS,
    decode_batch,
    encode_message,
    frame_of_message,
)
from storage_engine.log.statistics import encode_statistics
from storage_engine.schema.descriptor import TableDescriptor

RUN_FRAMES_MIN = 16
SPANS_PER_TTL = 16
SMALL_ROWS_MAX = FRAME_ROWS_MAX // 2
BYTES_MAX = 8 * 1024 * 1024
_OWN_FLAGS = FLAG_CHANGE_TYPES | FLAG_SPARSE | FLAG_ORIGINS | FLAG_STATISTICS
_STORED_FLAGS = 255  # those above are the index's own


def plan_runs(entries: np.ndarray, settled_ms: int, start_offset: int, span_ms_max: int | None) -> list[tuple[int, int]]:
    """Runs [first, stop) of entries worth one frame each.

    A run is of one schema and kind, not above FRAME_ROWS_MAX rows or BYTES_MAX bytes, and either fills half a frame or has many frames.
    Frames expire as a whole: its commits are not further apart than span_ms_max.
    """
    is_small = (entries["n_rows"] <= SMALL_ROWS_MAX) & (entries["length"] <= BYTES_MAX // 2)
    is_settled = np.cumsum(entries["timestamp_ms"] > settled_ms) == 0  # up to the first that is younger
    can = is_small & is_settled & (entries["base_offset"] >= start_offset) & (entries["flags"] & FLAG_SPARSE == 0)
    kind = entries["flags"] & _STORED_FLAGS & ~_OWN_FLAGS
    runs: list[tuple[int, int]] = []
    first, stop, n_rows, n_bytes = -1, 0, 0, 0
    for i in np.flatnonzero(can).tolist():
        entry = entries[i]
        is_next = first >= 0 and can[i - 1] and entry["schema_id"] == entries["schema_id"][first] and kind[i] == kind[first]
        is_next = is_next and (span_ms_max is None or entry["timestamp_ms"] - entries["timestamp_ms"][first] <= span_ms_max)
        if not is_next or n_rows + entry["n_rows"] > FRAME_ROWS_MAX or n_bytes + entry["length"] > BYTES_MAX:
            if first >= 0:
                runs.append((first, stop))
            first, n_rows, n_bytes = i, 0, 0
        n_rows += int(entry["n_rows"])
        n_bytes += int(entry["length"])
        stop = i + 1
    if first >= 0:
        runs.append((first, stop))
    return [run for run in runs if _is_worth_it(entries[run[0] : run[1]])]


def _is_worth_it(run: np.ndarray) -> bool:
    is_full = int(run["n_rows"].sum()) > SMALL_ROWS_MAX or int(run["length"].sum()) > BYTES_MAX // 2
    return len(run) >= 2 and (is_full or len(run) >= RUN_FRAMES_MIN)


def repack(mover: Mover, table: TableState, bucket: Bucket, settled_ms: int) -> None:
    """Re-pack what a bucket has that is settled. Errors: DamagedFrame; WriteFailed."""
    entries = bucket.frames.entries
    ttl_ms = log_ttl_ms(table)
    runs = plan_runs(entries, settled_ms, bucket.frames.start_offset, None if ttl_ms is None else ttl_ms // SPANS_PER_TTL)
    for group in _groups(entries, runs):
        copies = [_packed(mover, table, bucket, entries[first:stop]) for first, stop in group]
        moved = mover.prepare(copies)
        moves = [
            upkeep.Move(bucket.id, int(entries["base_offset"][first]), int(entries["end_offset"][stop - 1]), moved[i : i + 1])
            for i, (first, stop) in enumerate(group)
        ]
        if not mover.publish(moves):
            return


def _groups(entries: np.ndarray, runs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Runs that are published together: about BYTES_MAX bytes."""
    group: list[tuple[int, int]] = []
    n_bytes = 0
    for first, stop in runs:
        group.append((first, stop))
        n_bytes += int(entries["length"][first:stop].sum())
        if n_bytes >= BYTES_MAX:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _packed(mover: Mover, table: TableState, bucket: Bucket, run: np.ndarray) -> Copy:
    stored = [mover.read(entry) for entry in run]
    schema = table.schemas.arrow_schema(int(run["schema_id"][0]))
    rows = one_batch(pa.Table.from_batches([decode_batch(frame.message, schema) for frame in stored], schema))
    types = None
    if stored[0].change_types is not None:
        types = np.concatenate([np.frombuffer(frame.change_types or b"", np.uint8) for frame in stored])
    origins = np.concatenate([bucket.frames.origins(entry) for entry in run])
    before = np.cumsum(run["n_rows"].astype(np.int64)) - run["n_rows"]
    origins["row_end"] += np.repeat(before, [len(bucket.frames.origins(entry)) for entry in run])
    origins = origins[np.r_[origins["version"][1:] != origins["version"][:-1], True]]  # several frames of one commit are one origin
    counted = [pair for pair in table.descriptor.statistics_columns if pair[0] in schema.names]
    frame = frame_of_message(
        encode_message(rows, *resting_compression(table.descriptor)),
        rows.num_rows,
        table_id=bucket.id.table_id,
        partition_id=bucket.id.partition_id,
        bucket=bucket.id.bucket,
        schema_id=int(run["schema_id"][0]),
        base_offset=int(run["base_offset"][0]),
        timestamp_ms=int(origins["timestamp_ms"][-1]),
        change_types=types,
        is_internal=bool(int(run["flags"][0]) & FLAG_INTERNAL),
        statistics=encode_statistics(rows, counted) if counted else None,
        origins=origins if len(origins) > 1 else None,
    )
    return Copy(frame, int(run["end_offset"][-1]), int(origins["version"][-1]))


def resting_compression(descriptor: TableDescriptor) -> tuple[str, int | None]:
    """Codec of frames at rest: as the table says; else zstd for logs, which are read whole, and none for changelogs, read by row."""
    if descriptor.has_primary_key or "table.log.arrow.compression.type" in descriptor.options:
        return compression_of(descriptor)
    return "zstd", 3
