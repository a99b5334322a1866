"""SocketServer: the second face of a store, for lookups and small commits: frames on TCP and on an abstract Unix socket.

Owner of its listeners and of one thread per connection; calls in flight are counted by the Flight server, which drains both.
Holds: requests of a connection are answered in their order; a frame longer than the bound, or one that is none, is refused and
       the connection closed. Memory per connection: one request and one answer.
Never: does what the Flight lane would refuse; listens beyond loopback.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, runtime_checkable

import pyarrow as pa

from storage_engine.api import Backend, CommitRequest, CommitResult
from storage_engine.client.frame_reader import FrameReader, FrameTooLong
from storage_engine.client.wire import Call, Reply, decode_commit
from storage_engine.client.wire import packed as wire
from storage_engine.client.wire.envelope import malformed
from storage_engine.engine.point_reads import PointReads
from storage_engine.errors import FlashlakeError, MalformedMessage, ServerFault
from storage_engine.schema.point import LONG_WAY
from storage_engine.server.acknowledger import Acknowledger
from storage_engine.server.dispatch import answer, commit_reply

_CONNECTIONS_MAX: Final = 1024
_GREETING_S: Final = 5.0
_METHODS: Final = ("commit", "lookup", "prefix_lookup")

logger = logging.getLogger(__name__)


class Gate(Protocol):
    """Counts calls in flight and refuses them when the server stops."""

    def in_flight(self) -> AbstractContextManager[None]: ...
    def refuse_when_stopping(self) -> None: ...


@runtime_checkable
class ReadsPoints(Protocol):
    """A backend in this process, whose rows can be read without tables on the way."""

    def point_reads(self, table: str, columns: Sequence[str] | None) -> PointReads: ...


@runtime_checkable
class CommitsLater(Protocol):
    """A backend in this process, which says when a commit may be acknowledged."""

    def begin_commit(self, request: CommitRequest) -> tuple[CommitResult, Any]: ...
    def is_durable(self, position: Any) -> bool: ...
    def await_durable(self, position: Any) -> None: ...


class SocketServer:
    """Listens from construction on. `address` is what a client needs to connect: port, unix, token."""

    def __init__(self, backend: Backend, gate: Gate, *, host: str = "127.0.0.1") -> None:
        self._backend = backend
        self._gate = gate
        self._token = secrets.token_bytes(wire.TOKEN_BYTES)
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        tcp = socket.socket(family)
        tcp.bind((host.strip("[]"), 0))
        name = f"flashlake-{os.getpid()}-{secrets.token_hex(8)}"
        local = socket.socket(socket.AF_UNIX)
        local.bind(b"\0" + name.encode())
        self.address = {"port": tcp.getsockname()[1], "unix": name, "token": self._token.hex()}
        self._listeners = (tcp, local)
        for listener in self._listeners:
            listener.listen(128)
            threading.Thread(target=self._accept, args=(listener,), name="lane-accept", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that stand go on."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="lane", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                reader = FrameReader(connection, wire.FRAME_BYTES_MAX)
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(_GREETING_S)
                greeting = reader.exactly(len(wire.MAGIC) + wire.TOKEN_BYTES)
                if greeting is None or not hmac.compare_digest(greeting, wire.MAGIC + self._token):
                    return
                connection.sendall(greeting)
                connection.settimeout(None)
                served = _Connection(self._backend, self._gate, reader, connection.sendall)
                try:
                    served.run()
                finally:
                    served.close()
        except OSError:
            logger.debug("a lane's connection broke", exc_info=True)
        finally:
            self._slots.release()


class _Prepared:
    """A lookup under a handle: how its keys come, what it asks, the schema that its answers had last."""

    def __init__(self, method: str, arguments: dict[str, Any], keys: pa.Schema) -> None:
        self.method = method
        self.arguments = arguments
        self.keys = keys
        self.answer: pa.Schema | None = None
        self.codes: tuple[str, str] | None = None
        self.points: PointReads | None = None


class _Connection:
    """The requests of one connection, from its first to its last."""

    def __init__(self, backend: Backend, gate: Gate, reader: FrameReader, send: Callable[[bytes], object]) -> None:
        self._backend = backend
        self._gate = gate
        self._reader = reader
        self._send = send
        self._prepared: dict[int, _Prepared] = {}
        self._later = Acknowledger(send)
        self._commits = backend if isinstance(backend, CommitsLater) else None
        self._until: Callable[[], None] | None = None

    def run(self) -> None:
        while True:
            try:
                payload = self._reader.frame()
            except FrameTooLong as error:
                self._send(wire.encode_error_frame(malformed(str(error))))
                return
            if payload is None:
                return
            try:
                with self._gate.in_flight():
                    self._until = None
                    self._reply(self._answer(payload), self._until)
            except MalformedMessage as error:
                self._reply(wire.encode_error_frame(error), None)
                return

    def close(self) -> None:
        self._later.close()

    def _reply(self, answer: bytes, until: Callable[[], None] | None) -> None:
        """Send an answer, after those that wait; one that waits for the disk leaves from beside when the client goes on meanwhile."""
        if not answer:
            return
        if self._later.is_idle and (until is None or not self._reader.is_duplex or not self._reader.has_more()):
            if until is not None:
                try:
                    until()
                except FlashlakeError as error:
                    answer = wire.encode_error_frame(error)
            self._send(answer)
        else:
            self._later.add(answer, until)

    def _answer(self, payload: bytes | memoryview) -> bytes:
        """The answer to one frame, b"" for none. Errors: MalformedMessage."""
        kind, number = wire.parse_head(payload)
        try:
            if kind == wire.GET:
                self._gate.refuse_when_stopping()
                return self._get(number, memoryview(payload)[wire.HEAD_BYTES :])
            body = pa.py_buffer(payload).slice(wire.HEAD_BYTES)
            if kind == wire.PREPARE:
                self._prepare(number, body)
                return b""
            self._gate.refuse_when_stopping()
            if kind == wire.RUN:
                reply = self._run(number, body)
            elif kind == wire.CALL:
                call = wire.decode_call_frame(number, body)
                if call.method not in _METHODS:
                    raise malformed(f"{call.method} is no call of this lane")
                reply = wire.encode_reply_frame(self._commit(call) if call.method == "commit" else answer(self._backend, call))
            else:
                raise malformed(f"there is no request of kind {kind}")
        except MalformedMessage:
            raise
        except FlashlakeError as error:
            return wire.encode_error_frame(error)
        except Exception as error:
            logger.error("a call of the lane failed", exc_info=error)
            next_step = "The server's log has the traceback; report it."
            return wire.encode_error_frame(ServerFault(f"{type(error).__name__}: {error}", where="server", next_step=next_step))
        return reply if len(reply) <= wire.FRAME_BYTES_MAX else wire.frame(wire.TOO_LARGE, 0)

    def _commit(self, call: Call) -> Reply:
        """Do a commit; what its answer has still to wait for is in `_until`."""
        backend = self._commits
        if backend is None:
            return answer(self._backend, call)
        result, position = backend.begin_commit(decode_commit(call.arguments, call.tables, call.blobs))
        if not backend.is_durable(position):
            self._until = lambda: backend.await_durable(position)
        return commit_reply(result)

    def _prepare(self, handle: int, body: pa.Buffer) -> None:
        if handle >= wire.HANDLES_MAX:
            raise malformed(f"handle {handle} is beyond {wire.HANDLES_MAX}")
        method, arguments, keys = wire.decode_prepare(body)
        prepared = self._prepared[handle] = _Prepared(method, arguments, keys)
        prepared.codes = wire.packed_codes(arguments)
        is_insert = arguments.get("insert_if_not_exists") is True
        if method == "lookup" and not is_insert and isinstance(self._backend, ReadsPoints):
            prepared.points = self._backend.point_reads(arguments["table"], _texts(arguments.get("columns")))

    def _get(self, handle: int, key: memoryview) -> bytes:
        """The row of one packed key, by the shortest way."""
        prepared = self._prepared.get(handle)
        if prepared is None or prepared.codes is None:
            raise malformed(f"handle {handle} is not prepared for packed keys")
        row = LONG_WAY if prepared.points is None else prepared.points.packed_row(key, prepared.codes)
        if row is None:
            return wire.frame(wire.ROW, 0)
        return wire.frame(wire.TOO_LARGE, 0) if row == LONG_WAY else wire.frame(wire.ROW, 1, row)

    def _run(self, handle: int, body: pa.Buffer) -> bytes:
        prepared = self._prepared.get(handle)
        if prepared is None:
            raise malformed(f"handle {handle} is not prepared")
        batch = wire.decode_batch(body, prepared.keys)
        if prepared.points is not None and (direct := prepared.points.message(batch.schema, batch.columns)) is not None:
            schema, parts = direct
            reply = wire.frame_rows(schema, parts, prepared.answer)
            if len(reply) <= wire.FRAME_BYTES_MAX:
                prepared.answer = schema
            return reply
        keys = pa.Table.from_batches([batch])
        asked = prepared.arguments
        if prepared.method == "lookup":
            is_insert = asked.get("insert_if_not_exists") is True
            rows = self._backend.lookup(asked["table"], keys, asked.get("columns"), insert_if_not_exists=is_insert)
        else:
            rows = self._backend.prefix_lookup(asked["table"], keys, asked.get("columns"), asked.get("limit"), asked.get("rows_max"))
        batches = rows.to_batches()
        if len(batches) != 1:
            batches = rows.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]
        if rows.get_total_buffer_size() > wire.FRAME_BYTES_MAX and rows.nbytes > wire.FRAME_BYTES_MAX:
            return wire.frame(wire.TOO_LARGE, 0)
        reply = wire.encode_rows(batches[0], prepared.answer)
        if len(reply) <= wire.FRAME_BYTES_MAX:
            prepared.answer = batches[0].schema
        return reply


def _texts(value: Any) -> list[str] | None:
    """A list of column names, or None. Errors: MalformedMessage."""
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise malformed("columns are no list of names")
    return value
