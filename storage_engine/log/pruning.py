"""Pruning: cut a stored Arrow message down to some of its columns without decoding or decompressing it.

The wanted field nodes and buffers are found by counting (a type says how many it has), their bytes are taken as they lie, and a
template of the message's metadata, made once per codec by Arrow itself, gets their lengths and offsets written in.
Holds: for every column list, decode(prune(message)) equals decode(message).select(columns), for none, lz4 and zstd.
Source: Arrow format, Message.fbs and Schema.fbs; reference for the idea: Apache Fluss FileLogProjection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
from pyarrow import types

from storage_engine.errors import DamagedFrame, UnsupportedByBackend
from storage_engine.log.frame import decode_batch, encode_message

_I64: Final = struct.Struct("<q")
_PREFIX: Final = struct.Struct("<II")  # continuation mark, metadata length
_CONTINUATION: Final = 0xFFFFFFFF
_RECORD_BATCH: Final = 3  # MessageHeader of Message.fbs
_CODECS: Final = ("lz4", "zstd")  # CompressionType of Message.fbs
_ALIGNMENT: Final = 8
_ENTRY_BYTES: Final = 16  # FieldNode {length, null_count} and Buffer {offset, length}: two i64 each


class Layout(NamedTuple):
    """Where the parts of a record-batch message lie; offsets are bytes of the message, -1: the field is left out (0)."""

    codec: str
    body_length_at: int
    n_rows_at: int
    n_rows: int
    nodes_at: int
    n_nodes: int
    buffers_at: int
    n_buffers: int
    body_at: int
    body_length: int


class Skeleton:
    """The metadata of a message without its numbers: two messages with equal skeletons have their parts at the same places.

    Arrow lays the metadata of all batches of a schema and codec out alike, so one message read through its flatbuffer tables
    (message_layout) tells the places for all that follow.
    """

    def __init__(self, data: memoryview, layout: Layout) -> None:
        """`layout` is what message_layout says of `data`."""
        numbers = [(at, at + 8) for at in (layout.body_length_at, layout.n_rows_at) if at >= 0]
        numbers += [
            (layout.nodes_at, layout.nodes_at + layout.n_nodes * _ENTRY_BYTES),
            (layout.buffers_at, layout.buffers_at + layout.n_buffers * _ENTRY_BYTES),
        ]
        between = [stop for _, stop in sorted(numbers)]
        self._layout = layout
        self._pieces = [
            (start, stop, bytes(data[start:stop]))
            for start, stop in zip([0, *between], [*(start for start, _ in sorted(numbers)), layout.body_at], strict=True)
            if start < stop
        ]

    def layout(self, data: memoryview) -> Layout | None:
        """The layout of another message; None when its metadata is built otherwise, or its body is cut."""
        known = self._layout
        if len(data) < known.body_at or any(bytes(data[start:stop]) != piece for start, stop, piece in self._pieces):
            return None
        n_rows = 0 if known.n_rows_at < 0 else _I64.unpack_from(data, known.n_rows_at)[0]
        body_length = 0 if known.body_length_at < 0 else _I64.unpack_from(data, known.body_length_at)[0]
        if body_length < 0 or known.body_at + body_length > len(data):
            return None
        return known._replace(n_rows=n_rows, body_length=body_length)


class MessagePruner:
    """Prunes messages of one schema to one list of columns; keep it as long as the schema is read.

    columns   indices of top-level fields, in the order wanted
    schema    of the pruned messages
    Errors:   UnsupportedByBackend for view and dictionary types, whose number of buffers the schema does not say.
    """

    def __init__(self, schema: pa.Schema, columns: Sequence[int]) -> None:
        counts = [_counts(field.type, field.name) for field in schema]
        nodes = np.cumsum([0, *(n for n, _ in counts)])
        buffers = np.cumsum([0, *(n for _, n in counts)])
        self.schema = pa.schema([schema.field(i) for i in columns])
        self._stored = schema
        self._columns = tuple(columns)
        self._is_identity = self._columns == tuple(range(len(schema)))
        self._n_nodes, self._n_buffers = int(nodes[-1]), int(buffers[-1])
        self._node_runs = _runs([(int(nodes[i]), int(nodes[i + 1])) for i in columns])
        runs = _runs([(int(buffers[i]), int(buffers[i + 1])) for i in columns])
        self._buffer_runs = [(first * _ENTRY_BYTES, struct.Struct(f"<{2 * (last - first)}q")) for first, last in runs]
        self._wanted = struct.Struct(f"<{2 * sum(last - first for first, last in runs)}q")
        self._skeleton: Skeleton | None = None
        self._templates: dict[str, tuple[bytes, Layout]] = {}

    def check(self, message: pa.Buffer) -> None:
        """Errors: DamagedFrame when the message's parts do not lie as the schema says, or it is longer than they are."""
        data = memoryview(message)
        try:
            stored = self._layout(data)
            self._check_entries(data, stored)
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            _malformed(str(error))
        if len(data) != stored.body_at + stored.body_length or stored.body_at % _ALIGNMENT:
            _malformed("its body is not aligned, or something follows it")

    def prune(self, message: pa.Buffer) -> pa.Buffer:
        """The message with only the wanted columns, as one buffer. Copies their bytes, and nothing when all are wanted.

        Errors: DamagedFrame when the bytes are no message of the schema.
        """
        if self._is_identity:
            return message
        return pa.py_buffer(b"".join(self.prune_to_buffers(message)))

    def prune_to_buffers(self, message: pa.Buffer) -> list[bytes | memoryview]:
        """The same bytes as a list: new metadata, then slices of the stored body. Copies no column."""
        data = memoryview(message)
        try:
            stored = self._layout(data)
            placed, slices, body_length = self._cut_body(data, stored)
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            _malformed(str(error))
        template, layout = self._template(stored.codec)
        metadata = bytearray(template)
        if layout.n_rows_at >= 0:
            _I64.pack_into(metadata, layout.n_rows_at, stored.n_rows)
        if layout.body_length_at >= 0:
            _I64.pack_into(metadata, layout.body_length_at, body_length)
        at = layout.nodes_at
        for first, last in self._node_runs:
            n_bytes = (last - first) * _ENTRY_BYTES
            begin = stored.nodes_at + first * _ENTRY_BYTES
            metadata[at : at + n_bytes] = data[begin : begin + n_bytes]
            at += n_bytes
        self._wanted.pack_into(metadata, layout.buffers_at, *placed)
        return [bytes(metadata), *slices]

    def decode(self, message: pa.Buffer) -> pa.RecordBatch:
        """The rows of the wanted columns only. Uncompressed columns refer to the message, compressed ones are decompressed.

        Errors: DamagedFrame when the bytes are no message of the schema.
        """
        try:
            is_compressed = message_layout(memoryview(message)).codec != "none"
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            _malformed(str(error))
        if is_compressed:
            return decode_batch(self.prune(message), self.schema)
        return decode_batch(message, self._stored).select(list(self._columns))

    def _layout(self, data: memoryview) -> Layout:
        """Errors: struct.error, ValueError or DamagedFrame when the bytes are no message of the schema."""
        found = None if self._skeleton is None else self._skeleton.layout(data)
        if found is None:
            found = message_layout(data)
            if (found.n_nodes, found.n_buffers) != (self._n_nodes, self._n_buffers):
                _malformed(f"{found.n_nodes} nodes and {found.n_buffers} buffers, not {self._n_nodes} and {self._n_buffers}")
            self._skeleton = Skeleton(data, found)
        return found

    def _cut_body(self, data: memoryview, stored: Layout) -> tuple[list[int], list[bytes | memoryview], int]:
        """Offset and length of each wanted buffer in the new body, the slices of the stored body they lie in, the new body's length."""
        placed: list[int] = []
        slices: list[bytes | memoryview] = []
        length = 0
        for at, entries in self._buffer_runs:
            run = entries.unpack_from(data, stored.buffers_at + at)
            begin, end = run[0], 0
            for offset, size in zip(run[::2], run[1::2], strict=True):
                if offset < end or size < 0:
                    _malformed("buffers overlap or lie outside the body")
                end = offset + size
                placed += (length + offset - begin, size)
            if end > stored.body_length:
                _malformed("buffers lie outside the body")
            slices.append(data[stored.body_at + begin : stored.body_at + end])
            length += end - begin
            if length % _ALIGNMENT:
                slices.append(bytes(-length % _ALIGNMENT))
                length += -length % _ALIGNMENT
        return placed, slices, length

    @staticmethod
    def _check_entries(data: memoryview, stored: Layout) -> None:
        """All buffers lie in order and aligned inside the body."""
        entries = struct.unpack_from(f"<{2 * stored.n_buffers}q", data, stored.buffers_at)
        end = 0
        for offset, size in zip(entries[::2], entries[1::2], strict=True):
            if offset < end or size < 0:
                _malformed("buffers overlap or lie outside the body")
            if offset % _ALIGNMENT:
                _malformed("its buffers are not aligned")
            end = offset + size
        if end > stored.body_length:
            _malformed("buffers lie outside the body")

    def _template(self, codec: str) -> tuple[bytes, Layout]:
        """Metadata that Arrow writes for the wanted columns under a codec, and where the numbers to replace lie in it."""
        found = self._templates.get(codec)
        if found is None:
            # one row: Arrow leaves fields out that are 0, and they could not be patched
            batch = pa.record_batch([pa.nulls(1, field.type) for field in self.schema], schema=self.schema)
            if not self._columns:  # the constructor would make it a batch of no rows
                batch = pa.record_batch([pa.nulls(1)], names=["none"]).select([])
            message = memoryview(encode_message(batch, codec, bytes_min=0))
            layout = message_layout(message)
            found = self._templates[codec] = (bytes(message[: layout.body_at]), layout)
        return found


def prune_message(message: pa.Buffer, schema: pa.Schema, columns: Sequence[int]) -> pa.Buffer:
    """The stored message cut down to `columns` (indices of top-level fields of `schema`, in the order wanted).

    Errors: as MessagePruner.
    """
    return pruner_of(schema, tuple(columns)).prune(message)


@lru_cache(maxsize=1024)
def pruner_of(schema: pa.Schema, columns: tuple[int, ...]) -> MessagePruner:
    """The pruner of a schema and columns; made once."""
    return MessagePruner(schema, columns)


def _counts(kind: pa.DataType, name: str) -> tuple[int, int]:
    """How many field nodes and buffers a column of a type has."""
    if isinstance(kind, pa.BaseExtensionType):
        return _counts(kind.storage_type, name)
    if types.is_string_view(kind) or types.is_binary_view(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        _unsupported(kind, name)
    if types.is_dictionary(kind):
        _unsupported(kind, name)
    if types.is_null(kind) or types.is_run_end_encoded(kind):
        own = 0
    elif types.is_struct(kind) or types.is_fixed_size_list(kind):
        own = 1
    elif types.is_union(kind):
        own = 2 if kind.mode == "dense" else 1
    elif _is_variable_width(kind):
        own = 3
    else:
        own = 2
    n_nodes, n_buffers = 1, own
    for child_type in _children(kind):
        nodes, buffers = _counts(child_type, name)
        n_nodes, n_buffers = n_nodes + nodes, n_buffers + buffers
    return n_nodes, n_buffers


def _is_variable_width(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind)


def _children(kind: pa.DataType) -> Iterator[pa.DataType]:
    if types.is_run_end_encoded(kind):
        yield kind.run_end_type
        yield kind.value_type
    elif types.is_nested(kind):
        for i in range(kind.num_fields):
            yield kind.field(i).type


def _runs(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges joined where one begins at the end of the one before; empty ones left out."""
    runs: list[tuple[int, int]] = []
    for first, last in ranges:
        if first == last:
            continue
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    return runs


# the part of the flatbuffer format that a record-batch message needs


def message_layout(data: memoryview) -> Layout:
    """Errors: struct.error or ValueError when the bytes are no record-batch message."""
    mark, metadata_length = _PREFIX.unpack_from(data, 0)
    body_at = _PREFIX.size + metadata_length
    if mark != _CONTINUATION or body_at > len(data):
        raise ValueError("no encapsulated message begins here")
    metadata = data[:body_at]
    message = _Table(metadata, _indirect(metadata, _PREFIX.size))
    if message.integer(1, "<B", 0) != _RECORD_BATCH:
        raise ValueError("the message is no record batch")
    body_length = message.integer(3, "<q", 0)
    if body_length < 0 or body_at + body_length > len(data):
        raise ValueError("the message's body is cut")
    batch = _Table(metadata, message.indirect(2))
    nodes_at, n_nodes = batch.vector(1)
    buffers_at, n_buffers = batch.vector(2)
    codec = "none"
    if batch.at(3) >= 0:
        codec = _CODECS[_Table(metadata, batch.indirect(3)).integer(0, "<B", 0)]
    return Layout(
        codec, message.at(3), batch.at(0), batch.integer(0, "<q", 0), nodes_at, n_nodes, buffers_at, n_buffers, body_at, body_length
    )


def _indirect(data: memoryview, at: int) -> int:
    target = at + struct.unpack_from("<I", data, at)[0]
    if target >= len(data):
        raise ValueError("an offset points outside the metadata")
    return target


class _Table:
    """A flatbuffer table: fields by number, through its vtable."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._start = at
        vtable = at - struct.unpack_from("<i", data, at)[0]
        if vtable < 0:
            raise ValueError("an offset points outside the metadata")
        n_bytes = struct.unpack_from("<H", data, vtable)[0]
        self._fields = struct.unpack_from(f"<{max(0, n_bytes - 4) // 2}H", data, vtable + 4)

    def at(self, field: int) -> int:
        """Where a field's value lies; -1 if it is left out."""
        offset = self._fields[field] if field < len(self._fields) else 0
        return self._start + offset if offset else -1

    def integer(self, field: int, form: str, default: int) -> int:
        at = self.at(field)
        return default if at < 0 else struct.unpack_from(form, self._data, at)[0]

    def indirect(self, field: int) -> int:
        at = self.at(field)
        if at < 0:
            raise ValueError("a required field is left out")
        return _indirect(self._data, at)

    def vector(self, field: int) -> tuple[int, int]:
        """Where a vector of 16-byte structs begins, and how many it has."""
        if self.at(field) < 0:
            return 0, 0
        at = self.indirect(field)
        n = struct.unpack_from("<I", self._data, at)[0]
        if at + 4 + n * _ENTRY_BYTES > len(self._data):
            raise ValueError("a vector reaches outside the metadata")
        return at + 4, n


def _malformed(reason: str) -> NoReturn:
    raise DamagedFrame(
        f"bytes are no record batch of the schema: {reason}",
        where="Arrow message",
        next_step="Restore the file from a copy; run a check of the whole store to learn what else is damaged.",
    )


def _unsupported(kind: pa.DataType, name: str) -> NoReturn:
    raise UnsupportedByBackend(
        f"columns of type {kind} cannot be pruned", where=f"column {name}", next_step="Cast it to the plain type before it is stored."
    )
