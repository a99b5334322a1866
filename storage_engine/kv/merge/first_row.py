"""First row: the merge engine that keeps the first row of a key. Its changelog has inserts only."""

from __future__ import annotations

import numpy as np

from storage_engine.kv.key_index import Bools, Int64s


def first_rows(first: Int64s) -> Int64s:
    """Which row of a batch stands for each key: the first. Shapes: (k,) first row of each key -> (k,)."""
    return first


def first_row_wins(n_found: int) -> Bools:
    """Whether an incoming row replaces the stored one, for the n_found keys that have one: never."""
    return np.zeros(n_found, np.bool_)
