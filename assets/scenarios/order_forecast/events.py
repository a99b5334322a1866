"""Events: the orders of one day in order of time, at four sources, with their amounts; and baselines of past days. All from the seed.

Order i of n comes at the minute by which the day's curve has reached i / n. A baseline is the curve of a day, told as shares per minute.
Amounts are drawn around a mean that depends on source, hour and day, so that neither the number of orders nor a past day says a day's GMV.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.order_forecast.model import MINUTES, feature_of
from flashlake.generate.randoms import high_unit, key_of, mixed

SOURCES = ["app", "mini_program", "web", "partner"]
WEIGHTS = np.array([0.5, 0.3, 0.12, 0.08])
TODAY, LAST_WEEK, YESTERDAY = (0.0, 0.02), (0.35, 0.02), (0.05, 0.02)
"""How days differ from the usual: by how much their evening is stronger, and the noise of each minute."""
SIZES = {"last week": 0.88, "yesterday": 1.12}
"""Orders of a past day, as a multiple of today's."""
BASKETS = np.array([24.0, 31.0, 52.0, 95.0])
"""What is paid for an order in the mean, by source."""
BY_HOUR, BY_DAY, SPREAD = (0.8, 0.75, 0.9, 1.15, 1.0, 1.35), 0.12, 0.5
"""Of that: as a multiple, every four hours; by how much each hour of each day differs; the standard deviation of an order's logarithm."""
MINUTE_NAMES = pa.array([f"{minute // 60:02}{minute % 60:02}" for minute in range(MINUTES)])


def curve(source: int, evening: float, noise: float, bits: np.ndarray) -> np.ndarray:
    """Orders per minute as shares of the day. Shapes: bits (1440,) -> (1440,). Lunch and dinner peak, later for later sources."""
    minute = np.arange(MINUTES)
    lunch = np.exp(-(((minute - 730 - 10 * source) / 60) ** 2))
    dinner = (1.1 + evening) * np.exp(-(((minute - 1_110 + 15 * source) / 80) ** 2))
    density = (0.12 + lunch + dinner) * (1 + noise * (2 * high_unit(bits) - 1))
    return density / density.sum()


class Events:
    """The orders of today, `n_events` in all. `day` as yyyyMMdd."""

    def __init__(self, seed: int, *, n_events: int, day: str) -> None:
        self.n_events, self.day = n_events, day
        self._seed = seed
        today = np.array([self.day_curve(source, "today", *TODAY) for source in range(len(SOURCES))])
        joint = today * WEIGHTS[:, None]
        reached = np.cumsum(joint.sum(axis=0))
        numbers = np.arange(n_events)
        self.minutes = np.minimum(np.searchsorted(reached, (numbers + 0.5) / n_events), MINUTES - 1)
        within = np.cumsum(joint / joint.sum(axis=0), axis=0)[:, self.minutes]
        unit = high_unit(mixed(key_of(seed, "forecast/source"), numbers.astype(np.uint64)))
        self.sources = np.minimum((unit >= within).sum(axis=0), len(SOURCES) - 1)
        self.cents = self._drawn_cents(numbers)
        self.counts, self.gmv_cents = np.zeros(n_events, np.int64), np.zeros(n_events, np.int64)
        for source in range(len(SOURCES)):
            mine = self.sources == source
            self.counts[mine] = np.arange(1, mine.sum() + 1)
            self.gmv_cents[mine] = np.cumsum(self.cents[mine])

    def _drawn_cents(self, numbers: np.ndarray) -> np.ndarray:
        """What is paid for each order. Lognormal (Box and Muller, 1958). Shapes: (n,) -> (n,)."""
        means = np.array([self.baskets(source, "today") for source in range(len(SOURCES))])[self.sources, self.minutes]
        radius, angle = (high_unit(mixed(key_of(self._seed, f"forecast/{name}"), numbers.astype(np.uint64))) for name in ("r", "angle"))
        normal = np.sqrt(-2 * np.log(1 - radius)) * np.cos(2 * np.pi * angle)
        return np.maximum(np.rint(100 * means * np.exp(SPREAD * normal - SPREAD**2 / 2)), 1).astype(np.int64)

    def baskets(self, source: int, name: str) -> np.ndarray:
        """The mean paid per order at each minute of the day called `name`. Shapes: -> (1440,)."""
        bits = mixed(key_of(self._seed, f"forecast/{name}/basket/{source}"), np.arange(24, dtype=np.uint64))
        by_hour = BASKETS[source] * np.repeat(BY_HOUR, 4) * (1 + BY_DAY * (2 * high_unit(bits) - 1))
        return np.repeat(by_hour, 60)

    def day_curve(self, source: int, name: str, evening: float, noise: float) -> np.ndarray:
        """Shares per minute of the day called `name`."""
        bits = mixed(key_of(self._seed, f"forecast/{name}/{source}"), np.arange(MINUTES, dtype=np.uint64))
        return curve(source, evening, noise, bits)

    def last_of_minute(self, start: int, stop: int) -> np.ndarray:
        """The numbers of those events in [start, stop) that are the last there of their minute and source, in order."""
        keys = self.minutes[start:stop] * len(SOURCES) + self.sources[start:stop]
        _, from_end = np.unique(keys[::-1], return_index=True)
        return np.sort(stop - 1 - from_end)

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows of order_log: events [start, stop). The orders of a minute are spread over it."""
        midnight_ms = np.datetime64(f"{self.day[:4]}-{self.day[4:6]}-{self.day[6:]}", "ms").astype(np.int64)
        first, last = (np.searchsorted(self.minutes, self.minutes[start:stop], side=side) for side in ("left", "right"))
        within_ms = (np.arange(start, stop) - first) * 60_000 // (last - first)
        at_ms = midnight_ms + self.minutes[start:stop] * 60_000 + within_ms
        return pa.table(
            {
                "order_id": np.arange(start, stop), "order_time": pa.array(at_ms, pa.timestamp("ms")),
                "order_source": pa.array(SOURCES).take(pa.array(self.sources[start:stop])), "amount": money(self.cents[start:stop], 10),
            }
        )  # fmt: skip

    def shares(self, name: str, evening: float, noise: float) -> np.ndarray:
        """By each minute, the share of a past day's orders that had been placed. Shapes: -> (sources, 1440)."""
        return np.cumsum([self.day_curve(source, name, evening, noise) for source in range(len(SOURCES))], axis=1)

    def baseline(self, name: str, evening: float, noise: float, ds: str) -> pa.Table:
        """The same as rows of order_mm_his_str."""
        features = [feature_of(shares) for shares in self.shares(name, evening, noise)]
        return pa.table({"channel_id": SOURCES, "minute_ratio_feat": features, "ds": [ds] * len(SOURCES)})

    def gmv_of_day(self, name: str, evening: float, noise: float) -> np.ndarray:
        """GMV of a past day by each minute, in the currency's unit. Shapes: -> (sources, 1440)."""
        orders = self.n_events * SIZES[name] * WEIGHTS
        curves = [self.day_curve(source, name, evening, noise) * self.baskets(source, name) for source in range(len(SOURCES))]
        return np.cumsum(orders[:, None] * curves, axis=1)

    def gmv_baseline(self, name: str, evening: float, noise: float, ds: str) -> pa.Table:
        """The same as rows of gmv_mm_his: 1,440 for each source."""
        gmv = self.gmv_of_day(name, evening, noise)
        totals = np.rint(gmv[:, -1] * 100).astype(np.int64)
        return pa.table(
            {
                "channel_id": np.repeat(SOURCES, MINUTES), "mm": pa.concat_arrays([MINUTE_NAMES] * len(SOURCES)),
                "gmv_share": (gmv / gmv[:, -1:]).ravel(), "day_gmv": money(np.repeat(totals, MINUTES), 18),
                "ds": pa.repeat(pa.scalar(ds), MINUTES * len(SOURCES)),
            }
        )  # fmt: skip


def money(cents: np.ndarray, precision: int) -> pa.Decimal128Array:
    """Cents as DECIMAL(precision, 2). Shapes: (n,) -> (n,)."""
    return pc.multiply(pa.array(cents).cast(pa.decimal128(19, 0)), pa.scalar(Decimal("0.01"))).cast(pa.decimal128(precision, 2))
