"""Cleaner: one round of giving space back: logs expire, dead rows go, small frames are joined, empty files are removed.

Owner: engine/embedded.py; the maintenance thread runs it at its interval, `clean()` on demand. One round at a time.
Holds: nothing that a reader may still ask for is lost at any step: frames are copied before they are given up (mover.py), files go when
       no frame in them answers for anything. Damage found on the way is named and its frame left where it is; the others go on.
       A disk that refuses a write ends the round, which is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from storage_engine.api import SpaceInfo
from storage_engine.engine import file_cleaning, upkeep
from storage_engine.engine.buckets import Bucket
from storage_engine.engine.compaction import Pass, compact, is_due, n_outlived
from storage_engine.engine.mover import CleaningStats, CleaningStopped, Mover
from storage_engine.engine.repacking import repack
from storage_engine.engine.retention import log_ttl_ms, plan_log_start, readers_of
from storage_engine.engine.state import LogStart, TableState
from storage_engine.errors import DamagedFrame, OffsetOutOfRange, WriteFailed
from storage_engine.log.file_set import begins_with_state
from storage_engine.log.frame_index import BucketId
from storage_engine.log.log_file import FrameMoved
from storage_engine.schema.row_ttl import row_ttl_ms

OUTLIVED_PART = 16
"""Rows are written again when more than one in so many has outlived `table.kv.ttl`."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleaningPolicy:
    """When and in which pieces cleaning works.

    interval_ms     between two rounds in the background
    settled_ms      frames younger than this are not joined: they are the ones that are read and cached
    chunk_bytes     written at once: what a writer may have to wait for
    bytes_min       dead bytes below which nothing is worth a move
    ttl_checks      times per `table.kv.ttl` that rows are looked at for their age
    rows_per_key    rows of a changelog that has expired, per living key, above which they are written again
    """

    interval_ms: int = 60_000
    settled_ms: int = 600_000
    chunk_bytes: int = 1024 * 1024
    bytes_min: int = 16 * 1024 * 1024
    compact_bytes_min: int = 1024 * 1024
    ttl_checks: int = 4
    rows_per_key: int = 2

    def on_demand(self) -> CleaningPolicy:
        """The policy of a round that somebody asked for: what is dead goes, however little it is. What readers need stays as it stays."""
        return replace(self, bytes_min=1, compact_bytes_min=1, rows_per_key=1)


class Cleaner:
    """The task of one store. `stats` says what it has done."""

    name = "clean"

    def __init__(self, mover: Mover, policy: CleaningPolicy) -> None:
        self._mover = mover
        self._policy = policy
        self._passes: dict[BucketId, Pass] = {}
        self._one_at_a_time = threading.Lock()
        self._keeping = threading.Lock()
        self._n_keepers = 0

    @property
    def interval_ms(self) -> int:
        return self._policy.interval_ms

    @property
    def stats(self) -> CleaningStats:
        return replace(self._mover.stats)

    def keep_files(self) -> Callable[[], None]:
        """Hold the removal of files off until the answer is called: a copy of them is under way."""
        with self._keeping:
            self._n_keepers += 1

        def release() -> None:
            with self._keeping:
                self._n_keepers -= 1

        return release

    def run(self, now_ms: int) -> None:
        """One round in the background."""
        self.clean(now_ms)

    def clean(self, now_ms: int, table: str | None = None) -> CleaningStats:
        """One round, of all tables or one; what has been done since the store was opened. Errors: WriteFailed."""
        with self._one_at_a_time:
            return self._round(now_ms, table, self._policy)

    def compact(self, now_ms: int, table: str) -> SpaceInfo:
        """One round over a table, without the minimum amounts that a round in the background goes by. Errors: WriteFailed."""
        with self._one_at_a_time:
            before = self.stats
            after = self._round(now_ms, table, self._policy.on_demand())
        return SpaceInfo(
            table,
            n_rows_expired=after.n_rows_expired - before.n_rows_expired,
            n_rows_outlived=after.n_rows_outlived - before.n_rows_outlived,
            n_bytes_rewritten=after.n_bytes_rewritten - before.n_bytes_rewritten,
            n_files_removed=after.n_files_removed - before.n_files_removed,
            n_bytes_reclaimed=after.n_bytes_reclaimed - before.n_bytes_reclaimed,
        )

    def _round(self, now_ms: int, table: str | None, policy: CleaningPolicy) -> CleaningStats:
        stats = self._mover.stats
        begun = time.monotonic()
        self._mover.begin()
        try:
            self._expire(now_ms, table)
            for state, bucket in self._buckets(table):
                self._guarded(bucket, lambda s=state, b=bucket: self._compact(s, b, now_ms, policy))
                self._guarded(bucket, lambda s=state, b=bucket: repack(self._mover, s, b, now_ms - policy.settled_ms))
            self._clean_files(policy.bytes_min)
        except CleaningStopped:
            return self.stats
        except Exception as error:
            stats.n_failures += 1
            stats.last_failure = str(error)
            if isinstance(error, OSError):
                next_step = "Free space or repair the disk; the next round goes on."
                raise WriteFailed(f"the disk refused a round of cleaning: {error}", where="cleaning", next_step=next_step) from error
            raise
        finally:
            stats.n_rounds += 1
            stats.last_round_ms = now_ms
            stats.last_duration_ms = int((time.monotonic() - begun) * 1000)
        return self.stats

    def _buckets(self, only: str | None) -> Iterator[tuple[TableState, Bucket]]:
        with self._mover.changed:
            tables = [table for name, table in self._mover.state.tables.items() if only in (None, name)]
            found = [(table, bucket) for table in tables for bucket in self._mover.buckets.of_table(table)]
        return iter([(table, bucket) for table, bucket in found if self._mover.table_of(bucket.id) is not None])

    def _guarded(self, bucket: Bucket, step: Callable[[], None]) -> None:
        try:
            step()
        except DamagedFrame as damage:
            self._mover.note_damage(damage)
        except (AssertionError, OffsetOutOfRange, FrameMoved):
            if self._mover.table_of(bucket.id) is not None:  # else the table was dropped meanwhile
                raise

    # logs

    def _expire(self, now_ms: int, only: str | None) -> None:
        mover = self._mover
        starts: list[tuple[BucketId, LogStart]] = []
        for table, bucket in self._buckets(only):
            ttl_ms = log_ttl_ms(table)
            if ttl_ms is None:
                continue
            with mover.changed:
                readers = readers_of(table, bucket.name, mover.state.progress.values())
                frames, before = bucket.frames, mover.state.log_starts.get(bucket.id)
                start = plan_log_start(frames.entries, frames.start_offset, before, ttl_ms, readers, now_ms)
            if start is None:
                continue
            starts.append((bucket.id, start))
            n_rows, n_unread = start.n_expired - (before.n_expired if before else 0), start.n_unread - (before.n_unread if before else 0)
            mover.stats.n_rows_expired += n_rows
            mover.stats.n_rows_expired_unread += n_unread
            if n_unread:
                text = "%s, bucket %s: %d rows expired that a job or consumer had yet to read; its log begins at offset %d"
                _logger.warning(text, table.descriptor.name, bucket.name, n_unread, start.offset)
        if starts:
            mover.record(upkeep.Expired(starts))

    # rows

    def _compact(self, table: TableState, bucket: Bucket, now_ms: int, policy: CleaningPolicy) -> None:
        if not table.descriptor.has_primary_key:
            return
        frames = bucket.frames
        entries = frames.entries
        below = entries[: int(np.searchsorted(entries["end_offset"], frames.start_offset, side="right"))]
        if len(below) == 0 or frames.log_start < 0:
            return
        last = self._passes.setdefault(bucket.id, Pass())
        is_worth_it = is_due(self._mover.buckets, below, bucket, last, policy.compact_bytes_min, policy.rows_per_key)
        ttl_ms = row_ttl_ms(table.descriptor)
        if not is_worth_it and ttl_ms is not None and now_ms - last.looked_ms >= ttl_ms // policy.ttl_checks:
            last.looked_ms = now_ms
            is_worth_it = n_outlived(self._mover, table, below, now_ms - ttl_ms) > below["n_rows"].sum() // OUTLIVED_PART
        if not is_worth_it:
            return
        self._finish_file_of(below, policy.bytes_min)
        if compact(self._mover, table, bucket, below, now_ms):
            last.n_rows = -1
            self._mover.checkpointer.ask()

    # files

    def _finish_file_of(self, doomed: np.ndarray, bytes_min: int) -> None:
        """Do not write copies into a file that the same pass leaves mostly dead: they would have to be moved out of it at once."""
        self._mover.log.sync()  # beginning a file waits for the old one's bytes: not while writers wait too
        with self._mover.writing():
            last, end = self._mover.log.files[-1], int(self._mover.log.end)
            n_doomed = int(doomed["length"][doomed["position"] >= last.start].sum())
            if n_doomed >= bytes_min and 2 * n_doomed >= end - last.start:
                self._mover.log.begin_next_file()

    def _clean_files(self, bytes_min: int) -> None:
        mover, log = self._mover, self._mover.log
        uses = self._uses()
        if file_cleaning.should_finish(uses, bytes_min):
            log.sync()
            with mover.writing():
                log.begin_next_file()
            uses = self._uses()
        for use in file_cleaning.mostly_dead(uses, bytes_min):
            file_cleaning.evacuate(mover, use.file)
        uses = self._uses()
        empty = [use for use in uses if use.n_live == 0 and use.file.stop is not None]
        if not empty:
            return
        covered = mover.checkpointer.save_checkpoint()
        with self._keeping:
            if self._n_keepers:
                return
            gone = file_cleaning.removable(uses, [begins_with_state(use.file) for use in uses], covered)
            if not gone:
                return
            with mover.writing():
                end = log.append([], upkeep.encode(upkeep.Removed([use.file.start for use in gone]))).end
                files = log.release({use.file.start for use in gone})
        log.sync(end)
        try:
            log.remove(files)
        except OSError as error:
            _logger.warning("log files that hold nothing any more could not be removed, the next start does: %s", error)
        mover.stats.n_files_removed += len(gone)
        mover.stats.n_bytes_reclaimed += sum(use.n_bytes for use in gone)

    def _uses(self) -> list[file_cleaning.FileUse]:
        with self._mover.changed:
            return file_cleaning.use_of(self._mover.log.files, int(self._mover.log.end), self._mover.buckets.index)
