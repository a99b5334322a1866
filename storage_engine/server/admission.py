"""Admission: how much a server takes at once. Bytes of requests are counted before they are read; pressure slows writers before a refusal.

Pressure p in [0, 1) travels on the answers of commits; a client waits THROTTLE_S x p^2 before its next one (Apache Fluss's idea).
p is the largest of: bytes in flight, from half of the budget to all of it; the time the running fsync takes, from 1 s to 10 s;
what `debts` say (background work that is behind), each a number in [0, 1).
Holds: a request that finds no room waits WAIT_S for it, unread, so that TCP slows its sender; then it is refused with Backpressure.
       One request always fits, however large up to request_bytes_max: nothing waits for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from storage_engine.errors import Backpressure, RequestTooLarge

WAIT_S: Final = 2.0
RETRY_AFTER_MS: Final = 250
PRESSURE_MAX: Final = 0.999
_FSYNC_S: Final = (1.0, 10.0)


@dataclass(frozen=True)
class Limits:
    """What a server holds at most, and for how long.

    bytes_in_flight_max  of requests being read or answered, together
    request_bytes_max    of one request
    connections_max      per lane
    idle_s               a connection without a byte either way is closed
    stall_s              a connection that does not take what it is sent is closed
    greeting_s           a connection must have said who it is, TLS included
    """

    bytes_in_flight_max: int = 1 << 30
    request_bytes_max: int = 512 << 20
    connections_max: int = 1024
    idle_s: float = 900.0
    stall_s: float = 300.0
    greeting_s: float = 5.0


class Admission:
    """Counts bytes in flight."""

    def __init__(self, limits: Limits, *, fsync_s: Callable[[], float] = lambda: 0.0) -> None:
        self.limits = limits
        self.debts: list[Callable[[], float]] = []
        self.n_refused = 0
        self._fsync_s = fsync_s
        self._freed = threading.Condition()
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def acquire(self, n_bytes: int) -> None:
        """Take room for a request; the caller gives it back with release(). Errors: RequestTooLarge; Backpressure."""
        limits = self.limits
        if n_bytes > limits.request_bytes_max:
            raise RequestTooLarge(
                f"{n_bytes} bytes are more than this server takes in one request ({limits.request_bytes_max})",
                where="server",
                next_step="Send fewer rows at once.",
            )
        with self._freed:
            if not self._freed.wait_for(lambda: self._n_bytes == 0 or self._n_bytes + n_bytes <= limits.bytes_in_flight_max, WAIT_S):
                self.n_refused += 1
                raise Backpressure(
                    f"{self._n_bytes} bytes of requests are in flight, {limits.bytes_in_flight_max} may be",
                    where="server",
                    next_step=f"Nothing was done; try again after {RETRY_AFTER_MS} ms.",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            self._n_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        with self._freed:
            self._n_bytes -= n_bytes
            self._freed.notify_all()

    def pressure(self) -> float:
        """What an answer tells its client: 0 where nothing is to be slowed."""
        budget = self.limits.bytes_in_flight_max
        return max(ramp(self._n_bytes, budget / 2, budget), ramp(self._fsync_s(), *_FSYNC_S), *(debt() for debt in self.debts), 0.0)


def ramp(value: float, start: float, stop: float) -> float:
    """0 up to `start`, rising to just below 1 at `stop`.

    >>> ramp(1, 2, 4), ramp(3, 2, 4), ramp(9, 2, 4)
    (0.0, 0.5, 0.999)
    """
    return min(max((value - start) / (stop - start), 0.0), PRESSURE_MAX)
