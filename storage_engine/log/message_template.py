"""Message template: an Arrow record-batch message written from buffers, without making arrays of them first.

Pure. Arrow writes the metadata for a schema once; each message gets its row count, null counts and buffer places written in.
Holds: decode_batch(message, schema) has exactly the buffers given. Types with one node and two or three buffers only (is_possible).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import types

from storage_engine.log.frame import encode_message
from storage_engine.log.pruning import message_layout

_ALIGNMENT: Final = 8
_PADDING: Final = [bytes(n) for n in range(_ALIGNMENT)]
_I64: Final = struct.Struct("<q")


class ColumnBuffers(NamedTuple):
    """One column: its validity bitmap (None: no nulls), how many nulls, then values, or offsets and bytes. Each has the buffer protocol."""

    n_nulls: int
    validity: Any
    data: Sequence[Any]


def sliced(column: ColumnBuffers, start: int, stop: int) -> ColumnBuffers:
    """Rows start .. stop of a column of numpy values, or of offsets (from 0) and bytes."""
    n_nulls, validity = 0, None
    if column.validity is not None:
        is_valid = np.unpackbits(column.validity, bitorder="little")[start:stop]
        n_nulls = stop - start - int(np.count_nonzero(is_valid))
        validity = np.packbits(is_valid, bitorder="little") if n_nulls else None
    if len(column.data) == 1:
        return ColumnBuffers(n_nulls, validity, (column.data[0][start:stop],))
    offsets = column.data[0][start : stop + 1]
    first, last = offsets.item(0), offsets.item(stop - start)
    return ColumnBuffers(n_nulls, validity, (offsets - first if first else offsets, column.data[1][first:last]))


class MessageTemplate:
    """Writes messages of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        batch = pa.record_batch([pa.nulls(1, field.type) for field in schema], schema=schema)
        message = memoryview(encode_message(batch, "none"))
        self._layout = message_layout(message)
        self._metadata = bytes(message[: self._layout.body_at])

    @staticmethod
    def is_possible(schema: pa.Schema) -> bool:
        """True for fixed-width and string or binary columns: a validity bitmap, then one buffer or two."""
        return all(_is_flat(field.type) for field in schema)

    def parts(self, n_rows: int, columns: Sequence[ColumnBuffers]) -> list[Any]:
        """The message as buffers to join or to send one after another. Shapes: every column (n_rows,), n_rows at least 1."""
        metadata = bytearray(self._metadata)
        parts: list[Any] = [metadata]
        nodes: list[int] = []
        buffers: list[int] = []
        at = 0
        for n_nulls, validity, data in columns:
            nodes += (n_rows, n_nulls)
            for buffer in (validity, *data):
                size = 0 if buffer is None else buffer.nbytes if isinstance(buffer, np.ndarray) else len(buffer)
                buffers += (at, size)
                if size:
                    parts.append(buffer)
                    padding = -size % _ALIGNMENT
                    if padding:
                        parts.append(_PADDING[padding])
                    at += size + padding
        layout = self._layout
        _I64.pack_into(metadata, layout.body_length_at, at)
        _I64.pack_into(metadata, layout.n_rows_at, n_rows)
        struct.pack_into(f"<{len(nodes)}q", metadata, layout.nodes_at, *nodes)
        struct.pack_into(f"<{len(buffers)}q", metadata, layout.buffers_at, *buffers)
        return parts


def _is_flat(kind: pa.DataType) -> bool:
    if types.is_string(kind) or types.is_binary(kind):
        return True
    return types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind)
