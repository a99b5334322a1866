"""KeyIndex and PrefixIndex answer like a dict and a dict of sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_engine.kv import KeyIndex, PrefixIndex
from storage_engine.kv.key_index import MISSING

HASHES = st.one_of(st.integers(1, 40), st.integers(2**64 - 40, 2**64 - 1), st.integers(1, 2**64 - 1))


def u64(values) -> np.ndarray:
    return np.array(list(values), np.uint64)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "remove", "reload"]), st.dictionaries(HASHES, st.integers(0, 2**62), max_size=200)), max_size=12
    )
)
def test_an_index_equals_a_dict_after_any_batches(batches):
    index, model = KeyIndex(), {}
    for what, items in batches:
        match what:
            case "put":
                index.put(u64(items), np.array(list(items.values()), np.int64))
                model.update(items)
            case "remove":
                index.remove(u64(items))
                for key in items:
                    model.pop(key, None)
            case "reload":
                index = KeyIndex.from_items(*index.items())
        asked = [*model, *items, *range(1, 50)] * 2
        assert index.get(u64(asked)).tolist() == [model.get(key, MISSING) for key in asked]
        assert index.n_keys == len(model)
        assert dict(zip(*(part.tolist() for part in index.items()), strict=True)) == model
        assert sorted(index.offsets().tolist()) == sorted(model.values())


def test_keys_stay_found_while_the_index_grows_batch_by_batch():
    rng = np.random.default_rng(7)
    hashes = np.unique(rng.integers(1, 2**64 - 1, 50_000, dtype=np.uint64))
    rng.shuffle(hashes)
    index = KeyIndex()
    for start in range(0, len(hashes), 1_237):
        part = hashes[start : start + 1_237]
        index.put(part, np.arange(start, start + len(part)))
        seen = hashes[: start + len(part)]
        assert (index.get(seen) == np.arange(len(seen))).all()
    assert index.n_bytes <= 64 * len(hashes)


def test_hashes_crowded_into_the_last_slots_are_kept():
    """Products with the spreading constant that all begin with ones: their home is the last slot, and the table must grow behind it."""
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    crowded = u64((2**64 - 1 - i) * inverse % 2**64 for i in range(500))
    index = KeyIndex()
    for start in range(0, 500, 50):
        index.put(crowded[start : start + 50], np.arange(start, start + 50))
    assert (index.get(crowded) == np.arange(500)).all()


def test_removing_and_adding_for_ever_keeps_the_table_small():
    index = KeyIndex()
    for start in range(1, 200_001, 1_000):
        hashes = np.arange(start, start + 1_000, dtype=np.uint64)
        index.put(hashes, np.arange(1_000))
        index.remove(hashes)
    assert index.n_keys == 0
    assert index.n_bytes < 200_000


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=20), max_size=12), st.sets(st.integers(0, 30)))
def test_a_prefix_index_finds_every_key_of_a_prefix_once(batches, dropped):
    index, model = PrefixIndex(), set()
    for pairs in batches:
        index.add(u64(p for p, _ in pairs), u64(k for _, k in pairs))
        model.update(pairs)
    for keep_all in (True, False):
        if not keep_all:
            model = {(prefix, key) for prefix, key in model if key not in dropped}
            index.keep(lambda keys: ~np.isin(keys, u64(dropped)))
        asked = [3, 0, 9, 3]
        position, keys = index.find(u64(asked))
        expected = [(at, key) for at, prefix in enumerate(asked) for key in sorted(k for p, k in model if p == prefix)]
        assert list(zip(position.tolist(), keys.tolist(), strict=True)) == expected


@pytest.mark.parametrize("n_batches", [1, 100, 3_000])
def test_a_prefix_index_keeps_few_runs_however_small_the_batches(n_batches):
    index = PrefixIndex()
    for number in range(n_batches):
        index.add(u64([number % 10]), u64([number]))
    assert index.n_entries == n_batches
    assert len(index._runs) <= 1 + np.log2(n_batches)
