"""KeyIndex: 64-bit key hash -> changelog offset, in two numpy arrays (open addressing, linear probing).

Owner: kv.KvBucket, the only writer. Readers may call get() from other threads without a lock.
State: derived; rebuilt from the changelog or from a checkpoint's arrays.
Holds: at most one offset per hash; every probe ends, because the last slot stays empty; 16 B per slot, load at most 0.6.
Never: sees keys. Two keys that share a hash are KvBucket's concern.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MISSING: Final = -1

_EMPTY = np.uint64(0)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the product is a bijection: weak hashes spread, equal ones stay equal
_SLACK = 64
_BITS_MIN = 6
_LOAD_MAX = 0.6
_LOAD_BUILT = 0.42  # a rebuilt table has at most this load: it at least doubles when it grows


def nonzero(hashes: Hashes) -> Hashes:
    """Hashes an index can hold: 0 becomes 1, so that two keys which hash to 0 and 1 collide like any others."""
    return np.maximum(hashes, np.uint64(1))


class _Slots(NamedTuple):
    """`hashes` 0 marks an empty slot; `offsets` -1 under a hash marks a removed key."""

    hashes: Hashes
    offsets: Int64s
    shift: np.uint64
    n_used_max: int


class KeyIndex:
    """Maps hashes to offsets, a batch at a time.

    Shapes: hashes (n,) uint64; put() and remove() need them distinct. Offsets are >= 0; MISSING (-1) answers "not there".
    Never 0: that marks an empty slot (see nonzero()).
    Cost: about 10 M keys/s for batches of 10,000; growing re-inserts all keys in one vectorised pass (no probing).
    """

    def __init__(self) -> None:
        self._slots = _build(np.empty(0, np.uint64), np.empty(0, np.int64))
        self._n_used = 0
        self._n_keys = 0

    @classmethod
    def from_items(cls, hashes: Hashes, offsets: Int64s) -> KeyIndex:
        """An index over distinct hashes and their offsets, as items() gave them."""
        index = cls()
        index._replace(hashes, np.asarray(offsets, np.int64))
        return index

    @property
    def n_keys(self) -> int:
        return self._n_keys

    @property
    def n_bytes(self) -> int:
        """Bytes of memory held by the table."""
        return self._slots.hashes.nbytes + self._slots.offsets.nbytes

    def get(self, hashes: Hashes) -> Int64s:
        """Offset of each hash, MISSING where there is none. Repeated hashes are allowed."""
        slots = self._slots
        return slots.offsets[_probe(slots, hashes)]

    def get_one(self, key_hash: int) -> int:
        """As get(), for one hash."""
        slots = self._slots
        position = (key_hash * int(_SPREAD) & 0xFFFFFFFFFFFFFFFF) >> int(slots.shift)
        while (seen := slots.hashes.item(position)) != key_hash:
            if seen == 0:
                return MISSING
            position += 1
        return slots.offsets.item(position)

    def put(self, hashes: Hashes, offsets: Int64s) -> None:
        """Point each hash to its offset, whether it is there or not."""
        if len(hashes) == 0:
            return
        slots = self._slots
        position = _probe(slots, hashes)
        is_present = slots.hashes[position] == hashes
        if is_present.all():
            self._n_keys += int(np.count_nonzero(slots.offsets[position] < 0))
            slots.offsets[position] = offsets
            return
        present = position[is_present]
        self._n_keys += int(np.count_nonzero(slots.offsets[present] < 0))
        slots.offsets[present] = offsets[is_present]
        added = np.flatnonzero(~is_present)
        if self._n_used + len(added) > slots.n_used_max:
            self._grow(hashes[added], offsets[added])
        else:
            self._insert(hashes[added], offsets[added], position[added])

    def remove(self, hashes: Hashes) -> None:
        """Forget these hashes; one that is not there is no error. Their slots are reclaimed when the table is rebuilt."""
        slots = self._slots
        position = _probe(slots, hashes)
        live = position[slots.offsets[position] >= 0]
        slots.offsets[live] = MISSING
        self._n_keys -= len(live)

    def items(self) -> tuple[Hashes, Int64s]:
        """All hashes and their offsets, in no particular order."""
        slots = self._slots
        live = np.flatnonzero(slots.offsets >= 0)
        return slots.hashes[live], slots.offsets[live]

    def offsets(self) -> Int64s:
        """All offsets, in no particular order."""
        offsets = self._slots.offsets
        return offsets[offsets >= 0]

    def _insert(self, hashes: Hashes, offsets: Int64s, position: Int64s) -> None:
        """Place absent hashes, each from an empty slot onward; the loser of a contested slot moves on by one."""
        slots = self._slots
        self._n_used += len(hashes)
        self._n_keys += len(hashes)
        while len(hashes):
            free = slots.hashes[position] == _EMPTY
            slots.hashes[position[free]] = hashes[free]
            won = slots.hashes[position] == hashes
            slots.offsets[position[won]] = offsets[won]
            lost = ~won
            hashes, offsets, position = hashes[lost], offsets[lost], position[lost] + 1
            if len(position) and position.max() >= len(slots.hashes) - 1:
                self._n_used -= len(hashes)
                self._n_keys -= len(hashes)
                self._grow(hashes, offsets)
                return

    def _grow(self, hashes: Hashes, offsets: Int64s) -> None:
        held_hashes, held_offsets = self.items()
        self._replace(np.concatenate([held_hashes, hashes]), np.concatenate([held_offsets, offsets]))

    def _replace(self, hashes: Hashes, offsets: Int64s) -> None:
        self._slots = _build(hashes, offsets)
        self._n_used = self._n_keys = len(hashes)


def _home(hashes: Hashes, shift: np.uint64) -> Int64s:
    return ((hashes * _SPREAD) >> shift).view(np.int64)


def slot_order(hashes: Hashes) -> Int64s:
    """The order in which an index of any size takes these keys without sorting them again."""
    return np.argsort(hashes * _SPREAD)


def _build(hashes: Hashes, offsets: Int64s) -> _Slots:
    """A table of distinct hashes. Sorted by home slot, key i lands at max(home[i], place of key i-1 + 1): one running maximum."""
    bits = max(_BITS_MIN, int(np.ceil(np.log2(max(1, len(hashes)) / _LOAD_BUILT))))
    shift = np.uint64(64 - bits)
    home = _home(hashes, shift)
    is_ordered = bool((home[1:] >= home[:-1]).all())
    order = slice(None) if is_ordered else np.argsort(home, kind="stable")
    step = np.arange(len(hashes))
    position = np.maximum.accumulate(home[order] - step) + step
    n_slots = max(1 << bits, int(position[-1]) + 1 if len(position) else 0) + _SLACK
    table = _Slots(np.zeros(n_slots, np.uint64), np.full(n_slots, MISSING, np.int64), shift, int((1 << bits) * _LOAD_MAX))
    table.hashes[position] = hashes[order]
    table.offsets[position] = offsets[order]
    return table


def _probe(slots: _Slots, hashes: Hashes) -> Int64s:
    """The slot of each hash, or the empty slot where its chain ends."""
    position = _home(hashes, slots.shift)
    seen = slots.hashes[position]
    going = np.flatnonzero((seen != hashes) & (seen != _EMPTY))
    while len(going):
        step = position[going] + 1
        position[going] = step
        seen = slots.hashes[step]
        going = going[(seen != hashes[going]) & (seen != _EMPTY)]
    return position
