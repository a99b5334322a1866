"""Encoded rows: what a client has encoded is checked like anything from outside before it is stored as it came.

Pure. Holds: a message that passes decodes without a fault, has its buffers in order inside its body (pruning.py cuts by them), only
       values of its columns' types, nulls only where a column may have them, and rows of the one bucket and partition it names.
Never: changes a byte. Everything is decompressed once here: readers, and the lookups that read memory by address, trust what is stored.
"""

from __future__ import annotations

from typing import NoReturn

import pyarrow as pa

from storage_engine.api import EncodedRows
from storage_engine.engine.routing import split
from storage_engine.errors import DamagedFrame, MalformedMessage, SchemaMismatch
from storage_engine.log.frame import read_message
from storage_engine.log.pruning import pruner_of
from storage_engine.schema.descriptor import TableDescriptor


def checked_batch(
    descriptor: TableDescriptor, schema: pa.Schema, frame: EncodedRows, rows_max: int, n_buckets: int | None = None
) -> pa.RecordBatch:
    """The rows of a frame written in `schema` and routed over `n_buckets` (None: the descriptor's), decoded.

    Errors: MalformedMessage; SchemaMismatch for a null or a foreign bucket's row.
    """
    if not 1 <= frame.n_rows <= rows_max:
        _refuse(descriptor, f"a frame has {frame.n_rows} rows, not 1 to {rows_max}")
    try:
        pruner_of(schema, tuple(range(len(schema)))).check(frame.message)
        batch = read_message(frame.message, schema)
        batch.validate(full=True)
    except DamagedFrame as error:
        _refuse(descriptor, error.what)
    except (pa.ArrowException, OSError, EOFError) as error:
        _refuse(descriptor, str(error))
    if batch.num_rows != frame.n_rows:
        _refuse(descriptor, f"a frame of {batch.num_rows} rows says that it has {frame.n_rows}")
    for field, column in zip(schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            what = f"column {field.name} is null, and is NOT NULL"
            raise SchemaMismatch(what, where=f"table {descriptor.name}", next_step="Give it a value in every row.")
    n_buckets = n_buckets or descriptor.n_buckets
    if descriptor.partition_keys or (descriptor.bucket_keys and n_buckets > 1):
        counts = {frame.partition: n_buckets}
        parts = [name for name, _, _ in split(descriptor, pa.Table.from_batches([batch]), max(frame.bucket, 0), counts)]
        if len(parts) != 1 or parts[0].partition != frame.partition or (descriptor.bucket_keys and parts[0].bucket != frame.bucket):
            held = ", ".join(map(str, parts[:3]))
            _refuse(descriptor, f"a frame for partition {frame.partition!r}, bucket {frame.bucket} holds rows of {held}")
    elif frame.partition:
        _refuse(descriptor, f"the table has no partitions, and a frame names {frame.partition!r}")
    return batch


def _refuse(descriptor: TableDescriptor, what: str) -> NoReturn:
    next_step = "Both ends must be Flashlake, of the same protocol version."
    raise MalformedMessage(what, where=f"rows encoded for {descriptor.name}", next_step=next_step)
