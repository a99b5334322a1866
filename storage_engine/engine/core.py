"""Core: log, state and buckets of one open store: how they are recovered, changed by commits, made durable, and mended after a failure.

Owner: engine/embedded.py, which is the Backend over it. It owns the directory lock, the checkpointer and the key budget.
State: `log`, `state` and `buckets` are replaced when the store goes back: ask for them at each call, keep them in none (docs/adr/0017).
Holds: one writer at a time plans, writes and publishes; a caller is answered after the sync. Under sync = commit a reader is answered
       only with what is durable, or waits until it is: shown(), or unsettled() and settle().
Threads: `writer` is held while a commit is planned, written and published; `readers` only while state or indexes change.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from storage_engine.api import CommitRequest, CommitResult
from storage_engine.engine import checkpoint
from storage_engine.engine.backup import Pinned
from storage_engine.engine.checkpointer import Checkpointer, CheckpointPolicy, file_entries
from storage_engine.engine.consumers import EXPIRATION_MS
from storage_engine.engine.key_budget import BYTES_MAX, KeyBudget
from storage_engine.engine.partitions import PARTITIONS_MAX
from storage_engine.engine.recovery import Recovered
from storage_engine.engine.state import CommitRecord, TableState
from storage_engine.engine.transaction import Transaction
from storage_engine.engine.visibility import Visibility
from storage_engine.errors import DamagedFrame, OutOfOrderSequence, StoreUnavailable, WriteFailed, unknown_table
from storage_engine.log.commit_log import FILE_BYTES_MAX, CommitLog, LogPosition
from storage_engine.log.disk import DirectoryLock, Disk

SyncMode = Literal["commit", "none"]
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a store is opened; EmbeddedBackend.open() says what each means."""

    sync: SyncMode = "commit"
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    partitions_max: int = PARTITIONS_MAX
    consumer_expiration_ms: int = EXPIRATION_MS
    key_memory_bytes_max: int = BYTES_MAX
    log_file_bytes_max: int = FILE_BYTES_MAX


class Written(NamedTuple):
    """Where a commit ends, in the log that it was written to: a store that goes back has another one."""

    log: CommitLog
    end: LogPosition


class Core:
    """See the module."""

    def __init__(self, directory: Path, disk: Disk, now_ms: Callable[[], int], settings: Settings) -> None:
        self.url = f"file://{directory}"
        self.directory = directory
        self.disk = disk
        self.settings = settings
        self.writer = threading.RLock()
        self.readers = threading.RLock()
        self.changed = threading.Condition(self.readers)
        self.is_closed = False
        self.now_ms = now_ms
        self._awaits_sync = settings.sync == "commit"
        self._is_going_back = False
        self.lock: DirectoryLock | None = None
        try:
            disk.make_directory(directory)
            self.lock = disk.lock(directory / "LOCK")
            disk.sync_directory(directory.parent)  # the process that made the directory may have died before it did
            self.budget = KeyBudget(disk, directory, settings.key_memory_bytes_max, self.writer)
            found = self._recover(None)
            self.checkpointer = Checkpointer(
                disk, directory, found.log, found.state, found.buckets, found.snapshots, self.writer, settings.checkpoints,
                version=found.version, position=found.position,
            )  # fmt: skip
        except OSError as error:
            self._release()
            next_step = "Free space or repair the disk, then open it again; what was acknowledged is safe."
            raise StoreUnavailable(f"the disk refused to open the store: {error}", where=str(directory), next_step=next_step) from error
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _recover(self, upto: LogPosition | None) -> Recovered:
        found = Recovered(self.disk, self.directory, self.settings.log_file_bytes_max, self.budget, upto)
        self._found = found
        self.log, self.state, self.buckets, self.snapshots = found.log, found.state, found.buckets, found.snapshots
        self.seen = Visibility(self.state.version, self.log.end)
        return found

    def mend(self, log: CommitLog) -> None:
        """After a failed write or sync of `log`: write again what is not durable; else, under sync = commit, go back to what is.

        No error: where the disk refuses both, the log has failed still (the store is as it is, reads go on), and the next write comes here.
        Nobody reads bytes that are cut off: whoever reads rows that are not durable yet holds one of the two locks.
        """
        with self.writer, self.readers:
            if self.log is not log or not log.has_failed or self.is_closed:
                return
            log.await_sync()  # one that began before the failure may still make commits durable
            if not self._is_going_back:
                try:
                    log.mend()
                    _logger.warning("the log was written and synced again after a failure; nothing is lost")
                    return
                except (OSError, DamagedFrame) as error:
                    _logger.warning("the log cannot be written: %s", error)
            if not self._awaits_sync or log.durable == log.end:
                return
            self._is_going_back = True  # a caller is told now: what is not durable must not turn up in this process any more
            self.budget.forget()
            try:
                found = self._recover(log.durable)
            except (OSError, DamagedFrame) as error:
                _logger.warning("the store cannot go back to what is durable: %s", error)
                self.budget.forget()
                for bucket in self.buckets.built():
                    self.budget.weigh(bucket)
                return
            self.checkpointer.rebind(found.log, found.state, found.buckets, found.snapshots, version=found.version, position=found.position)
            self._is_going_back = False
            _logger.warning("the store went back to version %d, which is durable", self.state.version)
            log.retire()
            self.changed.notify_all()

    # commits

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock of an open store, whose state is then that of its log: what is planned from it may be committed."""
        with self.writer:
            self.require_open()
            if self.log.has_failed:
                self.mend(self.log)
            yield

    def begin_commit(self, request: CommitRequest) -> tuple[CommitResult, Written]:
        """A commit up to where it may be acknowledged: after await_durable(). Errors: as EmbeddedBackend.commit()."""
        with self.writing():
            write = request.write_id
            if write is not None:
                newest = self.state.newest_write(write.writer)
                if newest is not None and write.sequence <= newest[0]:
                    return CommitResult(newest[1], is_duplicate=True), Written(self.log, self.log.end)
                last = newest[0] if newest else 0
                if write.after is not None and write.after != last:
                    what = f"commit {write.sequence} was sent behind {write.after}, the newest of its writer here is {last}"
                    next_step = "Send all again from the first commit without an answer."
                    raise OutOfOrderSequence(what, where=f"writer {write.writer}", next_step=next_step, last=last)
            return self.write(request, [])

    def change(self, changes: list[dict[str, Any]], new_partitions: Sequence[tuple[int, str]] = ()) -> None:
        """Commit catalog changes and return when they are durable. The caller is writing()."""
        self.await_durable(self.write(CommitRequest(), changes, new_partitions)[1])

    def write(
        self,
        request: CommitRequest,
        changes: list[dict[str, Any]],
        new_partitions: Sequence[tuple[int, str]] = (),
        plan: Callable[[Transaction], object] | None = None,
    ) -> tuple[CommitResult, Written]:
        """Plan, write, publish. The caller is writing(); the commit is durable after await_durable().

        new_partitions  (table id, name) of partitions created without rows; only in a commit without operations
        plan  what else belongs to the transaction
        """
        record = CommitRecord(self.state.version + 1, self.clock_ms(), changes=changes)
        if request.write_id is not None:
            record.write = (request.write_id.writer, request.write_id.sequence)
        record.partitions = [(*new, self.state.next_partition_id + i) for i, new in enumerate(new_partitions)]
        transaction = Transaction(self.state, self.buckets, record, self.buckets.counters, self.settings.partitions_max)
        try:
            for progress in request.progress:
                transaction.add_progress(progress)
            for op in request.ops:
                transaction.add(op)
            if plan is not None:
                plan(transaction)
            transaction.finish()
            if not (transaction.frames or record.progress or record.changes or record.partitions or record.late_rows):
                transaction.void()
                if record.write is not None:
                    self.state.idle_writes[record.write[0]] = (record.write[1], self.state.version, record.timestamp_ms)
                return CommitResult(self.state.version), Written(self.log, self.log.end)
            appended = self.log.append(transaction.frames, record.encode(), record.timestamp_ms)
        except WriteFailed as error:
            transaction.void()
            self.mend(self.log)
            error.is_absent = error.is_absent or not self.log.has_failed
            raise
        except BaseException:
            transaction.void()
            raise
        with self.changed:
            located = [(frame.header, at) for frame, at in zip(transaction.frames, appended.locations, strict=True)]
            self._found.publish(record, located)
            transaction.commit()
            touched = {frame.header.table_id for frame in transaction.frames} | {table_id for table_id, _, _ in record.partitions}
            self.seen.published(record, touched | record.late_rows.keys(), appended.end, awaits_sync=self._awaits_sync)
            if not self._awaits_sync:
                self.changed.notify_all()
        written = Written(self.log, appended.end)
        self.checkpointer.after_commit(bucket for bucket, _ in transaction.changed)
        return CommitResult(record.version, n_late_rows=sum(record.late_rows.values())), written

    def is_durable(self, written: Written) -> bool:
        """True when a commit that ends there may be acknowledged at once."""
        if not self._awaits_sync:
            return True
        if written.log.durable < written.end:
            return False
        self._tell()
        return True

    def await_durable(self, written: Written) -> None:
        """Return when what ends there is durable, as far as the store promises it. Errors: WriteFailed."""
        if not self._awaits_sync:
            return
        log, end = written
        try:
            log.sync(end)
        except WriteFailed as error:
            self.mend(log)
            if log.durable < end:
                is_absent = self.log is not log and not self.log.has_failed
                outcome = "it was taken back" if is_absent else "whether it is there shows at the next write or start"
                what = f"the commit could not be made durable, {outcome}: {error.what}"
                raise WriteFailed(what, where=error.where, next_step=error.next_step, is_absent=is_absent) from error
        self._tell()

    def _tell(self) -> None:
        """Readers that wait for a version learn of what is durable."""
        with self.changed:
            self.durable_version()
            self.changed.notify_all()

    # readers

    def durable_version(self) -> int:
        """The version of the last commit that readers may know of. The caller holds `readers`."""
        return self.seen.version(self.log.durable)

    def shown(self, plan: Callable[[], _T], newest: Callable[[], int]) -> _T:
        """What `plan` answers under the readers' lock, returned once all of it is durable: a reader may act on what it saw.

        newest   the position after the newest commit that `plan` may have seen something of: later ones are not waited for
        Errors: StoreUnavailable when what was seen cannot be made durable, nor taken back.
        """
        while True:
            with self.readers:
                found = plan()
                waits_for = self.unsettled(newest)
            if waits_for is None or self.settle(waits_for):
                return found

    def unsettled(self, newest: Callable[[], int]) -> Written | None:
        """What an answer has to wait for that was found under the readers' lock, which the caller still holds; None: nothing."""
        log = self.log
        if not self._awaits_sync or log.durable >= log.end:
            return None
        end = LogPosition(newest())
        return None if log.durable >= end else Written(log, end)

    def settle(self, waits_for: Written) -> bool:
        """Wait until an answer may leave; False when it must be found anew, because the store went back. Errors: StoreUnavailable."""
        log, end = waits_for
        try:
            log.sync(end)
        except WriteFailed as error:
            self.mend(log)
            if log.durable < end and self.log is log:
                what = f"rows asked for are not durable: {error.what}"
                raise StoreUnavailable(what, where=self.url, next_step="Repair the disk, then ask again.") from error
            return log.durable >= end
        return True

    def end_of(self, table: str) -> int:
        """The position after the newest commit that touched a table, or the catalog."""
        return self.seen.end_of(self.table(table).descriptor.table_id)

    def table(self, name: str) -> TableState:
        table = self.state.tables.get(name)
        if table is None:
            raise unknown_table(name, self.state.tables)
        return table

    def clock_ms(self) -> int:
        """The time of a commit made now: the clock, which never goes back in the log."""
        return max(self.now_ms(), self.state.timestamp_ms)

    def require_open(self) -> None:
        if self.is_closed:
            raise WriteFailed("the store is closed", where=self.url, next_step="Connect again.")

    # copies and the end

    def pinned(self) -> Pinned:
        """The store as it is now, durable. Errors: WriteFailed."""
        with self.writer:
            self.require_open()
            log, version, end = self.log, self.state.version, self.log.end
            self.state.files = file_entries(log)
            encoded = checkpoint.encode(self.state, self.buckets.index, end)
            files = file_entries(log, with_last=True)
        try:
            log.sync(end)
        except WriteFailed:
            self.mend(log)
            if log.durable < end:
                raise
        return Pinned(version, int(end), encoded, files)

    def close(self) -> None:
        """See EmbeddedBackend.close(); background tasks have been stopped."""
        self.checkpointer.stop()
        self.budget.stop()
        with self.writer, self.changed:
            if self.is_closed:
                return
            self.mend(self.log)
            self.is_closed = True
            self.changed.notify_all()
            try:
                self.checkpointer.write_last()
            except WriteFailed as error:
                if not self._awaits_sync:
                    raise
                _logger.warning("closed without a checkpoint: %s", error)  # all that was acknowledged is durable
            finally:
                try:
                    self.budget.clear()
                    self.log.close()
                finally:
                    self._release()
