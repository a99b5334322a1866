"""Buckets: the live parts of every table. Per bucket its frames, and for a primary-key table the key index over them.

Owner: engine/core.py creates and publishes; transactions plan against them.
State: derived. Frame indexes come from the log (or a checkpoint); a key index is made when first needed, from its snapshot and the
       tail of its changelog, or from the whole changelog.
Never: writes the log, decides what a row becomes (kv/merge does).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine.engine.gather import GATHER_ROWS_MAX, GatherBudget, LoadFrame, RowGather
from storage_engine.engine.key_budget import KeyBudget
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.rows import FrameCache, RowSource, adapt, fetch_rows
from storage_engine.engine.schemas import Schemas
from storage_engine.engine.state import LogStart, TableState
from storage_engine.errors import RetriableError
from storage_engine.kv import AutoIncrement, Ids, IdSegments, KvBucket
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.frame import FLAG_SPARSE, decode_batch
from storage_engine.log.frame_index import BucketFrames, BucketId, FrameIndex, locate
from storage_engine.log.log_file import FrameMoved
from storage_engine.log.message_template import ColumnBuffers
from storage_engine.log.stored_frame import FrameLocation, StoredFrame
from storage_engine.schema.descriptor import TableBucket, TableDescriptor

_SCATTERED = 4  # a read of less than one row in so many is gathered row by row
_logger = logging.getLogger(__name__)


@dataclass
class Staged:
    """Rows of a transaction that are planned for a bucket and not yet in the log."""

    base_offset: int
    batch: pa.RecordBatch
    change_types: np.ndarray | None


@dataclass
class Bucket:
    """One bucket: `frames` it has in the log, rows `staged` by the running transaction, and its `kv` index once it is built."""

    id: BucketId
    name: TableBucket
    index: FrameIndex
    staged: list[Staged] = field(default_factory=list)
    kv: KvBucket | None = None
    gather: RowGather | None = None

    @property
    def frames(self) -> BucketFrames:
        return self.index.bucket(*self.id)

    @property
    def next_offset(self) -> int:
        """Offset that the next planned row gets."""
        if self.staged:
            last = self.staged[-1]
            return last.base_offset + last.batch.num_rows
        return self.frames.end_offset


class Buckets:
    """All buckets by id. Reading rows goes through here, because a row may be in the log or still staged."""

    def __init__(
        self,
        log: CommitLog,
        index: FrameIndex,
        cache_bytes_max: int,
        table_of: Callable[[int], TableState | None],
        snapshots: KeySnapshots | None = None,
        budget: KeyBudget | None = None,
        log_starts: Callable[[], Mapping[BucketId, LogStart]] = dict,
    ) -> None:
        """`snapshots`: where key indexes begin; None: at the first frame. `budget`: what they may take; None: what they need.

        log_starts  what retention says now
        """
        self._log_starts = log_starts
        self.index = index
        index.read_origins = lambda location: origins_of(log.read(location))
        self._log = log
        self._cache = FrameCache(cache_bytes_max)
        self._gathers = GatherBudget(cache_bytes_max // 4)
        self._table_of = table_of
        self._snapshots = snapshots
        self._budget = budget
        self._all: dict[BucketId, Bucket] = {}
        self._building = Lock()
        self.counters: dict[int, AutoIncrement] = {}

    def get(self, bucket_id: BucketId) -> Bucket | None:
        return self._all.get(bucket_id)

    def get_or_create(self, bucket_id: BucketId, partition: str) -> Bucket:
        bucket = self._all.get(bucket_id)
        if bucket is None:
            bucket = Bucket(bucket_id, TableBucket(partition, bucket_id.bucket), self.index)
            self._all[bucket_id] = bucket
        return bucket

    def of_table(self, table: TableState) -> Iterator[Bucket]:
        """Buckets of the table's live partitions that have ever been written."""
        for partition in table.partition_names:
            yield from self.of_partition(table, partition)

    def of_partition(self, table: TableState, partition: str) -> Iterator[Bucket]:
        """Buckets of one live partition that have ever been written; among them those that no row is routed to any more."""
        partition_id = table.partitions[partition] if table.descriptor.partition_keys else 0
        for number in range(table.n_buckets_max):
            bucket = self._all.get(BucketId(table.descriptor.table_id, partition_id, number))
            if bucket is not None:
                yield bucket

    def ids(self) -> set[BucketId]:
        return set(self._all)

    def built(self) -> list[Bucket]:
        """The buckets that have a key index in this process."""
        return [bucket for bucket in list(self._all.values()) if bucket.kv is not None]

    def drop(self, *, table_id: int, partition_id: int | None = None) -> None:
        """Forget the buckets of a table or of one of its partitions."""
        for bucket_id, frames in self.index.buckets(table_id):
            if partition_id in (None, bucket_id.partition_id):
                self.forget(bucket_id, frames.entries)
        self.index.drop(table_id, partition_id)
        if partition_id is None:
            self.counters.pop(table_id, None)
        for bucket_id in [i for i in self._all if i.table_id == table_id and partition_id in (None, i.partition_id)]:
            bucket = self._all.pop(bucket_id)
            if bucket.gather is not None:
                self._gathers.forget(bucket.gather)
            if self._budget is not None:
                self._budget.drop(bucket)

    def forget(self, bucket_id: BucketId, replaced: np.ndarray) -> None:
        """Let go of frames that answer for nothing any more: what is cached of them keeps their files on disk."""
        bucket = self._all.get(bucket_id)
        if bucket is not None and bucket.gather is not None:
            bucket.gather.keep(np.setdiff1d(bucket.frames.entries["position"], replaced["position"]))
        self._cache.forget(map(FrameLocation, replaced["position"].tolist(), replaced["length"].tolist()))

    def log_start(self, bucket: Bucket) -> LogStart | None:
        """What retention says of a bucket; None: nothing has expired."""
        return self._log_starts().get(bucket.id)

    # rows

    def stored_frame(self, location: FrameLocation) -> StoredFrame:
        """A frame as it lies in the log. Errors: FrameMoved, DamagedFrame."""
        return self._log.read(location)

    def rows_at(self, bucket: Bucket, offsets: np.ndarray, columns: list[str] | None = None, schemas: Schemas | None = None) -> pa.Table:
        """Rows of a bucket at `offsets` (n,), in that order, in the table's present columns, or in those of `schemas`."""
        schemas = schemas or self._table(bucket).schemas
        schema = schemas.descriptor.arrow_schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        staged = list(bucket.staged)
        if not staged:
            return self._logged_rows(bucket, schemas, offsets, schema)
        staged_from = staged[0].base_offset if staged else bucket.frames.end_offset
        logged = offsets < staged_from
        if logged.all():
            return self._logged_rows(bucket, schemas, offsets, schema)
        sources = [RowSource(s.base_offset, s.batch.num_rows, s.base_offset, _loader(s)) for s in staged]
        starts = np.array([source.base_offset for source in sources], np.int64)
        source_of = np.searchsorted(starts, offsets[~logged], side="right") - 1
        staged_rows = fetch_rows(sources, source_of, offsets[~logged], schema, FrameCache(0))
        both = pa.concat_tables([self._logged_rows(bucket, schemas, offsets[logged], schema), staged_rows])
        position = np.empty(len(offsets), np.int64)
        position[np.flatnonzero(logged)] = np.arange(int(logged.sum()))
        position[np.flatnonzero(~logged)] = np.arange(int(logged.sum()), len(offsets))
        return both.take(pa.array(position)).combine_chunks()

    def _logged_rows(self, bucket: Bucket, schemas: Schemas, offsets: np.ndarray, schema: pa.Schema) -> pa.Table:
        if len(offsets) == 0:
            return schema.empty_table()
        entries = bucket.frames.entries
        if len(entries) == 0 or offsets.min() < entries["base_offset"][0]:
            raise FrameMoved(f"rows of {bucket.id} are gone")
        located = locate(entries, offsets)
        is_scattered = len(offsets) <= GATHER_ROWS_MAX or len(offsets) * _SCATTERED < bucket.frames.end_offset - bucket.frames.start_offset
        if is_scattered and schema is schemas.descriptor.arrow_schema and (found := self._gather_of(bucket, schemas)) is not None:
            gather, load = found
            gathered = gather.rows(entries, located, offsets, load)
            if gathered is not None:
                return pa.Table.from_batches([gathered])
        touched, source_of = np.unique(located, return_inverse=True)
        sources = [self._source(schemas, entry) for entry in entries[touched]]
        return fetch_rows(sources, source_of, offsets, schema, self._cache)

    def _source(self, schemas: Schemas, entry: np.void) -> RowSource:
        """A frame to read rows from. Its decoded batch carries the columns' names of a schema, so the cache keeps one per schema."""
        location = FrameLocation(int(entry["position"]), int(entry["length"]))
        key = (location.position, schemas.descriptor.schema_id)
        return RowSource(int(entry["base_offset"]), int(entry["n_rows"]), key, self._load(schemas, location), self._sparse_offsets(entry))

    def _sparse_offsets(self, entry: np.void) -> np.ndarray | None:
        """The offsets of a sparse frame's rows; None for a dense one."""
        if not entry["flags"] & FLAG_SPARSE:
            return None
        return self._log.read(FrameLocation(int(entry["position"]), int(entry["length"]))).offsets

    def row_at(self, bucket: Bucket, offset: int) -> pa.RecordBatch | None:
        """The row at an offset, in the table's present columns; None when it is not in the log (yet)."""
        at = bucket.frames.locate_one(offset)
        if at is None:
            return None
        schemas = self._table(bucket).schemas
        key = (at.location.position, schemas.descriptor.schema_id)
        batch = self._cache.get(RowSource(at.base_offset, at.n_rows, key, self._load(schemas, at.location)))
        row = offset - at.base_offset
        if at.flags & FLAG_SPARSE:
            offsets = self._log.read(at.location).offsets
            assert offsets is not None, "the index says that the frame is sparse"
            row = int(np.searchsorted(offsets, offset))
        return adapt(batch.slice(row, 1), schemas.descriptor.arrow_schema)

    def columns_at(self, bucket: Bucket, schemas: Schemas, offsets: np.ndarray) -> list[ColumnBuffers] | None:
        """Rows (n,) of the log at `offsets`, all columns, as buffers; None when rows_at() must read them."""
        if len(offsets) > GATHER_ROWS_MAX or bucket.staged or (found := self._gather_of(bucket, schemas)) is None:
            return None
        gather, load = found
        frames = bucket.frames
        return gather.columns(frames.entries, frames.locate(offsets), offsets, load)

    def values_at(self, bucket: Bucket, schemas: Schemas, offset: int) -> list[Any] | None:
        """The stored values of the row of the log at an offset, all columns; None when row_at() must read it."""
        if (found := self._gather_of(bucket, schemas)) is None:
            return None
        gather, load = found
        return gather.values(bucket.frames.entries, offset, load)

    def _gather_of(self, bucket: Bucket, schemas: Schemas) -> tuple[RowGather, LoadFrame] | None:
        """The bucket's gather and how it loads a frame; None when rows of this table cannot be gathered."""
        schema = schemas.descriptor.arrow_schema
        gather = bucket.gather
        if gather is None or gather.schema is not schema:
            if gather is not None:
                self._gathers.forget(gather)
            gather = bucket.gather = RowGather(schema, self._gathers)
        if not gather.is_possible or not _is_plain(schemas.descriptor):
            return None

        def load(entry: np.void) -> tuple[pa.RecordBatch, int, np.ndarray | None]:
            batch, heap_bytes = self._load(schemas, FrameLocation(int(entry["position"]), int(entry["length"])))()
            whole = adapt(batch, schema)
            return whole, heap_bytes + (whole.nbytes if whole is not batch else 0), self._sparse_offsets(entry)

        return gather, load

    def _load(self, schemas: Schemas, location: FrameLocation) -> Callable[[], tuple[pa.RecordBatch, int]]:
        def load() -> tuple[pa.RecordBatch, int]:
            stored = self._log.read(location)
            before = pa.total_allocated_bytes()
            batch = decode_batch(stored.message, schemas.arrow_schema(stored.header.schema_id))
            copied = location.length if _root(stored.message).size == location.length else 0  # read beyond the mapping
            return batch, max(pa.total_allocated_bytes() - before, 0) + copied

        return load

    def _table(self, bucket: Bucket) -> TableState:
        table = self._table_of(bucket.id.table_id)
        assert table is not None, f"bucket {bucket.id} of a table that does not exist"
        return table

    # key indexes

    def kv_of(self, bucket: Bucket) -> KvBucket:
        """The key index of a bucket, made when this process has not needed it yet."""
        with self._building:
            if bucket.kv is None:
                kv = bucket.kv = self.kv_until(bucket, bucket.frames.end_offset)
                if self._budget is not None:
                    self._budget.weigh(bucket)
                return kv
            return bucket.kv

    def commit(self, bucket: Bucket, kv: KvBucket) -> None:
        """What `kv` has staged is in the log and becomes current. An index on disk that cannot follow is made anew when it is needed."""
        try:
            kv.commit()
        except RetriableError as error:
            _logger.warning("the key index of bucket %s is given up: %s", bucket.id, error)
            bucket.kv = None
        if self._budget is not None:
            self._budget.weigh(bucket)

    def kv_until(self, bucket: Bucket, end_offset: int) -> KvBucket:
        """A key index of the changelog below `end_offset`: the bucket as it was then."""
        table = self._table(bucket)
        kv = KvBucket(table.descriptor, lambda offsets, columns=None: self.rows_at(bucket, offsets, columns), ids=self._ids_of(table))
        start_offset = bucket.frames.held_from
        stored = self._snapshots.load(bucket.id, bucket.frames, end_offset) if self._snapshots and start_offset < end_offset else None
        if stored is not None:
            snapshot, start_offset = stored
            kv.restore(snapshot)
        kv.rebuild(self._changes(bucket, table, start_offset, end_offset))
        return kv

    def _ids_of(self, table: TableState) -> Ids | None:
        """Where a bucket takes ids from: the table's counter, or segments of it."""
        descriptor = table.descriptor
        if descriptor.auto_increment_column is None:
            return None
        counter = self.counters.get(descriptor.table_id)
        if counter is None:
            counter = self.counters[descriptor.table_id] = AutoIncrement(descriptor, table.last_id)
        return counter if counter.segment_ids is None else IdSegments(counter)

    def alter(self, table: TableState) -> None:
        """The table's columns have changed."""
        if table.descriptor.table_id in self.counters:
            self.counters[table.descriptor.table_id].alter(table.descriptor)
        for bucket in self.of_table(table):
            if bucket.kv is not None:
                bucket.kv.alter(table.descriptor)

    def _changes(
        self, bucket: Bucket, table: TableState, start_offset: int, end_offset: int
    ) -> Iterator[tuple[int | np.ndarray, np.ndarray | None, pa.Table]]:
        keys = [*table.descriptor.physical_primary_key]
        for entry in bucket.frames.find(start_offset, end_offset):
            stored = self._log.read(entry.location)
            first, last, at = 0, entry.n_rows, stored.offsets
            if at is None:
                first, last = max(start_offset - entry.base_offset, 0), min(entry.end_offset, end_offset) - entry.base_offset
                at = entry.base_offset + first
            batch = decode_batch(stored.message, table.schemas.arrow_schema(stored.header.schema_id)).slice(first, last - first)
            codes = None if stored.change_types is None else np.frombuffer(stored.change_types, np.uint8)[first:last]
            yield at, codes, pa.Table.from_batches([batch.select(keys)])


def origins_of(stored: StoredFrame) -> np.ndarray:
    """The commits whose rows a re-packed frame holds."""
    assert stored.origins is not None, "the index says that the frame has origins"
    return stored.origins


def _loader(staged: Staged) -> Callable[[], tuple[pa.RecordBatch, int]]:
    return lambda: (staged.batch, 0)


def _root(buffer: pa.Buffer) -> pa.Buffer:
    """The buffer that a slice was cut from first."""
    while buffer.parent is not None:
        buffer = buffer.parent
    return buffer


def _is_plain(descriptor: TableDescriptor) -> bool:
    """True when the table's frames are written uncompressed: decoding one copies nothing."""
    return descriptor.options.get("table.log.arrow.compression.type", "none").lower() == "none"
