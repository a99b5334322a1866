"""SocketServer: the second face of a store, for lookups, small commits and scans: frames on TCP and on an abstract Unix socket.

Owner of its listeners and of one thread per connection; calls in flight are counted by the Flight server, which drains both.
A connection's greeting is a ticket that the Flight side gave to an authenticated caller; rights are checked when a lookup is prepared,
and again when users or grants have changed, so that a request costs one comparison for them.
Holds: requests of a connection are answered in their order, lookups that wait in the socket in one pass; a frame longer than the
       bound, or one that is none, is refused and the connection closed. Memory per connection: one request and one answer, or those
       of at most `keys_max` keys (engine/point_reads.py); a large request waits, unread, for room. Of a scan none: its frames are sent
       from where they lie.
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
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, runtime_checkable

import pyarrow as pa

from storage_engine.api import CommitRequest, CommitResult
from storage_engine.client.frame_reader import FrameReader, FrameTooLong
from storage_engine.client.wire import Call, Reply
from storage_engine.client.wire import packed as wire
from storage_engine.client.wire.envelope import malformed
from storage_engine.engine.point_reads import PointReads, PrefixReads
from storage_engine.errors import AuthenticationFailed, Backpressure, FlashlakeError, MalformedMessage, RequestTooLarge, ServerFault
from storage_engine.schema.point import LONG_WAY
from storage_engine.server.acknowledger import Acknowledger
from storage_engine.server.admission import Admission
from storage_engine.server.authentication import ANYBODY, Principal
from storage_engine.server.dispatch import LANE_CALLS
from storage_engine.server.frame_sender import FrameSender, PeerGone, few_frames
from storage_engine.server.guard import Guard
from storage_engine.server.metrics import OK, Metrics
from storage_engine.server.tls import Certificate

_COUNTED_BYTES: Final = 64 << 10  # what is smaller is bounded by the number of connections
_TOGETHER_MAX: Final = 64  # lookups answered in one pass
_METHODS: Final = ("commit", "lookup", "prefix_lookup", *LANE_CALLS)

logger = logging.getLogger(__name__)
_faults = itertools.count(1)


class Gate(Protocol):
    """Counts calls in flight and refuses them when the server stops."""

    admission: Admission
    metrics: Metrics
    guard: Guard

    def in_flight(self) -> AbstractContextManager[None]: ...
    def refuse_when_stopping(self) -> None: ...


@runtime_checkable
class ReadsPoints(Protocol):
    """A backend in this process, whose rows can be read without tables on the way."""

    def point_reads(self, table: str, columns: Sequence[str] | None) -> PointReads: ...
    def prefix_reads(self, table: str, columns: Sequence[str] | None, limit: int | None) -> PrefixReads: ...


@runtime_checkable
class CommitsLater(Protocol):
    """A backend in this process, which says when a commit may be acknowledged."""

    def begin_commit(self, request: CommitRequest) -> tuple[CommitResult, Any]: ...
    def is_durable(self, position: Any) -> bool: ...
    def await_durable(self, position: Any) -> None: ...


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
                with connection:
                    self._greeted(connection)
        except (OSError, ValueError):
            logger.debug("a lane's connection broke", exc_info=True)
        finally:
            with self._lock:
                self._n_open -= 1
            self._slots.release()

    def _greeted(self, connection: socket.socket) -> None:
        """The first bytes say who connects; a connection that says nothing of use is closed without a word."""
        reader = FrameReader(connection, wire.FRAME_BYTES_MAX)
        greeting = reader.exactly(len(wire.MAGIC) + wire.TOKEN_BYTES) or b""
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
        self.codes: tuple[str, str] | None = None
        self.points: PointReads | None = None
        self.together: PointReads | PrefixReads | None = None
        self.refusal: FlashlakeError | None = None


class _Connection:
    """The requests of one connection, from its first to its last."""

    def __init__(self, gate: Gate, principal: Principal, reader: FrameReader, send: Callable[[bytes], object]) -> None:
        self._guard = gate.guard
        self._backend = gate.guard.backend
        self._gate = gate
        self._principal = principal
        self._authenticator = gate.guard.authenticator
        self._reader = reader
        self._reader.admit = self._admit
        self._send = send
        self._prepared: dict[int, _Prepared] = {}
        self._later = Acknowledger(self._send)
        self._commits = self._backend if isinstance(self._backend, CommitsLater) else None
        self._until: Callable[[], None] | None = None
        self._counts = gate.metrics.open("socket")
        self._method = ""
        self._outcome = OK
        self._n_admitted = 0
        self._n_streamed, self._streaming_s = 0, 0.0
        self._behind: deque[bytes] = deque()  # lookups of one handle that have arrived
        self._n_alone = 0  # of them could not be answered together

    def run(self) -> None:
        try:
            self._run_requests()
        finally:
            self._later.close()
            self._gate.metrics.close(self._counts)

    def _run_requests(self) -> None:
        while True:
            try:
                if not self._run_request():
                    return
            finally:
                if self._n_admitted:
                    self._gate.admission.release(self._n_admitted)
                    self._n_admitted = 0

    def _run_request(self) -> bool:
        """Take one frame and answer it; False when it was the last one of this connection."""
        try:
            payload = self._behind.popleft() if self._behind else self._reader.frame()
        except FrameTooLong as error:
            self._reply(wire.encode_error_frame(malformed(str(error))), None)
            return False
        except (Backpressure, RequestTooLarge) as refusal:
            if not self._reader.skip():
                return False
            self._counts.add("refused", type(refusal).__name__, 0.0, 0, 0)
            self._reply(wire.encode_error_frame(refusal), None)
            # What is to be sent again must not be overtaken by the commits behind it: those of one writer are numbered.
            return not isinstance(refusal, Backpressure)
        if payload is None:
            return False
        begin_s = time.perf_counter()
        try:
            with self._gate.in_flight():
                self._until = None
                if self._run_together(payload, begin_s):
                    return True
                answer = self._answer(payload)
                if answer:
                    self._reply(answer, self._until, begin_s + self._streaming_s, len(payload))
        except PeerGone:
            self._counts.add(self._method, "broken off", time.perf_counter() - begin_s - self._streaming_s, len(payload), self._n_streamed)
            return False
        except (MalformedMessage, AuthenticationFailed) as error:
            self._reply(wire.encode_error_frame(error), None)
            return False
        return True

    def _admit(self, n_bytes: int) -> None:
        """Take room for a frame that is announced. Errors: Backpressure; RequestTooLarge."""
        if n_bytes > _COUNTED_BYTES:
            self._gate.admission.acquire(n_bytes)
            self._n_admitted = n_bytes

    def _is_current(self) -> bool:
        """True while what was decided about the principal's rights stands."""
        return self._principal.generation == self._authenticator.generation and time.time() < self._principal.deadline_s

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

    def _reply(self, answer: bytes, until: Callable[[], None] | None, begin_s: float = 0.0, n_in: int = 0) -> None:
        """Send an answer, after those that wait; one that waits for the disk leaves from beside when the client goes on meanwhile.

        n_in    bytes of the call that it answers, which began at `begin_s` and is counted; 0: of none
        """
        if self._later.is_idle and (until is None or not self._reader.is_duplex or not self._reader.has_more()):
            if until is not None:
                try:
                    until()
                except FlashlakeError as error:
                    self._outcome = type(error).__name__
                    answer = wire.encode_error_frame(error)
            if n_in:
                self._counts.add(self._method, self._outcome, time.perf_counter() - begin_s, n_in, self._n_streamed + len(answer))
            self._send(answer)
            return
        if until is not None:
            until = _counted(until, self._gate.metrics, self._method, begin_s, n_in, len(answer))
        elif n_in:
            self._counts.add(self._method, self._outcome, time.perf_counter() - begin_s, n_in, len(answer))
        self._later.add(answer, until)

    def _answer(self, payload: bytes | memoryview) -> bytes:
        """The answer to one frame, b"" for none. Errors: MalformedMessage."""
        kind, number = wire.parse_head(payload)
        self._outcome = OK
        self._n_streamed, self._streaming_s = 0, 0.0
        if not self._is_current():
            self._check_again()
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
                self._method = call.method
                done = self._done(call)
                if done is None:
                    return wire.frame(wire.TOO_LARGE, 0)
                reply = wire.encode_reply_frame(done)
            else:
                raise malformed(f"there is no request of kind {kind}")
        except (MalformedMessage, PeerGone):
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

    def _done(self, call: Call) -> Reply | None:
        """Do a call; None: its answer is too large for this lane."""
        match call.method:
            case "commit":
                return self._commit(call)
            case "fetch":
                return few_frames(self._guard.fetched(self._principal, call.arguments))
            case "fetch_stream":
                return self._stream(call)
            case _:
                return self._guard.answer(self._principal, call)

    def _stream(self, call: Call) -> Reply | None:
        """Send the frames of a scan, after all that waits; what is left is the frame that ends it. Errors: PeerGone."""
        self._later.flush()
        sender = FrameSender(self._send)
        try:
            return Reply() if sender.send(self._guard.fetched(self._principal, call.arguments)) else None
        finally:
            self._n_streamed, self._streaming_s = sender.n_bytes, sender.seconds

    def _commit(self, call: Call) -> Reply:
        """Do a commit; what its answer has still to wait for is in `_until`."""
        backend = self._commits
        if backend is None:
            return self._guard.answer(self._principal, call)
        reply, position = self._guard.begin_commit(self._principal, call, backend.begin_commit)
        if not backend.is_durable(position):
            self._until = lambda: backend.await_durable(position)
        return reply

    def _prepare(self, handle: int, body: pa.Buffer) -> None:
        if handle >= wire.HANDLES_MAX:
            raise malformed(f"handle {handle} is beyond {wire.HANDLES_MAX}")
        method, arguments, keys = wire.decode_prepare(body)
        columns = _texts(arguments.get("columns"))
        prepared = self._prepared[handle] = _Prepared(method, arguments, keys)
        prepared.codes = wire.packed_codes(arguments)
        is_insert = arguments.get("insert_if_not_exists") is True
        if method == "lookup" and not is_insert and isinstance(self._backend, ReadsPoints):
            prepared.points = prepared.together = self._backend.point_reads(arguments["table"], columns)
        elif method == "prefix_lookup" and arguments.get("rows_max") is None and isinstance(self._backend, ReadsPoints):
            prepared.together = self._backend.prefix_reads(arguments["table"], columns, arguments.get("limit"))
        self._check(prepared)

    def _get(self, handle: int, key: memoryview) -> bytes:
        """The row of one packed key, by the shortest way."""
        prepared = self._prepared.get(handle)
        if prepared is None or prepared.codes is None:
            raise malformed(f"handle {handle} is not prepared for packed keys")
        self._method = prepared.method
        if prepared.refusal is not None:
            raise prepared.refusal
        row = LONG_WAY if prepared.points is None else prepared.points.packed_row(key, prepared.codes)
        if row is None:
            return wire.frame(wire.ROW, 0)
        return wire.frame(wire.TOO_LARGE, 0) if row == LONG_WAY else wire.frame(wire.ROW, 1, row)

    def _run_together(self, payload: bytes | memoryview, begin_s: float) -> bool:
        """Answer a lookup, and those like it that have arrived behind it, in one pass; False: each is to be answered by itself.

        Whatever is not plain (a right, a missing row, a request that is none) is left to that: it answers in the same order.
        """
        kind, handle = wire.parse_head(payload)
        prepared = self._prepared.get(handle)
        if kind != wire.RUN or prepared is None or prepared.together is None:
            return False
        if self._n_alone:
            self._n_alone -= 1
            return False
        self._behind.extend(self._reader.waiting(bytes(payload[: wire.HEAD_BYTES]), _TOGETHER_MAX - 1))
        self._n_alone = len(self._behind)  # unless the pass succeeds
        if not self._behind or prepared.refusal is not None or not self._is_current():
            return False
        try:
            self._gate.refuse_when_stopping()
            batches: list[pa.RecordBatch] = []
            n_keys = 0
            for request in (payload, *self._behind):
                batch = wire.decode_batch(pa.py_buffer(request).slice(wire.HEAD_BYTES), prepared.keys)
                n_keys += batch.num_rows
                if batch.num_rows == 0 or n_keys > prepared.together.keys_max:
                    break
                batches.append(batch)
            found = prepared.together.messages(batches) if len(batches) > 1 else None
        except Exception:
            logger.debug("lookups are not answered together", exc_info=True)  # asked one by one, each has its own answer
            return False
        if found is None:
            return False
        schema, messages = found
        self._n_alone = 0
        self._method, self._outcome = prepared.method, OK
        for at, parts in enumerate(messages):
            request = self._behind.popleft() if at else payload
            reply = wire.frame_rows(schema, parts, prepared.answer)
            if len(reply) <= wire.FRAME_BYTES_MAX:
                prepared.answer = schema
            else:
                reply = wire.frame(wire.TOO_LARGE, 0)
            self._reply(reply, None, begin_s, len(request))
        return True

    def _run(self, handle: int, body: pa.Buffer) -> bytes:
        prepared = self._prepared.get(handle)
        if prepared is None:
            raise malformed(f"handle {handle} is not prepared")
        self._method = prepared.method
        if prepared.refusal is not None:
            raise prepared.refusal
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


def _counted(until: Callable[[], None], metrics: Metrics, method: str, begin_s: float, n_in: int, n_out: int) -> Callable[[], None]:
    """What an answer waits for, and then its call is counted: by another thread than the connection's own."""

    def counted() -> None:
        outcome = OK
        try:
            until()
        except FlashlakeError as error:
            outcome = type(error).__name__
            raise
        finally:
            metrics.one("socket", method, outcome, time.perf_counter() - begin_s, n_in, n_out)

    return counted
