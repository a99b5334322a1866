"""Events: visits and orders of one history, in order of arrival; event i is made from the seed and i alone.

Four of five events are visits, every fifth an order. A user's visits come in rounds: each updates the page views of the user's row of the
day. Orders come before and after the visits of their user; some are corrected, some deleted, some name a user of another day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashlake.generate.randoms import high_above, key_of, low_below, mixed

ORDER_EVERY = 5
CORRECTED, DELETED = 0.08, 0.04
"""Shares of order events that correct, or delete, an earlier order."""
VISIT_DELETED = 0.004
OTHER_DAY = 0.03
"""Share of orders on the other day than their user's visits: they find no visit."""
YESTERDAY = 0.05
"""Share of users whose visits are of the day before: late from the first to the last."""
AHEAD = 0.2
"""Share of orders that arrive before their user's first visit."""


@dataclass(frozen=True)
class Batch:
    """Events [start, stop) as writes. Any of them may have no rows."""

    visits: pa.Table
    gone_visits: pa.Table
    orders: pa.Table
    gone_orders: pa.Table


class History:
    """All events of a seed.

    n_users   users who visit, each once a round
    distance  order events between an order and its correction; twice as many to its deletion. A batch has at most so many
    days      the two days of the history, yyyyMMdd, the day before first
    start_ms  event time of event 0, milliseconds since 1970; rate: events per second of event time
    """

    def __init__(self, seed: int, *, n_users: int, distance: int, days: tuple[str, str], start_ms: int, rate: float) -> None:
        assert n_users >= distance * ORDER_EVERY, "no user visits twice in one batch"
        self.n_users, self.distance, self.days = n_users, distance, days
        self._start_ms, self._ms = start_ms, 1000.0 / rate
        self._keys = {name: key_of(seed, f"conversion/{name}") for name in ("user", "order", "who", "amount", "visit", "day")}
        self._factor = next(n for n in range(int(n_users * 0.618) | 1, 2 * n_users + 1) if np.gcd(n, n_users) == 1)
        self._shift = int(low_below(mixed(self._keys["user"], np.array([0], np.uint64)), n_users)[0])

    def batch(self, start: int, stop: int) -> Batch:
        """Events [start, stop). Errors: ValueError for a batch in which an order and its correction could meet."""
        if stop - start > self.distance * ORDER_EVERY:
            raise ValueError(f"a batch of {stop - start} events; at most {self.distance * ORDER_EVERY}")
        numbers = np.arange(start, stop)
        is_order = numbers % ORDER_EVERY == ORDER_EVERY - 1
        return self._batch(numbers[~is_order], numbers[is_order])

    def visit_event(self, users: np.ndarray, page_views: np.ndarray) -> np.ndarray:
        """The number of the event that is the n-th visit of each user."""
        back = pow(self._factor, -1, self.n_users)
        slots = (users - self._shift) % self.n_users * back % self.n_users + (page_views - 1) * self.n_users
        return slots + slots // (ORDER_EVERY - 1)

    def order_event(self, orders: np.ndarray) -> np.ndarray:
        """The number of the event that places each order."""
        return orders * ORDER_EVERY + ORDER_EVERY - 1

    def _batch(self, visit_events: np.ndarray, order_events: np.ndarray) -> Batch:
        slots = visit_events - visit_events // ORDER_EVERY
        is_gone = high_above(mixed(self._keys["visit"], slots.astype(np.uint64)), VISIT_DELETED) & (slots >= self.n_users)
        orders = order_events // ORDER_EVERY
        kinds, targets = self._order_kinds(orders)
        kept = kinds != 2
        return Batch(
            self._visits(slots[~is_gone]), self._visits(slots[is_gone]).select(["user_id", "ds"]),
            self._orders(targets[kept], kinds[kept], order_events[kept]),
            self._orders(targets[~kept], kinds[~kept], order_events[~kept]).select(["user_id", "ds", "order_id"]),
        )  # fmt: skip

    def _order_kinds(self, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """0 a new order, 1 a correction, 2 a deletion; and the order it is about. An order event that would be about none is new."""
        kinds = self._drawn_kinds(orders)
        targets = orders - kinds * self.distance
        is_about = (kinds > 0) & (targets >= 0)
        is_about &= self._drawn_kinds(np.maximum(targets, 0)) == 0
        return np.where(is_about, kinds, 0), np.where(is_about, targets, orders)

    def _drawn_kinds(self, orders: np.ndarray) -> np.ndarray:
        bits = mixed(self._keys["order"], orders.astype(np.uint64))
        return np.where(high_above(bits, DELETED), 2, np.where(high_above(bits, CORRECTED + DELETED), 1, 0))

    def _users(self, slots: np.ndarray) -> np.ndarray:
        """The user of each visit: a permutation of all users, round after round."""
        return (slots % self.n_users * self._factor + self._shift) % self.n_users

    def _is_yesterday(self, users: np.ndarray) -> np.ndarray:
        return high_above(mixed(self._keys["day"], users.astype(np.uint64)), YESTERDAY)

    def _visits(self, slots: np.ndarray) -> pa.Table:
        users, first = self._users(slots), slots % self.n_users
        return pa.table(
            {
                "user_id": _named("u", users),
                "first_page_time": self._times(first * ORDER_EVERY // (ORDER_EVERY - 1)),
                "pv": pa.array(slots // self.n_users + 1),
                "ds": self._days(self._is_yesterday(users)),
            }
        )

    def _orders(self, orders: np.ndarray, kinds: np.ndarray, events: np.ndarray) -> pa.Table:
        """Rows of orders as `events` say them: user and day follow from the order alone, a correction changes amount and time."""
        bits = mixed(self._keys["who"], orders.astype(np.uint64))
        slots = orders * (ORDER_EVERY - 1)
        reach = min(self.n_users // 2, 200_000)
        back = low_below(bits, reach)
        slots = np.where(high_above(bits, AHEAD), slots + back % max(reach // 4, 1), np.maximum(slots - back, 0))
        users = self._users(slots)
        other_day = high_above(bits << np.uint64(16), OTHER_DAY)
        amounts = low_below(mixed(self._keys["amount"], events.astype(np.uint64)), 20_000) + 100
        earlier = np.where(kinds == 1, low_below(bits << np.uint64(8), 120_000), 0)  # a correction may move an order before the visit
        return pa.table(
            {
                "order_id": _named("o", orders),
                "user_id": _named("u", users),
                "order_time": self._times(orders * ORDER_EVERY + ORDER_EVERY - 1, earlier),
                "pay_amt": _decimal(amounts),
                "ds": self._days(self._is_yesterday(users) ^ other_day),
            }
        )

    def _times(self, events: np.ndarray, earlier_ms: np.ndarray | int = 0) -> pa.Array:
        """yyyy-MM-dd HH:mm:ss.SSS of each event."""
        return pa.array(self._start_ms + (events * self._ms).astype(np.int64) - earlier_ms).cast(pa.timestamp("ms")).cast(pa.string())

    def _days(self, is_yesterday: np.ndarray) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array((~is_yesterday).astype(np.int8)), pa.array(self.days)).cast(pa.string())


def _named(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _decimal(cents: np.ndarray) -> pa.Array:
    """Cents as text with two decimals, for example 12.05."""
    whole, part = pa.array(cents // 100).cast(pa.string()), pc.utf8_lpad(pa.array(cents % 100).cast(pa.string()), 2, "0")
    return pc.binary_join_element_wise(whole, part, ".")
