"""Writes: rows to a table, acknowledged or refused. Runs on the loop thread.

Data goes one way: rows -> conform -> partitions made -> cut by partition and bucket -> writer -> acknowledgement of each batch.
Holds: a batch that is handed to the client lies in one partition and one bucket (the client would write the whole of a mixed batch into
       the first row's partition); a partition is there before its first row (the client would retry for ever).
       Each batch's own acknowledgement is awaited: flush() alone returns normally over failed writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fluss
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.engine.partitions import check_dynamic
from storage_engine.engine.routing import split
from storage_engine.errors import UserError
from storage_engine.fluss.session import FlussSession, OpenTable
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.partitions import partition_names
from storage_engine.schema.rows import check_deleted_columns, conform, conform_keys

CHUNK_BYTES = 512 * 1024
"""At most this many bytes of rows between two flushes: below the client's batch size (2 MB), so that a chunk is one batch per bucket."""
ROW_OVERHEAD = 32
ARROW_BYTES = 4 * 1024 * 1024


def planned_rows(descriptor: TableDescriptor, op: WriteOp) -> tuple[pa.Table, tuple[str, ...] | None]:
    """The rows of an operation in the table's types, and the target columns of a partial write. Pure.

    Errors: SchemaMismatch; UserError when the kind of write does not fit the table.
    """
    if (op.kind == "append") == descriptor.has_primary_key:
        right = "upsert()" if descriptor.has_primary_key else "append()"
        raise UserError(f"{op.kind} does not fit {descriptor.name}", where=descriptor.name, next_step=f"Use {right}.")
    if op.kind == "delete":
        check_deleted_columns(descriptor, op.columns)
        columns = None if op.columns is None else tuple(dict.fromkeys((*descriptor.primary_key, *op.columns)))
        return conform_keys(descriptor, op.rows), columns
    rows = conform(descriptor, op.rows, op.columns)
    auto = descriptor.auto_increment_column
    if auto is not None and auto in rows.column_names:
        rows = rows.drop_columns([auto])
    return rows, None if rows.num_columns == len(descriptor.columns) else tuple(rows.column_names)


async def write(session: FlussSession, table: OpenTable, op: WriteOp, timeout_s: float) -> None:
    """Apply one operation. Not atomic over buckets: after an error some buckets may have their rows."""
    descriptor = table.descriptor
    rows, columns = planned_rows(descriptor, op)
    if rows.num_rows == 0:
        return
    if descriptor.partition_keys:
        names = partition_names(rows[descriptor.partition_keys[0]], table=descriptor.name)
        if op.kind == "delete":
            known = pa.array(list(await session.partitions(table)), pa.string())
            rows = rows.filter(pc.is_in(names, known))
        else:
            await _make_partitions(session, table, set(pc.unique(names).to_pylist()), timeout_s)
            table = await session.table(descriptor.name)
    if op.kind == "append":
        await _append(table, rows)
    else:
        await _upsert(table, rows, columns, is_delete=op.kind == "delete")


async def _make_partitions(session: FlussSession, table: OpenTable, names: set[str], timeout_s: float) -> None:
    missing = sorted(names - set(await session.partitions(table)))
    if not missing:
        return
    check_dynamic(table.descriptor, missing[0])
    admin = await session.admin()
    for name in missing:
        await admin.create_partition(table.path, {table.descriptor.partition_keys[0]: name}, ignore_if_exists=True)
    await session.await_leaders(table, missing, timeout_s)


async def _append(table: OpenTable, rows: pa.Table) -> None:
    writer = table.handle.new_append().create_writer()
    pending = []
    for _, part, _ in split(table.descriptor, rows, 0):
        pending += [writer.write_arrow_batch(batch) for batch in cut(part, ARROW_BYTES)]
    await _acknowledged(writer, pending)


async def _upsert(table: OpenTable, rows: pa.Table, columns: tuple[str, ...] | None, *, is_delete: bool) -> None:
    builder = table.handle.new_upsert()
    if columns is not None:
        builder = builder.partial_update_by_name(list(columns))
    writer = builder.create_writer()
    send = writer.delete if is_delete else writer.upsert
    for _, part, _ in split(table.descriptor, rows, 0):
        for batch in cut(part, CHUNK_BYTES):
            names = batch.schema.names
            values = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            # A batch that is no longer than the client's own ends where it ends: its first and last row speak for all of it.
            first: Any = None
            last: Any = None
            for row in values:
                last = send(row if columns is None else dict(zip(names, row, strict=True)))
                first = first or last
            await _acknowledged(writer, [first] if first is last else [first, last])


async def _acknowledged(writer: Any, pending: list[Any]) -> None:
    """Send what is queued and wait for each answer. Errors: FlussError of the first write that failed."""
    await writer.flush()
    failure: fluss.FlussError | None = None
    for handle in pending:
        try:
            await handle.wait()
        except fluss.FlussError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def cut(rows: pa.Table, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """Rows as contiguous batches of at most about `bytes_max` bytes, one row at least."""
    whole = rows.combine_chunks()
    batches = whole.to_batches()
    for batch in batches:
        yield from _halved(batch, bytes_max)


def _halved(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    n = batch.num_rows
    if n == 0:
        return
    if n == 1 or batch.nbytes + n * ROW_OVERHEAD <= bytes_max:
        yield batch
        return
    yield from _halved(batch.slice(0, n // 2), bytes_max)
    yield from _halved(batch.slice(n // 2), bytes_max)
