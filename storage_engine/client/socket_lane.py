"""SocketLane: one socket to a server for lookups and small commits; a fifth of a Flight call's latency.

Holds: answers come in the order of the requests; a lane whose call failed on the way is closed and never used again.
Never: retries (flight.py does), carries more than FRAME_BYTES_MAX at once (AnswerTooLarge: ask over Flight).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from storage_engine.api import FetchedFrame
from storage_engine.client.frame_reader import FrameReader, FrameTooLong
from storage_engine.client.lane import LaneBroken
from storage_engine.client.wire import Call, Reply, decode_group
from storage_engine.client.wire import packed as wire
from storage_engine.errors import AuthenticationFailed, Backpressure, MalformedMessage
from storage_engine.schema.point import PointLookup

_CONNECT_S: Final = 5.0
_PIPELINE_BYTES: Final = 32 << 10  # requests in flight that the sockets' buffers hold in any case


class AnswerTooLarge(Exception):
    """The request or its answer does not fit a frame; nothing is lost, the bulk lane carries it."""


@dataclass
class _Prepared:
    handle: int
    answer: pa.Schema | None = None


class SocketLane:
    """One connection. `is_usable`: it stands between two calls."""

    def __init__(self, host: str, address: Mapping[str, Any], *, tls: ssl.SSLContext | None = None) -> None:
        """`address`: what the server's action "lane" says: port, unix (name of an abstract socket) and token; `tls`: for its TCP side.

        Errors: LaneBroken.
        """
        self._prepared: dict[Hashable, _Prepared] = {}
        self._handles: dict[PointLookup, int] = {}
        try:
            self._socket = _connect(host.strip("[]"), address, tls)
            self._reader = FrameReader(self._socket, wire.FRAME_BYTES_MAX)
            greeting = wire.MAGIC + bytes.fromhex(address["token"])
            self._socket.sendall(greeting)
            if self._reader.exactly(len(greeting)) != greeting:
                raise LaneBroken("another server answers at this address")
            self._socket.settimeout(None)
        except (OSError, KeyError, ValueError) as error:
            raise LaneBroken(str(error)) from error
        self.is_usable = True

    def rows(self, method: str, arguments: dict[str, Any], keys: pa.Table) -> pa.Table:
        """The answer to a lookup or prefix lookup. Errors: LaneBroken, AnswerTooLarge; otherwise what the server's answer raises."""
        return next(self.pipeline(method, arguments, [keys]))

    def pipeline(self, method: str, arguments: dict[str, Any], batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Many lookups of one kind: several requests are on their way while an answer is awaited. Use it to its end.

        Errors: as rows(); the lane is closed then.
        """
        in_flight: list[tuple[_Prepared, int]] = []
        n_bytes = 0
        try:
            for keys in batches:
                prepared, request = self._request(method, arguments, keys)
                while in_flight and n_bytes + len(request) > _PIPELINE_BYTES:
                    n_bytes -= in_flight[0][1]
                    yield self._answer(in_flight.pop(0)[0], is_last=not in_flight)
                self._send(request)
                in_flight.append((prepared, len(request)))
                n_bytes += len(request)
            while in_flight:
                prepared, _ = in_flight.pop(0)
                yield self._answer(prepared, is_last=not in_flight)
        finally:
            if in_flight:
                self.close()

    def row(self, table: str, lookup: PointLookup, key: bytes) -> memoryview | None:
        """The packed row of one packed key; None when there is none. Errors: as rows(); AnswerTooLarge: ask rows()."""
        handle = self._handles.get(lookup)
        lead = b""
        if handle is None:
            arguments = {"table": table, "columns": list(lookup.names), "packed": list(lookup.codes or ())}
            prepared, lead = self._prepare((table, lookup), "lookup", arguments, lookup.keys)
            handle = self._handles[lookup] = prepared.handle
        self._send(lead + wire.frame(wire.GET, handle, key))
        payload = self._received()
        kind, number = wire.parse_head(payload)
        self.is_usable = True
        if kind != wire.ROW:
            self._checked(kind, wire.ROW, pa.py_buffer(payload).slice(wire.HEAD_BYTES))
        return memoryview(payload)[wire.HEAD_BYTES :] if number else None

    def call(self, call: Call) -> Reply:
        """Errors: as rows()."""
        request = wire.encode_call_frame(call)
        if len(request) > wire.FRAME_BYTES_MAX:
            raise AnswerTooLarge
        self._send(request)
        kind, number, body = self._receive()
        self.is_usable = True
        return self._checked(kind, wire.REPLY, body) or wire.decode_reply_frame(number, body)

    def stream(self, call: Call) -> Generator[list[FetchedFrame]]:
        """The frames of a scan, in groups as they come. Who leaves off earlier has closed the lane.

        Errors: as rows(); AnswerTooLarge for a frame that does not fit: those before it came.
        """
        request = wire.encode_call_frame(call)
        if len(request) > wire.FRAME_BYTES_MAX:
            raise AnswerTooLarge
        self._send(request)
        try:
            while True:
                kind, number, body = self._receive()
                self.is_usable = kind != wire.FRAMES
                if kind != wire.FRAMES:
                    self._checked(kind, wire.REPLY, body)
                    return
                yield decode_group(number, body)
        finally:
            if not self.is_usable:
                self.close()

    def post(self, parts: list[Any]) -> None:
        """Send a CALL frame and await nothing; take_reply() takes its answer. Errors: LaneBroken."""
        self.is_usable = False
        try:
            for piece in wire.pieces(parts):
                self._socket.sendall(piece)
        except OSError as error:
            raise LaneBroken(str(error)) from error

    def has_reply(self) -> bool:
        """True when take_reply() has something to read now."""
        try:
            return self._reader.has_more()
        except OSError:
            return True  # take_reply() says what it is

    def take_reply(self, *, is_last: bool) -> Reply:
        """The answer to the oldest CALL posted; `is_last`: it is the only one. Errors: as rows()."""
        kind, number, body = self._receive()
        self.is_usable = is_last
        return self._checked(kind, wire.REPLY, body) or wire.decode_reply_frame(number, body)

    def close(self) -> None:
        self.is_usable = False
        self._socket.close()

    def _request(self, method: str, arguments: dict[str, Any], keys: pa.Table) -> tuple[_Prepared, bytes]:
        columns = arguments["columns"]
        rest = (arguments.get("insert_if_not_exists"), arguments.get("limit"), arguments.get("rows_max"))
        name = (method, arguments["table"], None if columns is None else tuple(columns), rest, keys.schema)
        batches = keys.to_batches() or [pa.RecordBatch.from_pylist([], keys.schema)]
        batch = batches[0] if len(batches) == 1 else keys.combine_chunks().to_batches()[0]
        prepared = self._prepared.get(name)
        lead = b""
        if prepared is None:
            prepared, lead = self._prepare(name, method, arguments, keys.schema)
        request = wire.encode_keys_message(batch, prepared.handle)
        if len(request) > wire.FRAME_BYTES_MAX or len(lead) > wire.FRAME_BYTES_MAX:
            if lead:  # the server never hears of this handle
                del self._prepared[name]
            raise AnswerTooLarge
        return prepared, lead + request

    def _prepare(self, name: Hashable, method: str, arguments: dict[str, Any], keys: pa.Schema) -> tuple[_Prepared, bytes]:
        """A handle, and the frame that tells the server of it."""
        if len(self._prepared) == wire.HANDLES_MAX:
            self._prepared.clear()
            self._handles.clear()
        prepared = self._prepared[name] = _Prepared(len(self._prepared))
        return prepared, wire.encode_prepare(prepared.handle, method, arguments, keys)

    def _answer(self, prepared: _Prepared, *, is_last: bool) -> pa.Table:
        kind, number, body = self._receive()
        self.is_usable = is_last
        self._checked(kind, wire.ROWS, body)
        rows, prepared.answer = wire.decode_rows(number, body, prepared.answer)
        return pa.Table.from_batches([rows])

    def _checked(self, kind: int, wanted: int, body: pa.Buffer) -> None:
        if kind == wire.TOO_LARGE:
            raise AnswerTooLarge
        if kind == wire.ERROR:
            error = wire.decode_error_frame(body)
            if isinstance(error, (MalformedMessage, AuthenticationFailed, Backpressure)):  # the server closes it too
                self.close()
            raise error
        if kind != wanted:
            self.close()
            raise LaneBroken(f"an answer of kind {kind} came")

    def _send(self, request: bytes) -> None:
        self.is_usable = False
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise LaneBroken(str(error)) from error

    def _receive(self) -> tuple[int, int, pa.Buffer]:
        return wire.parse_frame(self._received())

    def _received(self) -> Any:
        try:
            payload = self._reader.frame()
        except (OSError, ValueError, FrameTooLong) as error:
            raise LaneBroken(str(error)) from error
        if payload is None:
            raise LaneBroken("the server closed the connection")
        return payload


def _connect(host: str, address: Mapping[str, Any], tls: ssl.SSLContext | None) -> socket.socket:
    """The abstract Unix socket where it is reachable, else TCP."""
    if address.get("unix"):
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(_CONNECT_S)
        try:
            local.connect(b"\0" + address["unix"].encode())
        except OSError:
            local.close()
        else:
            return local
    remote = socket.create_connection((host, address["port"]), _CONNECT_S)
    remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return remote if tls is None else tls.wrap_socket(remote, server_hostname=host)
