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
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Final, Protocol, cast

import pyarrow as pa

from storage_engine.api import Backend
from storage_engine.client.wire import packed as wire
from storage_engine.client.wire.envelope import malformed
from storage_engine.errors import FlashlakeError, MalformedMessage, ServerFault
from storage_engine.server.dispatch import answer

_CONNECTIONS_MAX: Final = 1024
_GREETING_S: Final = 5.0
_METHODS: Final = ("commit", "lookup", "prefix_lookup")

logger = logging.getLogger(__name__)


class Gate(Protocol):
    """Counts calls in flight and refuses them when the server stops."""

    def in_flight(self) -> AbstractContextManager[None]: ...
    def refuse_when_stopping(self) -> None: ...


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
            with connection, connection.makefile("rb", 1 << 16) as reader:
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(_GREETING_S)
                greeting = reader.read(len(wire.MAGIC) + wire.TOKEN_BYTES)
                if not hmac.compare_digest(greeting, wire.MAGIC + self._token):
                    return
                connection.sendall(greeting)
                connection.settimeout(None)
                _Connection(self._backend, self._gate, cast("BinaryIO", reader), connection.sendall).run()
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


class _Connection:
    """The requests of one connection, from its first to its last."""

    def __init__(self, backend: Backend, gate: Gate, reader: BinaryIO, send: Callable[[bytes], object]) -> None:
        self._backend = backend
        self._gate = gate
        self._reader = reader
        self._send = send
        self._prepared: dict[int, _Prepared] = {}

    def run(self) -> None:
        while True:
            length = self._reader.read(wire.LENGTH.size)
            if len(length) < wire.LENGTH.size:
                return
            (n_bytes,) = wire.LENGTH.unpack(length)
            if n_bytes > wire.FRAME_BYTES_MAX:
                self._send(wire.encode_error_frame(malformed(f"a frame of {n_bytes} bytes is announced")))
                return
            payload = self._reader.read(n_bytes)
            if len(payload) < n_bytes:
                return
            try:
                with self._gate.in_flight():
                    reply = self._answer(payload)
                    if reply:
                        self._send(reply)
            except MalformedMessage as error:
                self._send(wire.encode_error_frame(error))
                return

    def _answer(self, payload: bytes) -> bytes:
        """The answer to one frame, b"" for none. Errors: MalformedMessage."""
        kind, number, body = wire.parse_frame(payload)
        try:
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
                reply = wire.encode_reply_frame(answer(self._backend, call))
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

    def _prepare(self, handle: int, body: pa.Buffer) -> None:
        if handle >= wire.HANDLES_MAX:
            raise malformed(f"handle {handle} is beyond {wire.HANDLES_MAX}")
        self._prepared[handle] = _Prepared(*wire.decode_prepare(body))

    def _run(self, handle: int, body: pa.Buffer) -> bytes:
        prepared = self._prepared.get(handle)
        if prepared is None:
            raise malformed(f"handle {handle} is not prepared")
        keys = pa.Table.from_batches([wire.decode_batch(body, prepared.keys)])
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
