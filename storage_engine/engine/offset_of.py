"""Offset of: where a scan begins or ends in each bucket, told from the frame indexes. The caller holds the readers' lock."""

from __future__ import annotations

import numpy as np

from storage_engine.api import OffsetSpec
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.state import TableState
from storage_engine.errors import OffsetOutOfRange, UserError
from storage_engine.schema.descriptor import Offsets


def offsets(buckets: Buckets, table: TableState, which: OffsetSpec, at_version: int | None, bound: int | None, now_ms: int) -> Offsets:
    """As Backend.offsets(); `now_ms` is the store's clock.

    Errors: OffsetOutOfRange for a timestamp in the future; UserError for a bound that is missing or below zero.
    """
    live = list(buckets.of_table(table))
    if which == "earliest":
        return {bucket.name: bucket.frames.start_offset for bucket in live}
    ends = [(bucket, bucket.frames.end_offset if at_version is None else offset_at(buckets, table, bucket, at_version)) for bucket in live]
    if which == "latest":
        return {bucket.name: end for bucket, end in ends}
    name = table.descriptor.name
    if bound is None or bound < 0:
        raise UserError(f"offsets by {which} need a bound of at least 0, not {bound}", where=name, next_step="Give milliseconds, or rows.")
    if which == "last":
        return _last(ends, bound)
    if bound > now_ms + 1:  # a moment inside the present millisecond is rounded up
        raise OffsetOutOfRange(
            f"timestamp {bound} is in the future, the store's clock is at {now_ms}",
            where=name,
            next_step="Give a time that has passed: where rows to come will begin is not known.",
        )
    return {bucket.name: min(bucket.frames.offset_at_timestamp(bound), end) for bucket, end in ends}


def offset_at(buckets: Buckets, table: TableState, bucket: Bucket, version: int) -> int:
    """The bucket's end offset at a version. Errors: OffsetOutOfRange naming the oldest version that can be read."""
    start = buckets.log_start(bucket)
    if start is not None and version < start.version:
        raise OffsetOutOfRange(
            f"version {version} is asked for, the log of bucket {bucket.name} has expired up to version {start.version}",
            where=table.descriptor.name,
            next_step=f"The oldest version that can be read is {start.version}; 'table.log.ttl' says how long the log is kept.",
        )
    return bucket.frames.offset_at_version(version)


def _last(ends: list[tuple[Bucket, int]], n_rows: int) -> Offsets:
    """The starts from which the last n rows of all buckets follow, in the order of the commits. Looks at n frames of each bucket."""
    versions, bases, stops, owners = [], [], [], []
    for number, (bucket, end) in enumerate(ends):
        entries = bucket.frames.entries
        n = int(np.searchsorted(entries["end_offset"], end, side="right"))
        tail = entries[max(0, n - n_rows) : n] if n_rows else entries[:0]
        versions.append(tail["version"])
        bases.append(tail["base_offset"])
        stops.append(tail["end_offset"])
        owners.append(np.full(len(tail), number))
    starts = {bucket.name: end for bucket, end in ends}
    if not ends:
        return starts
    order = np.argsort(-np.concatenate(versions), kind="stable")
    base, stop, owner = np.concatenate(bases)[order], np.concatenate(stops)[order], np.concatenate(owners)[order]
    before = np.cumsum(stop - base) - (stop - base)
    for i in np.flatnonzero(before < n_rows):
        begin = max(int(base[i]), int(stop[i]) - (n_rows - int(before[i])))
        name = ends[owner[i]][0].name
        starts[name] = min(starts[name], begin)
    return starts
