"""Packed: the frames of the socket lane. Pure: no socket, thread or clock.

A connection begins with MAGIC and a token of 16 bytes from the client, which the server sends back when it is the server meant.
Then frames follow both ways, all numbers little endian: u32 n, then n bytes, of which the first eight are a head: u8 kind, u8 flags,
u16 0, u32 number. Requests are answered one by one, in their order.
"packed" in a PREPARE's arguments: the codes of keys and rows as the client packs them; where the server's differ, TOO_LARGE comes.
    PREPARE  number = a handle the client chose; u32 size of JSON, the JSON (method and arguments), the keys' Arrow schema. No answer.
    RUN      number = a handle; the keys as an Arrow record-batch message without schema.          Answer: ROWS, TOO_LARGE or ERROR.
    CALL     number = size of the JSON header; header and body of an envelope (envelope.py).       Answer: REPLY, TOO_LARGE or ERROR.
    GET      number = a handle whose PREPARE has "packed"; one key as a packed row (schema/point.py).   Answer: ROW, TOO_LARGE or ERROR.
    FRAMES   number = size of a JSON header; the header and frames of a scan (frames.py). Some of them, then a REPLY with null, answer CALL
             of the method "fetch_stream"; ERROR or TOO_LARGE among them is the end as well.
    ROW      number = 1: the row as a packed row; 0: there is none.
    ROWS     number = size of an Arrow schema, padded to 8, sent when it differs from the last one of this handle; then the rows' message.
    REPLY    as CALL.    ERROR: a JSON error (errors.py).    TOO_LARGE: the answer is for the bulk lane.
Holds: a frame longer than FRAME_BYTES_MAX is never sent and never read.
Errors: MalformedMessage for anything else; the connection is then of no more use.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from storage_engine.api import FetchedFrame
from storage_engine.client.wire.envelope import (
    BROKEN,
    Call,
    Message,
    Reply,
    are_sizes,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
    malformed,
    readable,
    sizes_of,
)
from storage_engine.client.wire.errors import decode_error, encode_error
from storage_engine.client.wire.frames import encode_group
from storage_engine.errors import FlashlakeError

MAGIC: Final = b"FLSL\x01\0\0\0"
TOKEN_BYTES: Final = 16
FRAME_BYTES_MAX: Final = 16 << 20
HANDLES_MAX: Final = 1024
LENGTH: Final = struct.Struct("<I")
HEAD_BYTES: Final = 8
PREPARE, RUN, CALL, ROWS, REPLY, ERROR, TOO_LARGE, GET, ROW, FRAMES = range(1, 11)
JOINED_BYTES_MAX: Final = 1 << 16

_HEAD: Final = struct.Struct("<IBBHI")  # with the length in front
_HEAD_ALONE: Final = struct.Struct("<BBHI")


def frame(kind: int, number: int, *parts: Any) -> bytes:
    """One frame with its length in front. Parts: anything with the buffer protocol, contiguous."""
    body = b"".join(parts)
    return _HEAD.pack(HEAD_BYTES + len(body), kind, 0, 0, number) + body


def parse_frame(payload: bytes | memoryview) -> tuple[int, int, pa.Buffer]:
    """Kind, number and body of a frame without its length; the body is a view."""
    kind, number = parse_head(payload)
    return kind, number, pa.py_buffer(payload).slice(HEAD_BYTES)


def parse_head(payload: bytes | memoryview) -> tuple[int, int]:
    """Kind and number of a frame without its length."""
    if len(payload) < HEAD_BYTES:
        raise malformed("a frame is shorter than its head")
    kind, _, _, number = _HEAD_ALONE.unpack_from(payload)
    return kind, number


# requests


def encode_prepare(handle: int, method: str, arguments: dict[str, Any], keys: pa.Schema) -> bytes:
    """A frame that names a lookup once, with the schema of its keys; later frames with `handle` carry keys only."""
    header = json.dumps({"method": method, "arguments": arguments}).encode()
    return frame(PREPARE, handle, LENGTH.pack(len(header)), header, keys.serialize())


def decode_prepare(body: pa.Buffer) -> tuple[str, dict[str, Any], pa.Schema]:
    """Method, arguments and key schema of a PREPARE. Errors: MalformedMessage."""
    try:
        n_header = LENGTH.unpack_from(memoryview(body), 0)[0]
        if n_header + LENGTH.size > body.size:
            raise ValueError("the header is cut")
        header = json.loads(body.slice(LENGTH.size, n_header).to_pybytes())
        method, arguments = header["method"], header["arguments"]
        if method not in ("lookup", "prefix_lookup") or not isinstance(arguments, dict) or not isinstance(arguments["table"], str):
            raise ValueError("it names no lookup of a table")
        columns, limit = arguments.get("columns"), arguments.get("limit")
        if columns is not None and not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
            raise ValueError("its columns are no names")
        if limit is not None and type(limit) is not int:
            raise ValueError("its limit is no number")
        return method, arguments, readable(pa.ipc.read_schema(body.slice(LENGTH.size + n_header)))
    except BROKEN as error:
        raise malformed(f"a prepared lookup: {error}") from error


def encode_keys_message(keys: pa.RecordBatch, handle: int) -> bytes:
    """A frame that runs a prepared lookup on keys in the columns that it was prepared with."""
    return frame(RUN, handle, keys.serialize())


def packed_codes(arguments: dict[str, Any]) -> tuple[str, str] | None:
    """The codes that a PREPARE names, of key and row; None: it names none. Errors: MalformedMessage."""
    codes = arguments.get("packed")
    if codes is None:
        return None
    if not isinstance(codes, list) or len(codes) != 2 or not all(isinstance(code, str) for code in codes):
        raise malformed("the codes of a prepared lookup are not two texts")
    return codes[0], codes[1]


def decode_batch(message: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """Rows that came from outside: everything in them is checked."""
    try:
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
    except BROKEN as error:
        raise malformed(f"rows are no record batch of their schema: {error}") from error
    return batch


def encode_envelope(kind: int, messages: list[Message]) -> bytes:
    """A frame with a JSON header, padded to 64 bytes so that Arrow's buffers behind it lie aligned, and the chunks."""
    header = messages[0].header
    assert header is not None, "an envelope begins with its header"
    padding = bytes(-len(header) % 64)
    return frame(kind, len(header), header, padding, *(message.chunk for message in messages if message.chunk is not None))


def encode_call_frame(call: Call) -> bytes:
    """A call, as one frame of the kind CALL."""
    return encode_envelope(CALL, list(encode_call(call)))


def call_frame_parts(call: Call) -> list[Any]:
    """As encode_call_frame(), in parts to be sent one after another."""
    messages = list(encode_call(call))
    header = messages[0].header
    assert header is not None, "an envelope begins with its header"
    parts: list[Any] = [header, bytes(-len(header) % 64), *(message.chunk for message in messages if message.chunk is not None)]
    return [_HEAD.pack(HEAD_BYTES + n_bytes_of(parts), CALL, 0, 0, len(header)), *parts]


def frames_parts(frames: Sequence[FetchedFrame]) -> list[Any]:
    """A FRAMES frame, in parts to be sent one after another; its messages are not copied."""
    n_header, parts = encode_group(frames)
    return [_HEAD.pack(HEAD_BYTES + n_bytes_of(parts), FRAMES, 0, 0, n_header), *parts]


def pieces(parts: Iterable[Any]) -> Iterator[Any]:
    """The same bytes in fewer pieces: parts that are small are joined, a large one stays where it is."""
    small: list[Any] = []
    n_small = 0
    for part in parts:
        n_bytes = memoryview(part).nbytes
        if n_small + n_bytes > JOINED_BYTES_MAX and small:
            yield b"".join(small)
            small, n_small = [], 0
        if n_bytes > JOINED_BYTES_MAX:
            yield part
        else:
            small.append(part)
            n_small += n_bytes
    if small:
        yield b"".join(small)


def n_bytes_of(parts: list[Any]) -> int:
    """The bytes of all parts together."""
    return sum(memoryview(part).nbytes for part in parts)


def encode_reply_frame(reply: Reply) -> bytes:
    """A result and its tables, as one frame of the kind REPLY."""
    return encode_envelope(REPLY, list(encode_reply(reply)))


def decode_envelope(number: int, body: pa.Buffer) -> tuple[dict[str, Any], pa.Buffer]:
    """Header and body of a CALL or REPLY; the sizes in the header fit the body."""
    if number > body.size:
        raise malformed("an envelope's header is cut")
    try:
        header = json.loads(body.slice(0, number).to_pybytes())
        if not are_sizes(header["sizes"]) or not are_sizes(header.get("blobs", [])):
            raise ValueError("a size is no number")
    except BROKEN as error:
        raise malformed(f"an envelope's header: {error}") from error
    start = min(number + -number % 64, body.size)
    tables = body.slice(start)
    if sum(size + -size % 64 for size in sizes_of(header)) > tables.size:
        raise malformed("an envelope's tables are cut")
    return header, tables


def decode_call_frame(number: int, body: pa.Buffer) -> Call:
    """The inverse of encode_call_frame(); `number` is the length of its header. Errors: MalformedMessage."""
    header, tables = decode_envelope(number, body)
    if not isinstance(header.get("method"), str) or not isinstance(header.get("arguments"), dict):
        raise malformed("a call has no method and arguments")
    return decode_call(header, tables)


# answers


def encode_rows(rows: pa.RecordBatch, known: pa.Schema | None) -> bytes:
    """`known`: the schema last sent for this handle."""
    return frame_rows(rows.schema, [rows.serialize()], known)


def frame_rows(schema: pa.Schema, message: list[Any], known: pa.Schema | None) -> bytes:
    """As encode_rows(), of a message that is already there, in parts."""
    lead = b""
    if schema is not known and (known is None or not schema.equals(known)):
        lead = schema.serialize().to_pybytes()
        lead += bytes(-len(lead) % 8)
    return frame(ROWS, len(lead), lead, *message)


def decode_rows(number: int, body: pa.Buffer, known: pa.Schema | None) -> tuple[pa.RecordBatch, pa.Schema]:
    """Rows and their schema: one of `number` bytes comes before the rows, with 0 it is the `known` one. Errors: MalformedMessage."""
    try:
        schema = readable(pa.ipc.read_schema(body.slice(0, number))) if number else known
        if schema is None or number > body.size:
            raise ValueError("no schema came")
        return pa.ipc.read_record_batch(body.slice(number), schema), schema
    except BROKEN as error:
        raise malformed(f"an answer: {error}") from error


def decode_reply_frame(number: int, body: pa.Buffer) -> Reply:
    """The inverse of encode_reply_frame(). Errors: MalformedMessage; the error, where the reply carries one."""
    return decode_reply(*decode_envelope(number, body))


def encode_error_frame(error: FlashlakeError) -> bytes:
    """An error in place of rows."""
    return frame(ERROR, 0, json.dumps(encode_error(error)).encode())


def decode_error_frame(body: pa.Buffer) -> FlashlakeError:
    """The error that a frame carries; MalformedMessage, returned and not raised, when it carries none."""
    try:
        return decode_error(json.loads(body.to_pybytes()))
    except BROKEN as error:
        return malformed(f"an error: {error}")
