"""Events: six logs of shop events; event i belongs to log i % 6 and is made from the seed and i alone.

An hour of event time lasts HOUR_EVENTS events; a few events are late by up to three hours. Few shops have most of the events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flashlake.generate.randoms import high_above, high_unit, key_of, low_below, mixed

LOGS = {"exposure_log": "exp_cnt", "page_log": "page_cnt", "click_log": "click_cnt", "cart_log": "cart_cnt", "order_log": "order_cnt",
        "payment_log": "pay_amt"}  # fmt: skip
"""Each log and its value column. Values are 1, but for the amount."""
HOUR_EVENTS = 30_000
N_HOURS = 24
LATE, LATE_HOURS_MAX = 0.03, 3
AMOUNT_MAX = 20_000
"""Cents."""


@dataclass(frozen=True)
class Drawn:
    """Events as numbers. Shapes: all (n,). keys = shop * N_HOURS + hour."""

    numbers: np.ndarray
    keys: np.ndarray
    values: np.ndarray


class Events:
    """All events of a seed. `day` as yyyyMMdd."""

    def __init__(self, seed: int, *, n_shops: int, day: str) -> None:
        self.n_shops, self.day = n_shops, day
        self._keys = {name: key_of(seed, f"wide/{name}") for name in ("shop", "late", "amount")}

    def drawn(self, log: str, start: int, stop: int) -> Drawn:
        """The events of one log among [start, stop)."""
        place = list(LOGS).index(log)
        numbers = np.arange(start + (place - start) % len(LOGS), stop, len(LOGS))
        index = numbers.astype(np.uint64)
        shops = (high_unit(mixed(self._keys["shop"], index)) ** 3 * self.n_shops).astype(np.int64)
        late_bits = mixed(self._keys["late"], index)
        late = np.where(high_above(late_bits, LATE), low_below(late_bits, LATE_HOURS_MAX) + 1, 0)
        hours = np.maximum(numbers // HOUR_EVENTS - late, 0) % N_HOURS
        is_amount = log == "payment_log"
        values = low_below(mixed(self._keys["amount"], index), AMOUNT_MAX) + 1 if is_amount else np.ones(len(numbers), np.int64)
        return Drawn(numbers, shops * N_HOURS + hours, values)

    def rows(self, log: str, start: int, stop: int) -> pa.Table:
        """The same as rows of the log."""
        drawn = self.drawn(log, start, stop)
        hours = pa.DictionaryArray.from_arrays(pa.array((drawn.keys % N_HOURS).astype(np.int8)), HOURS).cast(pa.string())
        days = pa.repeat(pa.scalar(self.day), len(drawn.keys))
        return pa.table({"shop_id": drawn.keys // N_HOURS, "stat_date": days, "stat_hour": hours, LOGS[log]: drawn.values})


HOURS = pa.array([f"{hour:02}" for hour in range(N_HOURS)])
