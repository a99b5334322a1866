"""Expected: the wide table after some events, by numpy: one sum per log, shop and hour."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.scenarios.wide_table.events import HOURS, LOGS, N_HOURS, Events

WIDE = {"payment_log": "gmv"}
"""Logs whose column in the wide table has another name than in the log."""
COLUMNS = ["shop_id", "stat_date", "stat_hour", *(WIDE.get(log, column) for log, column in LOGS.items())]


def expected(events: Events, n_events: int) -> pa.Table:
    """Rows of shop_stat_wide after events [0, n_events): a column is null where its log has no event of that shop and hour."""
    n_keys = events.n_shops * N_HOURS
    is_there = np.zeros(n_keys, bool)
    columns = {}
    for log in LOGS:
        drawn = events.drawn(log, 0, n_events)
        counts = np.bincount(drawn.keys, minlength=n_keys)
        sums = np.zeros(n_keys, np.int64)
        np.add.at(sums, drawn.keys, drawn.values)
        is_there |= counts > 0
        columns[log] = sums, counts == 0
    keys = np.flatnonzero(is_there)
    table = {
        "shop_id": pa.array(keys // N_HOURS),
        "stat_date": pa.repeat(pa.scalar(events.day), len(keys)),
        "stat_hour": HOURS.take(pa.array(keys % N_HOURS)),
    }
    for log, (sums, is_null) in columns.items():
        table[WIDE.get(log, LOGS[log])] = pa.array(sums[keys], mask=is_null[keys])
    return pa.table(table)
