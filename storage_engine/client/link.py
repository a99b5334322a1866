"""Link: what one client has of one server: the Flight channel, the lanes of its writers, who it is, and when it tries again.

Owner: the FlightBackend that is one (flight.py). A session belongs to the link; a lane's ticket is asked for again with each session.
Holds: a call is sent again when nothing was done (refused for want of room, by a server that stops, or without a session), and after a
       broken connection when it is repeatable, until `retry_s` is over. Never: logs in more than once per call and connection.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from storage_engine.api import FetchedFrame
from storage_engine.client.endpoint import Endpoint, endpoint_of
from storage_engine.client.lane import Lane, LaneBroken, Writer, WriterPool
from storage_engine.client.socket_lane import AnswerTooLarge, SocketLane
from storage_engine.client.throttle import Throttle
from storage_engine.client.wire import Call, Reply, decode_error, decode_frames, decode_reply, encode_call, frames_of_reply
from storage_engine.errors import AuthenticationFailed, Backpressure, MalformedMessage, StoreUnavailable
from storage_engine.schema.point import LONG_WAY, LongWay, PointLookup

ERROR_KEY = b"flashlake-error"
_CALL_TIMEOUT_S = 60.0
_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 0.5
# Rows from the wire lie where gRPC put them: Arrow's filters copy the odd misaligned buffer instead of warning about it on stderr.
os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "reallocate")
# A channel of its own per client: gRPC shares connections and their reconnect back-off between equal channels otherwise.
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Link:
    """Calls of one server; any number of threads may use it."""

    def __init__(self, url: str, *, retry_s: float = 30.0, **access: Any) -> None:
        """Nothing is sent yet. `retry_s` and `access`: see flight.py."""
        self._endpoint: Endpoint = endpoint_of(url, **access)
        self.url = self._endpoint.url
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._writers = WriterPool()
        self._throttle = Throttle()
        self._is_closed = False
        self._client = self._new_client()
        credentials = self._endpoint.credentials
        self._bearer = f"Bearer {credentials.token}" if credentials.token else ""
        self._lane_address: Mapping[str, Any] | None = None
        self._is_flight_only = False
        self._lane_calls: frozenset[str] = frozenset()

    def close(self) -> None:
        self._is_closed = True
        self._writers.close()
        self._client.close()

    # calls

    def _control(self, method: str, arguments: Mapping[str, Any] | None = None, *, is_repeatable: bool = True) -> Any:
        if method not in self._lane_calls:
            return self._retried(lambda: self._action(method, arguments or {}), is_repeatable=is_repeatable)
        with self._writers.borrow() as writer:
            call = Call(method, arguments or {})
            return self._retried(lambda: self._call(writer, call, is_small=True), is_repeatable=is_repeatable).result

    def _action(self, method: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
        (message,) = encode_call(Call(method, arguments or {}))
        try:
            results = list(self._client.do_action(fl.Action("call", message.header), self._options(timeout_s)))
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(_first_line(error)) from error
        return decode_reply(json.loads(results[0].body.to_pybytes()), None).result

    def _table_over_lane(self, call: Call) -> pa.Table:
        with self._writers.borrow() as writer:
            return self._retried(lambda: self._rows(writer, call), is_repeatable=True)

    def _row(self, writer: Writer, table: str, lookup: PointLookup, key: bytes) -> list[Any] | LongWay | None:
        lane = self._socket_of(writer)
        if lane is None:
            return LONG_WAY
        try:
            row = lane.row(table, lookup, key)
        except AnswerTooLarge:
            return LONG_WAY
        finally:
            if not lane.is_usable:
                writer.disconnect_socket()
        assert lookup.row_shape is not None, "lookup.stored_key() gave the key"
        return None if row is None else lookup.row_shape.decode(row)

    def _rows(self, writer: Writer, call: Call) -> pa.Table:
        lane = self._socket_of(writer)
        if lane is not None:
            try:
                return lane.rows(call.method, dict(call.arguments), call.tables[0])
            except AnswerTooLarge:
                pass
            finally:
                if not lane.is_usable:
                    writer.disconnect_socket()
        return self._call_lane(writer, call).tables[0]

    def _frames_over_socket(self, call: Call) -> list[FetchedFrame] | None:
        """The frames of a small fetch; None: Flight must carry it."""
        with self._writers.borrow() as writer:
            reply = self._retried(lambda: self._over_socket(writer, call), is_repeatable=True)
        return None if reply is None else frames_of_reply(reply)

    def _streamed(self, call: Call) -> Iterator[FetchedFrame]:
        """The frames of a scan, over the socket lane where the server streams there, else over Flight.

        Errors: AnswerTooLarge for one that is too large for the lane; those before it came.
        """
        if "fetch_stream" in self._lane_calls:
            with self._writers.borrow() as writer:
                lane = self._socket_of(writer)
                if lane is not None:
                    try:
                        with closing(lane.stream(replace(call, method="fetch_stream"))) as groups:
                            for group in groups:
                                yield from group
                        return
                    finally:
                        if not lane.is_usable:
                            writer.disconnect_socket()
        yield from self._stream_frames(call)

    def _over_socket(self, writer: Writer, call: Call) -> Reply | None:
        """The answer of the socket lane; None: there is no such lane, or the answer is too large for it."""
        lane = self._socket_of(writer)
        if lane is None:
            return None
        try:
            return lane.call(call)
        except AnswerTooLarge:
            return None
        finally:
            if not lane.is_usable:
                writer.disconnect_socket()

    def _call(self, writer: Writer, call: Call, *, is_small: bool) -> Reply:
        reply = self._over_socket(writer, call) if is_small else None
        return self._call_lane(writer, call) if reply is None else reply

    def _socket_of(self, writer: Writer) -> SocketLane | None:
        """The writer's socket lane, connected; None: the server has none that can be reached, and Flight carries everything."""
        if writer.socket is None and not self._is_flight_only:
            address = self._lane_address
            if address is not None:
                try:
                    writer.socket = self._new_socket(address)
                except LaneBroken:
                    self._lane_address = None  # the server may have started anew: ask it
            if writer.socket is None:
                self._lane_address = self._ask_lane()
                try:
                    writer.socket = self._new_socket(self._lane_address) if self._lane_address else None
                except LaneBroken:
                    logger.debug("the socket lane cannot be reached", exc_info=True)
                self._is_flight_only = writer.socket is None
        return writer.socket

    def _new_socket(self, address: Mapping[str, Any]) -> SocketLane:
        return SocketLane(self._endpoint.host, address, tls=self._endpoint.tls_context() if address.get("tls") else None)

    def _ask_lane(self) -> Mapping[str, Any] | None:
        try:
            return self._action("lane")
        except MalformedMessage:  # an older server
            return None

    def _call_lane(self, writer: Writer, call: Call) -> Reply:
        if writer.lane is None:
            writer.lane = Lane(self._client, self._options())
        try:
            return writer.lane.call(call)
        except AuthenticationFailed:
            writer.lane.is_usable = False  # it was opened by who we are no more
            raise
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        finally:
            if not writer.lane.is_usable:
                writer.disconnect()

    def _read_stream(self, call: Call) -> pa.Table:
        reader = self._open_stream(call)
        metadata = reader.schema.metadata or {}
        if ERROR_KEY in metadata:
            raise decode_error(json.loads(metadata[ERROR_KEY]))
        try:
            return reader.read_all()
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(_first_line(error)) from error

    def _stream_frames(self, call: Call) -> Iterator[FetchedFrame]:
        with closing(self._chunks(self._open_stream(call))) as chunks:
            for received in chunks:
                if received.data.num_rows == 0:
                    raise decode_error(json.loads(received.app_metadata.to_pybytes())["error"])
                yield from decode_frames(received.data, received.app_metadata)

    def _chunks(self, reader: fl.FlightStreamReader) -> Generator[fl.FlightStreamChunk, None, None]:
        """What a stream brings, to its end. Who leaves off earlier cancels it."""
        is_done = False
        try:
            while True:
                try:
                    received = reader.read_chunk()
                except StopIteration:
                    is_done = True
                    return
                except fl.FlightUnauthenticatedError as error:
                    raise self._not_let_in() from error
                except (pa.ArrowException, OSError) as error:
                    raise LaneBroken(_first_line(error)) from error
                yield received
        finally:
            if not is_done:
                reader.cancel()

    def _stream_batches(self, call: Call) -> pa.RecordBatchReader:
        """The rows of an answer, as they come. An error on the way is raised by the reader that is returned."""
        reader = self._retried(lambda: self._open_stream(call), is_repeatable=True)
        metadata = reader.schema.metadata or {}
        if ERROR_KEY in metadata:
            raise decode_error(json.loads(metadata[ERROR_KEY]))

        def batches() -> Iterator[pa.RecordBatch]:
            with closing(self._chunks(reader)) as chunks:
                for received in chunks:
                    if received.app_metadata is not None:
                        raise decode_error(json.loads(received.app_metadata.to_pybytes())["error"])
                    yield received.data

        return pa.RecordBatchReader.from_batches(reader.schema, batches())

    def _open_stream(self, call: Call) -> fl.FlightStreamReader:
        (message,) = encode_call(call)
        try:
            return self._client.do_get(fl.Ticket(message.header), self._options())
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(_first_line(error)) from error

    # connections

    def _retried(self, attempt: Callable[[], T], *, is_repeatable: bool, retry_s: float | None = None) -> T:
        retry = Retry(self._retry_s if retry_s is None else retry_s)
        while True:
            try:
                return attempt()
            except (StoreUnavailable, Backpressure, AuthenticationFailed) as error:  # nothing was done
                self._go_on_after(error, retry)
            except LaneBroken as error:
                if not is_repeatable:
                    raise self._unavailable(f"the connection broke and the call may have been done: {error}") from error
                self._reconnect_after(error, retry)

    def _go_on_after(self, error: Exception, retry: Retry) -> None:
        """Do what lets a call be repeated that the server refused, or that broke. Errors: the one given; StoreUnavailable."""
        if isinstance(error, AuthenticationFailed):  # no session yet, or one that is over
            self._log_in_again(error, retry)
        elif isinstance(error, Backpressure):
            if self._is_closed or not retry.wait(error.retry_after_ms / 1000):
                raise error
        else:  # broken, or refused by a server that is stopping
            self._reconnect_after(error, retry)

    def _reconnect_after(self, error: Exception, retry: Retry) -> None:
        if self._is_closed:
            raise StoreUnavailable("this store is closed", where=self.url, next_step="Connect again.") from error
        if not retry.wait():
            raise self._unavailable(f"no answer: {error}") from error
        self._is_flight_only = False
        retry.has_logged_in = False  # it may be a server that knows no sessions yet
        with self._lock:
            self._client = self._new_client()

    def _unavailable(self, what: str) -> StoreUnavailable:
        next_step = "Is the server running? flashlake status says; flashlake up store starts it."
        return StoreUnavailable(what, where=self.url, next_step=next_step)

    def _new_client(self) -> fl.FlightClient:
        return fl.FlightClient(self._endpoint.location, generic_options=_CHANNEL, **self._endpoint.flight_options())  # type: ignore[arg-type]

    # who we are
    def _options(self, timeout_s: float | None = None) -> fl.FlightCallOptions:
        headers = [(b"authorization", self._bearer.encode())] if self._bearer else []
        return fl.FlightCallOptions(timeout=timeout_s, headers=headers)

    def _log_in_again(self, error: AuthenticationFailed, retry: Retry) -> None:
        """Open a session with the password, once per call. Errors: AuthenticationFailed; StoreUnavailable."""
        credentials = self._endpoint.credentials
        if self._is_closed or retry.has_logged_in or not credentials.password:
            raise error
        while True:
            try:
                options = fl.FlightCallOptions(timeout=_CALL_TIMEOUT_S)
                _, value = self._client.authenticate_basic_token(credentials.user, credentials.password, options)
                self._bearer = value.decode()
                retry.has_logged_in = True
                self._lane_address = None  # its ticket is of the session before
                return
            except fl.FlightUnauthenticatedError as refusal:
                raise self._not_let_in() from refusal
            except (pa.ArrowException, OSError) as broken:
                self._reconnect_after(LaneBroken(_first_line(broken)), retry)

    def _not_let_in(self) -> AuthenticationFailed:
        credentials = self._endpoint.credentials
        if not credentials.token and not credentials.user:
            return AuthenticationFailed(
                "the server asks for a user", where=self.url, next_step="Connect with user= and password=, or token= (docs/server.md)."
            )
        next_step = "Check user and password, or whether the token is expired or revoked."
        return AuthenticationFailed("the credentials are not accepted", where=self.url, next_step=next_step)


class Retry:
    """Waits longer from time to time, until a deadline."""

    def __init__(self, retry_s: float) -> None:
        self._deadline = time.monotonic() + retry_s
        self._pause_s = _RETRY_FIRST_S
        self.has_logged_in = False

    def wait(self, at_least_s: float = 0.0) -> bool:
        """Pause before another attempt; False when the time is over."""
        pause_s = max(self._pause_s, at_least_s)
        if time.monotonic() + pause_s > self._deadline:
            return False
        time.sleep(pause_s)
        self._pause_s = min(self._pause_s * 2, _RETRY_MAX_S)
        return True


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". gRPC client debug context")[0]
