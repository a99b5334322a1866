"""Events: what a made event looks like. Columns as ods.page_visits and ods.exposures declare them; one vectorised pass each.

A made event is recognised by its column origin = 'made:SEED': no real event has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flashlake.generate.baskets import DAY_MS, Baskets
from flashlake.generate.randoms import U64, high_above, low_below

CART_SHARE = 0.25
OTHER_PRODUCT_SHARE = 0.35
OTHER_PRODUCT_DISTANCE = 64
SLOTS_MAX = 24
_EVENT_TYPES = pa.array(["view", "cart_add"])


@dataclass(frozen=True)
class EventBatch:
    """Made events in order of arrival, and how many of them came late or are second deliveries."""

    rows: pa.RecordBatch
    n_late: int
    n_duplicates: int


@dataclass(frozen=True)
class Drawn:
    """What an event is made of. Shapes: all (n,): its id, the real line it leads to, its time, and 64 random bits."""

    event_ids: np.ndarray
    lines: np.ndarray
    times_ms: np.ndarray
    bits: U64


def page_visits(baskets: Baskets, drawn: Drawn, origin: str) -> pa.RecordBatch:
    """Views and cart additions. A household puts into the cart what it buys; it also views what others buy at that time."""
    is_cart = high_above(drawn.bits, CART_SHARE)
    is_other = ~is_cart & high_above(drawn.bits << np.uint64(8), OTHER_PRODUCT_SHARE)
    event_types = pa.DictionaryArray.from_arrays(pa.array(is_cart.astype(np.int8)), _EVENT_TYPES).cast(pa.string())
    return _batch(
        {
            "event_id": drawn.event_ids,
            "household_id": baskets.households[drawn.lines],
            "store_id": baskets.stores[drawn.lines],
            "product_id": _products(baskets, drawn, is_other),
            "event_type": event_types,
        },
        drawn,
        origin,
    )


def exposures(baskets: Baskets, drawn: Drawn, origin: str) -> pa.RecordBatch:
    """Products shown in a list; early places are more frequent. Most shown products are not the one that is bought."""
    is_other = high_above(drawn.bits, 2 * OTHER_PRODUCT_SHARE)
    ordinal = low_below(drawn.bits << np.uint64(16), SLOTS_MAX * SLOTS_MAX)
    slots = SLOTS_MAX - np.floor(np.sqrt(ordinal)).astype(np.int32)
    return _batch(
        {
            "event_id": drawn.event_ids,
            "household_id": baskets.households[drawn.lines],
            "store_id": baskets.stores[drawn.lines],
            "product_id": _products(baskets, drawn, is_other),
            "slot": slots,
        },
        drawn,
        origin,
    )


def _products(baskets: Baskets, drawn: Drawn, is_other: np.ndarray) -> np.ndarray:
    """The bought product, or where is_other one of the next lines' products: popular products stay popular."""
    step = (low_below(drawn.bits, OTHER_PRODUCT_DISTANCE) + 1) * is_other
    lines = drawn.lines + step
    lines -= baskets.n_lines * (lines >= baskets.n_lines)
    return baskets.products[lines]


def _batch(columns: dict[str, np.ndarray | pa.Array], drawn: Drawn, origin: str) -> pa.RecordBatch:
    n = len(drawn.event_ids)
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    arrays["event_time"] = pa.array(drawn.times_ms).view(pa.timestamp("ms"))
    arrays["origin"] = pa.repeat(pa.scalar(origin), n)
    arrays["ds"] = day_names(drawn.times_ms)
    return pa.RecordBatch.from_pydict(arrays)


def day_names(times_ms: np.ndarray) -> pa.Array:
    """The day of each time as yyyy-MM-dd. Shapes: (n,) int64 -> (n,) string.

    >>> day_names(np.array([0, 86_399_999, 86_400_000])).to_pylist()
    ['1970-01-01', '1970-01-01', '1970-01-02']
    """
    days = times_ms // DAY_MS
    first = int(days.min()) if len(days) else 0
    last = int(days.max()) if len(days) else 0
    names = np.datetime_as_string(np.arange(first, last + 1).astype("datetime64[D]"))
    return pa.DictionaryArray.from_arrays(pa.array((days - first).astype(np.int32)), pa.array(names.astype(object), pa.string())).cast(
        pa.string()
    )


Kind = Callable[[Baskets, Drawn, str], pa.RecordBatch]
KINDS: dict[str, Kind] = {"page_visits": page_visits, "exposures": exposures}
"""The kinds of made events, by the name of the table that takes them."""
