"""Commit stream: commits of one writer over one socket, several on their way while answers are awaited.

Owner: the one who opened it, one thread at a time; it holds a Writer of the pool until it is closed.
Holds: commits are done in the order of send(), each once. One that is sent behind another says so (WriteId.after): where that other one
       is not done, or was taken back, the server does neither, and all without an answer are sent again in their order.
       What a broken connection leaves unanswered is sent again over the next one, under its sequence; so is what a pressed server refuses,
       or one that our session is over for. A commit refused for what it says is given up; its error is raised by a later call.
       What the store could not do (WriteFailed, no server) stays: a later call raises the error, the one after it sends all of it again.
Never: has more on its way than `in_flight_max` commits, or than the sockets' buffers hold beside one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from storage_engine.api import CommitRequest, WriteId
from storage_engine.client.lane import LaneBroken, Writer
from storage_engine.client.socket_lane import AnswerTooLarge, SocketLane
from storage_engine.client.wire import Call, Reply, encode_commit
from storage_engine.client.wire import packed as wire
from storage_engine.errors import AuthenticationFailed, Backpressure, FlashlakeError, OutOfOrderSequence, StoreUnavailable, WriteFailed

_UNDONE: Final = (WriteFailed, StoreUnavailable, Backpressure, AuthenticationFailed)
"""Errors that say nothing of the commit itself: it stays, to be sent again."""


class _Sent(NamedTuple):
    """A commit on its way. `behind`: the sequence of the one before it that had no answer when this one was sent; None: none."""

    request: CommitRequest
    write: WriteId
    behind: int | None
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
        self._refused: FlashlakeError | None = None  # the first commit that was given up since the last call that raised
        self._undone: FlashlakeError | None = None  # why the commits in flight were not done: raised once, then they are sent again

    def send(self, request: CommitRequest) -> None:
        """Take a commit; one that raises has not. Errors: RequestTooLarge; those of earlier commits that failed."""
        self._raise_undone()
        self._resume()
        self._connections.wait_for_server()
        writer = self._held()
        write = request.write_id or writer.next_write_id()
        behind = next((sent.write.sequence for sent in reversed(self._in_flight) if sent.write.writer == write.writer), None)
        sent = _sent(request, write, behind)
        is_elsewhere = wire.n_bytes_of(sent.frame) > wire.FRAME_BYTES_MAX or self._lane_of(writer) is None
        while self._in_flight and (is_elsewhere or len(self._in_flight) >= self._in_flight_max):
            self._receive_one()
        self._raise_refused()
        self._in_flight.append(sent)
        try:
            if is_elsewhere:
                self._answer_elsewhere()
            else:
                self._post(sent)
        except _UNDONE as error:
            self._undone = error

    def n_waiting(self) -> int:
        """See CommitStream."""
        self._raise_undone()
        while self._in_flight and self._writer is not None and self._writer.socket is not None and self._writer.socket.has_reply():
            self._receive_one()
        return len(self._in_flight)

    def finish(self) -> None:
        """See CommitStream."""
        self._undone = None
        while self._in_flight:
            self._receive_one()
        self._raise_refused()

    def close(self) -> None:
        if self._writer is not None:
            if self._in_flight:
                self._writer.disconnect_socket()
            self._connections.give_back(self._writer)
            self._writer = None

    def _post(self, sent: _Sent) -> None:
        try:
            self._lane().post(sent.frame)
        except LaneBroken as error:
            self._send_again(error)

    def _receive_one(self) -> None:
        """Take the answer to the oldest commit. Errors: those after which it is still to be done."""
        self._resume()
        try:
            self._connections.answered(self._lane().take_reply(is_last=len(self._in_flight) == 1))
        except (LaneBroken, StoreUnavailable, Backpressure, AuthenticationFailed) as error:  # refused: nothing was done, nor behind it
            self._send_again(error)
            return
        except WriteFailed:
            self._held().disconnect_socket()  # with the answers to those behind it, which are not done either
            raise
        except AnswerTooLarge as error:
            raise AssertionError("the answer to a commit is small") from error
        except FlashlakeError as error:
            if isinstance(error, OutOfOrderSequence) and self._in_flight[0].behind is not None:
                self._send_again(None)  # the one before it was given up; this one is the first now
                return
            self._refused = self._refused or error
        self._in_flight.popleft()

    def _resume(self) -> None:
        """Send again what an earlier call left undone."""
        if self._in_flight and self._held().socket is None:
            self._send_again(None)

    def _send_again(self, error: Exception | None) -> None:
        """Everything that has no answer, over a new connection. `error`: what happened to the last one; None: it was given up."""
        while True:
            self._held().disconnect_socket()
            if error is not None:
                self._connections.reconnect(error)
            try:
                lane = self._connections.lane_of(self._held())
                if lane is None:
                    self._answer_elsewhere()
                    return
                self._in_flight = _linked(self._in_flight)
                for sent in self._in_flight:
                    lane.post(sent.frame)
            except (LaneBroken, StoreUnavailable, AuthenticationFailed) as again:
                error = again
            else:
                return

    def _answer_elsewhere(self) -> None:
        """All in flight one by one, each awaited, over Flight."""
        while self._in_flight:
            sent = self._in_flight[0]
            try:
                self._connections.answered(self._connections.call(self._held(), _call(sent.request, sent.write)))
            except _UNDONE:
                raise
            except FlashlakeError as error:
                self._refused = self._refused or error
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

    def _raise_undone(self) -> None:
        if self._undone is not None:
            error, self._undone = self._undone, None
            raise error

    def _raise_refused(self) -> None:
        if self._refused is not None:
            error, self._refused = self._refused, None
            raise error


def _sent(request: CommitRequest, write: WriteId, behind: int | None) -> _Sent:
    named = write if behind is None else replace(write, after=behind)
    return _Sent(request, write, behind, wire.call_frame_parts(_call(request, named)))


def _linked(in_flight: Iterable[_Sent]) -> deque[_Sent]:
    """Each behind the one before it of its writer, the first behind none."""
    newest: dict[str, int] = {}
    linked: deque[_Sent] = deque()
    for sent in in_flight:
        behind = newest.get(sent.write.writer)
        linked.append(sent if sent.behind == behind else _sent(sent.request, sent.write, behind))
        newest[sent.write.writer] = sent.write.sequence
    return linked


def _call(request: CommitRequest, write: WriteId) -> Call:
    return Call("commit", *encode_commit(replace(request, write_id=write)))
