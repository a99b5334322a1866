"""Pacing: sends made events at a given rate, in real time, and knows when each was due.

Event i is due at start + i / rate. A latency is counted from there, so that a sender or store that falls behind is seen in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TICK_S = 0.02
"""Seconds between two writes: what an application's own batching would add."""
WARM_UP_S = 5.0
"""Seconds of events that are sent and compared, but not part of the latency."""


@dataclass(frozen=True)
class Pace:
    """When events were due. Units: rate in events per second, started_ns in nanoseconds since 1970; n_sent is a count."""

    rate: float
    started_ns: int
    first: int
    n_sent: int
    seconds: float
    cpu_seconds: float

    def due_ms(self, numbers: np.ndarray) -> np.ndarray:
        """Milliseconds since 1970 at which events were due, by number. Shapes: (n,) -> (n,)."""
        return self.started_ns / 1e6 + numbers * (1000.0 / self.rate)

    def warm(self, numbers: np.ndarray, arrived_ms: np.ndarray) -> np.ndarray:
        """Milliseconds from due to arrival of the events after the first seconds, in which processes still load. Shapes: (n,) -> (m,)."""
        due = self.due_ms(numbers)
        return (arrived_ms - due)[numbers - self.first >= min(WARM_UP_S * self.rate, self.n_sent / 2)]

    @property
    def achieved(self) -> float:
        """Events per second over the whole sending."""
        return self.n_sent / self.seconds if self.seconds else 0.0


def send(
    write: Callable[[int, int], None],
    *,
    rate: float,
    n_events: int,
    first: int = 0,
    on_sent: Callable[[int], None] = lambda _: None,
    at: Callable[[int], None] = lambda _: None,
) -> Pace:
    """Call write(start, stop) for events [first, first + n_events) when they are due, every TICK_S, in order.

    at  called with the number of events sent before each write: for what happens in the middle of a run
    A write that takes longer than a tick makes the next one larger, up to a second of events.
    """
    started_ns = time.time_ns()
    began, cpu = time.monotonic(), time.thread_time()
    sent = 0
    while sent < n_events:
        at(sent)
        due = min(int((time.monotonic() - began) * rate), sent + int(rate), n_events)
        if due <= sent:
            time.sleep(TICK_S)
            continue
        write(first + sent, first + due)
        on_sent(due - sent)
        sent = due
        pause = began + (sent / rate) + TICK_S - time.monotonic()
        if pause > 0 and sent < n_events:
            time.sleep(min(pause, TICK_S))
    origin_ns = started_ns - int(first / rate * 1e9)
    return Pace(rate, origin_ns, first, n_events, time.monotonic() - began, time.thread_time() - cpu)
