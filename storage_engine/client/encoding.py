"""Encoding: rows for a log table become messages here, so that a server only checks and stores them.

Pure. Holds: what the server would have made of the same rows, routed by engine/routing.py and compressed as the table says.
"""

from __future__ import annotations

import pyarrow as pa

from storage_engine.api import EncodedAppend, EncodedRows
from storage_engine.engine.routing import split
from storage_engine.engine.transaction import FRAME_ROWS_MAX, compression_of, one_batch
from storage_engine.log.frame import encode_message
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.rows import check_texts, conform


def encode_append(descriptor: TableDescriptor, rows: pa.Table) -> EncodedAppend:
    """Errors: SchemaMismatch, InvalidPartition, as the server raises them."""
    if _is_conformed(descriptor, rows):
        check_texts(rows, f"table {descriptor.name}")
        checked = rows
    else:
        checked = conform(descriptor, rows)
    compression, level = compression_of(descriptor)
    has_choice = not descriptor.bucket_keys and descriptor.n_buckets > 1
    frames = []
    for name, part, _ in split(descriptor, checked):
        for begin in range(0, part.num_rows, FRAME_ROWS_MAX):
            batch = one_batch(part.slice(begin, FRAME_ROWS_MAX))
            message = encode_message(batch, compression, level)
            frames.append(EncodedRows(name.partition, -1 if has_choice else name.bucket, batch.num_rows, message))
    return EncodedAppend(descriptor.name, descriptor.schema_id, frames, descriptor.n_buckets)


def _is_conformed(descriptor: TableDescriptor, rows: pa.Table) -> bool:
    """True when conform() would return the rows as they are, where their texts are such."""
    schema = descriptor.arrow_schema
    return (
        descriptor.auto_increment_column is None
        and rows.schema.equals(schema)
        and all(field.nullable for field in schema)
        and all(column.num_chunks == 1 for column in rows.itercolumns())
    )
