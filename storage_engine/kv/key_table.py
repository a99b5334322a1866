"""Key table: spread hash -> offset by open addressing with linear probing. Small or young parts of a KeyIndex live here.

Owner: kv.KeyIndex, the only writer; readers may probe from other threads.
Holds: at most one slot per hash; home slots ascend with the hash; every probe ends, because the last slot stays empty; 16 B per slot,
       load at most 0.6.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MISSING: Final = -1
LOAD_MAX: Final = 0.6

_EMPTY = np.uint64(0)
_ROUGH = np.uint64(48)
_ROUGH_MIN = 1024
_HALF = np.uint64(32)
_SLACK = 64
_KEYS_MIN = 32


class KeyTable(NamedTuple):
    """`spread` 0 marks an empty slot; `offsets` MISSING under a hash marks a removed key. `n_homes` slots may be a key's home."""

    spread: Hashes
    offsets: Int64s
    n_homes: np.uint64
    n_used_max: int

    @property
    def n_bytes(self) -> int:
        return self.spread.nbytes + self.offsets.nbytes

    def find_one(self, spread: int) -> int:
        """Offset of one spread hash."""
        position = (spread >> 32) * int(self.n_homes) >> 32
        while (seen := self.spread.item(position)) != spread:
            if seen == 0:
                return MISSING
            position += 1
        return self.offsets.item(position)

    def find(self, spread: Hashes) -> Int64s:
        """The slot of each hash, or the empty slot where its chain ends."""
        position = self._home(spread)
        seen = self.spread[position]
        going = np.flatnonzero((seen != spread) & (seen != _EMPTY))
        while len(going):
            step = position[going] + 1
            position[going] = step
            seen = self.spread[step]
            going = going[(seen != spread[going]) & (seen != _EMPTY)]
        return position

    def insert(self, spread: Hashes, offsets: Int64s, position: Int64s) -> Int64s:
        """Place absent hashes, each from an empty slot onward; the loser of a contested slot moves on by one.

        Answers which of them found no place before the end of the table, as rows of the input: empty but for crowded hashes.
        """
        if len(spread) == 0 or position.max() >= len(self.spread) - 1:
            return np.arange(len(spread))
        self.spread[position] = spread
        won = self.spread[position] == spread
        self.offsets[position[won]] = offsets[won]
        rows = np.flatnonzero(~won)
        position = position[rows] + 1
        while len(rows) and position.max() < len(self.spread) - 1:
            own = spread[rows]
            free = self.spread[position] == _EMPTY
            self.spread[position[free]] = own[free]
            won = self.spread[position] == own
            self.offsets[position[won]] = offsets[rows[won]]
            lost = ~won
            rows, position = rows[lost], position[lost] + 1
        return rows

    def items(self, start: int = 0, stop: int | None = None) -> tuple[Hashes, Int64s]:
        """Living keys in a range of slots, by slot."""
        part = self.offsets[start:stop]
        live = np.flatnonzero(part >= 0)
        return self.spread[start:stop][live], part[live]

    def gap(self, start: int) -> tuple[int, int]:
        """The first empty slot from `start` on, and the least spread hash that may live behind it: all hashes in slots before are smaller.

        At the end of the table: its number of slots, and 2**64.
        """
        n_slots, n_homes = len(self.spread), int(self.n_homes)
        while start < n_homes:
            window = self.spread[start : start + 4096]
            empty = np.flatnonzero(window == _EMPTY)
            if len(empty) and start + int(empty[0]) < n_homes:
                slot = start + int(empty[0])
                return slot, (slot << 32) // n_homes + (1 if (slot << 32) % n_homes else 0) << 32
            start += len(window)
        return n_slots, 1 << 64

    def _home(self, spread: Hashes) -> Int64s:
        return (((spread >> _HALF) * self.n_homes) >> _HALF).view(np.int64)


def ascending(hashes: Hashes) -> Int64s:
    """Positions (n,) of hashes (n,) in ascending order; equal ones stay in their order.

    Cost: hashes in random order are counted into place by their first 16 bits, and the sort that follows finds them nearly in order: a
    fifth of the time of one sort.
    """
    if len(hashes) < _ROUGH_MIN:
        return np.argsort(hashes, kind="stable")
    rough = np.argsort((hashes >> _ROUGH).astype(np.uint16), kind="stable")
    return rough[np.argsort(hashes[rough], kind="stable")]


def build_table(spread: Hashes, offsets: Int64s, n_keys_max: int) -> KeyTable:
    """A table of distinct hashes, with room for `n_keys_max` keys.

    Sorted by home slot, key i lands at max(home[i], place of key i-1 + 1): one running maximum, no probing.
    """
    n_keys_max = max(n_keys_max, len(spread), _KEYS_MIN)
    n_homes = np.uint64(int(n_keys_max / LOAD_MAX) + 1)
    home = (((spread >> _HALF) * n_homes) >> _HALF).view(np.int64)
    if not bool((home[1:] >= home[:-1]).all()):
        order = np.argsort(home, kind="stable")
        spread, offsets, home = spread[order], offsets[order], home[order]
    step = np.arange(len(spread))
    position = np.maximum.accumulate(home - step) + step
    n_slots = max(int(n_homes), int(position[-1]) + 1 if len(position) else 0) + _SLACK
    table = KeyTable(np.zeros(n_slots, np.uint64), np.full(n_slots, MISSING, np.int64), n_homes, n_keys_max)
    table.spread[position] = spread
    table.offsets[position] = offsets
    return table
