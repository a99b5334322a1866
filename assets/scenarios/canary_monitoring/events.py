"""Events: a log of 95 columns; event i is made from the seed and i alone.

Who, where and what repeat every POOL events; minute, duration and failure are each event's own. A minute of event time lasts MINUTE_EVENTS
events. In every second minute from the third on, a third into it, the canary of one page begins to fail.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from flashlake.generate.randoms import high_above, key_of, low_below, mixed

POOL = 1 << 16
MINUTE_EVENTS = 50_000
CANARY = 0.1
FAILED, FAILED_CANARY = 0.01, 0.35
"""Share of events that fail: usually, and of the canary of a page that is broken."""
PAGES = ["home", "search", "shop", "cart", "checkout", "orders"]
CLIENTS = ["ios", "android", "web"]
EVENTS = ["enter", "show", "click", "submit", "leave"]
CITIES = [f"city{n}" for n in range(8)]
N_COLUMNS = 93
CORE = [f"col{n}" for n in range(1, 29)]
"""What the monitoring reads, beside ds and args."""


def is_broken(minutes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """True for events at which one page's canary is broken. Shapes: (n,) -> (n,)."""
    return (minutes >= 2) & (minutes % 2 == 0) & (numbers % MINUTE_EVENTS >= MINUTE_EVENTS // 3)


def broken_page(minute: int) -> int:
    """Which page it is in that minute."""
    return minute // 2 % len(PAGES)


class Events:
    """All events of a seed. `day` as yyyyMMdd."""

    def __init__(self, seed: int, *, day: str) -> None:
        self.day = day
        self._key = key_of(seed, "canary/event")
        places = np.arange(POOL, dtype=np.uint64)
        bits = {name: mixed(key_of(seed, f"canary/{name}"), places) for name in ("page", "client", "event", "city", "canary", "other")}
        self.pages = low_below(bits["page"], len(PAGES))
        self.is_canary = high_above(bits["canary"], CANARY)
        named = {"col1": PAGES, "col2": CLIENTS, "col3": EVENTS, "col4": CITIES}
        drawn = zip(
            named.items(), (self.pages, *(low_below(bits[name], n) for name, n in (("client", 3), ("event", 5), ("city", 8)))), strict=True
        )
        self._pool = {column: pa.array(names).take(pa.array(values)) for (column, names), values in drawn}
        for number in range(8, N_COLUMNS + 1):
            words = pa.array([f"c{number}_{word:05x}" for word in range(512)])
            self._pool[f"col{number}"] = words.take(pa.array(low_below(bits["other"] * np.uint64(2 * number + 1), 512)))
        texts = [[f"spm=a{n}.b{n % 7},release_type={kind},trace={n * 2654435761 % 2**32:08x},ab={n % 97}" for n in range(512)]
                 for kind in ("grey", "full")]  # fmt: skip
        self._pool["args"] = pa.array(texts[0] + texts[1]).take(pa.array(low_below(bits["other"], 512) + 512 * ~self.is_canary))

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows of log_page_ri: events [start, stop)."""
        minutes, cost, failed = self.measures(start, stop)
        measured = {
            "col5": MINUTE_NAMES.take(pa.array(minutes)), "col6": pa.array(cost), "col7": pa.array(failed.astype(np.int64)),
            "ds": pa.repeat(pa.scalar(self.day), stop - start),
        }  # fmt: skip
        names = [*(f"col{number}" for number in range(1, N_COLUMNS + 1)), "args", "ds"]
        return pa.table({name: measured[name] if name in measured else self._slice(name, start, stop) for name in names})

    def measures(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minute, duration in ms, and whether it failed, of events [start, stop)."""
        numbers = np.arange(start, stop)
        minutes = numbers // MINUTE_EVENTS
        bits = mixed(self._key, numbers.astype(np.uint64))
        places = numbers % POOL
        broken = is_broken(minutes, numbers) & self.is_canary[places] & (self.pages[places] == minutes // 2 % len(PAGES))
        failed = np.where(broken, high_above(bits, FAILED_CANARY), high_above(bits, FAILED))
        return minutes % len(MINUTE_NAMES), low_below(bits, 400) + 20, failed

    def _slice(self, name: str, start: int, stop: int) -> pa.Array | pa.ChunkedArray:
        pool = self._pool[name]
        first = start % POOL
        parts = [pool.slice(first, min(stop - start, POOL - first))]
        while (n := sum(len(part) for part in parts)) < stop - start:
            parts.append(pool.slice(0, stop - start - n))
        return parts[0] if len(parts) == 1 else pa.chunked_array(parts)


MINUTE_NAMES = pa.array([f"{minute // 60:02}{minute % 60:02}" for minute in range(1_440)])
