"""Random histories: what happens to the sources of a random query, at which moments: inserts, updates, deletes, late and repeated rows."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import pyarrow as pa

from storage_engine import Store
from tests.engine.cleaning import Clock
from tests.stream.cases import event, event_table

SHOPS = "CREATE TABLE db.shops (shop BIGINT, city STRING, size INT, PRIMARY KEY (shop) NOT ENFORCED)"
DIMENSIONS = """CREATE TABLE db.fixed (shop BIGINT, city STRING, size INT, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.parts (shop BIGINT, part INT, city STRING, size INT, PRIMARY KEY (shop, part) NOT ENFORCED)
  WITH ('bucket.num' = '2', 'bucket.key' = 'shop')"""
"""Tables to look into: written before a job begins, and never again."""
ORDER_COLUMNS = ["id", "shop", "kind", "qty", "amount"]


class History:
    """What happens to the sources: appends with late and repeated rows; upserts and deletes of orders and shops."""

    def __init__(self, store: Store, clock: Clock, seed: int) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng = random.Random(seed)
        self.events: list[dict[str, Any]] = []
        self.orders: dict[int, dict[str, Any]] = {}
        self.shops: dict[int, dict[str, Any]] = {}
        self.fixed = [{"shop": shop, "city": rng.choice(["x", "y", None]), "size": rng.randrange(4)} for shop in (1, 2, 3, 5)]
        places = [(shop, part) for shop in (1, 2, 4) for part in range(shop)]
        self.parts = [{"shop": shop, "part": part, "city": rng.choice(["x", "z"]), "size": rng.randrange(6)} for shop, part in places]
        store.table("db.fixed").upsert(self.fixed)
        store.table("db.parts").upsert(self.parts)

    def step(self) -> None:
        rng = self._rng
        self._clock.pass_ms(rng.choice([0, 1, 700, 4000, 20_000]))
        if rng.random() < 0.8:
            rows = [event(rng, len(self.events) + i) for i in range(rng.randrange(1, 25))]
            if self.events and rng.random() < 0.3:
                rows += rng.sample(self.events, min(3, len(self.events)))  # delivered twice, and late
            committed = dt.datetime.fromtimestamp(self._clock.now_ms / 1000, dt.UTC).replace(tzinfo=None)
            rows = [{**row, "committed": committed} for row in rows]
            self.events += rows
            self._store.table("db.events").append(event_table(rows))
        if rng.random() < 0.8:
            rows_by_id = {number: event(rng, number) for number in (rng.randrange(25) for _ in range(rng.randrange(1, 12)))}
            self.orders.update(rows_by_id)
            self._store.table("db.orders").upsert(event_table(list(rows_by_id.values())).select(ORDER_COLUMNS))
        if rng.random() < 0.4:
            gone = [number for number in self.orders if rng.random() < 0.2]
            if gone:
                self._store.table("db.orders").delete({"id": gone})
                self.orders = {number: row for number, row in self.orders.items() if number not in gone}
        if rng.random() < 0.5:
            shop = rng.randrange(1, 6)
            if shop in self.shops and rng.random() < 0.3:
                self._store.table("db.shops").delete({"shop": [shop]})
                del self.shops[shop]
            else:
                self.shops[shop] = {"shop": shop, "city": rng.choice(["x", "y"]), "size": rng.randrange(4)}
                self._store.table("db.shops").upsert([self.shops[shop]])

    def tables(self) -> dict[str, Any]:
        """The rows that are there now; events with the moment of their commit."""
        committed = pa.array([row["committed"] for row in self.events], pa.timestamp("ms"))
        return {
            "events": event_table(self.events).append_column("committed", committed),
            "orders": event_table(list(self.orders.values())),
            "shops": _places(list(self.shops.values())),
            "fixed": _places(self.fixed),
            "parts": _places(self.parts),
        }


def _places(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "shop": pa.array([row["shop"] for row in rows], pa.int64()),
            "city": pa.array([row["city"] for row in rows], pa.string()),
            "size": pa.array([row["size"] for row in rows], pa.int32()),
        }
    )
