"""all_distinct() tells whether a hash repeats: like a set, for random hashes and for those that crowd in one slot."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage_engine.kv.distinct import all_distinct
from storage_engine.kv.key_index import unspread

CROWDED = unspread(np.arange(1, 65, dtype=np.uint64)).tolist()
"""Hashes whose slot is the same."""


@given(st.lists(st.one_of(st.integers(1, 2**64 - 1), st.sampled_from(CROWDED)), max_size=300))
def test_hashes_are_distinct_exactly_when_a_set_holds_them_all(hashes):
    assert all_distinct(np.array(hashes, np.uint64)) == (len(set(hashes)) == len(hashes))


def test_one_repeat_among_many_is_found():
    hashes = np.random.default_rng(1).integers(1, 2**63, 50_000, dtype=np.uint64)
    assert all_distinct(hashes)
    hashes[49_000] = hashes[3]
    assert not all_distinct(hashes)
