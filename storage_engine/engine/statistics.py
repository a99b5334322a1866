"""Statistics of buckets: rows, bytes, offsets and ages, from the frame index alone. One vectorised pass per bucket; reads no frame."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from storage_engine.api import BUCKET_STATISTICS
from storage_engine.engine.buckets import Bucket
from storage_engine.schema.descriptor import Offsets


def bucket_statistics(buckets: Iterable[Bucket], positions: Offsets, now_ms: int) -> pa.Table:
    """See Backend.bucket_statistics. A bucket not in `positions` is unread from its first row on."""
    rows = [_of_bucket(bucket, positions.get(bucket.name, 0), now_ms) for bucket in buckets]
    return pa.Table.from_pydict({name: [row[i] for row in rows] for i, name in enumerate(BUCKET_STATISTICS.names)}, BUCKET_STATISTICS)


def _of_bucket(bucket: Bucket, position: int, now_ms: int) -> tuple[str | int | None, ...]:
    entries = bucket.frames.entries
    n_frames = len(entries)
    unread = int(np.searchsorted(entries["end_offset"], position, side="right"))
    return (
        bucket.name.partition,
        bucket.name.bucket,
        bucket.frames.start_offset,
        bucket.frames.end_offset,
        n_frames,
        int(entries["length"].sum(dtype=np.int64)),
        int(entries["timestamp_ms"][-1]) if n_frames else None,
        max(now_ms - int(entries["timestamp_ms"][unread]), 0) if unread < n_frames else None,
    )
