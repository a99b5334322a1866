"""FlightServer: the network face of a store. It takes calls from Flight streams, has them answered, and sends the answers.

Owner of no state but the count of calls in flight; the backend it is handed is opened and closed by the process (__main__.py).
Holds: every refusal travels inside the stream as data, so a lane survives it; a bug of ours becomes ServerFault and a traceback in the log.
Never: decodes a stored frame; messages of fetched frames pass through as binary cells.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from storage_engine.api import Backend, FetchedFrame
from storage_engine.client.flight import ERROR_KEY
from storage_engine.client.lane import read_message, write_message
from storage_engine.client.wire import (
    CELL_SCHEMA,
    FRAME_SCHEMA,
    Assembler,
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
from storage_engine.server.dispatch import answer, current_rows, fetched

_BATCH_BYTES_MAX = 4 << 20
_BATCH_FRAMES_MAX = 1024
_READ_ROWS_MAX = 1 << 16
_AWAIT_SLICE_S = 0.25

logger = logging.getLogger(__name__)


class FlightServer(fl.FlightServerBase):
    """Serves one backend. It listens from construction on; `port` is the port it got, `lane_address` where the socket lane listens."""

    def __init__(self, backend: Backend, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._backend = backend
        self._is_stopping = threading.Event()
        self._counted = _Counted()
        self.lane_address: Mapping[str, Any] | None = None
        super().__init__(f"grpc://{host}:{port}")

    def drain(self, timeout_s: float) -> bool:
        """Refuse new calls (StoreUnavailable) and wait for those in flight; False when the time is over first."""
        self._is_stopping.set()
        with self._counted.changed:
            return self._counted.changed.wait_for(lambda: self._counted.n_calls == 0, timeout_s)

    # Flight
    def list_actions(self, context: fl.ServerCallContext) -> list[tuple[str, str]]:  # noqa: ARG002 - Flight's signature
        return [("call", "One control call: JSON header in, JSON header out.")]

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Iterator[fl.Result]:  # noqa: ARG002
        with self.in_flight():
            (message,) = self._answered(json.loads(action.body.to_pybytes()), None)
            yield fl.Result(pa.py_buffer(message.header))

    def do_exchange(
        self,
        context: fl.ServerCallContext,  # noqa: ARG002
        descriptor: fl.FlightDescriptor,  # noqa: ARG002
        reader: fl.MetadataRecordBatchReader,
        writer: fl.MetadataRecordBatchWriter,
    ) -> None:
        """A lane: calls and replies in turn, until the client goes away."""
        writer.begin(CELL_SCHEMA)
        assembler = Assembler()
        while True:
            try:
                received = reader.read_chunk()
            except StopIteration:
                return
            done = assembler.feed(read_message(received))
            if done is not None:
                with self.in_flight():
                    for message in self._answered(*done):
                        write_message(writer, message)

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:  # noqa: ARG002
        call = decode_call(json.loads(ticket.ticket), None)
        if call.method == "read":
            return self._read_stream(call)
        return fl.GeneratorStream(FRAME_SCHEMA, self._frame_stream(call))

    # answers
    def _answered(self, header: Mapping[str, Any], body: pa.Buffer | None) -> list[Message]:
        try:
            self.refuse_when_stopping()
            call = decode_call(header, body)
            if call.method == "lane":
                return list(encode_reply(Reply(self.lane_address)))
            return list(encode_reply(self._awaited(call) if call.method == "await_version" else answer(self._backend, call)))
        except FlashlakeError as error:
            return list(encode_error_reply(error))
        except Exception as error:  # noqa: BLE001 - the top of a worker loop: one call fails, the server goes on
            return list(encode_error_reply(_fault(str(header.get("method")), error)))

    def _awaited(self, call: Call) -> Reply:
        """Wait in slices, so that a stopping server lets go of its waiters."""
        deadline = time.monotonic() + call.arguments["timeout_s"]
        while True:
            self.refuse_when_stopping()
            left_s = max(deadline - time.monotonic(), 0.0)
            part = replace(call, arguments={**call.arguments, "timeout_s": min(left_s, _AWAIT_SLICE_S)})
            reply = answer(self._backend, part)
            if reply.result > call.arguments["after"] or time.monotonic() >= deadline:
                return reply

    def _read_stream(self, call: Call) -> fl.FlightDataStream:
        try:
            self.refuse_when_stopping()
            with self.in_flight():
                rows = current_rows(self._backend, call.arguments)
            return fl.RecordBatchStream(rows.to_reader(max_chunksize=_READ_ROWS_MAX))
        except FlashlakeError as error:
            return _error_stream(error)
        except Exception as error:  # noqa: BLE001 - as in _answered
            return _error_stream(_fault(call.method, error))

    def _frame_stream(self, call: Call) -> Iterator[tuple[pa.RecordBatch, pa.Buffer]]:
        try:
            self.refuse_when_stopping()
            with self.in_flight():
                for group in _grouped(fetched(self._backend, call.arguments)):
                    yield encode_frames(group)
        except FlashlakeError as error:
            yield _error_batch(error)
        except Exception as error:  # noqa: BLE001 - as in _answered
            yield _error_batch(_fault(call.method, error))

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
        if group and (n_bytes + frame.message.size > _BATCH_BYTES_MAX or len(group) == _BATCH_FRAMES_MAX):
            yield group
            group, n_bytes = [], 0
        group.append(frame)
        n_bytes += frame.message.size
    if group:
        yield group


def _error_batch(error: FlashlakeError) -> tuple[pa.RecordBatch, pa.Buffer]:
    no_frames = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in FRAME_SCHEMA], schema=FRAME_SCHEMA)
    return no_frames, pa.py_buffer(json.dumps({"error": encode_error(error)}).encode())


def _error_stream(error: FlashlakeError) -> fl.FlightDataStream:
    schema = pa.schema([], metadata={ERROR_KEY: json.dumps(encode_error(error)).encode()})
    return fl.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, []))


def _fault(method: str, error: Exception) -> ServerFault:
    logger.error("call %s failed", method, exc_info=error)
    next_step = "The server's log has the traceback; report it."
    return ServerFault(f"{type(error).__name__}: {error}", where=f"server, {method}", next_step=next_step)
