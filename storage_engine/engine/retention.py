"""Retention: how far the start of a bucket's log moves. Pure: no clock, no file.

`table.log.ttl` says how long rows of the log or changelog are kept; whole frames expire, by the time of their newest commit. Rows that a
job or consumer with committed offsets has yet to read are kept up to WAIT_FACTOR times as long, then they go and are counted. Rows of a
table that is tiered go only once the lake has them, however long that takes.
Current rows of a primary-key table never expire with the log (compaction.py keeps them).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from storage_engine.api import Progress
from storage_engine.engine.state import LogStart, TableState
from storage_engine.schema.descriptor import TableBucket
from storage_engine.schema.options import option_value

WAIT_FACTOR: Final = 2
_LAKE: Final = "tier:"


class Readers(NamedTuple):
    """Up to where a bucket was read: by every job and consumer of it, and by the lake. None: nobody reads it, it is not tiered."""

    read: int | None
    tiered: int | None


def readers_of(table: TableState, bucket: TableBucket, progress: Iterable[Progress]) -> Readers:
    """What owners of progress say about a bucket; a reader of the table that does not name the bucket has read nothing of it."""
    name = table.descriptor.name
    read: list[int] = []
    tiered = 0 if table.descriptor.is_tiered else None
    for item in progress:
        if item.owner == _LAKE + name:
            tiered = item.offsets.get(name, {}).get(bucket, 0) if tiered is not None else None
        elif name in item.offsets and not item.owner.startswith(_LAKE):
            read.append(item.offsets[name].get(bucket, 0))
    return Readers(min(read, default=None), tiered)


def log_ttl_ms(table: TableState) -> int | None:
    """How long the table's log is kept; None: always."""
    ttl: int | None = option_value(table.descriptor.options, "table.log.ttl")
    return ttl


def plan_log_start(
    entries: np.ndarray, start_offset: int, before: LogStart | None, ttl_ms: int, readers: Readers, now_ms: int
) -> LogStart | None:
    """Where a log of frames `entries` begins from now on; None: where it did."""
    held = entries[int(np.searchsorted(entries["end_offset"], start_offset, side="right")) :]
    start = _expired_to(held, now_ms - ttl_ms, start_offset)
    if readers.read is not None and readers.read < start:
        start = max(_frame_at(held, readers.read, start_offset), _expired_to(held, now_ms - WAIT_FACTOR * ttl_ms, start_offset))
    if readers.tiered is not None and readers.tiered < start:
        start = _frame_at(held, readers.tiered, start_offset)
    if start <= start_offset:
        return None
    n_unread = 0 if readers.read is None else max(0, start - max(readers.read, start_offset))
    last = held[int(np.searchsorted(held["end_offset"], start, side="left"))]
    so_far = before or LogStart(start_offset, 0, 0, 0, 0)
    return LogStart(start, int(last["version"]), so_far.n_expired + start - start_offset, so_far.n_unread + n_unread, now_ms)


def _expired_to(entries: np.ndarray, cutoff_ms: int, start_offset: int) -> int:
    """The end of the frames that are older than a time, up to the first that is not."""
    young = np.flatnonzero(entries["timestamp_ms"] >= cutoff_ms)
    n = int(young[0]) if len(young) else len(entries)
    return int(entries["end_offset"][n - 1]) if n else start_offset


def _frame_at(entries: np.ndarray, offset: int, start_offset: int) -> int:
    """The last end of a frame at or before an offset."""
    n = int(np.searchsorted(entries["end_offset"], offset, side="right"))
    return int(entries["end_offset"][n - 1]) if n else start_offset
