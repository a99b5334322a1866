"""Envelope: a call or reply with its Arrow tables, cut into messages of bounded size, and put together again.

A message is a JSON header (first message of an envelope only) and at most one chunk of body. The body is the tables' IPC
streams one after another, each starting at a multiple of 64 bytes; the header lists their sizes.
Holds: an assembled body is one 64-byte aligned buffer, so tables decode from it without another copy (gRPC's buffers are not aligned).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine.client.wire.errors import decode_error, encode_error
from storage_engine.errors import FlashlakeError, MalformedMessage, RequestTooLarge

PROTOCOL_VERSION = 1
CHUNK_BYTES_MAX = 16 << 20
REQUEST_BYTES_MAX = 1 << 30
CELL_SCHEMA = pa.schema([pa.field("cell", pa.large_binary())])
_ALIGNMENT = 64


@dataclass(frozen=True)
class Message:
    """One message on a stream: a JSON header (None: a further chunk) and at most one chunk of body."""

    header: bytes | None
    chunk: pa.Buffer | None


@dataclass(frozen=True)
class Call:
    """A request: the method's name, its JSON arguments, the tables it carries, and bytes that are no table (blobs)."""

    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[pa.Table] = ()
    blobs: Sequence[pa.Buffer] = ()


@dataclass(frozen=True)
class Reply:
    """An answer: a JSON result and the tables that belong to it."""

    result: Any = None
    tables: Sequence[pa.Table] = ()


def encode_chunk(chunk: pa.Buffer) -> pa.RecordBatch:
    """A chunk as the one cell of a batch of CELL_SCHEMA, without a copy."""
    offsets = pa.py_buffer(np.array([0, chunk.size], np.int64))
    cell = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, chunk])
    return pa.RecordBatch.from_arrays([cell], schema=CELL_SCHEMA)


def decode_chunk(batch: pa.RecordBatch) -> pa.Buffer:
    """The inverse of encode_chunk; the buffer may begin at any address."""
    _require(batch.num_rows == 1 and batch.schema.equals(CELL_SCHEMA), "a chunk is not one cell")
    return batch.column(0)[0].as_buffer()


def encode_call(call: Call) -> Iterator[Message]:
    """Errors: RequestTooLarge when the tables exceed REQUEST_BYTES_MAX together."""
    yield from _encode({"method": call.method, "arguments": call.arguments}, call.tables, what=call.method, blobs=call.blobs)


def decode_call(header: Mapping[str, Any], body: pa.Buffer | None) -> Call:
    """The inverse of encode_call(). Errors: MalformedMessage."""
    with understood("a call"):
        method, arguments, sizes = header["method"], header["arguments"], header["sizes"]
        if not isinstance(method, str) or not isinstance(arguments, dict):
            raise TypeError("no method and arguments")
    blobs = _decode_blobs(header, body) if header.get("blobs") else ()
    return Call(method, arguments, _decode_tables(sizes, body), blobs)


def encode_reply(reply: Reply) -> Iterator[Message]:
    """A result and its tables as messages: the header first, then the tables' bytes in chunks."""
    yield from _encode({"result": reply.result}, reply.tables, what="reply")


def encode_error_reply(error: FlashlakeError) -> Iterator[Message]:
    """An error in place of a result; decode_reply() raises it."""
    yield from _encode({"error": encode_error(error)}, (), what="error")


def decode_reply(header: Mapping[str, Any], body: pa.Buffer | None) -> Reply:
    """Errors: raises the FlashlakeError that the other end encoded."""
    with understood("a reply"):
        error = decode_error(header["error"]) if "error" in header else None
        result, sizes = header.get("result"), header["sizes"]
    if error is not None:
        raise error
    return Reply(result, _decode_tables(sizes, body))


class Assembler:
    """Collects the messages of one envelope. `feed` returns (header, body) when it is whole, else None; then it starts anew.

    Errors: MalformedMessage when a peer breaks the order of header and chunks, or announces more than REQUEST_BYTES_MAX.
    """

    def __init__(self) -> None:
        self._header: dict[str, Any] | None = None
        self._body: pa.Buffer | None = None
        self._n_filled = 0

    def feed(self, message: Message) -> tuple[dict[str, Any], pa.Buffer | None] | None:
        if message.header is not None:
            _require(self._header is None, "a new envelope began inside another")
            self._begin(_parse_header(message.header))
        elif self._header is None:
            raise malformed("a chunk came before its header")
        if message.chunk is not None:
            self._fill(message.chunk)
        if self._body is not None and self._n_filled < self._body.size:
            return None
        assert self._header is not None, "set by _begin"
        done = (self._header, self._body)
        self._header, self._body, self._n_filled = None, None, 0
        return done

    def _begin(self, header: dict[str, Any]) -> None:
        n_bytes = sum(_padded(size) for size in sizes_of(header))
        _require(n_bytes <= REQUEST_BYTES_MAX, f"the header announces {n_bytes} bytes")
        self._header = header
        self._body = pa.allocate_buffer(n_bytes) if n_bytes else None

    def _fill(self, chunk: pa.Buffer) -> None:
        stop = self._n_filled + chunk.size
        if self._body is None or stop > self._body.size:
            raise malformed("the chunks are longer than the header says")
        memoryview(self._body)[self._n_filled : stop] = memoryview(chunk)
        self._n_filled = stop


def _encode(header: dict[str, Any], tables: Sequence[pa.Table], *, what: str, blobs: Sequence[pa.Buffer] = ()) -> Iterator[Message]:
    streams = [_ipc_stream(table) for table in tables]
    header = {**header, "sizes": [stream.size for stream in streams]}
    if blobs:
        header["blobs"] = [blob.size for blob in blobs]
        streams += [_whole_words(blob) for blob in blobs]
    n_bytes = sum(_padded(stream.size) for stream in streams)
    if n_bytes > REQUEST_BYTES_MAX:
        raise RequestTooLarge(
            f"{n_bytes} bytes are more than one call can carry ({REQUEST_BYTES_MAX})", where=what, next_step="Send fewer rows at once."
        )
    chunks = [chunk for stream in streams for chunk in _chunks(stream)]
    first = chunks.pop(0) if chunks else None
    yield Message(json.dumps(header).encode(), first)
    for chunk in chunks:
        yield Message(None, chunk)


def _ipc_stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    sink.write(bytes(-sink.tell() % _ALIGNMENT))
    return sink.getvalue()


def _whole_words(blob: pa.Buffer) -> pa.Buffer:
    """The bytes up to a multiple of the alignment."""
    return blob if blob.size % _ALIGNMENT == 0 else pa.py_buffer(b"".join([blob, bytes(-blob.size % _ALIGNMENT)]))


def sizes_of(header: Mapping[str, Any]) -> list[int]:
    """Bytes of the parts that an envelope's body has, without padding: tables, then blobs."""
    return [*header["sizes"], *header.get("blobs", ())]


def _decode_blobs(header: Mapping[str, Any], body: pa.Buffer | None) -> list[pa.Buffer]:
    start = sum(_padded(size) for size in header["sizes"])
    blobs = []
    for size in header["blobs"]:
        blobs.append(pa.py_buffer(b"") if body is None else body.slice(start, size))
        start += _padded(size)
    return blobs


def _chunks(stream: pa.Buffer) -> Iterator[pa.Buffer]:
    for start in range(0, stream.size, CHUNK_BYTES_MAX):
        yield stream.slice(start, min(CHUNK_BYTES_MAX, stream.size - start))


def _decode_tables(sizes: Sequence[int], body: pa.Buffer | None) -> list[pa.Table]:
    tables: list[pa.Table] = []
    start = 0
    for size in sizes:
        assert body is not None, "the assembler allocates a body where sizes are announced"
        try:
            with pa.ipc.open_stream(body.slice(start, size)) as reader:
                table = reader.read_all()
            table.validate(full=True)
            readable(table.schema)
        except BROKEN as error:
            raise malformed(f"a table is not an Arrow IPC stream: {error}") from error
        tables.append(table)
        start += _padded(size)
    return tables


BROKEN = (
    EOFError, pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError,
    struct.error,
)  # fmt: skip
"""What bytes or values that no peer of ours sends raise where they are decoded."""


def readable(schema: pa.Schema) -> pa.Schema:
    """The schema, whose names are text. Errors: UnicodeDecodeError, which Arrow raises only when a name is looked at."""
    assert len(schema.names) == len(schema)
    return schema


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Errors: MalformedMessage where `what` cannot be decoded."""
    try:
        yield
    except BROKEN as error:
        raise malformed(f"{what}: {type(error).__name__}: {error}") from error


def malformed(what: str) -> MalformedMessage:
    """The refusal of bytes that the other end's encoder does not write."""
    return MalformedMessage(what, where="wire", next_step="Both ends must be Flashlake, of the same protocol version.")


def _require(holds: bool, what: str) -> None:  # noqa: FBT001 - reads as an assertion about the peer
    if not holds:
        raise malformed(what)


def _parse_header(header: bytes) -> dict[str, Any]:
    try:
        value = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise malformed(f"a header is not JSON: {error}") from error
    _require(isinstance(value, dict), "a header is not an object")
    _require(are_sizes(value.get("sizes")) and are_sizes(value.get("blobs", [])), "a header has no sizes")
    return value


def are_sizes(value: Any) -> bool:
    """Whether a value that came over the wire is a list of byte counts."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
