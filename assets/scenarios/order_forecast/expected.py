"""Expected: the forecast of each minute and source, by numpy: orders so far over the share that the baseline of that moment says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.scenarios.order_forecast.events import LAST_WEEK, MINUTE_NAMES, SOURCES, YESTERDAY, Events

COLUMNS = ["ds", "mm", "order_source", "cumulative_order_cnt", "forecast_daily_order_cnt"]


def expected(events: Events, n_events: int, changed_at: int) -> pa.Table:
    """Rows of order_forecast_mm after events [0, n_events), when the newer baseline came just before event `changed_at`."""
    last = events.last_of_minute(0, n_events)
    forecast = forecasts(events, last, changed_at)
    return pa.table(
        {
            "ds": pa.repeat(pa.scalar(events.day), len(last)), "mm": MINUTE_NAMES.take(pa.array(events.minutes[last])),
            "order_source": pa.array(SOURCES).take(pa.array(events.sources[last])), "cumulative_order_cnt": events.counts[last],
            "forecast_daily_order_cnt": pa.array(forecast).cast(pa.string()),
        }
    )  # fmt: skip


def forecasts(events: Events, numbers: np.ndarray, changed_at: int) -> np.ndarray:
    """The forecast that the state after each of these events gives. Shapes: (n,) -> (n,)."""
    old, new = (np.round(events.shares(name, *day), 9) for name, day in (("last week", LAST_WEEK), ("yesterday", YESTERDAY)))
    sources, minutes = events.sources[numbers], events.minutes[numbers]
    share = np.where(numbers < changed_at, old[sources, minutes], new[sources, minutes])
    return np.rint(events.counts[numbers] / share).astype(np.int64)


def day_errors(events: Events, changed_at: int) -> dict[str, float]:
    """Hour of the day -> how far the forecast of the whole day was off then, as a share of the day's actual orders."""
    totals = np.bincount(events.sources, minlength=len(SOURCES))
    found = {}
    for hour in (6, 9, 12, 15, 18, 21):
        stop = int(np.searchsorted(events.minutes, hour * 60))
        numbers = np.array([np.flatnonzero(events.sources[:stop] == source)[-1] for source in range(len(SOURCES))])
        found[f"{hour:02}:00"] = round(float(abs(forecasts(events, numbers, changed_at).sum() - totals.sum()) / totals.sum()), 4)
    return found
