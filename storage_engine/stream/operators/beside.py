"""Beside: several questions to the store at once, so that a micro-batch waits for the longest answer instead of for their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

N_BESIDE: Final = 3
"""Threads of one job beside its own, begun when they are first needed."""

T = TypeVar("T")


class Beside:
    """The threads of one job. Never: two calls that share a DuckDB connection."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def all(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """What each call returns, in their order; the last one runs in this thread.

        Errors: that of the first call that failed, when all have ended.
        """
        if len(calls) < 2:
            return [call() for call in calls]
        begun = [self.begin(call) for call in calls[:-1]]
        try:
            last = calls[-1]()
        finally:
            for future in begun:
                future.exception()  # waits
        return [*(future.result() for future in begun), last]

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Run a call in one of the threads."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(N_BESIDE, "stream-beside")
        return self._pool.submit(call)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
