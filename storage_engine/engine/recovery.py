"""Recovery: log, state and buckets from a store directory: the checkpoint, and the commits after it.

Owner of nothing: engine/core.py keeps what is found here. `publish` is also how a commit of this process becomes visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from storage_engine.engine import checkpoint
from storage_engine.engine.buckets import Buckets
from storage_engine.engine.key_budget import KeyBudget
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.state import CommitRecord, StoreState
from storage_engine.log.commit_log import CommitLog, FrameLocation, LogPosition
from storage_engine.log.disk import Disk
from storage_engine.log.frame import FrameHeader
from storage_engine.log.frame_index import BucketId, FrameIndex

CACHE_BYTES_MAX: Final = 128 * 1024 * 1024


class Recovered(NamedTuple):
    """A store as its directory says it is; `version` and `position` are those of the checkpoint used, or 0."""

    log: CommitLog
    state: StoreState
    buckets: Buckets
    snapshots: KeySnapshots
    version: int
    position: int


def recover(disk: Disk, directory: Path, file_bytes_max: int, budget: KeyBudget, upto: LogPosition | None) -> Recovered:
    """`upto`: what lies behind it is not durable, and given up; None: all that is there whole. Errors: OSError, DamagedFrame."""
    loaded = checkpoint.load(disk, directory)
    state = loaded.state if loaded else StoreState()
    log = CommitLog.open(disk, directory, start=loaded.position if loaded else None, file_bytes_max=file_bytes_max)
    index = loaded.frames if loaded else FrameIndex()
    snapshots = KeySnapshots(disk, directory)
    buckets = Buckets(log, index, CACHE_BYTES_MAX, state.by_id, snapshots, budget)
    for table_id in state.names:
        for bucket_id, _ in index.buckets(table_id):
            buckets.get_or_create(bucket_id, state.partition_names[bucket_id.partition_id])
    version, position = (state.version, int(loaded.position)) if loaded else (0, 0)
    for commit in log.recover(upto):
        publish(state, buckets, CommitRecord.decode(commit.record), commit.frames)
    return Recovered(log, state, buckets, snapshots, version, position)


def publish(state: StoreState, buckets: Buckets, record: CommitRecord, frames: Sequence[tuple[FrameHeader, FrameLocation]]) -> None:
    """Make a written commit visible: state, then frames. Key indexes follow separately."""
    state.apply(record)
    for change in record.changes:
        if change["op"] == "drop_table":
            buckets.drop(table_id=change["table_id"])
        elif change["op"] == "alter_table":
            buckets.alter(state.tables[change["table"]["name"]])
        elif change["op"] == "drop_partition":
            buckets.drop(table_id=change["table_id"], partition_id=change["partition_id"])
    for header, location in frames:
        table = state.by_id(header.table_id)
        if table is None or header.partition_id not in state.partition_names:
            continue
        bucket_id = BucketId(header.table_id, header.partition_id, header.bucket)
        buckets.get_or_create(bucket_id, state.partition_names[header.partition_id])
        buckets.index.add(header, location, record.version)
