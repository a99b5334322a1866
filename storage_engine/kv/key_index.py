"""KeyIndex: 64-bit key hash -> changelog offset, in numpy arrays: most keys in a sorted run, those that came lately in a hash table.

Owner: kv.KvBucket, the only writer. Readers may call get() from other threads without a lock.
State: derived; rebuilt from the changelog, or from a copy of its arrays.
Holds: a hash has one place. A table that has grown to an eighth of the run is merged with it, a slice with each put, while a new table
       takes what comes: 21 B per key and less than 24 B during a merge, no put waits for a whole merge.
Never: sees keys. Two keys that share a hash are KvBucket's concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np

from storage_engine.kv.key_run import KeyRun, SliceMerge, empty_run, run_of
from storage_engine.kv.key_table import MISSING, Bools, Hashes, Int64s, KeyTable, ascending, build_table

__all__ = ["MISSING", "ArrayCopy", "Bools", "Hashes", "Int64s", "KeyCopy", "KeyIndex", "items_of", "nonzero", "spread_hashes", "unspread"]

SPREAD: Final = 0x9E3779B97F4A7C15
"""Odd, so that the product is a bijection: weak hashes spread, equal ones stay equal."""
_SPREAD = np.uint64(SPREAD)
_INVERSE = np.uint64(pow(SPREAD, -1, 1 << 64))
_MASK = (1 << 64) - 1

_TABLE_KEYS_MIN = 1 << 17  # up to here one table is enough
_TABLE_SHARE = 8
_SLICE_KEYS_MIN = 1 << 18  # 5 ms
_SLICE_KEYS_PER_PUT = 20
"""Entries merged per key put: a merge is over before the new table is half full."""


def nonzero(hashes: Hashes) -> Hashes:
    """Hashes an index can hold: 0 becomes 1, so that two keys which hash to 0 and 1 collide like any others."""
    return np.maximum(hashes, np.uint64(1))


def spread_hashes(hashes: Hashes) -> Hashes:
    """Hashes as the index orders them."""
    return hashes * _SPREAD


def unspread(spread: Hashes) -> Hashes:
    """The hashes whose spread form this is."""
    return spread * _INVERSE


class KeyCopy(Protocol):
    """An index at one moment; it stays as it is while the index goes on."""

    @property
    def n_sorted(self) -> int:
        """Entries in spread_pieces()."""
        ...

    @property
    def recent(self) -> tuple[Hashes, Int64s]:
        """Spread hashes (m,) and offsets (m,) of the keys that are not in the pieces, in no particular order."""
        ...

    def spread_pieces(self) -> Iterator[Hashes]:
        """Spread hashes, ascending over all pieces; the last one is a run's mark."""
        ...

    def offset_pieces(self) -> Iterator[Int64s]:
        """Their offsets; MISSING: removed."""
        ...


@dataclass(frozen=True)
class ArrayCopy:
    """A KeyCopy of arrays."""

    spread: Sequence[Hashes]
    offsets: Sequence[Int64s]
    recent: tuple[Hashes, Int64s]

    @property
    def n_sorted(self) -> int:
        return sum(map(len, self.spread))

    def spread_pieces(self) -> Iterator[Hashes]:
        return iter(self.spread)

    def offset_pieces(self) -> Iterator[Int64s]:
        return iter(self.offsets)


def items_of(copy: KeyCopy) -> tuple[Hashes, Int64s]:
    """All hashes of a copy and their offsets, in no particular order."""
    spread = np.concatenate([*copy.spread_pieces(), copy.recent[0]])
    offsets = np.concatenate([*copy.offset_pieces(), copy.recent[1]])
    live = np.flatnonzero(offsets >= 0)
    return unspread(spread[live]), offsets[live]


class _State(NamedTuple):
    """What readers take as one: `run`; `table` of recent keys; while a merge runs also `merged`, which holds the hashes below `bound`
    instead of `run` and `frozen`, the table that is being merged.
    """

    run: KeyRun
    table: KeyTable
    merged: KeyRun | None = None
    frozen: KeyTable | None = None
    bound: int = 0


Found = tuple[KeyRun | KeyTable, Int64s | None, Int64s]


class _Searched(NamedTuple):
    """Where hashes had their places, or had none: true as long as nothing has been put or merged since."""

    hashes: Hashes
    found: list[Found]
    absent: Int64s
    ends: Int64s


class KeyIndex:
    """Maps hashes to offsets, a batch at a time.

    Shapes: hashes (n,) uint64; put() and remove() need them distinct. Offsets are >= 0; MISSING (-1) answers "not there".
    Never 0: that marks an empty slot (see nonzero()).
    Threads: every state is read as a whole; who has read while it was replaced reads again.
    """

    def __init__(self) -> None:
        self._state = _State(empty_run(), _no_keys())
        self._merge: SliceMerge | None = None
        self._n_used = 0  # slots of the table that hold a hash
        self._n_removed = 0  # removed keys in the run, roughly
        self._n_keys = 0
        self._searched: _Searched | None = None

    @classmethod
    def from_items(cls, hashes: Hashes, offsets: Int64s) -> KeyIndex:
        """An index over distinct hashes and their offsets, as items() gave them."""
        index = cls()
        index.put(hashes, np.asarray(offsets, np.int64))
        return index

    @classmethod
    def from_copy(cls, copy: KeyCopy) -> KeyIndex:
        """The index that copy() saw. Of a copy in one piece the hashes are used where they are; they may be read only."""
        index = cls()
        pieces = list(copy.spread_pieces())
        spread = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        offsets = np.concatenate(list(copy.offset_pieces()))
        index._state = _State(run_of(spread, offsets), _no_keys())
        index._n_keys = int(np.count_nonzero(offsets >= 0))
        index._n_removed = len(offsets) - index._n_keys
        index._put(*copy.recent)
        return index

    @property
    def n_keys(self) -> int:
        return self._n_keys

    @property
    def n_bytes(self) -> int:
        """Bytes of memory held by the arrays; during a merge what has been read is given back."""
        state = self._state
        n_bytes = state.run.n_bytes + state.table.n_bytes
        if state.merged is not None and state.frozen is not None:
            n_bytes += state.frozen.n_bytes + 16 * (len(state.merged.spread) - 1) + state.merged.starts.nbytes
            if state.run.memory is not None:
                n_bytes -= 16 * int(np.searchsorted(state.run.spread, np.uint64(state.bound)))
        return n_bytes

    def get(self, hashes: Hashes) -> Int64s:
        """Offset of each hash, MISSING where there is none. Repeated hashes are allowed."""
        spread = hashes * _SPREAD
        while True:
            state = self._state
            try:
                offsets = _get(state, spread)
            except IndexError:
                if self._state is state:
                    raise
                continue  # arrays of a state that was replaced read as zeros once a merge has given them back: no mark ends a search
            if self._state is state:
                return offsets

    def get_one(self, key_hash: int) -> int:
        """As get(), for one hash."""
        spread = key_hash * SPREAD & _MASK
        while True:
            state = self._state
            try:
                offset = _get_one(state, spread)
            except IndexError:
                if self._state is state:
                    raise
                continue
            if self._state is state:
                return offset

    def get_to_put(self, hashes: Hashes) -> Int64s:
        """As get(), for the writer alone: if it puts the same hashes next, their places are not searched again."""
        found, absent, ends = _locate(self._state, hashes * _SPREAD)
        self._searched = _Searched(hashes, found, absent, ends)
        offsets = np.full(len(hashes), MISSING, np.int64)
        for place, rows, position in found:
            offsets[slice(None) if rows is None else rows] = place.offsets[position]
        return offsets

    def put(self, hashes: Hashes, offsets: Int64s) -> None:
        """Point each hash to its offset, whether it is there or not."""
        if len(hashes):
            self._put(hashes * _SPREAD, offsets, self._places_of(hashes))
            self._maintain(len(hashes))

    def remove(self, hashes: Hashes) -> None:
        """Forget these hashes; one that is not there is no error. Their places are reclaimed by the next merge."""
        if len(hashes) == 0:
            return
        self._searched = None
        found, _, _ = _locate(self._state, hashes * _SPREAD)
        for place, _, position in found:
            live = position[place.offsets[position] >= 0]
            place.offsets[live] = MISSING
            self._n_keys -= len(live)
            self._n_removed += len(live) if isinstance(place, KeyRun) else 0
        self._maintain(len(hashes))

    def items(self) -> tuple[Hashes, Int64s]:
        """All hashes and their offsets, in no particular order."""
        return items_of(self._parts())

    def offsets(self) -> Int64s:
        """All offsets, in no particular order."""
        copy = self._parts()
        return np.concatenate([part[part >= 0] for part in (*copy.offsets, copy.recent[1])])

    def copy(self) -> ArrayCopy:
        """The index as it is now. The writer must not write meanwhile; afterwards it may. Cost: one copy of the offsets."""
        parts = self._parts()
        return ArrayCopy(parts.spread, [part.copy() for part in parts.offsets], parts.recent)

    def _parts(self) -> ArrayCopy:
        state = self._state
        recent, recent_offsets = state.table.items()
        if self._merge is None or state.merged is None:
            return ArrayCopy([state.run.spread], [state.run.offsets], (recent, recent_offsets))
        # a copy outlives the merge, which gives the source's memory back: the rest is copied
        spread, offsets, other, other_offsets = self._merge.rest()
        merged = state.merged
        return ArrayCopy(
            [merged.spread[:-1], spread.copy()],
            [merged.offsets[:-1], offsets],
            (np.concatenate([recent, other]), np.concatenate([recent_offsets, other_offsets])),
        )

    def _places_of(self, hashes: Hashes) -> _Searched | None:
        """What the last search found, if it was for these hashes and nothing has changed since."""
        searched, self._searched = self._searched, None
        return searched if searched is not None and np.array_equal(searched.hashes, hashes) else None

    def _put(self, spread: Hashes, offsets: Int64s, searched: _Searched | None = None) -> None:
        found, absent, position = searched[1:] if searched else _locate(self._state, spread)
        for place, rows, at in found:
            n_revived = int(np.count_nonzero(place.offsets[at] < 0))
            if n_revived:
                self._n_keys += n_revived
                self._n_removed -= n_revived if isinstance(place, KeyRun) else 0
            place.offsets[at] = offsets if rows is None else offsets[rows]
        if len(absent):
            self._insert(spread[absent], offsets[absent], position)

    def _insert(self, spread: Hashes, offsets: Int64s, position: Int64s) -> None:
        """Add hashes that have no place; `position` (n,): the empty slots where their chains in the table end."""
        self._n_keys += len(spread)
        if self._n_used + len(spread) > self._state.table.n_used_max:
            if self._merge is None and self._n_used + len(spread) > self._table_keys_max:
                self._begin_merge()
            self._grow(spread, offsets)
            return
        table = self._state.table
        self._n_used += len(spread)
        left = table.insert(spread, offsets, position)
        if len(left):
            self._n_used -= len(left)
            self._grow(spread[left], offsets[left])

    def _grow(self, spread: Hashes, offsets: Int64s) -> None:
        """A new table of what lives in the present one, and these: twice as large, or what it may hold before it is merged."""
        held, held_offsets = self._state.table.items()
        n_keys = len(held) + len(spread)
        n_max = self._table_keys_max
        if len(self._state.run.spread) == 1 and self._merge is None:
            n_max = min(2 * n_keys, n_max)  # a small index: one table
        elif self._merge is not None and n_max > _TABLE_KEYS_MIN:
            n_max //= 2  # enough until the merge is over
        order = ascending(spread)  # what is held lies in order, nearly
        spread, offsets = spread[order], offsets[order]
        table = build_table(np.concatenate([held, spread]), np.concatenate([held_offsets, offsets]), max(n_keys, n_max))
        self._n_used = n_keys
        self._state = self._state._replace(table=table)

    # merging

    @property
    def _table_keys_max(self) -> int:
        return max(_TABLE_KEYS_MIN, len(self._state.run.spread) // _TABLE_SHARE)

    def _maintain(self, n_keys: int) -> None:
        """After `n_keys` were put or removed: go on with a merge under way, or begin one: for many removed keys, or after a large put."""
        if self._merge is None:
            is_wasteful = self._n_removed > max(_TABLE_KEYS_MIN, len(self._state.run.spread) // 4)
            if not is_wasteful and self._n_used <= self._table_keys_max:
                return
            self._begin_merge()
        self._advance(max(_SLICE_KEYS_MIN, _SLICE_KEYS_PER_PUT * n_keys))

    def _begin_merge(self) -> None:
        run, table = self._state.run, self._state.table
        self._merge = SliceMerge(run, table)
        self._n_used = self._n_removed = 0
        self._state = _State(run, _no_keys(), self._merge.run, table)

    def _advance(self, n_keys: int) -> None:
        merge, state = self._merge, self._state
        assert merge is not None, "a merge is under way"
        if merge.advance(n_keys):
            self._merge = None
            self._state = _State(merge.run, state.table)
        else:
            self._state = state._replace(merged=merge.run, bound=merge.bound)
            merge.release()


def _no_keys() -> KeyTable:
    return build_table(np.empty(0, np.uint64), np.empty(0, np.int64), 0)


def _get(state: _State, spread: Hashes) -> Int64s:
    run, table = state.run, state.table
    if state.merged is None:
        if len(run.spread) == 1 and run.offsets.item(0) < 0:
            return table.offsets[table.find(spread)]
        position = run.find(spread)
        is_present = run.spread[position] == spread
        offsets = run.offsets[position]
        if is_present.all():
            return offsets
        rest = np.flatnonzero(~is_present)
        offsets[rest] = table.offsets[table.find(spread[rest])]
        return offsets
    offsets = np.full(len(spread), MISSING, np.int64)
    for place, rows, position in _locate(state, spread)[0]:
        offsets[slice(None) if rows is None else rows] = place.offsets[position]
    return offsets


def _get_one(state: _State, spread: int) -> int:
    if state.merged is None or state.frozen is None:
        offset = state.run.find_one(spread)
    elif spread < state.bound:
        offset = state.merged.find_one(spread)
    elif (offset := state.run.find_one(spread)) < 0:
        offset = state.frozen.find_one(spread)
    return state.table.find_one(spread) if offset < 0 else offset


def _locate(state: _State, spread: Hashes) -> tuple[list[Found], Int64s, Int64s]:
    """Where hashes (n,) have their places, removed keys included.

    Shapes: per run or table the rows (k,) found there (None: all) and their positions (k,); rows (m,) that are nowhere, and the
            positions (m,) of the empty slots of `table` where their chains end.
    """
    found: list[Found] = []
    ends = np.empty(0, np.int64)

    def search(place: KeyRun | KeyTable, rows: Int64s | None) -> Int64s:
        nonlocal ends
        own = spread if rows is None else spread[rows]
        position = place.find(own)
        is_present = place.spread[position] == own
        if is_present.all():
            found.append((place, rows, position))
            return np.empty(0, np.int64)
        at = np.flatnonzero(is_present)
        if len(at):
            found.append((place, at if rows is None else rows[at], position[at]))
        absent = np.flatnonzero(~is_present)
        ends = position[absent]
        return absent if rows is None else rows[absent]

    if state.merged is None or state.frozen is None:
        rest = search(state.run, None)
    else:
        is_merged = spread < np.uint64(state.bound)
        below, above = np.flatnonzero(is_merged), np.flatnonzero(~is_merged)
        rest = np.concatenate([search(state.merged, below), search(state.frozen, search(state.run, above))])
    if len(rest):
        rest = search(state.table, rest)
    return found, rest, ends
