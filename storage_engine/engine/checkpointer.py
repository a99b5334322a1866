"""Checkpointer: decides when derived state is worth a copy on disk, and writes it beside the commits.

Owner: engine/core.py tells it of each commit and closes it. It holds the writer's lock only to copy what it writes.
State: the thread, begun when a copy is first due; versions and positions of the last checkpoint.
Holds: what is written covers only what is durable in the log. A copy that cannot be written is named in the log of the process and
       tried again later: the log is the truth, only the next start takes longer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from storage_engine.engine import checkpoint
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.key_snapshots import KeySnapshots, covered_by
from storage_engine.engine.state import StoreState
from storage_engine.errors import RetriableError, WriteFailed
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.disk import Disk
from storage_engine.log.file_set import FileEntry
from storage_engine.log.frame import HEADER_BYTES

RETRY_COMMITS = 1_000
"""After a copy that could not be written, this many commits pass before the next attempt."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPolicy:
    """When copies are written.

    commits, log_bytes   since the last checkpoint: whichever comes first
    rows                 changes of a bucket since its last key snapshot, while the store runs; more for a large bucket, so that
                         the copies stay a part of what is written: an eighth of its keys (20 M keys: 2.5 M changes)
    rows_at_close        the same when the store is closed: fewer are replayed faster than a file is read
    is_inline            copies are written by the commit that makes them due, not by a thread beside it: a simulation repeats itself
    """

    commits: int = 20_000
    log_bytes: int = 256 * 1024 * 1024
    rows: int = 1_000_000
    rows_at_close: int = 100_000
    is_inline: bool = False


class Checkpointer:
    """Writes the checkpoint and the key snapshots of one store."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        log: CommitLog,
        state: StoreState,
        buckets: Buckets,
        snapshots: KeySnapshots,
        writer: threading.RLock,  # type: ignore[valid-type]  # a factory in typeshed of 3.11
        policy: CheckpointPolicy,
        *,
        version: int,
        position: int,
    ) -> None:
        """`version` and `position` are those of the checkpoint on disk, or 0."""
        self._disk = disk
        self._directory = directory
        self._log = log
        self._state = state
        self._buckets = buckets
        self._snapshots = snapshots
        self._writer = writer
        self._policy = policy
        self._version = version
        self._position = position
        self.copying = threading.Lock()
        """Held from the moment that a copy shows until it is on disk: whoever takes rows out of derived state takes it first."""
        self._not_before = 0
        self._wake = threading.Condition()
        self._is_asked = False
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def rebind(self, log: CommitLog, state: StoreState, buckets: Buckets, snapshots: KeySnapshots, *, version: int, position: int) -> None:
        """The store went back to what is durable: follow its new log and state. The caller holds the writer's lock."""
        self._log, self._state, self._buckets, self._snapshots = log, state, buckets, snapshots
        self._version, self._position = version, position

    def after_commit(self, changed: Iterable[Bucket]) -> None:
        """Wake the thread when a copy is due. The caller holds the writer's lock; `changed` are buckets with a key index."""
        if self._state.version < self._not_before:
            return
        due = [bucket for bucket in changed if self._n_uncovered(bucket) >= self._rows_max(bucket)]
        policy = self._policy
        if not due and self._state.version - self._version < policy.commits and self._log.end - self._position < policy.log_bytes:
            return
        self.ask()

    def ask(self) -> None:
        """Copies are due: wake the thread now."""
        if self._policy.is_inline:
            self._write_copies()
            return
        with self._wake:
            if self._is_closing:
                return
            self._is_asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flashlake-checkpoint", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def stop(self) -> None:
        """End the thread after the copy under way. The caller must not hold the writer's lock."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def write_last(self) -> None:
        """What a closing store leaves for the next start; the caller holds the writer's lock and has called stop()."""
        self._log.sync()
        self._save_snapshots(lambda _: self._policy.rows_at_close)
        if self._state.version > self._version or self._log.end - self._position > HEADER_BYTES:  # a seal is not worth a copy
            self._save_checkpoint()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_asked or self._is_closing)
                if self._is_closing:
                    return
                self._is_asked = False
            self._write_copies()

    def _write_copies(self) -> None:
        self._save_snapshots(self._rows_max)
        self.save_checkpoint()

    def _rows_max(self, bucket: Bucket) -> int:
        return max(self._policy.rows, bucket.kv.n_keys // 8 if bucket.kv else 0)

    def _n_uncovered(self, bucket: Bucket) -> int:
        frames, covered = bucket.frames, self._snapshots.covered_offset(bucket.id)
        if covered >= frames.start_offset:
            return frames.end_offset - covered
        return int(frames.entries["n_rows"].sum())  # below the log's start not every offset has a row

    def _save_snapshots(self, rows_max: Callable[[Bucket], int]) -> None:
        for bucket in self._buckets.built():
            with self.copying:
                with self._writer:
                    covered = covered_by(bucket.frames)
                    if bucket.kv is None or covered is None or self._n_uncovered(bucket) < rows_max(bucket):
                        continue
                    keys = bucket.kv.snapshot()
                    log, end, snapshots = self._log, self._log.end, self._snapshots  # those that have the rows: a store may go back
                try:
                    log.sync(end)
                    snapshots.save(bucket.id, covered, keys)
                except (OSError, RetriableError) as error:
                    _logger.warning("the key index of bucket %s could not be stored: %s", bucket.id, error)
                    self._not_before = self._state.version + RETRY_COMMITS
        with self._writer:
            live, snapshots = self._buckets.ids(), self._snapshots
        try:
            snapshots.keep(live)
        except OSError as error:
            _logger.warning("old key snapshots could not be removed: %s", error)

    def save_checkpoint(self) -> int:
        """Write the checkpoint of now; the position below which no start reads the log any more. The caller holds no lock."""
        with self.copying:
            self._save_checkpoint()
            return self._position

    def _save_checkpoint(self) -> None:
        with self._writer:
            version, position = self._state.version, self._log.end
            self._state.files = file_entries(self._log)
            encoded = checkpoint.encode(self._state, self._buckets.index, position)
            log = self._log
        try:
            log.sync(position)
            checkpoint.write(self._disk, self._directory, encoded)
        except (OSError, WriteFailed) as error:
            _logger.warning("the checkpoint could not be written: %s", error)
            self._not_before = self._state.version + RETRY_COMMITS
            return
        with self._writer:
            if self._log is log:
                self._version, self._position = version, int(position)


def file_entries(log: CommitLog, *, with_last: bool = False) -> list[FileEntry]:
    """The finished files of a log; `with_last`: and the last one as it is now."""
    return [FileEntry(file.start, file.stop or int(log.end)) for file in log.files if file.stop is not None or with_last]
