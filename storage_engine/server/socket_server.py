"""SocketServer: the second face of a store, for lookups and small commits: frames on TCP and on an abstract Unix socket.

Owner of its listeners and of one thread per connection; calls in flight are counted by the Flight server, which drains both.
A connection's greeting is a ticket that the Flight side gave to an authenticated caller; rights are checked when a lookup is prepared,
and again when users or grants have changed, so that a request costs one comparison for them.
Holds: requests of a connection are answered in their order; a frame longer than the bound, or one that is none, is refused and
       the connection closed. Memory per connection: one request and one answer; a large request waits, unread, for room.
       A peer that is silent, or does not take its answers, is closed by the kernel's own timeouts, which cost a request nothing.
Never: does what the Flight lane would refuse.
"""

from __future__ import annotations

import hmac
import itertools
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Final, Protocol, cast

import pyarrow as pa

from storage_engine.client.wire import packed as wire
from storage_engine.client.wire.envelope import malformed
from storage_engine.errors import AuthenticationFailed, Backpressure, FlashlakeError, MalformedMessage, RequestTooLarge, ServerFault
from storage_engine.server.admission import Admission
from storage_engine.server.authentication import ANYBODY, Principal
from storage_engine.server.guard import Guard
from storage_engine.server.metrics import OK, Metrics
from storage_engine.server.tls import Certificate

_COUNTED_BYTES: Final = 64 << 10  # what is smaller is bounded by the number of connections
_METHODS: Final = ("commit", "lookup", "prefix_lookup")

logger = logging.getLogger(__name__)
_faults = itertools.count(1)


class Gate(Protocol):
    """Counts calls in flight and refuses them when the server stops."""

    admission: Admission
    metrics: Metrics
    guard: Guard

    def in_flight(self) -> AbstractContextManager[None]: ...
    def refuse_when_stopping(self) -> None: ...


class SocketServer:
    """Listens from construction on. `address_for(principal)` is what a client needs to connect: port, unix, token, tls."""

    def __init__(self, gate: Gate, *, host: str = "127.0.0.1", port: int = 0, certificate: Certificate | None = None) -> None:
        """`certificate`: TLS on the TCP side; the Unix socket does not leave the machine. Errors: OSError for a port in use."""
        self._gate = gate
        self._authenticator = gate.guard.authenticator
        self._tls = None if certificate is None else certificate.context
        self._token = secrets.token_bytes(wire.TOKEN_BYTES)
        self._slots = threading.BoundedSemaphore(gate.admission.limits.connections_max)
        self._n_open = 0
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        tcp = socket.socket(family)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host.strip("[]"), port))
        self._name = f"flashlake-{os.getpid()}-{secrets.token_hex(8)}"
        local = socket.socket(socket.AF_UNIX)
        local.bind(b"\0" + self._name.encode())
        self.port: int = tcp.getsockname()[1]
        self._listeners = (tcp, local)
        for listener in self._listeners:
            listener.listen(128)
            threading.Thread(target=self._accept, args=(listener,), name="lane-accept", daemon=True).start()

    @property
    def n_open(self) -> int:
        return self._n_open

    def address_for(self, principal: Principal) -> dict[str, Any]:
        token = self._authenticator.ticket(principal) if self._authenticator.is_on else self._token
        return {"port": self.port, "unix": self._name, "token": token.hex(), "tls": self._tls is not None}

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
        with self._lock:
            self._n_open += 1
        try:
            with connection:
                connection.settimeout(self._gate.admission.limits.greeting_s)
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if self._tls is not None:
                        connection = self._tls.wrap_socket(connection, server_side=True)
                with connection, connection.makefile("rb", 1 << 16) as reader:
                    self._greeted(connection, cast("BinaryIO", reader))
        except (OSError, ValueError):
            logger.debug("a lane's connection broke", exc_info=True)
        finally:
            with self._lock:
                self._n_open -= 1
            self._slots.release()

    def _greeted(self, connection: socket.socket, reader: BinaryIO) -> None:
        """The first bytes say who connects; a connection that says nothing of use is closed without a word."""
        greeting = reader.read(len(wire.MAGIC) + wire.TOKEN_BYTES) or b""
        if self._authenticator.is_on:
            found = self._authenticator.of_ticket(greeting[len(wire.MAGIC) :]) if greeting.startswith(wire.MAGIC) else None
        else:
            found = ANYBODY if hmac.compare_digest(greeting, wire.MAGIC + self._token) else None
        if found is None:
            return
        connection.sendall(greeting)
        connection.settimeout(None)
        limits = self._gate.admission.limits
        for option, seconds in ((socket.SO_RCVTIMEO, limits.idle_s), (socket.SO_SNDTIMEO, limits.stall_s)):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))
        _Connection(self._gate, found, reader, connection.sendall).run()


class _Prepared:
    """A lookup under a handle: how its keys come, what it asks, the schema that its answers had last."""

    def __init__(self, method: str, arguments: dict[str, Any], keys: pa.Schema) -> None:
        self.method = method
        self.arguments = arguments
        self.keys = keys
        self.answer: pa.Schema | None = None
        self.refusal: FlashlakeError | None = None


class _Connection:
    """The requests of one connection, from its first to its last."""

    def __init__(self, gate: Gate, principal: Principal, reader: BinaryIO, send: Callable[[bytes], object]) -> None:
        self._guard = gate.guard
        self._backend = gate.guard.backend
        self._gate = gate
        self._principal = principal
        self._authenticator = gate.guard.authenticator
        self._reader = reader
        self._send = send
        self._prepared: dict[int, _Prepared] = {}
        self._counts = gate.metrics.open("socket")
        self._method = ""
        self._outcome = OK

    def run(self) -> None:
        try:
            self._run_requests()
        finally:
            self._gate.metrics.close(self._counts)

    def _run_requests(self) -> None:
        while True:
            length = self._reader.read(wire.LENGTH.size)
            if not length or len(length) < wire.LENGTH.size:
                return
            (n_bytes,) = wire.LENGTH.unpack(length)
            if n_bytes > wire.FRAME_BYTES_MAX:
                self._send(wire.encode_error_frame(malformed(f"a frame of {n_bytes} bytes is announced")))
                return
            n_admitted = 0
            if n_bytes > _COUNTED_BYTES:
                try:
                    self._gate.admission.acquire(n_bytes)
                    n_admitted = n_bytes
                except (Backpressure, RequestTooLarge) as refusal:
                    if not self._skip(n_bytes):
                        return
                    self._counts.add("refused", type(refusal).__name__, 0.0, 0, 0)
                    self._send(wire.encode_error_frame(refusal))
                    continue
            try:
                payload = self._reader.read(n_bytes)
                if not payload or len(payload) < n_bytes:
                    return
                begin = time.perf_counter()
                with self._gate.in_flight():
                    reply = self._answer(payload)
                    if reply:
                        self._counts.add(self._method, self._outcome, time.perf_counter() - begin, n_bytes, len(reply))
                        self._send(reply)
            except (MalformedMessage, AuthenticationFailed) as error:
                self._send(wire.encode_error_frame(error))
                return
            finally:
                if n_admitted:
                    self._gate.admission.release(n_admitted)

    def _skip(self, n_bytes: int) -> bool:
        """Read and forget a refused request; False when the connection ended in it."""
        while n_bytes > 0:
            part = self._reader.read(min(n_bytes, _COUNTED_BYTES))
            if not part:
                return False
            n_bytes -= len(part)
        return True

    def _check_again(self) -> None:
        """Users or grants have changed, or a session's time is over. Errors: AuthenticationFailed."""
        self._principal = self._authenticator.current(self._principal)
        for prepared in self._prepared.values():
            self._check(prepared)

    def _check(self, prepared: _Prepared) -> None:
        """Decide about a prepared lookup; its refusal is raised when it is run, as a preparation has no answer."""
        try:
            self._guard.check(self._principal, prepared.method, prepared.arguments)
            prepared.refusal = None
        except FlashlakeError as refusal:
            prepared.refusal = refusal

    def _answer(self, payload: bytes) -> bytes:
        """The answer to one frame, b"" for none. Errors: MalformedMessage."""
        kind, number, body = wire.parse_frame(payload)
        self._outcome = OK
        if self._principal.generation != self._authenticator.generation or time.time() >= self._principal.deadline_s:
            self._check_again()
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
                self._method = call.method
                reply = wire.encode_reply_frame(self._guard.answer(self._principal, call))
            else:
                raise malformed(f"there is no request of kind {kind}")
        except MalformedMessage:
            raise
        except FlashlakeError as error:
            self._outcome = type(error).__name__
            return wire.encode_error_frame(self._guard.shown(self._principal, error))
        except Exception as error:
            self._outcome = ServerFault.__name__
            request = f"s{next(_faults)}"
            logger.error("a call of the lane failed", exc_info=error, extra={"request": request, "user": self._principal.user})
            next_step = "The server's log has the traceback; report it."
            where = f"server, request {request}"
            return wire.encode_error_frame(ServerFault(f"{type(error).__name__}: {error}", where=where, next_step=next_step))
        return reply if len(reply) <= wire.FRAME_BYTES_MAX else wire.frame(wire.TOO_LARGE, 0)

    def _prepare(self, handle: int, body: pa.Buffer) -> None:
        if handle >= wire.HANDLES_MAX:
            raise malformed(f"handle {handle} is beyond {wire.HANDLES_MAX}")
        prepared = self._prepared[handle] = _Prepared(*wire.decode_prepare(body))
        self._check(prepared)

    def _run(self, handle: int, body: pa.Buffer) -> bytes:
        prepared = self._prepared.get(handle)
        if prepared is None:
            raise malformed(f"handle {handle} is not prepared")
        self._method = prepared.method
        if prepared.refusal is not None:
            raise prepared.refusal
        keys = pa.Table.from_batches([wire.decode_batch(body, prepared.keys)])
        asked = prepared.arguments
        if prepared.method == "lookup":
            is_insert = asked.get("insert_if_not_exists") is True
            rows = self._backend.lookup(asked["table"], keys, asked.get("columns"), insert_if_not_exists=is_insert)
        else:
            rows = self._backend.prefix_lookup(asked["table"], keys, asked.get("columns"), asked.get("limit"))
        batches = rows.to_batches()
        if len(batches) != 1:
            batches = rows.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]
        if rows.get_total_buffer_size() > wire.FRAME_BYTES_MAX and rows.nbytes > wire.FRAME_BYTES_MAX:
            return wire.frame(wire.TOO_LARGE, 0)
        reply = wire.encode_rows(batches[0], prepared.answer)
        if len(reply) <= wire.FRAME_BYTES_MAX:
            prepared.answer = batches[0].schema
        return reply
