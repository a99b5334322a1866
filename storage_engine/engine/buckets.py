"""Buckets: the live parts of every table. Per bucket its frames, and for a primary-key table the key index over them.

Owner: engine/core.py creates and publishes; transactions plan against them.
State: derived. Frame indexes come from the log (or a checkpoint); a key index is made when first needed, from its snapshot and the
       tail of its changelog, or from the whole changelog.
Never: writes the log, decides what a row becomes (kv/merge does).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine.engine.gather import GATHER_ROWS_MAX, GatherBudget, LoadFrame, RowGather
from storage_engine.engine.key_budget import KeyBudget
from storage_engine.engine.key_snapshots import KeySnapshots
from storage_engine.engine.rows import FrameCache, RowSource, adapt, fetch_rows
from storage_engine.engine.state import TableState
from storage_engine.errors import RetriableError
from storage_engine.kv import AutoIncrement, Ids, IdSegments, KvBucket
from storage_engine.log.commit_log import CommitLog, FrameLocation
from storage_engine.log.frame import decode_batch
from storage_engine.log.frame_index import BucketFrames, BucketId, FrameIndex
from storage_engine.log.message_template import ColumnBuffers
from storage_engine.schema.descriptor import TableBucket

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
    ) -> None:
        """`snapshots`: where key indexes begin; None: at the first frame. `budget`: what they may take; None: what they need."""
        self.index = index
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
        table_id = table.descriptor.table_id
        partition_ids = list(table.partitions.values()) if table.descriptor.partition_keys else [0]
        for partition_id in partition_ids:
            for number in range(table.descriptor.n_buckets):
                bucket = self._all.get(BucketId(table_id, partition_id, number))
                if bucket is not None:
                    yield bucket

    def ids(self) -> set[BucketId]:
        return set(self._all)

    def built(self) -> list[Bucket]:
        """The buckets that have a key index in this process."""
        return [bucket for bucket in list(self._all.values()) if bucket.kv is not None]

    def drop(self, *, table_id: int, partition_id: int | None = None) -> None:
        """Forget the buckets of a table or of one of its partitions."""
        self.index.drop(table_id, partition_id)
        if partition_id is None:
            self.counters.pop(table_id, None)
        for bucket_id in [i for i in self._all if i.table_id == table_id and partition_id in (None, i.partition_id)]:
            bucket = self._all.pop(bucket_id)
            if bucket.gather is not None:
                self._gathers.forget(bucket.gather)
            if self._budget is not None:
                self._budget.drop(bucket)

    # rows

    def rows_at(self, bucket: Bucket, offsets: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """Rows of a bucket at `offsets` (n,), in that order, in the table's present columns."""
        table = self._table(bucket)
        schema = table.descriptor.arrow_schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        staged = list(bucket.staged)
        if not staged:
            return self._logged_rows(bucket, table, offsets, schema)
        staged_from = staged[0].base_offset if staged else bucket.frames.end_offset
        logged = offsets < staged_from
        if logged.all():
            return self._logged_rows(bucket, table, offsets, schema)
        sources = [RowSource(s.base_offset, s.batch.num_rows, s.base_offset, _loader(s)) for s in staged]
        starts = np.array([source.base_offset for source in sources], np.int64)
        source_of = np.searchsorted(starts, offsets[~logged], side="right") - 1
        staged_rows = fetch_rows(sources, source_of, offsets[~logged], schema, FrameCache(0))
        both = pa.concat_tables([self._logged_rows(bucket, table, offsets[logged], schema), staged_rows])
        position = np.empty(len(offsets), np.int64)
        position[np.flatnonzero(logged)] = np.arange(int(logged.sum()))
        position[np.flatnonzero(~logged)] = np.arange(int(logged.sum()), len(offsets))
        return both.take(pa.array(position)).combine_chunks()

    def _logged_rows(self, bucket: Bucket, table: TableState, offsets: np.ndarray, schema: pa.Schema) -> pa.Table:
        if len(offsets) == 0:
            return schema.empty_table()
        frames = bucket.frames
        located = frames.locate(offsets)
        is_scattered = len(offsets) <= GATHER_ROWS_MAX or len(offsets) * _SCATTERED < frames.end_offset - frames.start_offset
        if is_scattered and schema is table.descriptor.arrow_schema and (found := self._gather_of(bucket, table)) is not None:
            gather, load = found
            gathered = gather.rows(frames.entries, located, offsets, load)
            if gathered is not None:
                return pa.Table.from_batches([gathered])
        touched, source_of = np.unique(located, return_inverse=True)
        sources = []
        for base_offset, end_offset, position, _, _, length, _ in frames.entries[touched].tolist():
            location = FrameLocation(position, length)
            sources.append(RowSource(base_offset, end_offset - base_offset, location, self._load(table, location)))
        return fetch_rows(sources, source_of, offsets, schema, self._cache)

    def row_at(self, bucket: Bucket, offset: int) -> pa.RecordBatch | None:
        """The row at an offset, in the table's present columns; None when it is not in the log (yet)."""
        at = bucket.frames.locate_one(offset)
        if at is None:
            return None
        base_offset, end_offset, location = at
        table = self._table(bucket)
        batch = self._cache.get(RowSource(base_offset, end_offset - base_offset, location, self._load(table, location)))
        return adapt(batch.slice(offset - base_offset, 1), table.descriptor.arrow_schema)

    def columns_at(self, bucket: Bucket, table: TableState, offsets: np.ndarray) -> list[ColumnBuffers] | None:
        """Rows (n,) of the log at `offsets`, all columns, as buffers; None when rows_at() must read them."""
        if len(offsets) > GATHER_ROWS_MAX or bucket.staged or (found := self._gather_of(bucket, table)) is None:
            return None
        gather, load = found
        frames = bucket.frames
        return gather.columns(frames.entries, frames.locate(offsets), offsets, load)

    def values_at(self, bucket: Bucket, table: TableState, offset: int) -> list[Any] | None:
        """The stored values of the row of the log at an offset, all columns; None when row_at() must read it."""
        if (found := self._gather_of(bucket, table)) is None:
            return None
        gather, load = found
        return gather.values(bucket.frames.entries, offset, load)

    def _gather_of(self, bucket: Bucket, table: TableState) -> tuple[RowGather, LoadFrame] | None:
        """The bucket's gather and how it loads a frame; None when rows of this table cannot be gathered."""
        schema = table.descriptor.arrow_schema
        gather = bucket.gather
        if gather is None or gather.schema is not schema:
            if gather is not None:
                self._gathers.forget(gather)
            gather = bucket.gather = RowGather(schema, self._gathers)
        if not gather.is_possible or not _is_plain(table):
            return None

        def load(entry: np.void) -> tuple[pa.RecordBatch, int]:
            batch, heap_bytes = self._load(table, FrameLocation(int(entry["position"]), int(entry["length"])))()
            whole = adapt(batch, schema)
            return whole, heap_bytes + (whole.nbytes if whole is not batch else 0)

        return gather, load

    def _load(self, table: TableState, location: FrameLocation) -> Callable[[], tuple[pa.RecordBatch, int]]:
        def load() -> tuple[pa.RecordBatch, int]:
            stored = self._log.read(location)
            before = pa.total_allocated_bytes()
            batch = decode_batch(stored.message, self.stored_schema(table, stored.header.schema_id))
            copied = location.length if _root(stored.message).size == location.length else 0  # read beyond the mapping
            return batch, max(pa.total_allocated_bytes() - before, 0) + copied

        return load

    @staticmethod
    def stored_schema(table: TableState, schema_id: int) -> pa.Schema:
        """The schema that frames of `schema_id` were written with."""
        schema = table.descriptor.arrow_schema
        width = table.widths[schema_id]
        return schema if width == len(schema) else pa.schema([schema.field(i) for i in range(width)])

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
        start_offset = bucket.frames.start_offset
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
        for bucket in self.of_table(table):
            if bucket.kv is not None:
                bucket.kv.alter(table.descriptor)

    def _changes(
        self, bucket: Bucket, table: TableState, start_offset: int, end_offset: int
    ) -> Iterator[tuple[int, np.ndarray | None, pa.Table]]:
        keys = [*table.descriptor.physical_primary_key]
        for entry in bucket.frames.find(start_offset, end_offset):
            stored = self._log.read(entry.location)
            n = min(entry.end_offset, end_offset) - entry.base_offset
            batch = decode_batch(stored.message, self.stored_schema(table, stored.header.schema_id)).slice(0, n)
            codes = None if stored.change_types is None else np.frombuffer(stored.change_types, np.uint8)[:n]
            yield entry.base_offset, codes, pa.Table.from_batches([batch.select(keys)])


def _loader(staged: Staged) -> Callable[[], tuple[pa.RecordBatch, int]]:
    return lambda: (staged.batch, 0)


def _root(buffer: pa.Buffer) -> pa.Buffer:
    """The buffer that a slice was cut from first."""
    while buffer.parent is not None:
        buffer = buffer.parent
    return buffer


def _is_plain(table: TableState) -> bool:
    """True when the table's frames are written uncompressed: decoding one copies nothing."""
    return table.descriptor.options.get("table.log.arrow.compression.type", "none").lower() == "none"
