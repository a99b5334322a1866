"""Commit stream of the embedded store: commits that are acknowledged together. Owner: the one who opened it, one thread at a time."""

from __future__ import annotations

from storage_engine.api import CommitRequest
from storage_engine.engine.core import Core, Written


class EmbeddedCommitStream:
    """Commits of this process, acknowledged together by one sync for every `in_flight_max` of them."""

    def __init__(self, core: Core, in_flight_max: int) -> None:
        self._core = core
        self._in_flight_max = in_flight_max
        self._n_in_flight = 0
        self._last: Written | None = None

    def send(self, request: CommitRequest) -> None:
        _, written = self._core.begin_commit(request)
        before, self._last = self._last, written
        if before is not None and before.log is not written.log:  # the store went back: those before may have been taken back
            self._n_in_flight = 0
            self._core.await_durable(before)
        self._n_in_flight += 1
        if self._n_in_flight >= self._in_flight_max:
            self.finish()

    def n_waiting(self) -> int:
        return 0

    def finish(self) -> None:
        self._n_in_flight = 0
        last, self._last = self._last, None
        if last is not None:
            self._core.await_durable(last)

    def close(self) -> None:
        """Nothing is held."""
