"""Versioned: the merge engine that keeps the row with the largest version; of equal versions, the one that came last.

A null version never wins: such a row stays only where no other row of its key has come.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.kv.key_index import Bools, Int64s


def newest_rows(version: pa.Array, group: Int64s, first: Int64s) -> Int64s:
    """Which row of a batch stands for each key.

    Shapes: version (n,), group (n,) in 0..k numbers the keys, first (k,) first row of each key -> (k,) rows.
    """
    newest = first.copy()
    rows = np.flatnonzero(version.is_valid().to_numpy(zero_copy_only=False))
    if len(rows):
        order = rows[np.lexsort((rows, _numbers(version.drop_null()), group[rows]))]
        newest[group[order]] = order  # of repeated positions numpy keeps the last one
    return newest


def newer_wins(stored: pa.Array, incoming: pa.Array) -> Bools:
    """Whether an incoming row replaces the stored one. Shapes: versions (m,), (m,) -> (m,)."""
    wins = pc.or_kleene(stored.is_null(), pc.greater_equal(incoming, stored))
    return pc.and_kleene(incoming.is_valid(), wins).to_numpy(zero_copy_only=False)


def _numbers(version: pa.Array) -> Int64s:
    if pa.types.is_timestamp(version.type):
        version = version.view(pa.int64())
    return version.to_numpy(zero_copy_only=False).astype(np.int64)
