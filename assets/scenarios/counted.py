"""Counted: when events were seen through a count. A count of c under a key holds the first c events of that key, and these are known."""

from __future__ import annotations

import numpy as np

_SPAN = 1 << 40
"""More than any count: key and count are one number."""


def arrivals(keys: np.ndarray, seen_keys: np.ndarray, seen_counts: np.ndarray, at_ms: np.ndarray) -> np.ndarray:
    """For each event the first moment at which a received count of its key included it.

    Shapes: keys (n,) of the events in their order; seen_keys, seen_counts, at_ms (m,) of the received counts -> (n,). Keys are at least 0.
    Errors: LookupError when an event was never counted.

    >>> arrivals(np.array([5, 8, 5]), np.array([5, 8, 5]), np.array([1, 4, 2]), np.array([10.0, 20.0, 30.0])).tolist()
    [10.0, 20.0, 30.0]
    """
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    wanted = in_order * _SPAN + np.arange(len(order)) - np.searchsorted(in_order, in_order) + 1
    have = seen_keys * _SPAN + seen_counts
    by_count = np.lexsort((at_ms, have))
    place = np.searchsorted(have[by_count], wanted)
    found = by_count[np.minimum(place, len(have) - 1)]
    is_found = (place < len(have)) & (seen_keys[found] == in_order)
    if not np.all(is_found):
        raise LookupError(f"{int(np.sum(~is_found))} events were never counted")
    arrived = np.empty(len(keys))
    arrived[order] = at_ms[found]
    return arrived
