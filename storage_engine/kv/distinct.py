"""Distinct: whether any of n hashes occurs twice. That they all differ, the usual case, costs a tenth of sorting or grouping them."""

from __future__ import annotations

from typing import Final

import numpy as np

from storage_engine.kv.key_table import Hashes

_SLOTS_BITS: Final = 18  # as many as a cache holds
_ROUNDS_MAX: Final = 8


def all_distinct(hashes: Hashes) -> bool:
    """True when no two of the hashes are equal.

    Shapes: hashes (n,). Equal hashes meet in one slot of a table, of which the last one takes it: a loser that equals the winner is a
    repeat, other losers (a few percent of random hashes) try again among themselves. Hashes made to crowd are sorted in the end.
    """
    n_bits = max(min(_SLOTS_BITS, 4 + len(hashes).bit_length()), 1 + len(hashes).bit_length())
    slot = (hashes * _SPREAD >> np.uint64(64 - n_bits)).view(np.int64)
    winner = np.empty(1 << n_bits, np.int32)  # read only where it was written
    for _ in range(_ROUNDS_MAX):
        rows = np.arange(len(hashes), dtype=np.int32)
        winner[slot] = rows
        won_by = winner[slot]
        lost = np.flatnonzero(won_by != rows)
        if (hashes[won_by[lost]] == hashes[lost]).any():
            return False
        if len(lost) == 0:
            return True
        hashes, slot = hashes[lost], slot[lost]
    return len(np.unique(hashes)) == len(hashes)


_SPREAD = np.uint64(0x9E3779B97F4A7C15)
