"""Commit stream of the embedded store: commits that are acknowledged together. Owner: the one who opened it, one thread at a time.

Holds: a commit is written behind those before it: where the store went back, what it took back is written again first, in order.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from storage_engine.api import CommitRequest
from storage_engine.engine.core import Core, Written
from storage_engine.errors import UserError, WriteFailed


class _Sent(NamedTuple):
    request: CommitRequest
    written: Written


class EmbeddedCommitStream:
    """Commits of this process, acknowledged together by one sync for every `in_flight_max` of them. See CommitStream."""

    def __init__(self, core: Core, in_flight_max: int) -> None:
        self._core = core
        self._in_flight_max = in_flight_max
        self._in_flight: deque[_Sent] = deque()  # perhaps not durable

    def send(self, request: CommitRequest) -> None:
        """Take a commit; one that raises has not. Errors: of this commit, as of commit(); of earlier ones."""
        if len(self._in_flight) >= self._in_flight_max:
            self.finish()
        with self._core.writing():  # the store does not go back in between
            self._write_again()
            self._in_flight.append(_Sent(request, self._core.begin_commit(request)[1]))

    def n_waiting(self) -> int:
        return 0

    def finish(self) -> None:
        """See CommitStream."""
        if self._in_flight and self._in_flight[-1].written.log is not self._core.log:
            with self._core.writing():
                self._write_again()
        if self._in_flight:
            self._core.await_durable(self._in_flight[-1].written)
            self._in_flight.clear()

    def close(self) -> None:
        """What is not durable is given up."""
        self._in_flight.clear()

    def _write_again(self) -> None:
        """What a store that went back has taken back. The caller is writing(). Errors: of the first one that is refused."""
        lost = deque(sent for sent in self._in_flight if self._is_taken_back(sent.written))
        for _ in lost:
            self._in_flight.pop()
        try:
            while lost:
                try:
                    written = self._core.begin_commit(lost[0].request)[1]
                except UserError:  # the table has changed since: it is given up
                    lost.popleft()
                    raise
                except WriteFailed as error:  # what was taken back is on the disk until the cut succeeds
                    error.is_absent = error.is_absent and not self._core.log.has_failed
                    raise
                self._in_flight.append(_Sent(lost.popleft().request, written))
        finally:
            self._in_flight.extend(lost)

    def _is_taken_back(self, written: Written) -> bool:
        return written.log is not self._core.log and written.log.durable < written.end
