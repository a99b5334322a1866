"""PrefixIndex: hash of a key's prefix -> hashes of the keys that begin with it; a few sorted runs of numpy arrays.

Owner: kv.KvBucket, which adds an entry when a key appears. Readers may call find() from other threads without a lock.
State: derived; rebuilt with the key index.
Holds: find() answers at least the keys of a prefix. It may also answer keys that are gone or that share a hash:
       whoever fetches the rows compares the prefix. Updates of a row never touch this index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from storage_engine.kv.distinct import all_distinct
from storage_engine.kv.key_index import Bools, Hashes, Int64s
from storage_engine.kv.key_table import ascending

_PIECE_ENTRIES: Final = 1 << 20
_STRIDE: Final = np.uint64(0xD1342543DE82EF95)  # odd: no two positions meet


class _Run(NamedTuple):
    """Entries sorted by prefix hash."""

    prefixes: Hashes
    keys: Hashes


class PrefixIndex:
    """A multimap kept as sorted runs, each at least twice as long as the next: log2(n) binary searches per batch."""

    def __init__(self) -> None:
        self._runs: tuple[_Run, ...] = ()

    @property
    def n_entries(self) -> int:
        return sum(len(run.prefixes) for run in self._runs)

    @property
    def n_bytes(self) -> int:
        return sum(run.prefixes.nbytes + run.keys.nbytes for run in self._runs)

    def add(self, prefixes: Hashes, keys: Hashes) -> None:
        """Enter keys (n,) under their prefixes (n,)."""
        if len(prefixes) == 0:
            return
        order = ascending(prefixes)
        runs = [*self._runs, _Run(prefixes[order], keys[order])]
        while len(runs) > 1 and len(runs[-2].prefixes) < 2 * len(runs[-1].prefixes):
            last, before = runs.pop(), runs.pop()
            runs.append(_merged(before, last))
        self._runs = tuple(runs)

    def find(self, prefixes: Hashes) -> tuple[Int64s, Hashes]:
        """Keys under each prefix.

        Shapes: prefixes (n,) -> position (m,) ascending, keys (m,): keys[j] was entered under prefixes[position[j]]; each pair once.
        Meaning: the keys of a prefix come as they were entered, unless one of them was entered twice.
        """
        by_hash = np.argsort(prefixes)  # binary searches in order touch the same cache lines
        ordered = prefixes[by_hash]
        start, stop = np.empty(len(prefixes), np.int64), np.empty(len(prefixes), np.int64)
        positions: list[Int64s] = []
        keys: list[Hashes] = []
        for run in self._runs:
            start[by_hash] = run.prefixes.searchsorted(ordered, side="left")
            stop[by_hash] = run.prefixes.searchsorted(ordered, side="right")
            count = stop - start
            total = int(count.sum())
            if total:
                first = np.repeat(start - (np.cumsum(count) - count), count)
                keys.append(run.keys[first + np.arange(total)])
                positions.append(np.repeat(np.arange(len(prefixes)), count))
        if not keys:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        position, key = positions[0], keys[0]
        if len(keys) > 1:
            position, key = np.concatenate(positions), np.concatenate(keys)
            order = np.argsort(position.astype(np.uint16) if len(prefixes) <= 1 << 16 else position, kind="stable")  # few are counted
            position, key = position[order], key[order]
        if all_distinct(key + position.view(np.uint64) * _STRIDE):  # equal pairs have equal sums
            return position, key
        order = np.lexsort((key, position))
        position, key = position[order], key[order]
        is_first = np.ones(len(key), np.bool_)
        is_first[1:] = (key[1:] != key[:-1]) | (position[1:] != position[:-1])
        return position[is_first], key[is_first]

    def keep(self, are_live: Callable[[Hashes], Bools]) -> None:
        """Drop the entries of keys that are not live. One run is left, without repeated pairs."""
        prefixes, keys = self.entries()
        is_live = are_live(keys)
        prefixes, keys = prefixes[is_live], keys[is_live]
        order = np.lexsort((keys, prefixes))
        prefixes, keys = prefixes[order], keys[order]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = (keys[1:] != keys[:-1]) | (prefixes[1:] != prefixes[:-1])
        self._runs = (_Run(prefixes[is_first], keys[is_first]),) if len(keys) else ()

    def entries(self) -> tuple[Hashes, Hashes]:
        """All entries: prefixes and keys."""
        none = np.empty(0, np.uint64)
        return np.concatenate([none, *(run.prefixes for run in self._runs)]), np.concatenate([none, *(run.keys for run in self._runs)])

    def pieces(self) -> Iterable[Hashes]:
        """The entries as they are now, as pairs (m, 2) of prefix and key, piece by piece; they can be read once."""
        return _pairs_of(self._runs)


def joined(pieces: Iterable[Hashes]) -> tuple[Hashes, Hashes]:
    """Prefixes and keys of pairs in pieces."""
    pairs = np.concatenate([np.empty((0, 2), np.uint64), *pieces])
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _pairs_of(runs: tuple[_Run, ...]) -> Iterator[Hashes]:
    for run in runs:
        for start in range(0, len(run.keys), _PIECE_ENTRIES):
            part = slice(start, start + _PIECE_ENTRIES)
            yield np.stack([run.prefixes[part], run.keys[part]], axis=1)


def _merged(left: _Run, right: _Run) -> _Run:
    prefixes, keys = np.concatenate([left.prefixes, right.prefixes]), np.concatenate([left.keys, right.keys])
    order = np.argsort(prefixes, kind="stable")  # two ascending parts: a stable sort merges them
    return _Run(prefixes[order], keys[order])
