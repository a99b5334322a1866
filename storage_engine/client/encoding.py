"""Encoding: rows for a log table become messages here, so that a server only checks and stores them.

Pure. Holds: what the server would have made of the same rows, routed by engine/routing.py and compressed as the table says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from storage_engine.api import EncodedAppend, EncodedRows
from storage_engine.engine.routing import split
from storage_engine.engine.transaction import FRAME_ROWS_MAX, compression_of, one_batch
from storage_engine.log.frame import encode_message
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.rows import check_texts, conform


class RoutedRows(NamedTuple):
    """Rows of one bucket, not compressed yet. bucket -1: the store chooses."""

    partition: str
    bucket: int
    batch: pa.RecordBatch


class RoutedAppend(NamedTuple):
    """An append that is known to fit its table. encoded() is most of its work, needs nothing else, and may run in another thread."""

    descriptor: TableDescriptor
    parts: Sequence[RoutedRows]

    @property
    def n_bytes(self) -> int:
        """Of the rows, before they are compressed."""
        return sum(part.batch.nbytes for part in self.parts)

    def encoded(self) -> EncodedAppend:
        """The append as it goes over the wire."""
        described = self.descriptor
        codec = compression_of(described)
        frames = [EncodedRows(name, bucket, batch.num_rows, encode_message(batch, *codec)) for name, bucket, batch in self.parts]
        return EncodedAppend(described.name, described.schema_id, frames, described.n_buckets)


def route_append(descriptor: TableDescriptor, rows: pa.Table) -> RoutedAppend:
    """Errors: SchemaMismatch, InvalidPartition, as the server raises them; InvalidOption for the table's compression."""
    if _is_conformed(descriptor, rows):
        check_texts(rows, f"table {descriptor.name}")
        checked = rows
    else:
        checked = conform(descriptor, rows)
    compression_of(descriptor)
    has_choice = not descriptor.bucket_keys and descriptor.n_buckets > 1
    parts = [
        RoutedRows(name.partition, -1 if has_choice else name.bucket, one_batch(part.slice(begin, FRAME_ROWS_MAX)))
        for name, part, _ in split(descriptor, checked)
        for begin in range(0, part.num_rows, FRAME_ROWS_MAX)
    ]
    return RoutedAppend(descriptor, parts)


def encode_append(descriptor: TableDescriptor, rows: pa.Table) -> EncodedAppend:
    """Errors: as route_append()."""
    return route_append(descriptor, rows).encoded()


def _is_conformed(descriptor: TableDescriptor, rows: pa.Table) -> bool:
    """True when conform() would return the rows as they are, where their texts are such."""
    schema = descriptor.arrow_schema
    return (
        descriptor.auto_increment_column is None
        and rows.schema.equals(schema)
        and all(field.nullable for field in schema)
        and all(column.num_chunks == 1 for column in rows.itercolumns())
    )
