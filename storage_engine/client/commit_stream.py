"""Commit stream: commits of one writer over one socket, several on their way while answers are awaited.

Owner: the one who opened it, one thread at a time; it holds a Writer of the pool until it is closed.
Holds: commits are done in the order of send(). What a broken connection leaves unanswered is sent again over the next one, in order, under
       its sequence: the server does each once. A refused commit does not stop those behind it; its error is raised by the next call.
       What a pressed server refuses, or one that our session is over for, is sent again as well: it does nothing behind it and hangs up.
Never: has more on its way than `in_flight_max` commits, or than the sockets' buffers hold beside one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from storage_engine.api import CommitRequest
from storage_engine.client.lane import LaneBroken, Writer
from storage_engine.client.socket_lane import AnswerTooLarge, SocketLane
from storage_engine.client.wire import Call, Reply, encode_commit
from storage_engine.client.wire import packed as wire
from storage_engine.errors import AuthenticationFailed, Backpressure, FlashlakeError, StoreUnavailable


class _Sent(NamedTuple):
    call: Call
    frame: list[object]


class Connections(NamedTuple):
    """What a stream needs of its backend."""

    lane_of: Callable[[Writer], SocketLane | None]
    call: Callable[[Writer, Call], Reply]  # over any lane, repeated until it is answered
    reconnect: Callable[[Exception], None]  # pauses, or logs in; raises StoreUnavailable, or the error, when that is of no use
    answered: Callable[[Reply], None]
    wait_for_server: Callable[[], None]  # when it says that it is pressed
    give_back: Callable[[Writer], None]


class SocketCommitStream:
    """See the module."""

    def __init__(self, connections: Connections, writer: Writer, in_flight_max: int) -> None:
        self._connections = connections
        self._writer: Writer | None = writer
        self._in_flight_max = in_flight_max
        self._in_flight: deque[_Sent] = deque()
        self._error: FlashlakeError | None = None

    def send(self, request: CommitRequest) -> None:
        """Errors: RequestTooLarge; those of an earlier commit that failed."""
        self._raise_earlier()
        self._connections.wait_for_server()
        writer = self._held()
        if request.write_id is None:
            request = replace(request, write_id=writer.next_write_id())
        call = Call("commit", *encode_commit(request))
        frame = wire.call_frame_parts(call)
        if wire.n_bytes_of(frame) > wire.FRAME_BYTES_MAX or self._lane_of(writer) is None:
            self.finish()
            self._connections.answered(self._connections.call(writer, call))
            return
        while len(self._in_flight) >= self._in_flight_max:
            self._receive_one()
        self._in_flight.append(_Sent(call, frame))
        try:
            self._lane().post(frame)
        except LaneBroken as error:
            self._send_again(error)
        self._raise_earlier()

    def n_waiting(self) -> int:
        while self._in_flight and self._writer is not None and self._writer.socket is not None and self._writer.socket.has_reply():
            self._receive_one()
        return len(self._in_flight)

    def finish(self) -> None:
        while self._in_flight:
            self._receive_one()
        self._raise_earlier()

    def close(self) -> None:
        if self._writer is not None:
            if self._in_flight:
                self._writer.disconnect_socket()
            self._connections.give_back(self._writer)
            self._writer = None

    def _receive_one(self) -> None:
        """Take the answer to the oldest commit."""
        try:
            self._connections.answered(self._lane().take_reply(is_last=len(self._in_flight) == 1))
        except (LaneBroken, StoreUnavailable, Backpressure, AuthenticationFailed) as error:  # refused: nothing was done, nor behind it
            self._send_again(error)
            return
        except AnswerTooLarge as error:
            raise AssertionError("the answer to a commit is small") from error
        except FlashlakeError as error:
            self._error = self._error or error
        self._in_flight.popleft()

    def _send_again(self, error: Exception) -> None:
        """Everything that has no answer, over a new connection."""
        while True:
            self._held().disconnect_socket()
            self._connections.reconnect(error)
            try:
                lane = self._connections.lane_of(self._held())
                if lane is None:
                    self._answer_elsewhere()
                    return
                for sent in self._in_flight:
                    lane.post(sent.frame)
            except (LaneBroken, AuthenticationFailed) as again:
                error = again
            else:
                return

    def _answer_elsewhere(self) -> None:
        while self._in_flight:
            try:
                self._connections.call(self._held(), self._in_flight[0].call)
            except StoreUnavailable:
                raise
            except FlashlakeError as error:
                self._error = self._error or error
            self._in_flight.popleft()

    def _lane_of(self, writer: Writer) -> SocketLane | None:
        while True:
            try:
                return self._connections.lane_of(writer)
            except (LaneBroken, AuthenticationFailed) as error:
                self._connections.reconnect(error)

    def _lane(self) -> SocketLane:
        lane = self._held().socket
        if lane is None:
            raise LaneBroken("the connection was given up")
        return lane

    def _held(self) -> Writer:
        if self._writer is None:
            raise StoreUnavailable("this stream is closed", where="commit stream", next_step="Open another one.")
        return self._writer

    def _raise_earlier(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
