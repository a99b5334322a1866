"""Rates: what a job's progress says of its work: counters that grow, and rows per second as of a moment. Pure.

Rows per second is an exponentially weighted rate: n rows at a moment add n / RATE_S to it, and it fades by exp(-seconds / RATE_S).
So it needs no window, is recorded with each commit, and a reader lets it fade to its own time: a job that rests comes to 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

RATE_S = 10.0
"""Seconds over which the rate remembers."""

COUNTERS = ("n_rows_in", "n_rows_out", "n_dropped_nulls", "n_late_rows", "n_quarantined", "n_batches")


def advanced_detail(before: Mapping[str, Any], counts: Mapping[str, int], version: int, seconds: float, now_ms: int) -> dict[str, Any]:
    """The detail of a job's progress after a micro-batch. `counts`: what it adds to COUNTERS; `seconds`: how long it took."""
    added = {"n_batches": 1, **counts}
    counted = {name: int(before.get(name, 0)) + added.get(name, 0) for name in COUNTERS}
    faded = rate(before, now_ms)
    return {
        **before,
        **counted,
        "version": version,
        "rows_per_s": round(faded + counts.get("n_rows_in", 0) / RATE_S, 3),
        "batch_ms": round(seconds * 1000, 3),
        "finished_ms": now_ms,
    }


def rate(detail: Mapping[str, Any], now_ms: int) -> float:
    """Rows per second as of now.

    >>> round(rate({"rows_per_s": 100.0, "finished_ms": 0}, 10_000), 1)
    36.8
    """
    age_s = max(now_ms - int(detail.get("finished_ms", now_ms)), 0) / 1000
    return float(detail.get("rows_per_s", 0.0)) * math.exp(-age_s / RATE_S)
