"""Loading: the tables and events of a case, through the store's client, be it our server or a Fluss cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.streams.events import nexmark_events, shop_events
from benchmarks.streams.queries import SIDE_ROWS

BATCH = 50_000


def load(store: storage_engine.Store, n_rows: int, n_users: int, *, is_nexmark: bool) -> None:
    """Append events in order of their time; fill the side table."""
    if is_nexmark:
        keys = np.arange(SIDE_ROWS)
        store.table("bench.side").upsert(pa.table({"side_key": keys, "side_value": pa.array([f"side-{key}" for key in keys])}))
    for start in range(0, n_rows, BATCH):
        stop = min(start + BATCH, n_rows)
        for name, rows in _parts(start, stop, n_rows, n_users, is_nexmark=is_nexmark):
            store.table(f"bench.{name}").append(rows)
        print(f"\r  {stop:,} events", end="", file=sys.stderr)
    print(file=sys.stderr)


def _parts(start: int, stop: int, n_rows: int, n_users: int, *, is_nexmark: bool) -> Iterable[tuple[str, pa.RecordBatch]]:
    return nexmark_events(start, stop).items() if is_nexmark else [("events", shop_events(start, stop, n_rows, n_users))]
