"""Expected: every row of the scenario's tables by numpy: the counts and sums so far, and what the baseline of that moment makes of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.scenarios.order_forecast.events import LAST_WEEK, MINUTE_NAMES, SOURCES, YESTERDAY, Events, money
from assets.scenarios.order_forecast.model import PRIOR

COLUMNS = ["ds", "mm", "order_source", "cumulative_order_cnt", "forecast_daily_order_cnt"]
GMV_COLUMNS = ["ds", "mm", "order_source", "cumulative_gmv", "forecast_daily_gmv"]


def _keys(events: Events, last: np.ndarray) -> dict[str, pa.Array]:
    """ds, mm and order_source of the rows that these events are the last of."""
    return {
        "ds": pa.repeat(pa.scalar(events.day), len(last)), "mm": MINUTE_NAMES.take(pa.array(events.minutes[last])),
        "order_source": pa.array(SOURCES).take(pa.array(events.sources[last])),
    }  # fmt: skip


def counts(events: Events, n_events: int) -> pa.Table:
    """Rows of order_dtm after events [0, n_events)."""
    last = events.last_of_minute(0, n_events)
    return pa.table({**_keys(events, last), "order_cnt": events.counts[last]})


def sums(events: Events, n_events: int) -> pa.Table:
    """Rows of gmv_dtm after events [0, n_events)."""
    last = events.last_of_minute(0, n_events)
    return pa.table({**_keys(events, last), "gmv": money(events.gmv_cents[last], 18)})


def expected(events: Events, n_events: int, changed_at: int) -> pa.Table:
    """Rows of order_forecast_mm after events [0, n_events), when the newer baseline came just before event `changed_at`."""
    last = events.last_of_minute(0, n_events)
    forecast = pa.array(forecasts(events, last, changed_at)).cast(pa.string())
    return pa.table({**_keys(events, last), "cumulative_order_cnt": events.counts[last], "forecast_daily_order_cnt": forecast})


def expected_gmv(events: Events, n_events: int, changed_at: int) -> pa.Table:
    """Rows of gmv_forecast_mm, likewise."""
    last = events.last_of_minute(0, n_events)
    forecast = money(gmv_forecasts(events, last, changed_at), 18)
    return pa.table({**_keys(events, last), "cumulative_gmv": money(events.gmv_cents[last], 18), "forecast_daily_gmv": forecast})


def forecasts(events: Events, numbers: np.ndarray, changed_at: int) -> np.ndarray:
    """The forecast that the state after each of these events gives. Shapes: (n,) -> (n,)."""
    old, new = (np.round(events.shares(name, *day), 9) for name, day in (("last week", LAST_WEEK), ("yesterday", YESTERDAY)))
    sources, minutes = events.sources[numbers], events.minutes[numbers]
    share = np.where(numbers < changed_at, old[sources, minutes], new[sources, minutes])
    return np.rint(events.counts[numbers] / share).astype(np.int64)


def gmv_forecasts(events: Events, numbers: np.ndarray, changed_at: int) -> np.ndarray:
    """The forecast of the day's GMV that the state after each of these events gives, in cents. Shapes: (n,) -> (n,)."""
    old, new = (events.gmv_of_day(name, *day) for name, day in (("last week", LAST_WEEK), ("yesterday", YESTERDAY)))
    sources, minutes = events.sources[numbers], events.minutes[numbers]
    is_old = numbers < changed_at
    whole = np.rint(100 * np.where(is_old, old[sources, -1], new[sources, -1]))
    share = np.where(is_old, (old / old[:, -1:])[sources, minutes], (new / new[:, -1:])[sources, minutes])
    now = events.gmv_cents[numbers]
    to_come = whole * (1 - share)
    return np.rint(now + to_come * (now + PRIOR * whole) / (whole * (share + PRIOR))).astype(np.int64)
