"""Table: reads and writes of one table. Arrow in, Arrow out; decoding of fetched frames happens here, on the reader's side.

Holds: a scan with explicit offsets returns exactly [start, stop) of each bucket, in offset order inside a bucket.
Never: caches rows; the descriptor it carries is the one it was opened with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import Backend, CommitRequest, CommitResult, FetchedFrame, OpKind, WriteId, WriteOp
from storage_engine.errors import SchemaMismatch, UserError
from storage_engine.log.frame import CHANGE_TYPE_NAMES
from storage_engine.schema.descriptor import Offsets, TableDescriptor
from storage_engine.schema.predicate import parse_predicate, partition_values, predicate_columns
from storage_engine.schema.rows import as_table, conform_keys

if TYPE_CHECKING:
    from storage_engine.client.consumer import Consumer

METADATA_FIELDS = (
    pa.field("_change_type", pa.string(), nullable=False),
    pa.field("_partition", pa.string(), nullable=False),
    pa.field("_bucket", pa.int32(), nullable=False),
    pa.field("_log_offset", pa.int64(), nullable=False),
    pa.field("_commit_timestamp", pa.timestamp("ms", "UTC"), nullable=False),
)

Start = Literal["earliest", "latest"] | Offsets
Stop = Literal["latest"] | Offsets


class Table:
    """One table of a store. `descriptor` says what it is."""

    def __init__(self, backend: Backend, descriptor: TableDescriptor) -> None:
        self.descriptor = descriptor
        self._backend = backend

    @property
    def name(self) -> str:
        return self.descriptor.name

    # writes

    def append(self, rows: Any, *, write_id: WriteId | None = None) -> CommitResult:
        """Append rows to a log table: one atomic commit, over all buckets they touch."""
        return self._write("append", rows, None, write_id)

    def upsert(self, rows: Any, columns: Sequence[str] | None = None, *, write_id: WriteId | None = None) -> CommitResult:
        """Insert or update by primary key. `columns` (with the key) makes it a partial update: other columns keep their values."""
        return self._write("upsert", rows, columns, write_id)

    def delete(self, keys: Any, columns: Sequence[str] | None = None, *, write_id: WriteId | None = None) -> CommitResult:
        """Delete by primary key. With `columns`: set those to null; the row goes when all other non-key columns are null."""
        return self._write("delete", keys, columns, write_id)

    def _write(self, kind: OpKind, rows: Any, columns: Sequence[str] | None, write_id: WriteId | None) -> CommitResult:
        op = WriteOp(self.name, kind, self._as_table(rows), None if columns is None else tuple(columns))
        return self._backend.commit(CommitRequest((op,), (), write_id))

    # point reads

    def lookup(
        self,
        keys: Any,
        columns: Sequence[str] | None = None,
        *,
        missing: Literal["skip", "null"] = "skip",
        insert_if_not_exists: bool = False,
    ) -> pa.Table:
        """Rows by primary key, in the order of the keys.

        missing = "skip": keys without a row are left out. "null": one row per key, with a last column `_found`.
        insert_if_not_exists: a missing key becomes a row (other columns null, auto-increment assigned) and is returned.
        """
        checked = conform_keys(self.descriptor, keys)
        found = self._backend.lookup(self.name, checked, columns, insert_if_not_exists=insert_if_not_exists)
        if missing == "null":
            return found
        is_found = found.column(found.num_columns - 1)
        rows = found.remove_column(found.num_columns - 1)
        return rows if all(chunk.true_count == len(chunk) for chunk in is_found.chunks) else rows.filter(is_found)

    def prefix_lookup(self, prefixes: Any, columns: Sequence[str] | None = None, limit: int | None = None) -> pa.Table:
        """Rows whose key starts with the bucket key (and partition) given; at most `limit` rows per prefix."""
        return self._backend.prefix_lookup(self.name, self._as_table(prefixes), columns, limit)

    def read(self, columns: Sequence[str] | None = None, where: str | pc.Expression | None = None, *, at: int | None = None) -> pa.Table:
        """Current rows of a primary-key table, at the newest version or `at` an older one, from one point in time."""
        if not self.descriptor.has_primary_key:
            raise UserError(f"{self.name} is a log table and has no current rows", where="read", next_step="Use scan() to read its log.")
        needed = self._needed(columns, where)
        partitions = self._partitions_of(where)
        rows = self._backend.read(self.name, needed, None if partitions is None else sorted(partitions), at)
        return self._filtered(rows, where, columns)

    def count(self) -> int:
        """Number of rows now, from the indexes: log rows of a log table, current rows of a primary-key table."""
        return self._backend.count(self.name)

    # the log

    def offsets(self, which: Literal["earliest", "latest"] = "latest", *, at_version: int | None = None) -> Offsets:
        return self._backend.offsets(self.name, which, at_version)

    def partitions(self) -> list[str]:
        return self._backend.partitions(self.name)

    def consumer(self, name: str) -> Consumer:
        """A named reader whose offsets the store keeps."""
        from storage_engine.client.consumer import Consumer

        return Consumer(self._backend, self, name)

    def scan(
        self,
        columns: Sequence[str] | None = None,
        where: str | pc.Expression | None = None,
        start: Start = "earliest",
        stop: Stop = "latest",
        *,
        metadata: bool = False,
    ) -> pa.RecordBatchReader:
        """The log, or the changelog of a primary-key table (with a first column `_change_type`), between two sets of offsets.

        start   "earliest", "latest", or the next offset per bucket; a bucket not named begins at its earliest offset.
        stop    "latest" (as of now) or the offset per bucket to stop before; a bucket not named is not read.
        metadata  also `_partition`, `_bucket`, `_log_offset`, `_commit_timestamp`.
        Errors: OffsetOutOfRange when the log no longer holds `start`.
        """
        ranges = self._ranges(start, stop, self._partitions_of(where))
        needed = self._needed(columns, where)
        wanted = list(columns) if columns is not None else list(self.descriptor.column_names)
        lead = list(METADATA_FIELDS) if metadata else list(METADATA_FIELDS[: 1 if self.descriptor.has_primary_key else 0])
        expression = self._expression(where)
        schema = pa.schema(lead + [self.descriptor.arrow_schema.field(name) for name in wanted])

        def batches() -> Iterator[pa.RecordBatch]:
            for frame in self._backend.fetch(self.name, ranges, needed):
                begin, end = ranges[frame.bucket]
                batch = self._decode(frame, lead, needed, begin, end)
                if expression is not None:
                    batch = batch.filter(expression)
                if batch.num_rows:
                    yield batch.select(schema.names).cast(schema)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _ranges(self, start: Start, stop: Stop, partitions: set[str] | None) -> dict[Any, tuple[int, int]]:
        stops = self.offsets("latest") if stop == "latest" else stop
        if start == "latest":
            starts: Offsets = dict(stops)
        elif start == "earliest":
            starts = {}
        else:
            starts = start
        earliest = self.offsets("earliest") if any(bucket not in starts for bucket in stops) else {}
        ranges = {}
        for bucket, end in stops.items():
            begin = starts.get(bucket, earliest.get(bucket, 0))
            if begin < end and (partitions is None or bucket.partition in partitions):
                ranges[bucket] = (begin, end)
        return ranges

    def _decode(self, frame: FetchedFrame, lead: list[pa.Field], needed: list[str], begin: int, end: int) -> pa.RecordBatch:
        stored = pa.schema([self.descriptor.arrow_schema.field(name) for name in frame.columns])
        batch = pa.ipc.read_record_batch(frame.message, stored)
        first = max(begin - frame.base_offset, 0)
        last = min(end - frame.base_offset, frame.n_rows)
        batch = batch.slice(first, last - first)
        n = batch.num_rows
        arrays: list[pa.Array] = []
        fields: list[pa.Field] = []
        for item in lead:
            arrays.append(self._metadata(item.name, frame, first, n))
            fields.append(item)
        for name in needed:
            item = self.descriptor.arrow_schema.field(name)
            arrays.append(batch.column(name) if name in frame.columns else pa.nulls(n, item.type))
            fields.append(item)
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    @staticmethod
    def _metadata(name: str, frame: FetchedFrame, first: int, n: int) -> pa.Array:
        if name == "_change_type":
            if frame.change_types is None:
                return pa.repeat(_change_names()[0], n)
            return _change_names().take(pa.array(np.frombuffer(frame.change_types, np.uint8)[first : first + n]))
        if name == "_partition":
            return pa.repeat(pa.scalar(frame.bucket.partition, pa.string()), n)
        if name == "_bucket":
            return pa.repeat(pa.scalar(frame.bucket.bucket, pa.int32()), n)
        if name == "_log_offset":
            return pa.array(np.arange(frame.base_offset + first, frame.base_offset + first + n, dtype=np.int64))
        return pa.repeat(pa.scalar(frame.timestamp_ms, pa.timestamp("ms", "UTC")), n)

    # columns and filters

    def _as_table(self, rows: Any) -> pa.Table:
        """Rows as Arrow; Python values are read in the types of the table's columns."""
        return as_table(rows, {column.name: column.arrow for column in self.descriptor.columns}, where=f"table {self.name}")

    def _expression(self, where: str | pc.Expression | None) -> pc.Expression | None:
        return parse_predicate(where, self.descriptor.arrow_schema) if isinstance(where, str) else where

    def _partitions_of(self, where: str | pc.Expression | None) -> set[str] | None:
        if not self.descriptor.partition_keys or not isinstance(where, str):
            return None
        return partition_values(where, self.descriptor.partition_keys[0])

    def _needed(self, columns: Sequence[str] | None, where: str | pc.Expression | None) -> list[str]:
        names = list(self.descriptor.column_names)
        if columns is None:
            return names
        unknown = [name for name in columns if name not in names]
        if unknown:
            what = f"{self.name} has no column {unknown[0]}"
            raise SchemaMismatch(what, where="columns", next_step=f"Its columns are {', '.join(names)}.")
        if where is None:
            return list(columns)
        if not isinstance(where, str):
            return names
        return list(columns) + [name for name in predicate_columns(where) if name in names and name not in columns]

    def _filtered(self, rows: pa.Table, where: str | pc.Expression | None, columns: Sequence[str] | None) -> pa.Table:
        expression = self._expression(where)
        if expression is not None:
            rows = rows.filter(expression)
        return rows if columns is None else rows.select(list(columns))


@cache
def _change_names() -> pa.Array:
    """Made at the first use: pa.array() loads pandas, which a server never needs."""
    return pa.array(CHANGE_TYPE_NAMES, pa.string())
