"""Events: visits of users with sparse ids; event i is made from the seed and i alone.

A minute of event time lasts MINUTE_EVENTS events; a few visits are of an earlier minute. Some users come often, most seldom.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from flashlake.generate.randoms import high_above, high_unit, key_of, low_below, mixed

MINUTE_EVENTS = 50_000
MINUTES = 1_440
LATE, LATE_MINUTES_MAX = 0.03, 3
_SKEW = 1.6
_MINUTE_NAMES = pa.array([f"{minute // 60:02}" for minute in range(MINUTES)]), pa.array([f"{minute % 60:02}" for minute in range(MINUTES)])


class Events:
    """All events of a seed. `day` as yyyyMMdd; `n_users` may visit."""

    def __init__(self, seed: int, *, n_users: int, day: str) -> None:
        self.n_users, self.day = n_users, day
        self._keys = {name: key_of(seed, f"uv/{name}") for name in ("user", "late", "id")}

    def drawn(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """User number and minute of the day of events [start, stop). Shapes: both (stop - start,)."""
        index = np.arange(start, stop, dtype=np.uint64)
        users = (high_unit(mixed(self._keys["user"], index)) ** _SKEW * self.n_users).astype(np.int64)
        late_bits = mixed(self._keys["late"], index)
        late = np.where(high_above(late_bits, LATE), low_below(late_bits, LATE_MINUTES_MAX) + 1, 0)
        return users, np.maximum(index.astype(np.int64) // MINUTE_EVENTS - late, 0) % MINUTES

    def user_ids(self, users: np.ndarray) -> np.ndarray:
        """The sparse id of each user number: 52 bits. No two of 400,000 users share one (a test holds it)."""
        return (mixed(self._keys["id"], users.astype(np.uint64)) >> np.uint64(12)).astype(np.int64)

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows of log_exp_ri."""
        users, minutes = self.drawn(start, stop)
        places = pa.array(minutes)
        return pa.table(
            {
                "user_id": self.user_ids(users), "ds": pa.repeat(pa.scalar(self.day), len(users)),
                "hh": _MINUTE_NAMES[0].take(places), "mm": _MINUTE_NAMES[1].take(places),
            }
        )  # fmt: skip


class Seen:
    """The exact answer, by sets of numbers: which user was seen in which minute. Advances with the events."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._n = 0
        self._pairs = np.zeros(0, np.int64)

    def advance(self, n_events: int) -> None:
        """Count events up to n_events."""
        users, minutes = self._events.drawn(self._n, n_events)
        self._pairs = np.union1d(self._pairs, minutes * self._events.n_users + users)
        self._n = n_events

    def per_minute(self) -> pa.Table:
        """ds, hh, mm, users."""
        minutes, counts = np.unique(self._pairs // self._events.n_users, return_counts=True)
        places = pa.array(minutes)
        names = {"hh": _MINUTE_NAMES[0].take(places), "mm": _MINUTE_NAMES[1].take(places)}
        return pa.table({"ds": pa.repeat(pa.scalar(self._events.day), len(minutes)), **names, "users": pa.array(counts)})

    def of_day(self) -> pa.Table:
        """ds, users."""
        n_users = len(np.unique(self._pairs % self._events.n_users))
        return pa.table({"ds": [self._events.day], "users": [n_users]})
