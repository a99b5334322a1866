"""FlightServer: the network face of a store. It takes calls from Flight streams, has them answered, and sends the answers.

Owner of no state but the count of calls in flight; the backend it is handed is opened and closed by the process (__main__.py).
Who calls is decided once per stream or action, by middleware (flight_auth.py), and again for each call of a stream, from memory.
Holds: every refusal travels inside the stream as data, so a lane survives it; a bug of ours becomes ServerFault and a traceback in the log.
Never: decodes a stored frame; messages of fetched frames pass through as binary cells.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from storage_engine.api import Backend, FetchedFrame
from storage_engine.client.lane import read_message, write_message
from storage_engine.client.link import ERROR_KEY
from storage_engine.client.wire import (
    CELL_SCHEMA,
    FRAME_SCHEMA,
    Call,
    Message,
    Reply,
    decode_call,
    encode_error,
    encode_error_reply,
    encode_frames,
    encode_reply,
)
from storage_engine.errors import FlashlakeError, ServerFault, StoreUnavailable
from storage_engine.server.admission import Admission, Limits
from storage_engine.server.authentication import Authenticator, Principal
from storage_engine.server.flight_auth import ACCESS, AccessFactory, Handshake, principal_of
from storage_engine.server.guard import Guard
from storage_engine.server.metrics import OK, Metrics
from storage_engine.server.receiving import Received, Receiver
from storage_engine.server.rights import NEEDS
from storage_engine.server.spool import Spool
from storage_engine.server.tls import Certificate

_BATCH_BYTES_MAX = 4 << 20
_BATCH_FRAMES_MAX = 1024
_AWAIT_SLICE_S = 0.25
_SLOW_S = 1.0

logger = logging.getLogger(__name__)


class FlightServer(fl.FlightServerBase):
    """Serves one backend. It listens from construction on; `port` is the port it got, `lane_address` where the socket lane listens."""

    def __init__(
        self,
        backend: Backend,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        authenticator: Authenticator | None = None,
        certificate: Certificate | None = None,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        metrics: Metrics | None = None,
        spool_directory: str | None = None,
    ) -> None:
        """`authenticator`: None lets everybody do everything; `certificate`: None speaks plain TCP; `spool_directory`: see Spool."""
        self._spool_directory = spool_directory
        self.authenticator = authenticator or Authenticator(backend, is_on=False)
        self.admission = Admission(limits, fsync_s=getattr(backend, "syncing_s", lambda: 0.0))
        debts: dict[str, Callable[[], float]] = getattr(backend, "debts", {})
        self.admission.debts.append(lambda: max((debt() for debt in list(debts.values())), default=0.0))
        self.guard = Guard(backend, self.authenticator, self.admission.pressure)
        self.metrics = metrics or Metrics()
        self._ids = itertools.count(1)
        self._is_stopping = threading.Event()
        self._counted = _Counted()
        self._n_streams = 0
        self._streams_lock = threading.Lock()
        self.lane_address: Callable[[Principal], Mapping[str, Any]] | None = None
        tls = {} if certificate is None else {"tls_certificates": [(certificate.chain, certificate.key)]}
        super().__init__(
            f"grpc{'+tls' if tls else ''}://{host}:{port}",
            auth_handler=Handshake(),
            middleware={ACCESS: AccessFactory(self.authenticator)},
            **tls,
        )

    @property
    def n_in_flight(self) -> int:
        return self._counted.n_calls

    @property
    def n_streams(self) -> int:
        """Exchange streams that are open."""
        return self._n_streams

    def drain(self, timeout_s: float) -> bool:
        """Refuse new calls (StoreUnavailable) and wait for those in flight; False when the time is over first."""
        self._is_stopping.set()
        with self._counted.changed:
            return self._counted.changed.wait_for(lambda: self._counted.n_calls == 0, timeout_s)

    # Flight
    def list_actions(self, context: fl.ServerCallContext) -> list[tuple[str, str]]:  # noqa: ARG002 - Flight's signature
        return [("call", "One control call: JSON header in, JSON header out.")]

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Iterator[fl.Result]:
        received = Received(json.loads(action.body.to_pybytes()), None, 0)
        with self.in_flight():
            (message,) = self._timed(principal_of(context), received, action.body.size)
            yield fl.Result(pa.py_buffer(message.header))

    def do_exchange(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,  # noqa: ARG002
        reader: fl.MetadataRecordBatchReader,
        writer: fl.MetadataRecordBatchWriter,
    ) -> None:
        """A lane: calls and replies in turn, until the client goes away."""
        principal = principal_of(context)
        if self._n_streams >= self.admission.limits.connections_max:
            raise fl.FlightUnavailableError("too many open streams")
        writer.begin(CELL_SCHEMA)
        receiver = Receiver(self.admission)
        with self._streams_lock:
            self._n_streams += 1
        try:
            while True:
                try:
                    received = reader.read_chunk()
                except StopIteration:
                    return
                done = receiver.feed(read_message(received))
                if done is not None:
                    with self.in_flight():
                        try:
                            n_in = 0 if done.body is None else done.body.size
                            for message in self._timed(principal, done, n_in):
                                write_message(writer, message)
                        finally:
                            self.admission.release(done.n_admitted)
        finally:
            receiver.close()
            with self._streams_lock:
                self._n_streams -= 1

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        call = decode_call(json.loads(ticket.ticket), None)
        principal = principal_of(context)
        if call.method == "read":
            return self._read_stream(principal, call)
        if call.method == "snapshot":
            return self._snapshot_stream(principal, call)
        return fl.GeneratorStream(FRAME_SCHEMA, self._frame_stream(principal, call))

    # answers
    def _timed(self, principal: Principal, received: Received, n_in: int) -> list[Message]:
        """Answer and count a call."""
        method, request = str(received.header.get("method")), f"f{next(self._ids)}"
        begin = time.perf_counter()
        outcome, messages = self._answered(principal, received, request)
        n_out = sum(message.chunk.size for message in messages if message.chunk is not None)
        seconds = time.perf_counter() - begin
        self.metrics.one("flight", _known(method), outcome, seconds, n_in, n_out)
        if seconds > _SLOW_S and method != "await_version":
            logger.info("a slow call", extra={"request": request, "method": method, "seconds": round(seconds, 3), "user": principal.user})
        return messages

    def _answered(self, principal: Principal, received: Received, request: str) -> tuple[str, list[Message]]:
        """The outcome's name, and the answer."""
        try:
            if received.refusal is not None:
                raise received.refusal
            self.refuse_when_stopping()
            principal = self.authenticator.current(principal)
            call = decode_call(received.header, received.body)
            if call.method == "lane":
                return OK, list(encode_reply(Reply(self.lane_address(principal) if self.lane_address else None)))
            reply = self._awaited(principal, call) if call.method == "await_version" else self.guard.answer(principal, call)
            return OK, list(encode_reply(reply))
        except FlashlakeError as error:
            return type(error).__name__, list(encode_error_reply(error))
        except Exception as error:  # noqa: BLE001 - the top of a worker loop: one call fails, the server goes on
            return ServerFault.__name__, list(encode_error_reply(_fault(str(received.header.get("method")), error, request)))

    def _awaited(self, principal: Principal, call: Call) -> Reply:
        """Wait in slices, so that a stopping server lets go of its waiters."""
        deadline = time.monotonic() + call.arguments["timeout_s"]
        while True:
            self.refuse_when_stopping()
            left_s = max(deadline - time.monotonic(), 0.0)
            part = replace(call, arguments={**call.arguments, "timeout_s": min(left_s, _AWAIT_SLICE_S)})
            reply = self.guard.answer(principal, part)
            if reply.result > call.arguments["after"] or time.monotonic() >= deadline:
                return reply

    def _read_stream(self, principal: Principal, call: Call) -> fl.FlightDataStream:
        begin, outcome, n_out = time.perf_counter(), OK, 0
        try:
            self.refuse_when_stopping()
            with self.in_flight():
                rows = self.guard.current_rows(principal, call.arguments)
            n_out = rows.nbytes
            return fl.GeneratorStream(rows.schema, Spool(rows, self._spool_directory).batches())
        except FlashlakeError as error:
            outcome = type(error).__name__
            return _error_stream(error)
        except Exception as error:  # noqa: BLE001 - as in _answered
            outcome = ServerFault.__name__
            return _error_stream(_fault(call.method, error, f"f{next(self._ids)}"))
        finally:
            self.metrics.one("flight", "read", outcome, time.perf_counter() - begin, 0, n_out)

    def _snapshot_stream(self, principal: Principal, call: Call) -> fl.FlightDataStream:
        """Batches are read as they are sent: the reader's pace bounds what is held."""
        try:
            self.refuse_when_stopping()
            with self.in_flight():
                rows = self.guard.snapshot(principal, call.arguments)
            return fl.GeneratorStream(rows.schema, self._snapshot_batches(rows))
        except FlashlakeError as error:
            return _error_stream(error)
        except Exception as error:  # noqa: BLE001 - as in _answered
            return _error_stream(_fault(call.method, error, f"f{next(self._ids)}"))

    def _snapshot_batches(self, rows: pa.RecordBatchReader) -> Iterator[pa.RecordBatch | tuple[pa.RecordBatch, pa.Buffer]]:
        seconds, n_out, outcome = 0.0, 0, "broken off"
        begin = time.perf_counter()
        try:
            with self.in_flight():
                for batch in rows:
                    n_out += batch.nbytes
                    seconds += time.perf_counter() - begin
                    yield batch
                    begin = time.perf_counter()
            outcome = OK
        except FlashlakeError as error:
            outcome = type(error).__name__
            yield _error_batch(error, rows.schema)
        except Exception as error:  # noqa: BLE001 - as in _answered
            outcome = ServerFault.__name__
            yield _error_batch(_fault("snapshot", error, f"f{next(self._ids)}"), rows.schema)
        finally:
            self.metrics.one("flight", "snapshot", outcome, seconds + time.perf_counter() - begin, 0, n_out)

    def _frame_stream(self, principal: Principal, call: Call) -> Iterator[tuple[pa.RecordBatch, pa.Buffer]]:
        """The seconds counted are those of the store: a reader's pauses are its own."""
        seconds, n_out, outcome = 0.0, 0, "broken off"
        begin = time.perf_counter()
        try:
            self.refuse_when_stopping()
            with self.in_flight():
                for group in _grouped(self.guard.fetched(principal, call.arguments)):
                    encoded = encode_frames(group)
                    n_out += sum(frame.n_message_bytes for frame in group)
                    seconds += time.perf_counter() - begin
                    yield encoded
                    begin = time.perf_counter()
            outcome = OK
        except FlashlakeError as error:
            outcome = type(error).__name__
            yield _error_batch(error)
        except Exception as error:  # noqa: BLE001 - as in _answered
            outcome = ServerFault.__name__
            yield _error_batch(_fault(call.method, error, f"f{next(self._ids)}"))
        finally:
            self.metrics.one("flight", "fetch", outcome, seconds + time.perf_counter() - begin, 0, n_out)

    def refuse_when_stopping(self) -> None:
        """Errors: StoreUnavailable, from drain() on."""
        if self._is_stopping.is_set():
            raise StoreUnavailable("the server is stopping", where="server", next_step="Try again when it is up.")

    def in_flight(self) -> AbstractContextManager[None]:
        """Count a call: drain() waits for it."""
        return self._counted


class _Counted(AbstractContextManager[None]):
    """Calls in flight. One object for all of them: a lookup takes a few microseconds, and a generator as context manager two of them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.n_calls = 0

    def __enter__(self) -> None:
        with self.changed:
            self.n_calls += 1

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.n_calls -= 1
            if not self.n_calls:
                self.changed.notify_all()


def _grouped(frames: Iterator[FetchedFrame]) -> Iterator[list[FetchedFrame]]:
    """Small frames share a message; a large one travels alone, without a copy."""
    group: list[FetchedFrame] = []
    n_bytes = 0
    for frame in frames:
        size = frame.n_message_bytes
        if group and (n_bytes + size > _BATCH_BYTES_MAX or len(group) == _BATCH_FRAMES_MAX):
            yield group
            group, n_bytes = [], 0
        group.append(frame)
        n_bytes += size
    if group:
        yield group


def _error_batch(error: FlashlakeError, schema: pa.Schema = FRAME_SCHEMA) -> tuple[pa.RecordBatch, pa.Buffer]:
    no_rows = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    return no_rows, pa.py_buffer(json.dumps({"error": encode_error(error)}).encode())


def _error_stream(error: FlashlakeError) -> fl.FlightDataStream:
    schema = pa.schema([], metadata={ERROR_KEY: json.dumps(encode_error(error)).encode()})
    return fl.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, []))


def _known(method: str) -> str:
    """A method's name for the counts: what a stranger made up shares one."""
    return method if method in NEEDS or method == "refused" else "unknown"


def _fault(method: str, error: Exception, request: str) -> ServerFault:
    logger.error("call %s failed", method, exc_info=error, extra={"request": request})
    next_step = "The server's log has the traceback; report it."
    return ServerFault(f"{type(error).__name__}: {error}", where=f"server, {method}, request {request}", next_step=next_step)
