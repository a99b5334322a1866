"""Events: the orders of one day in order of time, at four sources, and baselines of past days; all from the seed.

Order i of n comes at the minute by which the day's curve has reached i / n. A baseline is the curve of a day, told as shares per minute.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.scenarios.order_forecast.model import MINUTES, feature_of
from flashlake.generate.randoms import high_unit, key_of, mixed

SOURCES = ["app", "mini_program", "web", "partner"]
WEIGHTS = np.array([0.5, 0.3, 0.12, 0.08])
TODAY, LAST_WEEK, YESTERDAY = (0.0, 0.02), (0.35, 0.02), (0.05, 0.02)
"""How days differ from the usual: by how much their evening is stronger, and the noise of each minute."""
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
        self.counts = np.zeros(n_events, np.int64)
        for source in range(len(SOURCES)):
            mine = self.sources == source
            self.counts[mine] = np.arange(1, mine.sum() + 1)

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
        """Rows of order_dtm after events [start, stop): the orders so far, per minute and source that these touch."""
        last = self.last_of_minute(start, stop)
        return pa.table(
            {
                "ds": pa.repeat(pa.scalar(self.day), len(last)), "mm": MINUTE_NAMES.take(pa.array(self.minutes[last])),
                "order_source": pa.array(SOURCES).take(pa.array(self.sources[last])), "order_cnt": self.counts[last],
            }
        )  # fmt: skip

    def shares(self, name: str, evening: float, noise: float) -> np.ndarray:
        """By each minute, the share of a past day's orders that had been placed. Shapes: -> (sources, 1440)."""
        return np.cumsum([self.day_curve(source, name, evening, noise) for source in range(len(SOURCES))], axis=1)

    def baseline(self, name: str, evening: float, noise: float, ds: str) -> pa.Table:
        """The same as rows of order_mm_his_str."""
        features = [feature_of(shares) for shares in self.shares(name, evening, noise)]
        return pa.table({"channel_id": SOURCES, "minute_ratio_feat": features, "ds": [ds] * len(SOURCES)})
