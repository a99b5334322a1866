"""Embedded backend: the store in this process. It owns the directory, and every change goes through its commit().

Owner of: the directory lock, the commit log, the state and the buckets.
State: all derived from the log; a checkpoint only shortens the replay (engine/checkpoint.py).
Holds: one writer at a time plans, writes and publishes; readers see whole commits; a caller is answered after the sync. Under
       sync = commit a reader is answered only with what is durable, or waits until it is (docs/adr/0017).
       After a failed write or sync the store goes on by itself: the log is mended, or log, state and buckets go back to what is durable.
Threads: `_writer` is held while a commit is planned, written and published; `_readers` only while state or indexes change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import CAPABILITIES, BackupInfo, CommitInfo, CommitRequest, CommitResult, FetchedFrame, Progress, WriteOp
from storage_engine.engine import catalog, checkpoint, reads
from storage_engine.engine.backup import Pinned, write_backup
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.checkpointer import Checkpointer, CheckpointPolicy
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.maintenance import Maintenance
from storage_engine.engine.state import CommitRecord, StoreState, TableState
from storage_engine.engine.transaction import Transaction
from storage_engine.engine.visibility import Visibility
from storage_engine.errors import (
    AlreadyExists,
    DamagedFrame,
    DamageError,
    InvalidPartition,
    OffsetOutOfRange,
    StoreUnavailable,
    WriteFailed,
    unknown_table,
)
from storage_engine.log.commit_log import FILE_BYTES_MAX, CommitLog, FrameLocation, LogPosition
from storage_engine.log.disk import DirectoryLock, Disk
from storage_engine.log.frame import FrameHeader
from storage_engine.log.frame_index import BucketId, FrameIndex
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor

SyncMode = Literal["commit", "none"]
CACHE_BYTES_MAX = 128 * 1024 * 1024
CHECKPOINTS = CheckpointPolicy()
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class EmbeddedBackend:
    """A store directory, opened by this process."""

    capabilities = CAPABILITIES

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        sync: SyncMode,
        now_ms: Callable[[], int],
        checkpoints: CheckpointPolicy = CHECKPOINTS,
        log_file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        self.url = f"file://{directory}"
        self.directory = directory
        self._disk = disk
        self._sync: SyncMode = sync
        self._now_ms = now_ms
        self._writer = threading.RLock()
        self._readers = threading.RLock()
        self._changed = threading.Condition(self._readers)
        self._is_closed = False
        self.maintenance = Maintenance(now_ms)
        self._policy = checkpoints
        self._file_bytes_max = log_file_bytes_max
        self._is_going_back = False
        self._lock: DirectoryLock | None = None
        try:
            disk.make_directory(directory)
            self._lock = disk.lock(directory / "LOCK")
            disk.sync_directory(directory.parent)  # the process that made the directory may have died before it did
            self._recover(None)
        except OSError as error:
            self._release()
            next_step = "Free space or repair the disk, then open it again; what was acknowledged is safe."
            raise StoreUnavailable(f"the disk refused to open the store: {error}", where=str(directory), next_step=next_step) from error
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        sync: SyncMode = "commit",
        disk: Disk | None = None,
        now_ms: Callable[[], int] = _now_ms,
        checkpoints: CheckpointPolicy = CHECKPOINTS,
        maintenance: bool = True,
        log_file_bytes_max: int = FILE_BYTES_MAX,
    ) -> EmbeddedBackend:
        """Open or create the store in `directory`.

        checkpoints  how much a start after a crash may have to replay
        maintenance  run the background tasks; False: only when maintenance.run_once() is called
        sync     "commit": acknowledged after fdatasync (survives power loss). "none": after the write (survives kill -9).
        log_file_bytes_max  a log file that would grow beyond it is followed by a new one
        Errors:  StoreLocked; StoreUnavailable; DamagedFrame; UnsupportedFormatVersion.
        """
        backend = cls(Path(directory).absolute(), disk or Disk(), sync, now_ms, checkpoints, log_file_bytes_max)
        if maintenance:
            backend.maintenance.start()
        return backend

    # recovery

    def _recover(self, upto: LogPosition | None) -> None:
        """Log, state and buckets from the directory; `upto`: what lies behind it is not durable, and given up."""
        loaded = checkpoint.load(self._disk, self.directory)
        self._state = state = loaded.state if loaded else StoreState()
        start = loaded.position if loaded else None
        self._log = CommitLog.open(self._disk, self.directory, start=start, file_bytes_max=self._file_bytes_max)
        index = loaded.frames if loaded else FrameIndex()
        snapshots = KeySnapshots(self._disk, self.directory)
        self._buckets = Buckets(self._log, index, CACHE_BYTES_MAX, state.by_id, snapshots)
        for table_id in self._state.names:
            for bucket_id, _ in index.buckets(table_id):
                self._buckets.get_or_create(bucket_id, self._state.partition_names[bucket_id.partition_id])
        version, position = (self._state.version, int(loaded.position)) if loaded else (0, 0)
        for commit in self._log.recover(upto):
            self._publish(CommitRecord.decode(commit.record), commit.frames)
        self._seen = Visibility(self._state.version, self._log.end)
        if upto is None:
            self._checkpointer = Checkpointer(
                self._disk, self.directory, self._log, self._state, self._buckets, snapshots, self._writer, self._policy,
                version=version, position=position,
            )  # fmt: skip
        else:
            self._checkpointer.rebind(self._log, self._state, self._buckets, snapshots, version=version, position=position)

    def _mend(self, log: CommitLog) -> None:
        """After a failed write or sync of `log`: write again what is not durable; else, under sync = commit, go back to what is.

        No error: where the disk refuses both, the log has failed still (the store is as it is, reads go on), and the next write comes here.
        Nobody reads bytes that are cut off: whoever reads rows that are not durable yet holds one of the two locks.
        """
        with self._writer, self._readers:
            if self._log is not log or not log.has_failed or self._is_closed:
                return
            if not self._is_going_back:
                try:
                    log.mend()
                    _logger.warning("the log was written and synced again after a failure; nothing is lost")
                    return
                except (OSError, DamagedFrame) as error:
                    _logger.warning("the log cannot be written: %s", error)
            if self._sync == "none" or log.durable == log.end:
                return
            self._is_going_back = True  # a caller is told now: what is not durable must not turn up in this process any more
            before = (self._state, self._log, self._buckets)
            try:
                self._recover(log.durable)
            except (OSError, DamagedFrame) as error:
                _logger.warning("the store cannot go back to what is durable: %s", error)
                self._state, self._log, self._buckets = before
                return
            self._is_going_back = False
            _logger.warning("the store went back to version %d, which is durable", self._state.version)
            log.retire()
            self._changed.notify_all()

    def _publish(self, record: CommitRecord, frames: Sequence[tuple[FrameHeader, FrameLocation]]) -> None:
        """Make a written commit visible: state, then frames. Key indexes follow separately."""
        self._state.apply(record)
        for change in record.changes:
            if change["op"] == "drop_table":
                self._buckets.drop(table_id=change["table_id"])
            elif change["op"] == "alter_table":
                self._buckets.alter(self._state.tables[change["table"]["name"]])
            elif change["op"] == "drop_partition":
                self._buckets.drop(table_id=change["table_id"], partition_id=change["partition_id"])
        for header, location in frames:
            table = self._state.by_id(header.table_id)
            if table is None or header.partition_id not in self._state.partition_names:
                continue
            bucket_id = BucketId(header.table_id, header.partition_id, header.bucket)
            self._buckets.get_or_create(bucket_id, self._state.partition_names[header.partition_id])
            self._buckets.index.add(header, location, record.version)

    # commits

    def commit(self, request: CommitRequest) -> CommitResult:
        """One transaction. Errors: every UserError leaves the store untouched; WriteFailed too, unless it says that a sync failed."""
        with self._writer:
            self._require_open()
            if request.write_id is not None:
                last = self._state.writers.get(request.write_id.writer)
                if last is not None and request.write_id.sequence <= last[0]:
                    self._await_durable(self._log, self._log.end)
                    return CommitResult(last[1], is_duplicate=True)
            version, log, end = self._commit(request, [])
        self._await_durable(log, end)
        return CommitResult(version)

    def _change_catalog(self, changes: list[dict[str, Any]]) -> None:
        _, log, end = self._commit(CommitRequest(), changes)
        self._await_durable(log, end)

    def _commit(self, request: CommitRequest, changes: list[dict[str, Any]]) -> tuple[int, CommitLog, LogPosition]:
        """Plan, write, publish. The caller holds `_writer`; the commit is durable after a sync of the returned log and position."""
        if self._log.has_failed:
            self._mend(self._log)
        record = CommitRecord(self._state.version + 1, max(self._now_ms(), self._state.timestamp_ms), changes=changes)
        if request.write_id is not None:
            record.write = (request.write_id.writer, request.write_id.sequence)
        transaction = Transaction(self._state, self._buckets, record, self._buckets.counters)
        try:
            for progress in request.progress:
                transaction.add_progress(progress)
            for op in request.ops:
                transaction.add(op)
            transaction.finish()
            if not (transaction.frames or record.progress or record.changes):
                transaction.void()
                return self._state.version, self._log, self._log.end
            appended = self._log.append(transaction.frames, record.encode(), record.timestamp_ms)
        except WriteFailed as error:
            transaction.void()
            self._mend(self._log)
            error.is_absent = error.is_absent or not self._log.has_failed
            raise
        except BaseException:
            transaction.void()
            raise
        with self._changed:
            self._publish(record, [(frame.header, at) for frame, at in zip(transaction.frames, appended.locations, strict=True)])
            transaction.commit()
            tables = (frame.header.table_id for frame in transaction.frames)
            self._seen.published(record, tables, appended.end, awaits_sync=self._sync == "commit")
            if self._sync != "commit":
                self._changed.notify_all()
        log = self._log
        self._checkpointer.after_commit(bucket for bucket, _ in transaction.changed)
        return record.version, log, appended.end

    def _await_durable(self, log: CommitLog, end: LogPosition) -> None:
        """Return when the commit that ends at `end` of `log` is durable, as far as the store promises it. Errors: WriteFailed."""
        if self._sync != "commit":
            return
        try:
            log.sync(end)
        except WriteFailed as error:
            self._mend(log)
            if log.durable < end:
                is_absent = self._log is not log and not self._log.has_failed
                outcome = "it was taken back" if is_absent else "whether it is there shows at the next write or start"
                what = f"the commit could not be made durable, {outcome}: {error.what}"
                raise WriteFailed(what, where=error.where, next_step=error.next_step, is_absent=is_absent) from error
        with self._changed:
            self._durable_version()
            self._changed.notify_all()

    def _durable_version(self) -> int:
        """The version of the last commit that readers may know of. The caller holds `_readers`."""
        return self._seen.version(self._log.durable)

    def _shown(self, plan: Callable[[], _T], newest: Callable[[], int]) -> _T:
        """What `plan` answers under the readers' lock, returned once all of it is durable: a reader may act on what it saw.

        newest   the position after the newest commit that `plan` may have seen something of: later ones are not waited for
        Errors: StoreUnavailable when what was seen cannot be made durable, nor taken back.
        """
        while True:
            with self._readers:
                found = plan()
                log = self._log
                if self._sync == "none" or log.durable >= log.end:
                    return found
                end = LogPosition(newest())
            if log.durable >= end:
                return found
            try:
                log.sync(end)
                return found
            except WriteFailed as error:
                self._mend(log)
                if log.durable >= end:
                    return found
                if self._log is log:
                    raise StoreUnavailable(
                        f"rows asked for are not durable: {error.what}", where=self.url, next_step="Repair the disk, then ask again."
                    ) from error

    def _require_open(self) -> None:
        if self._is_closed:
            raise WriteFailed("the store is closed", where=self.url, next_step="Connect again.")

    # catalog

    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool) -> TableDescriptor:
        with self._writer:
            self._require_open()
            existing = self._state.tables.get(descriptor.name)
            if existing is not None:
                if if_not_exists:
                    return existing.descriptor
                raise AlreadyExists(
                    f"table {descriptor.name} exists", where="catalog", next_step="Write CREATE TABLE IF NOT EXISTS, or drop it first."
                )
            created = catalog.created(descriptor, self._state.next_table_id)
            self._change_catalog([{"op": "create_table", "table": created.to_json()}])
            return created

    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor:
        with self._writer:
            self._require_open()
            altered = catalog.altered(self._table(descriptor.name).descriptor, descriptor)
            self._change_catalog([{"op": "alter_table", "table": altered.to_json()}])
            return altered

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        with self._writer:
            self._require_open()
            if if_exists and name not in self._state.tables:
                return
            table = self._table(name)
            self._change_catalog([{"op": "drop_table", "name": name, "table_id": table.descriptor.table_id}])

    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None:
        with self._writer:
            self._require_open()
            state = self._table(table)
            partition_id = state.partitions.get(partition)
            if partition_id is None:
                if if_exists:
                    return
                raise InvalidPartition(
                    f"{table} has no partition {partition!r}", where=table, next_step=f"Its partitions are {sorted(state.partitions)[:20]}."
                )
            change = {"op": "drop_partition", "table": table, "partition": partition}
            self._change_catalog([{**change, "table_id": state.descriptor.table_id, "partition_id": partition_id}])

    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:
        with self._writer:
            self._require_open()
            self._change_catalog([{"op": "put_object", "kind": kind, "name": name, "value": None if value is None else dict(value)}])

    def tables(self) -> list[TableDescriptor]:
        return self._shown(lambda: [table.descriptor for table in self._state.tables.values()], lambda: self._seen.catalog_end)

    def partitions(self, table: str) -> list[str]:
        return self._shown(lambda: sorted(self._table(table).partitions), lambda: self._end_of(table))

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        return self._shown(lambda: dict(self._state.objects.get(kind, {})), lambda: self._seen.catalog_end)

    def _end_of(self, table: str) -> int:
        """The position after the newest commit that touched a table, or the catalog."""
        return self._seen.end_of(self._table(table).descriptor.table_id)

    def _table(self, name: str) -> TableState:
        table = self._state.tables.get(name)
        if table is None:
            raise unknown_table(name, self._state.tables)
        return table

    # the journal

    def version(self) -> int:
        with self._readers:
            return self._durable_version()

    def await_version(self, after: int, timeout_s: float) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._durable_version() > after or self._is_closed, timeout_s)
            return self._durable_version()

    def commits(self, after: int, limit: int) -> list[CommitInfo]:
        with self._readers:
            newest = self._durable_version()
            return [commit for commit in reads.commits(self._state, self._buckets, after, limit) if commit.version <= newest]

    def progress(self, owner_prefix: str) -> dict[str, Progress]:
        return self._shown(
            lambda: {owner: item for owner, item in self._state.progress.items() if owner.startswith(owner_prefix)},
            lambda: self._seen.progress_end,
        )

    # reads

    def offsets(self, table: str, which: Literal["earliest", "latest"], at_version: int | None = None) -> Offsets:
        with self._readers:
            self._require_version(table, at_version)
            if self._seen.has_unsynced and at_version is None:
                at_version = self._durable_version()
            return reads.offsets(self._buckets, self._table(table), which, at_version)

    def fetch(self, table: str, ranges: Mapping[TableBucket, tuple[int, int]], columns: Sequence[str] | None) -> Iterator[FetchedFrame]:
        def plan() -> tuple[CommitLog, TableState, list[reads.FetchStep]]:
            state = self._table(table)
            return self._log, state, reads.plan_fetch(self._buckets, state, ranges)

        return reads.fetch(*self._shown(plan, lambda: self._end_of(table)), columns)

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        found = self._shown(lambda: reads.lookup(self._buckets, self._table(table), keys, columns), lambda: self._end_of(table))
        if not insert_if_not_exists or pc.all(found["_found"], min_count=0).as_py():
            return found
        with self._writer:
            with self._readers:
                found = reads.lookup(self._buckets, self._table(table), keys, columns)
                missing = reads.missing_keys(self._table(table), keys, found)
            if missing.num_rows:
                op = WriteOp(table, "upsert", missing, tuple(missing.column_names))
                _, log, end = self._commit(CommitRequest((op,)), [])
            else:
                log, end = self._log, self._log.end
            unreadable: DamageError | None = None
            try:
                with self._readers:
                    found = reads.lookup(self._buckets, self._table(table), keys, columns)
            except DamageError as error:
                unreadable = error
        self._await_durable(log, end)
        if unreadable is not None:
            raise unreadable  # the rows are there, and durable
        return found

    def prefix_lookup(self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None) -> pa.Table:
        return self._shown(
            lambda: reads.prefix_lookup(self._buckets, self._table(table), prefixes, columns, limit), lambda: self._end_of(table)
        )

    def read(self, table: str, columns: Sequence[str] | None, partitions: Sequence[str] | None, at_version: int | None) -> pa.Table:
        def plan() -> tuple[Buckets, TableState, list[tuple[Bucket, np.ndarray]]]:
            state = self._table(table)
            self._require_version(table, at_version)
            return self._buckets, state, reads.plan_read(self._buckets, state, partitions, at_version)

        return reads.read(*self._shown(plan, lambda: self._end_of(table)), columns)

    def count(self, table: str) -> int:
        return self._shown(lambda: reads.count(self._buckets, self._table(table)), lambda: self._end_of(table))

    # copies

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        """Copy the store as it is now to a new directory; writers wait only while the moment is taken.

        links   hard links for finished log files where possible; False: copies of everything
        Errors: AlreadyExists; UserError; WriteFailed.
        """
        with self._writer:
            self._require_open()
            log, version, end = self._log, self._state.version, self._log.end
            encoded = checkpoint.encode(self._state, self._buckets.index, end)
        try:
            log.sync(end)
        except WriteFailed:
            self._mend(log)
            if log.durable < end:
                raise
        return write_backup(self._disk, self.directory, Path(target), Pinned(version, int(end), encoded), links=links)

    def _require_version(self, table: str, at_version: int | None) -> None:
        if at_version is not None and at_version > self._durable_version():
            raise OffsetOutOfRange(
                f"version {at_version} is asked for, the store is at {self._durable_version()}",
                where=table,
                next_step="Wait for it with await_version, or read an older version.",
            )

    def close(self) -> None:
        """Write a checkpoint, make everything durable and give the directory free; a second call does nothing.

        Errors: WriteFailed when something acknowledged under sync = none could not be made durable; the directory is free then, too.
        """
        self.maintenance.stop()
        self._checkpointer.stop()
        with self._writer, self._changed:
            if self._is_closed:
                return
            self._mend(self._log)
            self._is_closed = True
            self._changed.notify_all()
            try:
                self._checkpointer.write_last()
            except WriteFailed as error:
                if self._sync == "none":
                    raise
                _logger.warning("closed without a checkpoint: %s", error)  # all that was acknowledged is durable
            finally:
                try:
                    self._log.close()
                finally:
                    self._release()
