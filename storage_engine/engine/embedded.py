"""Embedded backend: the store in this process: the Backend protocol over engine/core.py.

Owner: the process that opened the directory. Each change is one commit of the core; each read is planned under the readers' lock and
       shown once it is durable (docs/adr/0017).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
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
    SpaceInfo,
    WriteOp,
)
from storage_engine.engine import catalog, key_budget, offset_of, partitions, reads
from storage_engine.engine.backup import write_backup
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.cleaner import Cleaner, CleaningPolicy
from storage_engine.engine.commit_stream import EmbeddedCommitStream
from storage_engine.engine.consumers import EXPIRATION_MS, Consumers
from storage_engine.engine.core import Core, Settings, SyncMode, Written
from storage_engine.engine.incarnations import raise_if_dropped, require_as_of
from storage_engine.engine.instants import check_instants
from storage_engine.engine.key_budget import KeyMemory
from storage_engine.engine.maintenance import Maintenance
from storage_engine.engine.metrics import StoreMetric, collect
from storage_engine.engine.mover import CleaningStats, Mover
from storage_engine.engine.partitions import PARTITIONS_MAX, PartitionKeeper
from storage_engine.engine.point_reads import PointReads, PrefixReads
from storage_engine.engine.rescale import Rescaler
from storage_engine.engine.schemas import Schemas
from storage_engine.engine.skip_frames import FetchCounts, FetchStep, skip_frames
from storage_engine.engine.snapshot import read_snapshot
from storage_engine.engine.state import TableState
from storage_engine.engine.statistics import bucket_statistics
from storage_engine.errors import AlreadyExists, DamageError, InvalidPartition, OffsetOutOfRange
from storage_engine.log.commit_log import FILE_BYTES_MAX, CommitLog
from storage_engine.log.disk import Disk
from storage_engine.log.log_file import FrameMoved
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor
from storage_engine.schema.point import LongWay, PointLookup

CHECKPOINTS = CheckpointPolicy()
CLEANING = CleaningPolicy()
READ_ATTEMPTS = 3
_POINTS_MAX = 1024


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class EmbeddedBackend:
    """A store directory, opened by this process."""

    capabilities = CAPABILITIES
    takes_encoded = False

    def __init__(self, directory: Path, disk: Disk, now_ms: Callable[[], int], settings: Settings, cleaning: CleaningPolicy) -> None:
        self.core = core = Core(directory, disk, now_ms, settings)
        self.url = core.url
        self.directory = directory
        self.fetched = FetchCounts()
        self.maintenance = Maintenance(now_ms)
        self._consumers = Consumers(core.writing, lambda: core.state, self._commit_progress, settings.consumer_expiration_ms)
        self.maintenance.add(PartitionKeeper(self._table_states, self._keep_partitions))
        self.maintenance.add(self._consumers)
        self._cleaner = Cleaner(Mover(core, cleaning.chunk_bytes, lambda: self.maintenance.is_stopping), cleaning)
        self.maintenance.add(self._cleaner)
        self._rescaler = Rescaler(core)
        if any(table.bucket_counts for table in core.state.tables.values()):
            self.maintenance.add(self._rescaler)
        self._points: dict[tuple[str, tuple[str, ...] | None], PointReads] = {}
        self.counters: dict[str, float] = {}
        self.debts: dict[str, Callable[[], float]] = {}

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
        log_file_bytes_max: int = FILE_BYTES_MAX,
    ) -> EmbeddedBackend:
        """Open or create the store in `directory`.

        checkpoints  how much a start after a crash may have to replay
        cleaning     when and in which pieces space is given back
        maintenance  run the background tasks; False: only when maintenance.run_once() is called
        partitions_max  partitions that one table may have
        consumer_expiration_ms  a consumer that has not committed for so long, and has no live member, is forgotten; 0: never
        key_memory_bytes_max  memory for the key indexes of all tables; what is beyond moves to disk, bucket by bucket
        sync     "commit": acknowledged after fdatasync (survives power loss). "none": after the write (survives kill -9).
        log_file_bytes_max  a log file that would grow beyond it is followed by a new one
        Errors:  StoreLocked; StoreUnavailable; DamagedFrame; UnsupportedFormatVersion.
        """
        settings = Settings(sync, checkpoints, partitions_max, consumer_expiration_ms, key_memory_bytes_max, log_file_bytes_max)
        backend = cls(Path(directory).absolute(), disk or Disk(), now_ms, settings, cleaning)
        if maintenance:
            backend.maintenance.start()
        return backend

    # commits

    def commit(self, request: CommitRequest) -> CommitResult:
        """One transaction. Errors: every UserError leaves the store untouched; WriteFailed says by `is_absent` whether it does."""
        result, written = self.core.begin_commit(request)
        self.core.await_durable(written)
        return result

    def begin_commit(self, request: CommitRequest) -> tuple[CommitResult, Written]:
        """commit() up to where its result may be acknowledged: that is after await_durable(). Errors: as commit()."""
        return self.core.begin_commit(request)

    def is_durable(self, written: Written) -> bool:
        """True when a commit may be acknowledged at once."""
        return self.core.is_durable(written)

    def await_durable(self, written: Written) -> None:
        """Return when a commit may be acknowledged. Errors: WriteFailed, also when it was taken back meanwhile."""
        self.core.await_durable(written)

    def commit_stream(self, in_flight_max: int) -> EmbeddedCommitStream:
        """Commits that share a sync."""
        return EmbeddedCommitStream(self.core, in_flight_max)

    # catalog

    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool) -> TableDescriptor:
        with self.core.writing():
            existing = self.core.state.tables.get(descriptor.name)
            if existing is not None:
                if if_not_exists:
                    return existing.descriptor
                raise AlreadyExists(
                    f"table {descriptor.name} exists", where="catalog", next_step="Write CREATE TABLE IF NOT EXISTS, or drop it first."
                )
            catalog.require_free(descriptor.name, self.core.state.tables, self.core.state.objects)
            created = catalog.created(descriptor, self.core.state.next_table_id)
            plan = partitions.plan_partitions(TableState(Schemas.of(created)), self.core.clock_ms(), self.core.settings.partitions_max)
            names = [(created.table_id, name) for name in plan.create]
            self.core.change([{"op": "create_table", "table": created.to_json()}], names)
            return created

    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor:
        """As Backend says. Another number of buckets is the table's with this commit; the rows of each partition of a primary-key
        table follow, a commit per partition, between which others write.
        """
        core = self.core
        with core.writing():
            table = core.table(descriptor.name)
            current = table.descriptor
            altered = catalog.altered(current, descriptor, table.schemas.next_field_id)
            check_instants(core.log, core.buckets, table, altered)
            if altered != current:
                core.change([{"op": "alter_table", "table": altered.to_json()}])
        if altered == current or altered.n_buckets != current.n_buckets:
            self._rescaler.rescale(altered)
        return altered

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        with self.core.writing():
            if if_exists and name not in self.core.state.tables:
                return
            table = self.core.table(name)
            self.core.change([{"op": "drop_table", "name": name, "table_id": table.descriptor.table_id}])

    def create_partition(self, table: str, partition: str, *, if_not_exists: bool) -> None:
        with self.core.writing():
            state = self.core.table(table)
            name = partitions.check_new(state, partition, self.core.clock_ms())
            if name in state.partitions:
                if if_not_exists:
                    return
                raise AlreadyExists(f"{table} has a partition {name}", where=table, next_step="Write ADD IF NOT EXISTS PARTITION.")
            partitions.check_room(state, len(state.partitions), self.core.settings.partitions_max)
            self.core.change([], [(state.descriptor.table_id, name)])

    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None:
        with self.core.writing():
            state = self.core.table(table)
            partition_id = state.partitions.get(partition)
            if partition_id is None:
                if if_exists:
                    return
                raise InvalidPartition(
                    f"{table} has no partition {partition!r}", where=table, next_step=f"Its partitions are {sorted(state.partitions)[:20]}."
                )
            self.core.change([_drop_of(state, partition)])

    def _keep_partitions(self, table: str, now_ms: int) -> None:
        """Auto partition of one table, in one commit."""
        with self.core.writing():
            state = self.core.state.tables.get(table)
            if state is None:
                return
            plan = partitions.plan_partitions(state, max(now_ms, self.core.state.timestamp_ms), self.core.settings.partitions_max)
            if plan.create or plan.drop:
                names = [(state.descriptor.table_id, name) for name in plan.create]
                self.core.change([_drop_of(state, name) for name in plan.drop], names)

    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:
        with self.core.writing():
            if value is not None:
                catalog.require_no_relation(kind, name, self.core.state.tables, self.core.state.objects)
            self.core.change([{"op": "put_object", "kind": kind, "name": name, "value": None if value is None else dict(value)}])

    def tables(self) -> list[TableDescriptor]:
        core = self.core
        return core.shown(lambda: [table.descriptor for table in core.state.tables.values()], lambda: core.seen.catalog_end)

    def partitions(self, table: str) -> dict[str, int]:
        core = self.core
        return core.shown(lambda: dict(sorted(core.table(table).partitions.items())), lambda: core.end_of(table))

    def _table_states(self) -> list[TableState]:
        with self.core.readers:
            return list(self.core.state.tables.values())

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        return self.core.shown(lambda: dict(self.core.state.objects.get(kind, {})), lambda: self.core.seen.catalog_end)

    # the journal

    def version(self) -> int:
        with self.core.readers:
            return self.core.durable_version()

    def await_version(self, after: int, timeout_s: float) -> int:
        core = self.core
        with core.changed:
            core.changed.wait_for(lambda: core.durable_version() > after or core.is_closed, timeout_s)
            return core.durable_version()

    def commits(self, after: int, limit: int) -> list[CommitInfo]:
        core = self.core
        with core.readers:
            newest = core.durable_version()
            return [commit for commit in reads.commits(core.state, core.buckets, after, limit) if commit.version <= newest]

    def progress(self, owner_prefix: str) -> dict[str, Progress]:
        return self.core.shown(
            lambda: {owner: item for owner, item in self.core.state.progress.items() if owner.startswith(owner_prefix)},
            lambda: self.core.seen.progress_end,
        )

    def drop_progress(self, owner: str) -> bool:
        with self.core.writing():
            if owner not in self.core.state.progress:
                return False
            self.core.change([{"op": "drop_progress", "owner": owner}])
            return True

    def heartbeat(self, owner: str, member: str, session_timeout_ms: int) -> Membership:
        self.core.require_open()
        return self._consumers.heartbeat(owner, member, session_timeout_ms, self.core.clock_ms())

    def leave_group(self, owner: str, member: str) -> None:
        self.core.require_open()
        self._consumers.leave(owner, member, self.core.clock_ms())

    def _commit_progress(self, progress: Sequence[Progress], changes: list[dict[str, Any]]) -> None:
        self.core.await_durable(self.core.write(CommitRequest((), tuple(progress)), changes)[1])

    # reads

    def offsets(self, table: str, which: OffsetSpec, at_version: int | None = None, bound: int | None = None) -> Offsets:
        core = self.core
        with core.readers:
            self._require_version(table, at_version)
            if core.seen.has_unsynced and at_version is None:
                at_version = core.durable_version()
            return offset_of.offsets(core.buckets, core.table(table), which, at_version, bound, core.clock_ms())

    def fetch(
        self,
        table: str,
        ranges: Mapping[TableBucket, tuple[int, int]],
        columns: Sequence[str] | None,
        where: str | None = None,
        *,
        as_of: int | None = None,
    ) -> Iterator[FetchedFrame]:
        core = self.core

        def plan() -> tuple[CommitLog, TableState, Schemas, list[FetchStep]]:
            state = core.table(table)
            if as_of is not None:
                require_as_of(core.state, state, ranges, as_of)
            return core.log, state, state.schemas, reads.plan_fetch(core.buckets, state, ranges, columns)

        def replan(step: FetchStep) -> list[FetchStep]:
            with core.readers:
                return reads.plan_again(core.buckets, state, step)

        log, state, schemas, planned = core.shown(plan, lambda: core.end_of(table))
        steps: Iterable[FetchStep] = planned
        if where is not None:
            steps = skip_frames(log, schemas, steps, where, self.fetched)
        return reads.fetch(log, schemas, steps, columns, replan, self.fetched)

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        points = self._points_of(table, None if columns is None else tuple(columns))
        if (direct := points.rows(keys)) is not None:
            return direct
        core = self.core

        def found_now() -> pa.Table:
            return reads.lookup(core.buckets, core.table(table), keys, columns)

        found = core.shown(found_now, lambda: core.end_of(table))
        if not insert_if_not_exists or pc.all(found["_found"], min_count=0).as_py():
            return found
        with core.writing():
            with core.readers:
                found = found_now()
                missing = reads.missing_keys(core.table(table), keys, found)
            written = Written(core.log, core.log.end)
            if missing.num_rows:
                _, written = core.write(CommitRequest((WriteOp(table, "upsert", missing, tuple(missing.column_names)),)), [])
            unreadable: DamageError | None = None
            try:
                with core.readers:
                    found = found_now()
            except DamageError as error:
                unreadable = error
        core.await_durable(written)
        if unreadable is not None:
            raise unreadable  # the rows are there, and durable
        return found

    def point_reads(self, table: str, columns: Sequence[str] | None) -> PointReads:
        """Lookups of one table and column list, for who asks often."""
        return PointReads(self.core, table, columns)

    def prefix_reads(self, table: str, columns: Sequence[str] | None, limit: int | None) -> PrefixReads:
        """As point_reads(), of prefix lookups."""
        return PrefixReads(self.core, table, columns, limit)

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
        core = self.core
        return core.shown(
            lambda: reads.prefix_lookup(core.buckets, core.table(table), prefixes, columns, limit, rows_max), lambda: core.end_of(table)
        )

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
        core = self.core

        def plan() -> tuple[Buckets, Schemas, list[tuple[Bucket, np.ndarray]]]:
            state = core.table(table)
            self._require_version(table, at_version)
            return core.buckets, state.schemas, reads.plan_read(core.buckets, state, partitions, at_version, limit)

        for attempt in range(READ_ATTEMPTS + 1):
            is_last = attempt == READ_ATTEMPTS  # cleaning came in between each time: now it is held off
            with core.writer if is_last else nullcontext():
                buckets, schemas, steps = core.shown(plan, lambda: core.end_of(table))
                try:
                    return reads.read(buckets, schemas, steps, columns)
                except FrameMoved:
                    if is_last:
                        raise
                except OffsetOutOfRange as error:
                    raise_if_dropped(buckets, table, [bucket for bucket, _ in steps], error)
                    raise
        raise AssertionError("the last attempt returned or raised")

    def snapshot(self, table: str, columns: Sequence[str] | None, ends: Offsets, *, as_of: int | None = None) -> pa.RecordBatchReader:
        return read_snapshot(self.core, table, columns, ends, as_of)

    def count(self, table: str) -> int:
        core = self.core
        return core.shown(lambda: reads.count(core.buckets, core.table(table)), lambda: core.end_of(table))

    def bucket_statistics(self, table: str, positions: Offsets | None = None) -> pa.Table:
        core = self.core
        return core.shown(
            lambda: bucket_statistics(core.buckets.of_table(core.table(table)), positions or {}, core.clock_ms()),
            lambda: core.end_of(table),
        )

    def late_rows(self, table: str) -> int:
        core = self.core
        return core.shown(lambda: core.state.late_rows.get(core.table(table).descriptor.table_id, 0), lambda: core.end_of(table))

    def key_memory(self) -> KeyMemory:
        """What the key indexes take of memory, what they may take, and which buckets have moved to disk."""
        return self.core.budget.memory

    # space

    def clean(self, table: str | None = None) -> CleaningStats:
        """Give space back now: one round of cleaning, of all tables or one; what has been done since the store was opened.

        Errors: UnknownTable; WriteFailed.
        """
        self.core.require_open()
        if table is not None:
            self.core.table(table)
        return self._cleaner.clean(self.core.now_ms(), table)

    def compact(self, table: str) -> SpaceInfo:
        self.core.require_open()
        with self.core.readers:
            self.core.table(table)
        return self.maintenance.now(lambda: self._cleaner.compact(self.core.now_ms(), table))

    def cleaning(self) -> CleaningStats:
        """What cleaning has done since the store was opened."""
        return self._cleaner.stats

    def metrics(self) -> list[StoreMetric]:
        """Numbers for whoever watches. Background work adds to `counters`; its `debts`, each in [0, 1), slow writers."""
        core = self.core
        with core.readers:
            return collect(core.log, core.state, core.buckets, self.maintenance.reports(), self.counters)

    def syncing_s(self) -> float:
        """Seconds that the running fdatasync has taken so far; 0 when none runs."""
        return self.core.log.syncing_s()

    # copies

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        """Copy the store as it is now to a new directory; writers wait only while the moment is taken.

        links   hard links for finished log files where possible; False: copies of everything
        Errors: AlreadyExists; UserError; WriteFailed.
        """
        release = self._cleaner.keep_files()
        try:
            return write_backup(self.core.disk, self.directory, Path(target), self.core.pinned(), links=links)
        finally:
            release()

    def _require_version(self, table: str, at_version: int | None) -> None:
        if at_version is not None and at_version > (newest := self.core.durable_version()):
            raise OffsetOutOfRange(
                f"version {at_version} is asked for, the store is at {newest}",
                where=table,
                next_step="Wait for it with await_version, or read an older version.",
            )

    def close(self) -> None:
        """Write a checkpoint, make everything durable and give the directory free; a second call does nothing.

        Errors: WriteFailed when something acknowledged under sync = none could not be made durable; the directory is free then, too.
        """
        self.maintenance.stop()
        self.core.close()


def _drop_of(table: TableState, partition: str) -> dict[str, Any]:
    """The change that drops a partition."""
    return {
        "op": "drop_partition",
        "table": table.descriptor.name,
        "partition": partition,
        "table_id": table.descriptor.table_id,
        "partition_id": table.partitions[partition],
    }
