"""Throttle: how a client slows down when a server says that it is pressed. It keeps one moment; no thread, no queue.

A pressure p in [0, 1) on the answer of a commit delays the next one by THROTTLE_S x p^2, counted from that answer: a writer that
works longer than that in between is not slowed at all. Apache Fluss's idea, with its default of 3 s.
"""

from __future__ import annotations

import time
from typing import Final

THROTTLE_S: Final = 3.0


class Throttle:
    """Shared by all commits of one client; a race between two of them costs nothing but a shorter wait."""

    def __init__(self) -> None:
        self._until_s = 0.0

    def note(self, pressure: float) -> None:
        self._until_s = time.monotonic() + delay_s(pressure) if pressure > 0 else 0.0

    def wait(self) -> None:
        left_s = self._until_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)


def delay_s(pressure: float) -> float:
    """How long a pressure delays the next commit.

    >>> delay_s(0.5)
    0.75
    """
    return THROTTLE_S * min(max(pressure, 0.0), 1.0) ** 2
