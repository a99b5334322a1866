"""Lake-only tables: Delta tables that no store table stands behind, such as ods.promotions. Rows stream through.

Holds: a write is one Delta commit, synced to disk; the number of rows in it is checked against the rows that were read.
Never: writes a table that belongs to the tierer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake

from storage_engine.errors import LakeChanged, SchemaMismatch, UserError, WriteFailed
from storage_engine.lake.columns import check_partition_type, lake_type
from storage_engine.lake.delta import sync_commit
from storage_engine.lake.lane import table_path
from storage_engine.lake.record import LAKE_ID, read_entry

Mode = Literal["error", "append", "overwrite"]

_ROWS_PER_GROUP = 250_000
_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class LakeWrite:
    """A write to a lake-only table. `is_duplicate`: the write id was there already and nothing was written."""

    path: Path
    delta_version: int
    n_rows: int
    is_duplicate: bool = False


def write_lake_table(
    lake_root: str | Path,
    name: str,
    rows: pa.RecordBatchReader,
    mode: Mode = "error",
    partition_by: Sequence[str] = (),
    *,
    where: str | None = None,
    description: str = "",
    comments: Mapping[str, str] | None = None,
    write_id: tuple[str, int] | None = None,
) -> LakeWrite:
    """Write rows to LAKE_ROOT/<database>/<table> in one commit, a batch at a time.

    mode      error: the table must not exist; append; overwrite: all rows, or with `where` the rows that satisfy it
              (a condition of literals; a row that does not satisfy it is refused by Delta)
    comments  column name -> text, kept in the table when this write creates it
    write_id  (writer, sequence): a sequence that is not above the writer's last one is not written again
    Types:    as of a tiered table: all columns nullable, timestamps in microseconds, TIME as INT milliseconds of the day.
    Errors:   InvalidPartition, SchemaMismatch, UserError (a tiered table, or it exists), LakeChanged (a concurrent write), WriteFailed.
    """
    path = table_path(Path(lake_root).absolute(), name)
    schema = _lake_only_schema(name, rows.schema, partition_by, comments or {})
    table = _existing(path, name, mode)
    if table is not None and write_id is not None and write_id[1] <= (table.transaction_version(write_id[0]) or 0):
        return LakeWrite(path, table.version(), 0, is_duplicate=True)
    before = table.version() if table is not None else -1
    counted = _Counted(rows, schema)
    options: dict[str, Any] = {
        "partition_by": list(partition_by) or None,
        "predicate": where if table is not None else None,
        "name": name,
        "description": description or None,
        "target_file_size": _FILE_BYTES,
        "writer_properties": WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=_ROWS_PER_GROUP),
        "commit_properties": CommitProperties(app_transactions=[Transaction(*write_id)] if write_id else None, max_commit_retries=0),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_deltalake(table if table is not None else str(path), counted.reader(), mode=mode, **options)
    except OSError as error:
        raise WriteFailed(
            f"the lake refused the write: {error}", where=str(path), next_step="Free space or fix permissions, and write again."
        ) from error
    except Exception as error:
        raise _named(error, name, path) from error
    return _finish(path, before, counted)


def parquet_reader(file: str | Path, columns: Sequence[str] | None = None, batch_rows: int = 131_072) -> pa.RecordBatchReader:
    """The rows of one Parquet file, a batch at a time.

    Not pyarrow.dataset: of a file with one row group (the package's promotions, 20.9 million rows) its scanner holds the
    decoded group, 850 MB; this holds 70 MB.
    """
    source = pq.ParquetFile(file)
    names = list(columns) if columns is not None else source.schema_arrow.names
    schema = pa.schema([source.schema_arrow.field(name) for name in names])
    return pa.RecordBatchReader.from_batches(schema, source.iter_batches(batch_rows, columns=names))


def _finish(path: Path, before: int, counted: _Counted) -> LakeWrite:
    version = before + 1
    entry = read_entry(path, version)
    if entry is None or entry.n_rows_added < counted.n_rows:
        found = "nothing" if entry is None else f"{entry.n_rows_added} rows"
        raise LakeChanged(
            f"{counted.n_rows} rows were read and Delta version {version} has {found}",
            where=str(path),
            next_step="Somebody wrote at the same time; look at the table's history.",
        )
    sync_commit(path, version, entry.added)
    return LakeWrite(path, version, counted.n_rows)


class _Counted:
    """Batches on their way, cast to the lake's types and counted."""

    def __init__(self, rows: pa.RecordBatchReader, schema: pa.Schema) -> None:
        self._rows, self._schema = rows, schema
        self.n_rows = 0

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._rows:
            self.n_rows += batch.num_rows
            arrays = [_as_lake(batch.column(i), item.type) for i, item in enumerate(self._schema)]
            yield pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def _as_lake(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_time(values.type):
        values = values.cast(pa.time32("ms"))
    return values.cast(wanted)


def _lake_only_schema(name: str, schema: pa.Schema, partition_by: Sequence[str], comments: Mapping[str, str]) -> pa.Schema:
    for column in (*partition_by, *comments):
        if schema.get_field_index(column) < 0:
            raise SchemaMismatch(f"the rows have no column {column}", where=name, next_step=f"Their columns are {', '.join(schema.names)}.")
    fields = []
    for item in schema:
        kind = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
        kind = {pa.large_string(): pa.string(), pa.string_view(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, lake_type(kind))
        fields.append(pa.field(item.name, kind, metadata={"comment": comments[item.name]} if comments.get(item.name) else None))
    found = pa.schema(fields)
    for column in partition_by:
        check_partition_type(name, column, found.field(column).type)
    return found


def _existing(path: Path, name: str, mode: Mode) -> DeltaTable | None:
    if not ((path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(path))):
        return None
    table = DeltaTable(str(path))
    if LAKE_ID in table.metadata().configuration:
        raise UserError(
            f"{name} is tiered from the store", where=str(path), next_step="Write to the store's table; the tierer brings the rows here."
        )
    if mode == "error":
        raise UserError(f"lake table {name} exists", where=str(path), next_step="Write with mode 'append' or 'overwrite'.")
    return table


def _named(error: Exception, name: str, path: Path) -> Exception:
    """delta-rs errors in the platform's words; anything unknown as it is."""
    from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError

    if isinstance(error, CommitFailedError):
        return LakeChanged(
            f"somebody wrote {name} at the same time", where=str(path), next_step="Write again; nothing of this write is visible."
        )
    if isinstance(error, SchemaMismatchError):
        return SchemaMismatch(
            f"the rows do not fit {name}: {error}", where=str(path), next_step="Give the table's columns and types, or overwrite it."
        )
    if isinstance(error, DeltaError):
        return SchemaMismatch(
            f"Delta refused rows for {name}: {error}",
            where=str(path),
            next_step="Check the rows against the condition and the table's schema.",
        )
    return error
