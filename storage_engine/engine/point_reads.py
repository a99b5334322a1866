"""Point reads: lookups of one table and column list, asked again and again, by the shortest way.

Owner: engine/embedded.py makes one per table and column list that somebody looks up by; it keeps no rows.
State: what follows from the table's descriptor; found anew when the descriptor is another one.
Holds: answers are what reads.lookup() answers, of one moment: index and frames are read under the readers' lock, and leave when they are
       durable. LONG_WAY and None (of message) mean: ask reads.lookup(), as for a key that is not there among several, hashes
       that keys share, rare types.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

from storage_engine.engine import reads
from storage_engine.engine.buckets import Bucket
from storage_engine.engine.core import Core
from storage_engine.engine.gather import GATHER_ROWS_MAX
from storage_engine.engine.schemas import Schemas
from storage_engine.engine.state import TableState
from storage_engine.errors import ResultTooLarge, unknown_table
from storage_engine.kv.single import encode_key
from storage_engine.log.frame_index import BucketId
from storage_engine.log.message_template import ColumnBuffers, MessageTemplate, sliced
from storage_engine.schema.bucketing import bucket_of_key
from storage_engine.schema.point import LONG_WAY, LongWay, RowShape

_TOGETHER_ROWS_MAX = 1 << 14  # of prefix lookups with more the rows cost more than the calls
_KEYS_MIN = 4  # of fewer, reads.lookup() finds each by itself in less time


class _Plan:
    """What follows from a descriptor: where key and answer columns stand, how rows are packed."""

    def __init__(self, schemas: Schemas, columns: Sequence[str] | None) -> None:
        descriptor = self.descriptor = schemas.descriptor
        schema = descriptor.arrow_schema
        names = list(descriptor.column_names) if columns is None else list(columns)
        schemas.require(names)
        self.names = tuple(names)
        self.columns = [schema.names.index(name) for name in names]
        self.is_whole = self.columns == list(range(len(schema)))
        self.key_kinds = [descriptor.column(name).arrow.type for name in descriptor.primary_key]
        self.key_columns = [schema.names.index(name) for name in descriptor.primary_key]
        self.bucket_key = [descriptor.primary_key.index(name) for name in descriptor.bucket_keys if name in descriptor.primary_key]
        self.key_shape = RowShape.of(self.key_kinds)
        self.row_shape = RowShape.of([schema.field(i).type for i in self.columns])
        # rare key types have no bytes in plain Python; a partition's name is not among the stored key
        self.is_direct = bool(self.key_kinds) and not descriptor.partition_keys
        self.codes: tuple[str, str] | None = None
        if self.is_direct and self.key_shape is not None and self.row_shape is not None:
            self.codes = (self.key_shape.codes, self.row_shape.codes)
        answer = pa.schema([*(pa.field(name, schema.field(name).type) for name in names), pa.field("_found", pa.bool_())])
        self.answer = MessageTemplate(answer) if MessageTemplate.is_possible(answer) else None


class PrefixReads:
    """Prefix lookups of one table in one list of columns, several requests in one pass."""

    keys_max: Final = 1024  # of one pass: of more the arrays leave the cache

    def __init__(self, core: Core, table: str, columns: Sequence[str] | None, limit: int | None) -> None:
        self._core = core
        self._name = table
        self._columns = columns
        self._limit = limit
        self._has_many = False

    def messages(self, batches: Sequence[pa.RecordBatch]) -> tuple[pa.Schema, list[list[Any]]] | None:
        """The answers to requests of one moment, as messages; None: ask for each by itself, as from then on, where they have many rows."""
        if self._has_many:
            return None
        core, prefixes = self._core, pa.Table.from_batches(batches).combine_chunks()
        try:
            rows, position = core.shown(
                lambda: reads.prefix_rows(core.buckets, core.table(self._name), prefixes, self._columns, self._limit, _TOGETHER_ROWS_MAX),
                lambda: core.end_of(self._name),
            )
        except ResultTooLarge:
            self._has_many = True
            return None
        found = rows.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]
        bounds = np.searchsorted(position, np.cumsum([0, *(batch.num_rows for batch in batches)])).tolist()
        return rows.schema, [[found[0].slice(start, stop - start).serialize()] for start, stop in pairwise(bounds)]


class PointReads:
    """Lookups of one table in one list of columns (None: all)."""

    keys_max: Final = GATHER_ROWS_MAX  # of one pass

    def __init__(self, core: Core, table: str, columns: Sequence[str] | None) -> None:
        self._core = core
        self._name = table
        self._columns = columns
        self._plan: _Plan | None = None

    def packed_row(self, key: bytes | memoryview, codes: tuple[str, str]) -> bytes | LongWay | None:
        """As row(), of a packed key, as a packed row. Errors: MalformedMessage for a key that is none."""
        while True:
            with self._core.readers:
                table, plan = self._planned()
                if plan.codes != codes or plan.key_shape is None or plan.row_shape is None:
                    return LONG_WAY
                row = self._row(table, plan, plan.key_shape.decode_stored(key))
                waits_for = self._core.unsettled(self._end)
            if waits_for is None or self._core.settle(waits_for):
                return plan.row_shape.encode(row) if isinstance(row, list) else row

    def row(self, key: Sequence[Any], codes: tuple[str, str]) -> list[Any] | LongWay | None:
        """The stored values of the row of one key (given as stored values, texts as bytes); None when there is none.

        `codes` of the RowShapes of key and row that the caller knows: the way is long where the table has others by now.
        """
        while True:
            with self._core.readers:
                table, plan = self._planned()
                row = self._row(table, plan, key) if plan.codes == codes else LONG_WAY
                waits_for = self._core.unsettled(self._end)
            if waits_for is None or self._core.settle(waits_for):
                return row

    def _end(self) -> int:
        return self._core.end_of(self._name)

    def _row(self, table: TableState, plan: _Plan, key: Sequence[Any]) -> list[Any] | LongWay | None:
        encoded = encode_key(key, plan.key_kinds)
        if encoded is None:
            return LONG_WAY
        n_buckets = table.n_buckets_of("")
        bucket = self._bucket(table, 0 if n_buckets == 1 else self._bucket_number(plan, key, n_buckets))
        if bucket is None:
            return None
        offset = (bucket.kv or self._core.buckets.kv_of(bucket)).find_one(encoded)
        if offset is None:
            return LONG_WAY
        if offset < 0:
            return None
        values = self._core.buckets.values_at(bucket, table.schemas, offset)
        if values is None or any(values[at] != wanted for at, wanted in zip(plan.key_columns, key, strict=True)):
            return LONG_WAY
        return values if plan.is_whole else [values[i] for i in plan.columns]

    def rows(self, keys: pa.Table) -> pa.Table | None:
        """As message(), as a table."""
        arrays = [column.chunk(0) for column in keys.itercolumns() if column.num_chunks == 1]
        if not 0 < keys.num_rows <= GATHER_ROWS_MAX or len(arrays) != keys.num_columns:
            return None
        direct = self.message(keys.schema, arrays)
        if direct is None:
            return None
        schema, parts = direct
        return pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(b"".join(parts)), schema)])

    def message(self, schema: pa.Schema, keys: Sequence[pa.Array]) -> tuple[pa.Schema, list[Any]] | None:
        """The rows of n keys, all of which must be there, as the parts of an Arrow message, with its schema.

        Shapes: keys (n,) of `schema` as conform_keys() leaves keys, else None -> columns (n,) and `_found`.
        """
        found = self._found(schema, keys)
        if found is None:
            return None
        template, columns = found
        return template.schema, _parts(template, len(keys[0]), columns)

    def messages(self, batches: Sequence[pa.RecordBatch]) -> tuple[pa.Schema, list[list[Any]]] | None:
        """As message() of each of several requests, of one moment, found in one pass; None: ask for each by itself.

        Shapes: k batches of keys in one schema, together at most GATHER_ROWS_MAX -> k messages, in their order.
        """
        columns_of = zip(*(batch.columns for batch in batches), strict=True)
        found = self._found(batches[0].schema, [pa.concat_arrays(arrays) for arrays in columns_of])
        if found is None:
            return None
        template, columns = found
        messages = []
        start = 0
        for batch in batches:
            stop = start + batch.num_rows
            messages.append(_parts(template, stop - start, [sliced(column, start, stop) for column in columns]))
            start = stop
        return template.schema, messages

    def _found(self, schema: pa.Schema, keys: Sequence[pa.Array]) -> tuple[MessageTemplate, list[ColumnBuffers]] | None:
        """The columns asked for of the rows of n keys, all of which are there, once they are durable."""
        while True:
            with self._core.readers:
                plan, offsets, columns = self._gathered(schema, keys)
                waits_for = self._core.unsettled(self._end)
            if waits_for is None or self._core.settle(waits_for):
                break
        if offsets is None or columns is None or plan.answer is None:
            return None
        if not all(_is_column(columns[at], key) for at, key in zip(plan.key_columns, keys, strict=True)):
            return None
        return plan.answer, [columns[i] for i in plan.columns]

    def _gathered(self, schema: pa.Schema, keys: Sequence[pa.Array]) -> tuple[_Plan, np.ndarray | None, list[ColumnBuffers] | None]:
        """Offsets (n,) and columns (n,) of the rows of n keys, of the log at this moment; None where the way is long."""
        table, plan = self._planned()
        if not plan.is_direct or plan.answer is None or table.n_buckets_of("") != 1 or len(keys[0]) < _KEYS_MIN:
            return plan, None, None
        if not schema.equals(plan.descriptor.key_schema) or any(key.null_count for key in keys):
            return plan, None, None
        bucket = self._bucket(table, 0)
        if bucket is None:
            return plan, None, None
        offsets = (bucket.kv or self._core.buckets.kv_of(bucket)).find(keys)
        if offsets is None or int(offsets.min()) < 0:
            return plan, None, None
        return plan, offsets, self._core.buckets.columns_at(bucket, table.schemas, offsets)

    def _planned(self) -> tuple[TableState, _Plan]:
        table = self._core.state.tables.get(self._name)
        if table is None:
            raise unknown_table(self._name, self._core.state.tables)
        plan = self._plan
        if plan is None or plan.descriptor is not table.descriptor:
            plan = self._plan = _Plan(table.schemas, self._columns)
        return table, plan

    def _bucket(self, table: TableState, number: int) -> Bucket | None:
        return self._core.buckets.get(BucketId(table.descriptor.table_id, 0, number))

    def _bucket_number(self, plan: _Plan, key: Sequence[Any], n_buckets: int) -> int:
        encoded = encode_key([key[i] for i in plan.bucket_key], [plan.key_kinds[i] for i in plan.bucket_key])
        assert encoded is not None, "the whole key was encoded"
        return bucket_of_key(encoded, n_buckets)


def _parts(template: MessageTemplate, n: int, columns: Sequence[ColumnBuffers]) -> list[Any]:
    return template.parts(n, [*columns, ColumnBuffers(0, None, (_ones(n),))])


def _is_column(stored: ColumnBuffers, keys: pa.Array) -> bool:
    """True when the gathered key column equals the keys asked for, byte by byte. Keys are never null."""
    _, *buffers = keys.buffers()
    n = len(keys)
    if len(buffers) == 1:
        width = keys.type.bit_width // 8
        own = memoryview(stored.data[0]).cast("B")
        return own == _bytes_of(buffers[0])[keys.offset * width : (keys.offset + n) * width]
    offsets = np.frombuffer(buffers[0], np.int32, n + 1, keys.offset * 4)
    first, last = offsets.item(0), offsets.item(n)
    texts = _bytes_of(buffers[1])[first:last] if buffers[1] is not None else b""
    return np.array_equal(stored.data[0], offsets - first) and stored.data[1].cast("B") == texts


def _bytes_of(buffer: pa.Buffer) -> memoryview:
    return memoryview(buffer).cast("B")  # Arrow's are of signed bytes, and views of different formats compare by value


def _ones(n: int) -> bytes:
    return b"\xff" * (n >> 3) + bytes([(1 << (n & 7)) - 1] if n & 7 else [])
