"""Lane: one kept-open exchange stream to a server, and the idempotent writer that goes with it.

Holds: one call at a time; a lane whose call failed on the way is closed and never used again.
A Writer outlives its lanes: its name and sequence make a write that is sent twice, over two connections, one write.
Never: retries (flight.py does), waits for a broken server to come back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa
import pyarrow.flight as fl

from storage_engine.api import WriteId
from storage_engine.client.wire import CELL_SCHEMA, Assembler, Call, Message, Reply, decode_chunk, decode_reply, encode_call, encode_chunk

if TYPE_CHECKING:
    from storage_engine.client.socket_lane import SocketLane

LANE = b"lane"

logger = logging.getLogger(__name__)


class LaneBroken(Exception):
    """The stream ended or failed before the reply was whole. The server may or may not have done the call."""


class Lane:
    """One do_exchange stream. `is_usable`: it stands between two calls."""

    def __init__(self, client: fl.FlightClient, options: fl.FlightCallOptions | None = None) -> None:
        self._assembler = Assembler()
        self.is_usable = True
        try:
            self._writer, self._reader = client.do_exchange(fl.FlightDescriptor.for_command(LANE), options)
            self._writer.begin(CELL_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(str(error)) from error

    def call(self, call: Call) -> Reply:
        """Errors: LaneBroken; FlightUnauthenticatedError; otherwise what the server's answer raises."""
        messages = list(encode_call(call))
        self.is_usable = False
        try:
            for message in messages:
                write_message(self._writer, message)
            while True:
                received = self._reader.read_chunk()
                done = self._assembler.feed(read_message(received))
                if done is not None:
                    break
        except fl.FlightUnauthenticatedError:
            raise
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise LaneBroken(str(error) or "the server closed the stream") from error
        self.is_usable = True
        return decode_reply(*done)

    def close(self) -> None:
        """Say goodbye, or break off when a call is unfinished."""
        try:
            if self.is_usable:
                self._writer.done_writing()
            else:
                self._reader.cancel()
            self._writer.close()
        except (pa.ArrowException, OSError):
            logger.debug("lane closed on a broken connection", exc_info=True)


class Writer:
    """A writer's name, its next sequence, and the lanes it uses now (None: not connected)."""

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.socket: SocketLane | None = None
        self._name = f"flight-{uuid4().hex}"
        self._sequence = 0

    def next_write_id(self) -> WriteId:
        self._sequence += 1
        return WriteId(self._name, self._sequence)

    def disconnect(self) -> None:
        if self.lane is not None:
            self.lane.close()
            self.lane = None
        self.disconnect_socket()

    def disconnect_socket(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class WriterPool:
    """Writers not in use. A thread borrows one for one call, so that no two calls of a writer are ever in flight together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Writer] = []
        self._is_closed = False

    @contextmanager
    def borrow(self) -> Iterator[Writer]:
        writer = self.take()
        try:
            yield writer
        finally:
            self.give_back(writer)

    def take(self) -> Writer:
        """A writer to be given back in any case: borrow() for calls that are counted in microseconds."""
        with self._lock:
            return self._idle.pop() if self._idle else Writer()

    def give_back(self, writer: Writer) -> None:
        with self._lock:
            if self._is_closed:
                writer.disconnect()
            else:
                self._idle.append(writer)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for writer in self._idle:
                writer.disconnect()
            self._idle.clear()


def write_message(writer: fl.MetadataRecordBatchWriter, message: Message) -> None:
    """Put one message on a Flight stream that has begun with CELL_SCHEMA."""
    if message.chunk is None:
        writer.write_metadata(pa.py_buffer(message.header))
    elif message.header is None:
        writer.write_batch(encode_chunk(message.chunk))
    else:
        writer.write_with_metadata(encode_chunk(message.chunk), pa.py_buffer(message.header))


def read_message(received: fl.FlightStreamChunk) -> Message:
    """The inverse of write_message."""
    header = None if received.app_metadata is None else received.app_metadata.to_pybytes()
    return Message(header, None if received.data is None else decode_chunk(received.data))
