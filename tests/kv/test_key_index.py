"""KeyIndex and PrefixIndex, in memory and on disk, answer like a dict and a dict of sets."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_engine.errors import RetriableError
from storage_engine.kv import KeyIndex, PrefixIndex, SpilledIndex, SpilledPrefixes, items_of, joined, key_index
from storage_engine.kv.key_index import MISSING, spread_hashes, unspread
from storage_engine.kv.key_run import MARK

LAST = unspread(np.array([MARK, MARK - np.uint64(1)])).tolist()  # hashes that the index orders last: one is where a run's mark is
HASHES = st.one_of(st.integers(1, 40), st.integers(2**64 - 40, 2**64 - 1), st.integers(1, 2**64 - 1), st.sampled_from(LAST))
BATCHES = st.lists(
    st.tuples(
        st.sampled_from(["put", "search, put", "search, put half", "search, remove", "remove", "reload"]),
        st.dictionaries(HASHES, st.integers(0, 2**62), max_size=200),
    ),
    max_size=12,
)
SLICES = {"whole": (1 << 17, 1 << 18, 20), "sliced": (40, 16, 1)}


def u64(values) -> np.ndarray:
    return np.array(list(values), np.uint64)


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges begin after few keys and take many steps."""
    merge_in(monkeypatch, *SLICES["sliced"])


def merge_in(monkeypatch: pytest.MonkeyPatch, table_keys_min: int, slice_keys_min: int, slice_keys_per_put: int) -> None:
    monkeypatch.setattr(key_index, "_TABLE_KEYS_MIN", table_keys_min)
    monkeypatch.setattr(key_index, "_SLICE_KEYS_MIN", slice_keys_min)
    monkeypatch.setattr(key_index, "_SLICE_KEYS_PER_PUT", slice_keys_per_put)


def equals_a_dict(index: KeyIndex | SpilledIndex, batches) -> None:
    model: dict[int, int] = {}
    for what, items in batches:
        before, copy = dict(model), index.copy()
        match what:
            case "put" | "search, put" | "search, put half":
                if what != "put":
                    assert index.get_to_put(u64(items)).tolist() == [model.get(key, MISSING) for key in items]
                if what == "search, put half":
                    half = dict(list(items.items())[::2])
                    index.put(u64(half), np.array([offset + 1 for offset in half.values()], np.int64))
                index.put(u64(items), np.array(list(items.values()), np.int64))
                model.update(items)
            case "remove" | "search, remove":
                if what != "remove":
                    index.get_to_put(u64(items))
                index.remove(u64(items))
                for key in items:
                    model.pop(key, None)
            case "reload" if isinstance(index, KeyIndex):
                index = KeyIndex.from_copy(copy)
        assert dict(zip(*(part.tolist() for part in items_of(copy)), strict=True)) == before, "a copy does not change"
        asked = [*model, *items, *range(1, 50), *LAST] * 2
        assert index.get(u64(asked)).tolist() == [model.get(key, MISSING) for key in asked]
        assert [index.get_one(key) for key in asked[:30]] == [model.get(key, MISSING) for key in asked[:30]]
        assert index.n_keys == len(model)
        assert dict(zip(*(part.tolist() for part in index.items()), strict=True)) == model
        assert sorted(index.offsets().tolist()) == sorted(model.values())


@pytest.mark.parametrize("slices", SLICES.values(), ids=SLICES)
def test_an_index_equals_a_dict_after_any_batches(monkeypatch, slices):
    merge_in(monkeypatch, *slices)
    settings(deadline=None)(given(BATCHES)(lambda batches: equals_a_dict(KeyIndex(), batches)))()


def test_an_index_on_disk_equals_a_dict_after_any_batches(tmp_path):
    paths = itertools.count()

    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
    @given(BATCHES)
    def check(batches) -> None:
        index = SpilledIndex(tmp_path / str(next(paths)))
        equals_a_dict(index, batches)
        index.close()

    check()


def test_an_index_moves_to_disk_in_the_middle_of_a_merge_and_back(sliced, tmp_path):
    hashes = np.unique(np.random.default_rng(2).integers(1, 2**64 - 1, 3_000, dtype=np.uint64))
    index = KeyIndex()
    for start in range(0, len(hashes), 30):
        index.put(hashes[start : start + 30], np.arange(start, start + len(hashes[start : start + 30])))
    index.remove(hashes[::7])
    assert index._merge is not None, "a merge is under way"

    on_disk = SpilledIndex(tmp_path / "keys")
    on_disk.load(index.copy())
    again = KeyIndex.from_copy(on_disk.copy())

    for moved in (on_disk, again):
        assert moved.n_keys == index.n_keys
        assert (moved.get(hashes) == index.get(hashes)).all()
    on_disk.close()
    assert not (tmp_path / "keys").exists()


def test_an_index_on_disk_that_fails_says_so_and_answers_no_more(tmp_path):
    failures = []
    index = SpilledIndex(tmp_path / "keys", lambda: failures.append(1))
    index.put(u64([1, 2]), np.array([10, 20]))
    index._database.db.close()

    for attempt in (lambda: index.get(u64([1])), lambda: index.put(u64([3]), np.array([30])), lambda: index.remove(u64([1]))):
        with pytest.raises(RetriableError, match="rebuilt from the log"):
            attempt()
    assert failures == [1]


def test_a_table_of_many_keys_takes_less_than_24_bytes_per_key_at_every_moment():
    hashes = np.unique(np.random.default_rng(5).integers(1, 2**64 - 1, 1_300_000, dtype=np.uint64))
    np.random.default_rng(6).shuffle(hashes)
    index = KeyIndex()
    worst = 0.0
    for start in range(0, len(hashes), 10_000):
        part = hashes[start : start + 10_000]
        index.put(part, np.arange(start, start + len(part)))
        if start > 1_000_000:
            worst = max(worst, index.n_bytes / index.n_keys)
    assert worst < 24
    assert (index.get(hashes) == np.arange(len(hashes))).all()


def test_a_merge_gives_back_what_it_has_read_and_forgets_removed_keys():
    hashes = spread_hashes(np.arange(1, 400_001, dtype=np.uint64))
    index = KeyIndex()
    index.put(hashes, np.arange(len(hashes)))
    index.remove(hashes[1000:])
    for _ in range(20):
        index.put(hashes[:1], np.array([0]))
    assert index.n_keys == 1000
    assert len(index._state.run.spread) == 1001
    assert (index.get(hashes[:1000]) == np.arange(1000)).all()


def test_readers_beside_puts_removals_and_merges_always_see_the_keys_that_stay(monkeypatch):
    """The offset of key i is i modulo their number, however often it moves; others come and go beside them."""
    merge_in(monkeypatch, 2_000, 3_000, 1)
    rng = np.random.default_rng(3)
    hashes = np.unique(rng.integers(1, 2**63, 40_000, dtype=np.uint64)) * np.uint64(2)  # even: those that come and go are odd
    rng.shuffle(hashes)
    n = len(hashes)
    index = KeyIndex()
    index.put(hashes, np.arange(n))
    done = threading.Event()
    wrong: list[object] = []

    def read(seed: int) -> None:
        chance = np.random.default_rng(seed)
        while not done.is_set():
            rows = chance.integers(0, n, 3_000)
            try:
                found = index.get(hashes[rows])
                one = index.get_one(int(hashes[rows[0]]))
            except BaseException as error:
                wrong.append(error)
                raise
            if not (found % n == rows).all() or one % n != rows[0]:
                wrong.append((rows, found, one))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    n_merges, run = 0, index._state.run
    passing = [np.unique(rng.integers(1, 2**63, 700, dtype=np.uint64)) * np.uint64(2) + np.uint64(1) for _ in range(300)]
    try:
        for step in range(300):
            index.put(passing[step], np.arange(len(passing[step])))
            if step > 100:
                index.remove(passing[step - 100])
            rows = np.arange(step * 701, step * 701 + 701) % n
            index.put(hashes[rows], rows + n * step)
            n_merges += index._state.run is not run
            run = index._state.run
    finally:
        done.set()
        for reader in readers:
            reader.join(timeout=30)
    assert wrong == []
    assert n_merges > 5
    assert (index.get(hashes) % n == np.arange(n)).all()


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


PAIRS = st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=20), max_size=12)


@pytest.fixture(params=["memory", "disk"])
def prefix_indexes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PrefixIndex | SpilledPrefixes]:
    """New, empty ones."""
    if request.param == "memory":
        return iter(PrefixIndex, None)
    return (SpilledPrefixes(tmp_path / str(number)) for number in itertools.count())


def test_a_prefix_index_finds_every_key_of_a_prefix_once(prefix_indexes):
    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
    @given(PAIRS, st.sets(st.integers(0, 30)))
    def check(batches, dropped) -> None:
        index, model = next(prefix_indexes), set()
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
            assert position.tolist() == [at for at, _ in expected]
            assert sorted(zip(position.tolist(), keys.tolist(), strict=True)) == expected
            assert set(zip(*(part.tolist() for part in joined(index.pieces())), strict=True)) == model
        if isinstance(index, SpilledPrefixes):
            index.close()

    check()


def test_keys_of_a_prefix_are_found_in_the_order_in_which_they_were_entered():
    index = PrefixIndex()
    for batch in ([9, 2, 7, 30, 6, 11], [1, 3], [8]):  # several runs
        index.add(u64([5, 4] * 3)[: len(batch)], u64(batch))
    position, keys = index.find(u64([5, 4]))
    assert len(index._runs) > 1
    assert (position.tolist(), keys.tolist()) == ([0] * 5 + [1] * 4, [9, 7, 6, 1, 8, 2, 30, 11, 3])


@pytest.mark.parametrize("n_batches", [1, 100, 3_000])
def test_a_prefix_index_keeps_few_runs_however_small_the_batches(n_batches):
    index = PrefixIndex()
    for number in range(n_batches):
        index.add(u64([number % 10]), u64([number]))
    assert index.n_entries == n_batches
    assert len(index._runs) <= 1 + np.log2(n_batches)
