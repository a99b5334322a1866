"""Mover: writes rows again at the end of the log and lets the index point there, a bounded number of bytes at a time.

Owner: engine/cleaner.py. What is written again comes from compaction.py, repacking.py and files.py.
Holds: a frame that is moved is compared with its checksum right before; its copy is durable before the index names it, and the move
       is one commit. Writers wait for one append of about `chunk_bytes`. What is prepared and never published costs space only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from storage_engine.engine import upkeep
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.state import StoreState, TableState
from storage_engine.errors import DamagedFrame
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.frame import FLAG_CHANGE_TYPES, EncodedFrame
from storage_engine.log.frame_index import FLAG_MOVED, BucketId, entries_of
from storage_engine.log.stored_frame import FrameLocation, StoredFrame

if TYPE_CHECKING:
    from storage_engine.engine.core import Core

_logger = logging.getLogger(__name__)


class CleaningStopped(Exception):
    """The store closes, or went back to what is durable: what was prepared is left behind."""


@dataclass
class CleaningStats:
    """What cleaning has done since the store was opened. Rows that expired unread are among `n_rows_expired`."""

    n_rounds: int = 0
    n_failures: int = 0
    last_round_ms: int = -1
    last_duration_ms: int = -1
    last_failure: str = ""
    n_bytes_rewritten: int = 0
    n_bytes_reclaimed: int = 0
    n_files_removed: int = 0
    n_rows_expired: int = 0
    n_rows_expired_unread: int = 0
    n_rows_outlived: int = 0
    n_damaged_frames: int = 0
    n_buckets_kept: int = 0


@dataclass(frozen=True)
class Copy:
    """A frame to be written again: it answers for the offsets up to `end_offset`; `version` is that of its newest commit."""

    frame: EncodedFrame
    end_offset: int
    version: int


class Mover:
    """What cleaning works on: the parts of a store as they were at begin()."""

    log: CommitLog
    state: StoreState
    buckets: Buckets
    snapshots: KeySnapshots

    def __init__(self, core: Core, chunk_bytes: int, is_stopping: Callable[[], bool]) -> None:
        self._core = core
        self.chunk_bytes = chunk_bytes
        self._is_stopping = is_stopping
        self.stats = CleaningStats()
        self.checkpointer = core.checkpointer
        self.changed = core.changed
        self.begin()

    def begin(self) -> None:
        """A round begins: with the present log, mended if it can be. A store that goes back meanwhile ends it with CleaningStopped."""
        core = self._core
        if core.log.has_failed:
            core.mend(core.log)
        with core.readers:
            self.log, self.state, self.buckets, self.snapshots = core.log, core.state, core.buckets, core.snapshots

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock, while nothing else is appended. Errors: CleaningStopped; WriteFailed."""
        with self._core.writing():
            if self._core.log is not self.log:
                raise CleaningStopped
            yield

    def table_of(self, bucket_id: BucketId) -> TableState | None:
        """The live table of a bucket; None when table or partition are gone."""
        return self.state.by_id(bucket_id.table_id) if self.state.holds(bucket_id) else None

    def note_damage(self, damage: DamagedFrame) -> None:
        """Name a frame that cannot be moved; it stays where it is."""
        self.stats.n_damaged_frames += 1
        _logger.error("cleaning left a damaged frame where it is: %s", damage)

    def read(self, entry: np.void) -> StoredFrame:
        """A frame, compared with its checksum now. Errors: DamagedFrame."""
        return self.log.read(_location(entry), verify=True)

    def copy(self, entry: np.void) -> Copy:
        """A frame as it is. Errors: DamagedFrame."""
        return Copy(self.log.read_encoded(_location(entry)), int(entry["end_offset"]), int(entry["version"]))

    def prepare(self, copies: Sequence[Copy]) -> np.ndarray:
        """Write copies; the entries (n,) that will answer for their offsets. Durable on return.

        Errors: WriteFailed; CleaningStopped when the store is about to close, or went back.
        """
        entries: list[tuple[int, ...]] = []
        begin = n_bytes = 0
        for stop in range(1, len(copies) + 1):
            n_bytes += copies[stop - 1].frame.header.length
            if self._is_stopping():
                raise CleaningStopped
            if n_bytes >= self.chunk_bytes or stop == len(copies):
                part = copies[begin:stop]
                with self.writing():
                    appended = self.log.append([copy.frame for copy in part], upkeep.encode(upkeep.Prepared()))
                self.log.sync(appended.end)
                entries += [_entry(copy, at) for copy, at in zip(part, appended.locations, strict=True)]
                self.stats.n_bytes_rewritten += n_bytes
                begin, n_bytes = stop, 0
        return entries_of(entries)

    def publish(self, moves: Sequence[upkeep.Move], also: Callable[[Bucket], None] | None = None) -> bool:
        """Let the entries of each move answer for its offsets; False, and nothing changes, when a table or partition is gone.

        also    what else changes at that moment, with the bucket of the first move
        Errors: WriteFailed; nothing has changed then.
        """
        with self.writing():
            if not all(self.state.holds(move.bucket) for move in moves):
                return False
            record = upkeep.Moved(moves)
            end = self.log.append([], upkeep.encode(record)).end
            with self.changed:
                replaced = upkeep.follow(record, self.state, self.buckets.index)
                bucket = self.buckets.get(moves[0].bucket)
                if also is not None and bucket is not None:
                    also(bucket)
                for bucket_id in {move.bucket for move in moves}:
                    self.buckets.forget(bucket_id, replaced)
        self.log.sync(end)
        return True

    def record(self, record: upkeep.Expired) -> None:
        """Write and follow a record that moves nothing. Errors: WriteFailed."""
        with self.writing():
            end = self.log.append([], upkeep.encode(record)).end
            with self.changed:
                replaced = upkeep.follow(record, self.state, self.buckets.index)
                for bucket_id, _ in record.starts:
                    self.buckets.forget(bucket_id, replaced)
        self.log.sync(end)


def _location(entry: np.void) -> FrameLocation:
    return FrameLocation(int(entry["position"]), int(entry["length"]))


def _entry(copy: Copy, at: FrameLocation) -> tuple[int, ...]:
    header = copy.frame.header
    return (
        header.base_offset, copy.end_offset, at.position, copy.version, header.timestamp_ms, at.length, header.schema_id, header.n_rows,
        header.flags & ~FLAG_CHANGE_TYPES | FLAG_MOVED,
    )  # fmt: skip
