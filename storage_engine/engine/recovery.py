"""Recovery: log, state and buckets from a store directory: the checkpoint, or the state a log file begins with, and what comes after it.

Owner: engine/core.py keeps what is found here, and gets another one when the store goes back. `publish` is also how a commit of this
       process becomes visible.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from storage_engine.engine import checkpoint, upkeep
from storage_engine.engine.buckets import Buckets
from storage_engine.engine.checkpointer import file_entries
from storage_engine.engine.key_budget import KeyBudget
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.state import CommitRecord, StoreState
from storage_engine.errors import DamagedFrame
from storage_engine.log.commit_log import CommitLog, LogPosition
from storage_engine.log.disk import Disk
from storage_engine.log.frame import FrameHeader
from storage_engine.log.frame_index import BucketId, FrameIndex
from storage_engine.log.stored_frame import FrameLocation

CACHE_BYTES_MAX: Final = 128 * 1024 * 1024
_logger = logging.getLogger(__name__)


class Recovered:
    """A store as its directory says it is; `version` and `position` are those of the checkpoint used, or 0."""

    def __init__(self, disk: Disk, directory: Path, file_bytes_max: int, budget: KeyBudget, upto: LogPosition | None) -> None:
        """`upto`: what lies behind it is not durable, and given up; None: all that is there whole. Errors: OSError, DamagedFrame."""
        self._directory = directory
        self._budget = budget
        loaded = checkpoint.load(disk, directory)
        start = loaded.position if loaded else None
        self.log = CommitLog.open(disk, directory, start=start, file_bytes_max=file_bytes_max, begin_file=self._whole_state)
        self.snapshots = KeySnapshots(disk, directory)
        self._adopt(loaded.state if loaded else StoreState(), loaded.frames if loaded else FrameIndex())
        self.version, self.position = (self.state.version, int(loaded.position)) if loaded else (0, 0)
        self._replay(upto, is_first=loaded is None)
        self._give_up_files()

    def _adopt(self, state: StoreState, index: FrameIndex) -> None:
        """Begin with what a checkpoint, or the beginning of a log file, says."""
        self.state = state
        self.buckets = Buckets(
            self.log, index, CACHE_BYTES_MAX, lambda table_id: self.state.by_id(table_id), self.snapshots, self._budget,
            lambda: self.state.log_starts,
        )  # fmt: skip
        for bucket_id, _ in index.all():
            self._touch(bucket_id)

    def _touch(self, bucket_id: BucketId) -> None:
        if self.state.holds(bucket_id):
            self.buckets.get_or_create(bucket_id, self.state.partition_names[bucket_id.partition_id])

    def _replay(self, upto: LogPosition | None, *, is_first: bool) -> None:
        for commit in self.log.recover(upto, lambda: self.state.files or ()):
            record = upkeep.decode(commit.record)
            if isinstance(record, CommitRecord):
                self.publish(record, commit.frames)
            elif not isinstance(record, upkeep.WholeState):
                self._follow(record)
            elif is_first:
                self._adopt(record.state(), record.index())
            else:
                self._require_version_of(record, commit.end)
                self.state.files = record.files
            is_first = False

    def _require_version_of(self, record: upkeep.WholeState, end: LogPosition) -> None:
        if record.version != self.state.version:
            raise DamagedFrame(
                f"the log says version {record.version} before position {end}, its commits end at version {self.state.version}",
                where=str(self._directory / "log"),
                next_step="Restore the missing log files from a copy.",
                file=str(self._directory / "log"),
                offset=int(end),
            )

    def _follow(self, record: upkeep.Prepared | upkeep.Moved | upkeep.Expired | upkeep.Removed) -> None:
        upkeep.follow(record, self.state, self.buckets.index)
        if isinstance(record, upkeep.Moved | upkeep.Expired):
            touched = [move.bucket for move in record.moves] if isinstance(record, upkeep.Moved) else [item[0] for item in record.starts]
            for bucket_id in touched:
                self._touch(bucket_id)

    def _give_up_files(self) -> None:
        """Compare the files with those that the state names; others were given up, and go."""
        if self.state.files is None:
            return
        self.log.require_files(self.state.files)
        known = {entry.start for entry in self.state.files}
        try:
            self.log.remove(self.log.release({file.start for file in self.log.files if file.start not in known}))
        except OSError as error:
            _logger.warning("log files that were given up could not be removed: %s", error)

    def _whole_state(self) -> bytes:
        """What a new log file begins with."""
        self.state.files = file_entries(self.log, with_last=True)
        return upkeep.encode_state(self.state, self.buckets.index)

    def publish(self, record: CommitRecord, frames: Sequence[tuple[FrameHeader, FrameLocation]]) -> None:
        """Make a written commit visible: state, then frames. Key indexes follow separately."""
        self.state.apply(record)
        for change in record.changes:
            if change["op"] == "drop_table":
                self.buckets.drop(table_id=change["table_id"])
            elif change["op"] == "alter_table":
                self.buckets.alter(self.state.tables[change["table"]["name"]])
            elif change["op"] == "drop_partition":
                self.buckets.drop(table_id=change["table_id"], partition_id=change["partition_id"])
        for header, location in frames:
            table = self.state.by_id(header.table_id)
            if table is None or header.partition_id not in self.state.partition_names:
                continue
            bucket_id = BucketId(header.table_id, header.partition_id, header.bucket)
            self.buckets.get_or_create(bucket_id, self.state.partition_names[header.partition_id])
            self.buckets.index.add(header, location, record.version)
