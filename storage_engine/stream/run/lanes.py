"""Lanes: threads that run a worker's micro-batches, and one beside them that waits on the journal. What they report comes to one queue.

Owner: the worker, whose thread alone decides what runs and takes the reports; nothing here knows a job.
Holds: an error of a call is part of its report, never lost in a thread.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

JOURNAL: Final = ""
"""The name under which the wait on the journal reports; no job is called so."""

Report = tuple[str, Any]
"""Name, and what the call returned or the exception it raised."""


class Lanes:
    """`n_lanes` calls run at a time, others wait for a free lane in the order they came; the journal has a thread of its own."""

    def __init__(self, n_lanes: int) -> None:
        self._pool = ThreadPoolExecutor(n_lanes, "stream-lane")
        self._journal = ThreadPoolExecutor(1, "stream-journal")
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()

    def run(self, name: str, call: Callable[[], Any]) -> None:
        """Begin a call; its end is reported under `name`."""
        future = (self._journal if name == JOURNAL else self._pool).submit(call)
        future.add_done_callback(lambda done: self._reports.put((name, _outcome(done))))

    def report(self, timeout_s: float) -> Report | None:
        """The next call that has ended: at once when there is one, else within `timeout_s`, or None."""
        try:
            return self._reports.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Wait for what runs; what has not begun is given up."""
        self._pool.shutdown(cancel_futures=True)
        self._journal.shutdown(cancel_futures=True)


def _outcome(done: Future[Any]) -> Any:
    return None if done.cancelled() else (done.exception() or done.result())
