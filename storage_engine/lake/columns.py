"""Columns: how a table of the store looks as a Delta table, and the way back.

A lake table has the columns of the store's table, all nullable, plus three system columns that name a row's place in
the store: `__bucket`, `__offset` (of the log or changelog) and `__timestamp` (of the commit, UTC).

Types are kept with two exceptions. Delta knows microseconds only, so TIMESTAMP(3) widens to microseconds; and it has no
time of day, so TIME becomes INT, milliseconds of the day. TIMESTAMP without a zone is `timestamp_ntz` (table feature
`timestampNtz`, protocol (3,7)): wall time stays wall time. DuckDB, delta-rs and Spark read that, but Spark refuses a
delta-rs table that has both timestamp_ntz and a NOT NULL column, hence "all nullable": the store enforces NOT NULL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import InvalidPartition, SchemaMismatch
from storage_engine.schema.descriptor import TableDescriptor

BUCKET = "__bucket"
OFFSET = "__offset"
TIMESTAMP = "__timestamp"

SYSTEM_FIELDS = (
    pa.field(BUCKET, pa.int32()),
    pa.field(OFFSET, pa.int64()),
    pa.field(TIMESTAMP, pa.timestamp("us", "UTC")),
)
_SCAN_NAMES = {BUCKET: "_bucket", OFFSET: "_log_offset", TIMESTAMP: "_commit_timestamp"}


def lake_type(arrow: pa.DataType) -> pa.DataType:
    """The type a column has in the lake; see the header for the two that differ.

    >>> lake_type(pa.timestamp("ms")), lake_type(pa.time32("ms")), lake_type(pa.decimal128(12, 2))
    (TimestampType(timestamp[us]), DataType(int32), Decimal128Type(decimal128(12, 2)))
    """
    if pa.types.is_timestamp(arrow):
        return pa.timestamp("us", arrow.tz)
    if pa.types.is_time(arrow):
        return pa.int32()
    return arrow


def lake_schema(descriptor: TableDescriptor) -> pa.Schema:
    """The Arrow schema of a tiered table in the lake: its columns, then the system columns.

    Errors: InvalidPartition when the partition column has a type whose values every engine does not read alike.
    """
    for name in descriptor.partition_keys:
        check_partition_type(descriptor.name, name, descriptor.column(name).arrow.type)
    fields = [
        pa.field(column.name, lake_type(column.arrow.type), metadata={"comment": column.comment} if column.comment else None)
        for column in descriptor.columns
    ]
    return pa.schema([*fields, *SYSTEM_FIELDS])


def check_partition_type(table: str, name: str, arrow: pa.DataType) -> None:
    """Refuse a partition column that is not STRING, INT, BIGINT or DATE: a timestamp in a path carries no zone."""
    if not (pa.types.is_string(arrow) or pa.types.is_int32(arrow) or pa.types.is_int64(arrow) or pa.types.is_date32(arrow)):
        raise InvalidPartition(
            f"column {name} of type {arrow} cannot partition a lake table",
            where=table,
            next_step="Partition by a STRING, INT, BIGINT or DATE column.",
        )


def to_lake(rows: pa.Table | pa.RecordBatch, schema: pa.Schema, sources: Mapping[str, str | None] = MappingProxyType({})) -> pa.Table:
    """Rows of a scan with metadata as rows of the lake.

    Shapes: rows (n,) with the store's columns and `_bucket`, `_log_offset`, `_commit_timestamp` -> (n,) with `schema`.
    sources lake column -> column of the rows, where the names differ; None: the column is null.
    Errors: SchemaMismatch when a column of the lake is not in the rows.
    """
    arrays = []
    for item in schema:
        name = sources.get(item.name, _SCAN_NAMES.get(item.name, item.name))
        if name is None:
            arrays.append(pa.nulls(rows.num_rows, item.type))
            continue
        if rows.schema.get_field_index(name) < 0:
            raise SchemaMismatch(f"rows lack column {name}", where="tiering", next_step="Tier the table with its current columns.")
        arrays.append(_cast(rows.column(name), item.type))
    return pa.Table.from_arrays([pa.chunked_array([a]) if isinstance(a, pa.Array) else a for a in arrays], schema=schema)


def from_lake(rows: pa.Table, store_types: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns back in the store's types (a column not named in `store_types` stays as it is)."""
    arrays = [_cast(rows.column(name), store_types.get(name, rows.schema.field(name).type)) for name in rows.column_names]
    return pa.Table.from_arrays(arrays, names=rows.column_names)


def _cast(values: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if values.type == wanted:
        return values
    if pa.types.is_time(wanted) != pa.types.is_time(values.type):  # the lake's INT, milliseconds of the day
        return pc.cast(values.cast(pa.int32()), wanted)
    return pc.cast(values, wanted)


def quoted(name: str) -> str:
    """An SQL identifier.

    >>> quoted('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'


def quoted_list(names: Sequence[str], prefix: str = "") -> str:
    """SQL identifiers, comma separated, each behind `prefix`."""
    return ", ".join(prefix + quoted(name) for name in names)
