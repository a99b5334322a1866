"""Embedded backend: the store in this process. It owns the directory, and every change goes through its commit().

Owner of: the directory lock, the commit log, the state and the buckets.
State: all derived from the log; a checkpoint only shortens the replay (engine/checkpoint.py).
Holds: one writer at a time plans, writes and publishes; readers see whole commits; a caller is answered after the sync.
Threads: `_writer` is held while a commit is planned, written and published; `_readers` only while state or indexes change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import (
    CAPABILITIES,
    BackupInfo,
    CommitInfo,
    CommitRequest,
    CommitResult,
    FetchedFrame,
    Membership,
    OffsetSpec,
    Progress,
    WriteOp,
)
from storage_engine.engine import catalog, checkpoint, key_budget, offset_of, partitions, reads, upkeep
from storage_engine.engine.backup import Pinned, write_backup
from storage_engine.engine.buckets import Buckets
from storage_engine.engine.checkpointer import Checkpointer, CheckpointPolicy, file_entries
from storage_engine.engine.cleaner import Cleaner, CleaningPolicy
from storage_engine.engine.consumers import EXPIRATION_MS, Consumers
from storage_engine.engine.incarnations import raise_if_dropped, require_as_of
from storage_engine.engine.instants import check_instants
from storage_engine.engine.key_budget import KeyBudget, KeyMemory
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.maintenance import Maintenance
from storage_engine.engine.metrics import StoreMetric, collect
from storage_engine.engine.mover import CleaningStats, Mover
from storage_engine.engine.partitions import PARTITIONS_MAX, PartitionKeeper
from storage_engine.engine.point_reads import PointReads
from storage_engine.engine.rescale import ResumeRescale, plan_moves
from storage_engine.engine.schemas import Schemas
from storage_engine.engine.skip_frames import FetchCounts, FetchStep, skip_frames
from storage_engine.engine.state import CommitRecord, StoreState, TableState
from storage_engine.engine.statistics import bucket_statistics
from storage_engine.engine.transaction import Transaction
from storage_engine.errors import AlreadyExists, DamagedFrame, InvalidPartition, OffsetOutOfRange, WriteFailed, unknown_table
from storage_engine.log.commit_log import CommitLog, FrameLocation, LogPosition
from storage_engine.log.disk import Disk
from storage_engine.log.frame import FrameHeader
from storage_engine.log.frame_index import BucketId, FrameIndex
from storage_engine.log.log_file import FrameMoved
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor
from storage_engine.schema.point import LongWay, PointLookup

SyncMode = Literal["commit", "none"]
CACHE_BYTES_MAX = 128 * 1024 * 1024
READ_ATTEMPTS = 3
CHECKPOINTS = CheckpointPolicy()
_POINTS_MAX = 1024
CLEANING = CleaningPolicy()
_logger = logging.getLogger(__name__)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class EmbeddedCommitStream:
    """Commits of this process, acknowledged together by one sync for every `in_flight_max` of them."""

    def __init__(self, backend: EmbeddedBackend, in_flight_max: int) -> None:
        self._backend = backend
        self._in_flight_max = in_flight_max
        self._n_in_flight = 0
        self._end = LogPosition(0)

    def send(self, request: CommitRequest) -> None:
        _, self._end = self._backend.begin_commit(request)
        self._n_in_flight += 1
        if self._n_in_flight >= self._in_flight_max:
            self.finish()

    def n_waiting(self) -> int:
        return 0

    def finish(self) -> None:
        self._n_in_flight = 0
        self._backend.await_durable(self._end)

    def close(self) -> None:
        """Nothing is held."""


class EmbeddedBackend:
    """A store directory, opened by this process."""

    capabilities = CAPABILITIES
    takes_encoded = False

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        sync: SyncMode,
        now_ms: Callable[[], int],
        checkpoints: CheckpointPolicy = CHECKPOINTS,
        partitions_max: int = PARTITIONS_MAX,
        consumer_expiration_ms: int = EXPIRATION_MS,
        key_memory_bytes_max: int = key_budget.BYTES_MAX,
        cleaning: CleaningPolicy = CLEANING,
    ) -> None:
        self.url = f"file://{directory}"
        self.directory = directory
        self._disk = disk
        self._sync: SyncMode = sync
        self._now_ms = now_ms
        self.fetched = FetchCounts()
        self._writer = threading.RLock()
        self._readers = threading.RLock()
        self._changed = threading.Condition(self._readers)
        self._is_closed = False
        self._partitions_max = partitions_max
        self.maintenance = Maintenance(now_ms)
        self._consumers = Consumers(self._writer, lambda: self._state, self._commit_progress, consumer_expiration_ms)
        self.maintenance.add(PartitionKeeper(self._table_states, self._keep_partitions))
        self.maintenance.add(self._consumers)
        self._points: dict[tuple[str, tuple[str, ...] | None], PointReads] = {}
        self.counters: dict[str, float] = {}
        self.debts: dict[str, Callable[[], float]] = {}
        disk.make_directory(directory)
        self._lock = disk.lock(directory / "LOCK")
        try:
            self._budget = KeyBudget(directory, key_memory_bytes_max, self._writer)
            self._recover(checkpoints, cleaning)
        except BaseException:
            self._lock.release()
            raise
        if any(table.bucket_counts for table in self._state.tables.values()):
            self.maintenance.add(ResumeRescale(self._rescale_all))

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        sync: SyncMode = "commit",
        disk: Disk | None = None,
        now_ms: Callable[[], int] = _now_ms,
        checkpoints: CheckpointPolicy = CHECKPOINTS,
        cleaning: CleaningPolicy = CLEANING,
        maintenance: bool = True,
        partitions_max: int = PARTITIONS_MAX,
        consumer_expiration_ms: int = EXPIRATION_MS,
        key_memory_bytes_max: int = key_budget.BYTES_MAX,
    ) -> EmbeddedBackend:
        """Open or create the store in `directory`.

        checkpoints  how much a start after a crash may have to replay
        cleaning     when and in which pieces space is given back
        maintenance  run the background tasks; False: only when maintenance.run_once() is called
        partitions_max  partitions that one table may have
        consumer_expiration_ms  a consumer that has not committed for so long, and has no live member, is forgotten; 0: never
        key_memory_bytes_max  memory for the key indexes of all tables; what is beyond moves to disk, bucket by bucket
        sync     "commit": acknowledged after fdatasync (survives power loss). "none": after the write (survives kill -9).
        Errors:  StoreLocked; DamagedFrame; UnsupportedFormatVersion.
        """
        settings = (checkpoints, partitions_max, consumer_expiration_ms, key_memory_bytes_max, cleaning)
        backend = cls(Path(directory).absolute(), disk or Disk(), sync, now_ms, *settings)
        if maintenance:
            backend.maintenance.start()
        return backend

    # recovery

    def _recover(self, policy: CheckpointPolicy, cleaning: CleaningPolicy) -> None:
        loaded = checkpoint.load(self._disk, self.directory)
        start = loaded.position if loaded else None
        self._log = CommitLog.open(self._disk, self.directory, start=start, begin_file=self._whole_state)
        snapshots = KeySnapshots(self._disk, self.directory)
        self._adopt(loaded.state if loaded else StoreState(), loaded.frames if loaded else FrameIndex(), snapshots)
        version, position = (self._state.version, int(loaded.position)) if loaded else (0, 0)
        is_first = loaded is None
        for commit in self._log.recover():
            record = upkeep.decode(commit.record)
            if isinstance(record, CommitRecord):
                self._publish(record, commit.frames)
            elif not isinstance(record, upkeep.WholeState):
                self._follow(record)
            elif is_first:
                self._adopt(record.state(), record.index(), snapshots)
            else:
                self._require_version_of(record, commit.end)
                self._state.files = record.files
            is_first = False
        if self._state.files is not None:
            self._log.require_files(self._state.files)
            known = {entry.start for entry in self._state.files}
            try:
                self._log.unlink(self._log.release({file.start for file in self._log.files if file.start not in known}))
            except OSError as error:
                _logger.warning("log files that were given up could not be removed: %s", error)
        self._checkpointer = Checkpointer(
            self._disk, self.directory, self._log, self._state, self._buckets, snapshots, self._writer, policy,
            version=version, position=position,
        )  # fmt: skip
        self._cleaner = Cleaner(
            Mover(
                self._log, self._state, self._buckets, snapshots, self._checkpointer, self._writer, self._changed, CleaningStats(),
                cleaning.chunk_bytes, lambda: self.maintenance.is_stopping,
            ),
            cleaning,
        )  # fmt: skip
        self.maintenance.add(self._cleaner)

    def _adopt(self, state: StoreState, index: FrameIndex, snapshots: KeySnapshots) -> None:
        """Begin with what a checkpoint, or the beginning of a log file, says."""
        self._state = state
        self._buckets = Buckets(
            self._log, index, CACHE_BYTES_MAX, lambda table_id: self._state.by_id(table_id), snapshots, self._budget,
            lambda: self._state.log_starts,
        )  # fmt: skip
        for bucket_id, _ in index.all():
            if state.holds(bucket_id):
                self._buckets.get_or_create(bucket_id, state.partition_names[bucket_id.partition_id])

    def _whole_state(self) -> bytes:
        """What a new log file begins with."""
        self._state.files = file_entries(self._log, with_last=True)
        return upkeep.encode_state(self._state, self._buckets.index)

    def _require_version_of(self, record: upkeep.WholeState, end: LogPosition) -> None:
        if record.version != self._state.version:
            raise DamagedFrame(
                f"the log says version {record.version} before position {end}, its commits end at version {self._state.version}",
                where=str(self.directory / "log"),
                next_step="Restore the missing log files from a copy.",
                file=str(self.directory / "log"),
                offset=int(end),
            )

    def _follow(self, record: upkeep.Prepared | upkeep.Moved | upkeep.Expired | upkeep.Removed) -> None:
        upkeep.follow(record, self._state, self._buckets.index)
        if isinstance(record, upkeep.Moved | upkeep.Expired):
            touched = [move.bucket for move in record.moves] if isinstance(record, upkeep.Moved) else [item[0] for item in record.starts]
            for bucket_id in touched:
                if self._state.holds(bucket_id):
                    self._buckets.get_or_create(bucket_id, self._state.partition_names[bucket_id.partition_id])

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
        result, end = self.begin_commit(request)
        self._await_durable(end)
        return result

    def begin_commit(self, request: CommitRequest) -> tuple[CommitResult, LogPosition]:
        """commit() up to where its result may be acknowledged: that is after await_durable() of the position. Errors: as commit()."""
        with self._writer:
            self._require_open()
            if request.write_id is not None:
                last = self._state.writers.get(request.write_id.writer)
                if last is not None and request.write_id.sequence <= last[0]:
                    return CommitResult(last[1], is_duplicate=True), self._log.end
            return self._commit(request, [])

    def is_durable(self, position: LogPosition) -> bool:
        """True when a commit that ends there may be acknowledged at once."""
        return self._sync != "commit" or self._log.durable >= position

    def await_durable(self, position: LogPosition) -> None:
        """Return when every commit that ends at or before a position may be acknowledged. Errors: WriteFailed."""
        self._await_durable(position)

    def commit_stream(self, in_flight_max: int) -> EmbeddedCommitStream:
        """Commits that share a sync."""
        return EmbeddedCommitStream(self, in_flight_max)

    def _change_catalog(self, changes: list[dict[str, Any]], new_partitions: Sequence[tuple[int, str]] = ()) -> None:
        _, end = self._commit(CommitRequest(), changes, new_partitions)
        self._await_durable(end)

    def _commit(
        self,
        request: CommitRequest,
        changes: list[dict[str, Any]],
        new_partitions: Sequence[tuple[int, str]] = (),
        plan: Callable[[Transaction], object] | None = None,
    ) -> tuple[CommitResult, LogPosition]:
        """Plan, write, publish. The caller holds `_writer`; the commit is durable after a sync of the returned position.

        new_partitions  (table id, name) of partitions created without rows; only in a commit without operations
        plan  what else belongs to the transaction
        """
        record = CommitRecord(self._state.version + 1, self._clock_ms(), changes=changes)
        if request.write_id is not None:
            record.write = (request.write_id.writer, request.write_id.sequence)
        record.partitions = [(*new, self._state.next_partition_id + i) for i, new in enumerate(new_partitions)]
        transaction = Transaction(self._state, self._buckets, record, self._buckets.counters, self._partitions_max)
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
                return CommitResult(self._state.version), self._log.end
            appended = self._log.append(transaction.frames, record.encode(), record.timestamp_ms)
        except BaseException:
            transaction.void()
            raise
        with self._changed:
            self._publish(record, [(frame.header, at) for frame, at in zip(transaction.frames, appended.locations, strict=True)])
            transaction.commit()
            self._changed.notify_all()
        self._checkpointer.after_commit(bucket for bucket, _ in transaction.changed)
        return CommitResult(record.version, n_late_rows=sum(record.late_rows.values())), appended.end

    def _await_durable(self, end: LogPosition) -> None:
        if self._sync == "commit":
            self._log.sync(end)

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
            plan = partitions.plan_partitions(TableState(Schemas.of(created)), self._clock_ms(), self._partitions_max)
            names = [(created.table_id, name) for name in plan.create]
            self._change_catalog([{"op": "create_table", "table": created.to_json()}], names)
            return created

    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor:
        """As Backend says. Another number of buckets is the table's with this commit; the rows of each partition of a primary-key
        table follow, a commit per partition, between which others write.
        """
        with self._writer:
            self._require_open()
            table = self._table(descriptor.name)
            current = table.descriptor
            altered = catalog.altered(current, descriptor, table.schemas.next_field_id)
            check_instants(self._log, self._buckets, table, altered)
            if altered != current:
                self._change_catalog([{"op": "alter_table", "table": altered.to_json()}])
        if altered == current or altered.n_buckets != current.n_buckets:
            self._rescale(altered)
        return altered

    def _rescale_all(self) -> None:
        with self._readers:
            waiting = [table.descriptor for table in self._state.tables.values() if table.bucket_counts]
        for descriptor in waiting:
            self._rescale(descriptor)

    def _rescale(self, of: TableDescriptor) -> None:
        """Move the rows of every partition that has another number of buckets than its table."""
        while True:
            with self._writer:
                self._require_open()
                table = self._state.by_id(of.table_id)
                if table is None or not table.bucket_counts:
                    return
                partition = min(table.bucket_counts)
                change = {"op": "rescale", "table": of.name, "partition": partition}
                _, end = self._commit(CommitRequest(), [change], plan=partial(plan_moves, table, partition))
            self._await_durable(end)

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        with self._writer:
            self._require_open()
            if if_exists and name not in self._state.tables:
                return
            table = self._table(name)
            self._change_catalog([{"op": "drop_table", "name": name, "table_id": table.descriptor.table_id}])

    def create_partition(self, table: str, partition: str, *, if_not_exists: bool) -> None:
        with self._writer:
            self._require_open()
            state = self._table(table)
            name = partitions.check_new(state, partition, self._clock_ms())
            if name in state.partitions:
                if if_not_exists:
                    return
                raise AlreadyExists(f"{table} has a partition {name}", where=table, next_step="Write ADD IF NOT EXISTS PARTITION.")
            partitions.check_room(state, len(state.partitions), self._partitions_max)
            self._change_catalog([], [(state.descriptor.table_id, name)])

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
            self._change_catalog([_drop_of(state, partition)])

    def _keep_partitions(self, table: str, now_ms: int) -> None:
        """Auto partition of one table, in one commit."""
        with self._writer:
            state = self._state.tables.get(table)
            if state is None or self._is_closed:
                return
            plan = partitions.plan_partitions(state, max(now_ms, self._state.timestamp_ms), self._partitions_max)
            if plan.create or plan.drop:
                names = [(state.descriptor.table_id, name) for name in plan.create]
                self._change_catalog([_drop_of(state, name) for name in plan.drop], names)

    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:
        with self._writer:
            self._require_open()
            self._change_catalog([{"op": "put_object", "kind": kind, "name": name, "value": None if value is None else dict(value)}])

    def tables(self) -> list[TableDescriptor]:
        with self._readers:
            return [table.descriptor for table in self._state.tables.values()]

    def partitions(self, table: str) -> dict[str, int]:
        with self._readers:
            return dict(sorted(self._table(table).partitions.items()))

    def _table_states(self) -> list[TableState]:
        with self._readers:
            return list(self._state.tables.values())

    def _clock_ms(self) -> int:
        """The time of a commit made now: the clock, which never goes back in the log."""
        return max(self._now_ms(), self._state.timestamp_ms)

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        with self._readers:
            return dict(self._state.objects.get(kind, {}))

    def _table(self, name: str) -> TableState:
        table = self._state.tables.get(name)
        if table is None:
            raise unknown_table(name, self._state.tables)
        return table

    # the journal

    def version(self) -> int:
        return self._state.version

    def await_version(self, after: int, timeout_s: float) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._state.version > after or self._is_closed, timeout_s)
            return self._state.version

    def commits(self, after: int, limit: int) -> list[CommitInfo]:
        with self._readers:
            return reads.commits(self._state, self._buckets, after, limit)

    def progress(self, owner_prefix: str) -> dict[str, Progress]:
        with self._readers:
            return {owner: item for owner, item in self._state.progress.items() if owner.startswith(owner_prefix)}

    def drop_progress(self, owner: str) -> bool:
        with self._writer:
            self._require_open()
            if owner not in self._state.progress:
                return False
            self._change_catalog([{"op": "drop_progress", "owner": owner}])
            return True

    def heartbeat(self, owner: str, member: str, session_timeout_ms: int) -> Membership:
        self._require_open()
        return self._consumers.heartbeat(owner, member, session_timeout_ms, self._clock_ms())

    def leave_group(self, owner: str, member: str) -> None:
        self._require_open()
        self._consumers.leave(owner, member, self._clock_ms())

    def _commit_progress(self, progress: Sequence[Progress], changes: list[dict[str, Any]]) -> None:
        _, end = self._commit(CommitRequest((), tuple(progress)), changes)
        self._await_durable(end)

    # reads

    def offsets(self, table: str, which: OffsetSpec, at_version: int | None = None, bound: int | None = None) -> Offsets:
        with self._readers:
            self._require_version(table, at_version)
            now_ms = max(self._now_ms(), self._state.timestamp_ms)
            return offset_of.offsets(self._buckets, self._table(table), which, at_version, bound, now_ms)

    def fetch(
        self,
        table: str,
        ranges: Mapping[TableBucket, tuple[int, int]],
        columns: Sequence[str] | None,
        where: str | None = None,
        *,
        as_of: int | None = None,
    ) -> Iterator[FetchedFrame]:
        with self._readers:
            state = self._table(table)
            if as_of is not None:
                require_as_of(self._state, state, ranges, as_of)
            schemas = state.schemas
            plan = reads.plan_fetch(self._buckets, state, ranges, columns)

        def replan(step: FetchStep) -> list[FetchStep]:
            with self._readers:
                return reads.plan_again(self._buckets, state, step)

        if where is not None:
            plan = skip_frames(self._log, schemas, plan, where, self.fetched)
        return reads.fetch(self._log, schemas, plan, columns, replan, self.fetched)

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        points = self._points_of(table, None if columns is None else tuple(columns))
        if (direct := points.rows(keys)) is not None:
            return direct
        with self._readers:
            found = reads.lookup(self._buckets, self._table(table), keys, columns)
        if not insert_if_not_exists or pc.all(found["_found"], min_count=0).as_py():
            return found
        with self._writer:
            with self._readers:
                found = reads.lookup(self._buckets, self._table(table), keys, columns)
                missing = reads.missing_keys(self._table(table), keys, found)
            if missing.num_rows:
                op = WriteOp(table, "upsert", missing, tuple(missing.column_names))
                _, end = self._commit(CommitRequest((op,)), [])
            else:
                end = self._log.end
            with self._readers:
                found = reads.lookup(self._buckets, self._table(table), keys, columns)
        self._await_durable(end)
        return found

    def point_reads(self, table: str, columns: Sequence[str] | None) -> PointReads:
        """Lookups of one table and column list, for who asks often."""
        return PointReads(self._readers, self._state, self._buckets, table, columns)

    def lookup_one(self, table: str, lookup: PointLookup, key: list[Any]) -> list[Any] | LongWay | None:
        assert lookup.codes is not None, "lookup.stored_key() gave the key"
        row = self._points_of(table, lookup.names).row(key, lookup.codes)
        return lookup.row_shape.presented(row) if isinstance(row, list) and lookup.row_shape else row

    def _points_of(self, table: str, columns: tuple[str, ...] | None) -> PointReads:
        points = self._points.get((table, columns))
        if points is None:
            if len(self._points) >= _POINTS_MAX:
                self._points.clear()
            points = self._points[table, columns] = self.point_reads(table, columns)
        return points

    def prefix_lookup(
        self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None = None
    ) -> pa.Table:
        with self._readers:
            return reads.prefix_lookup(self._buckets, self._table(table), prefixes, columns, limit, rows_max)

    def lookups(self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        return (self.lookup(table, keys, columns, insert_if_not_exists=False) for keys in batches)

    def prefix_lookups(
        self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None, limit: int | None
    ) -> Iterator[pa.Table]:
        return (self.prefix_lookup(table, prefixes, columns, limit) for prefixes in batches)

    def read(
        self,
        table: str,
        columns: Sequence[str] | None,
        partitions: Sequence[str] | None,
        at_version: int | None,
        limit: int | None = None,
    ) -> pa.Table:
        for attempt in range(READ_ATTEMPTS + 1):
            is_last = attempt == READ_ATTEMPTS  # cleaning came in between each time: now it is held off
            with self._readers if is_last else nullcontext():
                with self._readers:
                    state = self._table(table)
                    schemas = state.schemas
                    self._require_version(table, at_version)
                    steps = reads.plan_read(self._buckets, state, partitions, at_version, limit)
                try:
                    return reads.read(self._buckets, schemas, steps, columns)
                except FrameMoved:
                    if is_last:
                        raise
                except OffsetOutOfRange as error:
                    raise_if_dropped(self._buckets, table, [bucket for bucket, _ in steps], error)
                    raise
        raise AssertionError("the last attempt returned or raised")

    def count(self, table: str) -> int:
        with self._readers:
            return reads.count(self._buckets, self._table(table))

    def bucket_statistics(self, table: str, positions: Offsets | None = None) -> pa.Table:
        with self._readers:
            return bucket_statistics(self._buckets.of_table(self._table(table)), positions or {}, self._clock_ms())

    def late_rows(self, table: str) -> int:
        with self._readers:
            return self._state.late_rows.get(self._table(table).descriptor.table_id, 0)

    # what it says of itself

    def key_memory(self) -> KeyMemory:
        """What the key indexes take of memory, what they may take, and which buckets have moved to disk."""
        return self._budget.memory

    # space

    def clean(self, table: str | None = None) -> CleaningStats:
        """Give space back now: one round of cleaning, of all tables or one; what has been done since the store was opened.

        Errors: UnknownTable; WriteFailed.
        """
        self._require_open()
        if table is not None:
            self._table(table)
        return self._cleaner.clean(self._now_ms(), table)

    def cleaning(self) -> CleaningStats:
        """What cleaning has done since the store was opened."""
        return self._cleaner.stats

    def metrics(self) -> list[StoreMetric]:
        """Numbers for whoever watches. Background work adds to `counters`; its `debts`, each in [0, 1), slow writers."""
        with self._readers:
            return collect(self._log, self._state, self._buckets, self.maintenance.reports(), self.counters)

    def syncing_s(self) -> float:
        """Seconds that the running fdatasync has taken so far; 0 when none runs."""
        return self._log.syncing_s()

    # copies

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        """Copy the store as it is now to a new directory; writers wait only while the moment is taken.

        links   hard links for finished log files where possible; False: copies of everything
        Errors: AlreadyExists; UserError; WriteFailed.
        """
        release = self._cleaner.keep_files()
        try:
            with self._writer:
                self._require_open()
                version, end = self._state.version, self._log.end
                self._state.files = file_entries(self._log)
                encoded = checkpoint.encode(self._state, self._buckets.index, end)
                files = file_entries(self._log, with_last=True)
            self._log.sync(end)
            return write_backup(self._disk, self.directory, Path(target), Pinned(version, int(end), encoded, files), links=links)
        finally:
            release()

    def _require_version(self, table: str, at_version: int | None) -> None:
        if at_version is not None and at_version > self._state.version:
            raise OffsetOutOfRange(
                f"version {at_version} is asked for, the store is at {self._state.version}",
                where=table,
                next_step="Wait for it with await_version, or read an older version.",
            )

    def close(self) -> None:
        """Write a checkpoint, make everything durable and give the directory free; a second call does nothing."""
        self.maintenance.stop()
        self._checkpointer.stop()
        self._budget.stop()
        with self._writer, self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
            try:
                self._checkpointer.write_last()
            finally:
                self._budget.clear()
                self._log.close()
                self._lock.release()


def _drop_of(table: TableState, partition: str) -> dict[str, Any]:
    """The change that drops a partition."""
    return {
        "op": "drop_partition",
        "table": table.descriptor.name,
        "partition": partition,
        "table_id": table.descriptor.table_id,
        "partition_id": table.partitions[partition],
    }
