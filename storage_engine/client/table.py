"""Table: reads and writes of one table. Arrow in, Arrow out; decoding of fetched frames happens here, on the reader's side.

Holds: a scan with explicit offsets returns exactly [start, stop) of each bucket, in offset order inside a bucket.
Holds: rows come in the columns that the table had when it was opened. One that was dropped or renamed since is an error that says so;
       one whose type was widened since comes in the narrower type as long as its values fit.
Never: caches rows; the descriptor it carries is the one it was opened with.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import (
    PLACE_FIELDS,
    Backend,
    CommitRequest,
    CommitResult,
    EncodedAppend,
    FetchedFrame,
    OpKind,
    SpaceInfo,
    WriteId,
    WriteOp,
)
from storage_engine.client.binlog import binlog_batches, binlog_schema
from storage_engine.client.positions import Start, Stop, check_limit, milliseconds, scan_ranges
from storage_engine.client.table_writer import TableWriter
from storage_engine.errors import SchemaMismatch, UserError
from storage_engine.log.frame import CHANGE_TYPE_NAMES, read_message
from storage_engine.schema.descriptor import Offsets, TableDescriptor
from storage_engine.schema.evolve import fitted
from storage_engine.schema.point import LONG_WAY, PointLookup
from storage_engine.schema.predicate import parse_predicate, partition_values, predicate_columns
from storage_engine.schema.rows import as_table, check_texts, conform_keys
from storage_engine.schema.types import arrow_type

if TYPE_CHECKING:
    from storage_engine.client.consumer import Consumer

METADATA_FIELDS = (
    pa.field("_change_type", pa.string(), nullable=False),
    *PLACE_FIELDS,
)
_NAME_WORDS = np.frombuffer("".join(CHANGE_TYPE_NAMES).encode(), np.uint16)  # each name is two bytes
PREFIX_ROWS_MAX = 1_000_000


def _found_rows(found: pa.Table) -> pa.Table:
    """A backend's answer without the keys that have no row."""
    is_found = found.column(found.num_columns - 1)
    rows = found.remove_column(found.num_columns - 1)
    return rows if all(chunk.true_count == len(chunk) for chunk in is_found.chunks) else rows.filter(is_found)


class Table:
    """One table of a store. `descriptor` says what it is."""

    def __init__(self, backend: Backend, descriptor: TableDescriptor) -> None:
        self.descriptor = descriptor
        self._backend = backend
        self._points: dict[tuple[str, ...] | None, PointLookup] = {}
        self._answers: dict[tuple[str, ...], pa.Schema] = {}

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

    def retract(self, rows: Any, columns: Sequence[str] | None = None, *, write_id: WriteId | None = None) -> CommitResult:
        """Take rows back out of an aggregation table: the inverse of upserting them, for columns with function sum or count.

        A column with another function has to be null in the rows, or not among `columns`. To take an old row back and add a new one
        in one commit, give both to store.commit() as operations "upsert" and "retract", in that order.
        """
        return self._write("retract", rows, columns, write_id)

    def writer(self, *, in_flight: int = 16) -> TableWriter:
        """For many batches: up to `in_flight` are on their way while the next one is made ready. Close it, or use it in `with`."""
        return TableWriter(self, self._backend.commit_stream(in_flight))

    def operation(self, kind: OpKind, rows: Any, columns: Sequence[str] | None = None) -> WriteOp | EncodedAppend:
        """A write as Store.commit() takes it. Appends behind a wire are routed and compressed here.

        Errors: SchemaMismatch, where rows are not what the table takes.
        """
        if kind == "append" and self._backend.takes_encoded and not self.descriptor.has_primary_key:
            from storage_engine.client.encoding import encode_append

            return encode_append(self.descriptor, self.as_rows(rows))
        given = self.as_rows(rows)
        if self._backend.takes_encoded:
            check_texts(given, f"table {self.name}")  # a server drops a message that holds others: it cannot be of a Flashlake client
        return WriteOp(self.name, kind, given, None if columns is None else tuple(columns))

    def _write(self, kind: OpKind, rows: Any, columns: Sequence[str] | None, write_id: WriteId | None) -> CommitResult:
        return self._backend.commit(CommitRequest((self.operation(kind, rows, columns),), (), write_id))

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
        found = self._known_answer(found, checked, columns)
        return found if missing == "null" else _found_rows(found)

    def lookups(self, batches: Iterable[Any], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """lookup() of each of many batches of keys, in order. A remote store has several on their way while one is awaited."""
        checked = (conform_keys(self.descriptor, keys) for keys in batches)
        wanted = self.descriptor.column_names if columns is None else columns
        return (_found_rows(self._as_known(found)) for found in self._backend.lookups(self.name, checked, wanted))

    def prefix_lookups(self, batches: Iterable[Any], columns: Sequence[str] | None = None, limit: int | None = None) -> Iterator[pa.Table]:
        """prefix_lookup() of each of many batches of prefixes, as lookups()."""
        check_limit(limit, where="prefix_lookups")
        return self._backend.prefix_lookups(self.name, map(self.as_rows, batches), columns, limit)

    def lookup_one(self, key: Any, columns: Sequence[str] | None = None) -> dict[str, Any] | None:
        """The row of one key as a dict, None when there is none: what lookup() has, without a table on the way.

        key  its value; for several key columns a tuple in their order, or a dict
        """
        name = None if columns is None else tuple(columns)
        point = self._points.get(name)
        if point is None:
            point = self._points[name] = PointLookup(self.descriptor, name)
        stored = point.stored_key(key)
        row = LONG_WAY if stored is None else self._backend.lookup_one(self.name, point, stored)
        if isinstance(row, list):
            return dict(zip(point.names, row, strict=True))
        if row is None:
            return None
        if not isinstance(key, Mapping):
            values, names = key if isinstance(key, tuple) else (key,), self.descriptor.primary_key
            if names and len(values) != len(names):
                what = f"a key of {self.name} has {len(names)} values, not {len(values)}"
                raise SchemaMismatch(what, where="lookup_one", next_step=f"Give {', '.join(names)}.")
            key = dict(zip(names, values, strict=False))
        rows = self.lookup({column: [value] for column, value in key.items()}, columns).to_pylist()
        return rows[0] if rows else None

    def prefix_lookup(
        self, prefixes: Any, columns: Sequence[str] | None = None, limit: int | None = None, *, rows_max: int = PREFIX_ROWS_MAX
    ) -> pa.Table:
        """Rows whose key starts with the bucket key (and partition) given; at most `limit` rows per prefix.

        Errors: ResultTooLarge when there are more than `rows_max` rows: said before they are read, not after gigabytes were built.
        """
        check_limit(limit, where="prefix_lookup")
        wanted = self.descriptor.column_names if columns is None else columns
        return self._as_known(self._backend.prefix_lookup(self.name, self.as_rows(prefixes), wanted, limit, rows_max))

    def read(
        self,
        columns: Sequence[str] | None = None,
        where: str | pc.Expression | None = None,
        *,
        at: int | None = None,
        limit: int | None = None,
        of_partitions: Collection[str] | None = None,
    ) -> pa.Table:
        """Current rows of a primary-key table, at the newest version or `at` an older one, from one point in time.

        limit  at most so many rows, whichever; without `where` the store reads no more than these
        of_partitions  only their rows; a table without partitions has the one without a name
        """
        if not self.descriptor.has_primary_key:
            raise UserError(f"{self.name} is a log table and has no current rows", where="read", next_step="Use scan() to read its log.")
        check_limit(limit, where="read")
        needed = self._needed(columns, where)
        partitions = self._partitions_of(where) if of_partitions is None else of_partitions
        pushed = limit if where is None else None
        rows = self._backend.read(self.name, needed, None if partitions is None else sorted(partitions), at, pushed)
        rows = self._filtered(self._as_known(rows), where, columns)
        return rows if limit is None else rows.slice(0, limit)

    def snapshot(self, columns: Sequence[str] | None = None, *, ends: Offsets, as_of: int | None = None) -> pa.RecordBatchReader:
        """The rows of a primary-key table that were current before the offsets `ends`, in batches: for tables larger than memory.

        Before the columns stand `_partition`, `_bucket`, `_log_offset` and `_commit_timestamp`. From `ends` on the changelog says what
        came after. Errors: OffsetOutOfRange when the log begins behind `ends`; PartitionChanged (see scan() for `as_of`).
        """
        return self._backend.snapshot(self.name, columns, ends, as_of=as_of)

    def count(self) -> int:
        """Number of rows now, from the indexes: log rows of a log table, current rows of a primary-key table."""
        return self._backend.count(self.name)

    def compact(self) -> SpaceInfo:
        """Give back now the space of what nobody needs any more, instead of when the background comes to it.

        It may take long, and goes on beside readers and writers. Errors: UnsupportedByBackend; AccessDenied without ALTER; WriteFailed.
        """
        return self._backend.compact(self.name)

    # the log

    def offsets(self, which: Literal["earliest", "latest"] | dt.datetime = "latest", *, at_version: int | None = None) -> Offsets:
        """The earliest offset of each bucket, the one after its last row, or that of the first row committed at or after a moment."""
        if isinstance(which, dt.datetime):
            return self._backend.offsets(self.name, "timestamp", at_version, milliseconds(which, where=self.name))
        return self._backend.offsets(self.name, which, at_version)

    def _offsets_of(self, which: str | dt.datetime) -> Offsets:
        return self.offsets(which)  # type: ignore[arg-type]

    def partitions(self) -> list[str]:
        """The names of the partitions, sorted."""
        return list(self._backend.partitions(self.name))

    def consumer(self, name: str, *, member: str | None = None, session_timeout_s: float = 30.0) -> Consumer:
        """A named reader whose offsets the store keeps.

        member  None: the one reader of that name. A text: one of several that share the buckets, each under an id of its own.
        session_timeout_s  a member that does not poll for so long is out, and the others take its buckets over
        """
        from storage_engine.client.consumer import Consumer

        return Consumer(self._backend, self, name, member, session_timeout_s)

    def last_rows(self, n: int, columns: Sequence[str] | None = None, *, metadata: bool = False) -> pa.Table:
        """The last n rows of a log, over all buckets, in the order of their commits. Reads only the frames that hold them."""
        if self.descriptor.has_primary_key:
            raise UserError(f"{self.name} is no log table", where="last_rows", next_step="Use read(limit=n) for current rows.")
        can = "last_rows" in self._backend.capabilities  # else the backend refuses by that name
        version = self._backend.version() if can else None
        start, stop = self._backend.offsets(self.name, "last", version, n), self.offsets(at_version=version)
        return self.scan(columns, start=start, stop=stop, metadata=metadata).read_all()

    def scan(
        self,
        columns: Sequence[str] | None = None,
        where: str | pc.Expression | None = None,
        start: Start = "earliest",
        stop: Stop = "latest",
        *,
        metadata: bool = False,
        skip_by: str | None = None,
        as_of: int | None = None,
    ) -> pa.RecordBatchReader:
        """The log, or the changelog of a primary-key table (with a first column `_change_type`), between two sets of offsets.

        where   a condition (text) is also sent to the store, which leaves out frames that its statistics rule out
        start   "earliest", "latest", an aware datetime (rows committed at or after it), or the next offset per bucket; a bucket not
                named begins at its earliest offset, and one of a partition that is not there is passed over
        stop    "latest" (as of now), a datetime (rows committed before it), or the offset per bucket to stop before; a bucket not
                named is not read
        metadata  also `_partition`, `_bucket`, `_log_offset`, `_commit_timestamp`
        skip_by   a condition that only leaves out frames in which no row meets it: for who has to see the other rows of a frame
        as_of   the store's version when the offsets were read; None: now. What was dropped since then is not mistaken for what was
                created under its name.
        Errors: OffsetOutOfRange when the log does not hold `start` any more, or yet, and for a time in the future; PartitionChanged when
        a partition is dropped before it is read.
        """
        if as_of is None and self.descriptor.partition_keys and "journal" in self._backend.capabilities:
            as_of = self._backend.version()
        ranges = scan_ranges(start, stop, self._partitions_of(where), self._offsets_of)
        needed = self._needed(columns, where)
        wanted = list(columns) if columns is not None else list(self.descriptor.column_names)
        sent = where if isinstance(where, str) else None
        if skip_by is not None:
            sent = skip_by if sent is None else f"({sent}) AND ({skip_by})"
        lead = list(METADATA_FIELDS) if metadata else list(METADATA_FIELDS[: 1 if self.descriptor.has_primary_key else 0])
        expression = self._expression(where)
        schema = pa.schema(lead + [self.descriptor.arrow_schema.field(name) for name in wanted])
        decoded = pa.schema(lead + [self.descriptor.arrow_schema.field(name) for name in needed])

        def batches() -> Iterator[pa.RecordBatch]:
            for frame in self._backend.fetch(self.name, ranges, needed, sent, as_of=as_of):
                begin, end = ranges[frame.bucket]
                batch = self._decode(frame, lead, needed, decoded, begin, end)
                if expression is not None:
                    batch = batch.filter(expression).select(schema.names).cast(schema)
                if batch.num_rows:
                    yield batch

        return pa.RecordBatchReader.from_batches(schema, batches())

    def binlog(self, columns: Sequence[str] | None = None, start: Start = "earliest", stop: Stop = "latest") -> pa.RecordBatchReader:
        """The changelog as one row per change, with the structs `before` and `after` of these columns (client/binlog.py)."""
        if not self.descriptor.has_primary_key:
            raise UserError(f"{self.name} is a log table and has no $binlog", where="binlog", next_step="Use scan(): no row changes.")
        needed = self._needed(columns, None)
        plain = pa.schema([self.descriptor.arrow_schema.field(name) for name in needed])
        schema = binlog_schema(list(plain))
        ranges = scan_ranges(start, stop, None, self._offsets_of)
        earliest = self.offsets("earliest")
        # the old row of an update lies one before its new row
        wider = {bucket: (max(begin - 1, earliest.get(bucket, begin)), end) for bucket, (begin, end) in ranges.items()}

        def decoded() -> Iterator[tuple[FetchedFrame, pa.RecordBatch]]:
            for frame in self._backend.fetch(self.name, wider, needed):
                yield frame, self._decode(frame, [], needed, plain, frame.base_offset, frame.base_offset + frame.n_rows)

        return pa.RecordBatchReader.from_batches(schema, binlog_batches(decoded(), ranges, schema))

    def _decode(
        self, frame: FetchedFrame, lead: list[pa.Field], needed: list[str], schema: pa.Schema, begin: int, end: int
    ) -> pa.RecordBatch:
        """The rows of [begin, end) in a frame; `schema`: of `lead` and `needed`."""
        batch = read_message(frame.message, _stored_schema(frame.columns, frame.types))
        first = max(begin - frame.base_offset, 0)
        last = min(end - frame.base_offset, frame.n_rows)
        n = last - first
        if n < frame.n_rows:
            batch = batch.slice(first, n)
        if not lead and batch.schema.equals(schema):
            return batch
        arrays = [self._metadata(item.name, frame, first, n) for item in lead]
        for name, item in zip(needed, list(schema)[len(lead) :], strict=True):
            is_stored = name in frame.columns
            arrays.append(fitted(batch.column(name), item.type, where=self._column(name)) if is_stored else pa.nulls(n, item.type))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    @staticmethod
    def _metadata(name: str, frame: FetchedFrame, first: int, n: int) -> pa.Array:
        if name == "_change_type":
            if frame.change_types is None:
                return pa.repeat(pa.scalar(CHANGE_TYPE_NAMES[0], pa.string()), n)
            return _change_names(np.frombuffer(frame.change_types, np.uint8)[first : first + n])
        if name == "_partition":
            return pa.repeat(pa.scalar(frame.bucket.partition, pa.string()), n)
        if name == "_bucket":
            return pa.repeat(pa.scalar(frame.bucket.bucket, pa.int32()), n)
        if name == "_log_offset":
            return pa.array(np.arange(frame.base_offset + first, frame.base_offset + first + n, dtype=np.int64))
        if frame.timestamps is not None:
            ends, stamps = np.array(frame.timestamps, np.int64).T
            return pa.array(stamps[np.searchsorted(ends, np.arange(first, first + n), side="right")]).cast(pa.timestamp("ms", "UTC"))
        return pa.repeat(pa.scalar(frame.timestamp_ms, pa.timestamp("ms", "UTC")), n)

    # columns and filters

    def _known_answer(self, found: pa.Table, keys: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        """A lookup's answer in the columns and types of this descriptor: the table may have others by now."""
        expected = self._answer_schema(columns)
        if found.schema.equals(expected):
            return found
        if found.schema.names != expected.names:
            found = self._backend.lookup(self.name, keys, expected.names[:-1], insert_if_not_exists=False)
        return self._as_known(found)

    def _answer_schema(self, columns: Sequence[str] | None) -> pa.Schema:
        """What a lookup answers by this descriptor."""
        if columns is None:
            return self.descriptor.answer_schema
        key = tuple(columns)
        if key not in self._answers:
            self._needed(key, None)
            self._answers[key] = pa.schema([self.descriptor.answer_schema.field(name) for name in (*key, "_found")])
        return self._answers[key]

    def _as_known(self, rows: pa.Table) -> pa.Table:
        """Rows in the types that the columns had when the table was opened."""
        known = self.descriptor.answer_schema
        for i, item in enumerate(rows.schema):
            wanted = known.field(item.name).type
            if item.type != wanted:
                chunks = [fitted(chunk, wanted, where=self._column(item.name)) for chunk in rows.column(i).chunks]
                rows = rows.set_column(i, item.with_type(wanted), pa.chunked_array(chunks, wanted))
        return rows

    def _column(self, name: str) -> str:
        return f"table {self.name}, column {name}"

    def as_rows(self, rows: Any) -> pa.Table:
        """Rows as Arrow; Python values are read in the types of the table's columns."""
        return as_table(rows, {column.name: column.arrow for column in self.descriptor.columns}, where=f"table {self.name}")

    def _expression(self, where: str | pc.Expression | None) -> pc.Expression | None:
        return parse_predicate(where, self.descriptor.arrow_schema) if isinstance(where, str) else where

    def _partitions_of(self, where: str | pc.Expression | None) -> set[str] | None:
        if not self.descriptor.partition_keys or not isinstance(where, str):
            return None
        column = self.descriptor.partition_keys[0]
        return partition_values(where, column, self.descriptor.column(column).arrow.type)

    def _needed(self, columns: Sequence[str] | None, where: str | pc.Expression | None) -> list[str]:
        names = list(self.descriptor.column_names)
        if columns is None:
            return names
        unknown = [name for name in columns if name not in names]
        if unknown:
            what = f"{self.name} has no column {unknown[0]}"
            raise SchemaMismatch(what, where="columns", next_step=f"Its columns are {', '.join(names)}.")
        if len(set(columns)) < len(columns):
            twice = next(name for position, name in enumerate(columns) if name in columns[:position])
            raise SchemaMismatch(f"column {twice} is asked for twice", where="columns", next_step="Name each column once.")
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


def _change_names(codes: np.ndarray) -> pa.StringArray:
    """The names of change types (n,). Every name has two bytes: their text is one gather of words."""
    offsets = np.arange(0, 2 * len(codes) + 1, 2, dtype=np.int32)
    return pa.StringArray.from_buffers(len(codes), pa.py_buffer(offsets), pa.py_buffer(_NAME_WORDS[codes]))


@lru_cache(maxsize=1024)
def _stored_schema(names: tuple[str, ...], types: tuple[str, ...]) -> pa.Schema:
    """What a fetched frame's message decodes with."""
    return pa.schema([pa.field(name, arrow_type(kind)) for name, kind in zip(names, types, strict=True)])
