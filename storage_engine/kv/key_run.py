"""Key run: spread hashes in ascending order with their offsets, every place taken, and a directory of their first bits.

Owner: kv.KeyIndex. The hashes of a run never change; offsets are replaced in place.
Holds: the last entry is a mark above all keys (hash 2**64 - 1, no offset), so that a search ends there; 16 B per key and 1 to 2 B for
       the directory. A merge goes in slices from small to large hashes, and gives back the memory of what it has read.
"""

from __future__ import annotations

import mmap
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from storage_engine.kv.key_table import MISSING, Hashes, Int64s, KeyTable

MARK: Final = np.uint64(2**64 - 1)
_CROWD_MAX: Final = 64
_CELL_KEYS_MAX: Final = 4
_WHOLE_STEPS: Final = 2
_CHUNK: Final = 1 << 20


class KeyRun(NamedTuple):
    """`spread` and `offsets` (n + 1,), mark included; `starts` (n_cells + 1,): where the keys of each cell begin.

    shift   a hash's cell is its first bits: spread >> shift
    crowd   keys of the fullest cell; where it is large (hashes are not random) the search is binary
    memory  where the arrays live, if they were made by a merge: parts of it can be given back
    """

    spread: Hashes
    offsets: Int64s
    starts: npt.NDArray[np.uint32]
    shift: np.uint64
    crowd: int
    memory: mmap.mmap | None = None

    @property
    def n_bytes(self) -> int:
        return self.spread.nbytes + self.offsets.nbytes + self.starts.nbytes

    def find(self, spread: Hashes) -> Int64s:
        """The place of each hash; of one that is not there, any place."""
        if self.crowd > _CROWD_MAX:
            return np.minimum(np.searchsorted(self.spread, spread), len(self.spread) - 1)
        position = self.starts.take((spread >> self.shift).view(np.int64)).astype(np.int64)
        for _ in range(min(_WHOLE_STEPS, self.crowd)):  # most keys are a step or two behind the start of their cell
            position += self.spread.take(position) < spread
        going = np.flatnonzero(self.spread.take(position) < spread)
        for _ in range(self.crowd - _WHOLE_STEPS):
            if len(going) == 0:
                break
            step = position[going] + 1
            position[going] = step
            going = going[self.spread[step] < spread[going]]
        return position

    def find_one(self, spread: int) -> int:
        """Offset of one spread hash."""
        position = self.starts.item(spread >> int(self.shift))
        hashes = self.spread
        for _ in range(self.crowd + 1):
            seen = hashes.item(position)
            if seen >= spread:
                return self.offsets.item(position) if seen == spread else MISSING
            position += 1
        return MISSING

    def release(self, stop: int) -> None:
        """Give back the memory of all entries before `stop`: they read as zeros from now on."""
        if self.memory is not None:
            page = mmap.PAGESIZE
            half = len(self.memory) // 2
            for start in (0, half):
                first, end = -(-start // page) * page, (start + 8 * stop) // page * page
                if end > first:
                    self.memory.madvise(mmap.MADV_DONTNEED, first, end - first)


def run_of(spread: Hashes, offsets: Int64s) -> KeyRun:
    """The run over entries (n + 1,) in ascending order, whose last one is the mark; the directory is counted in one pass."""
    n = len(spread) - 1
    assert n >= 0, "a run ends with its mark"
    assert int(spread[n]) == int(MARK), "a run ends with its mark"
    shift = shift_of(n)
    starts = np.zeros((1 << (64 - int(shift))) + 1, np.uint32)
    counts = starts[1:]
    for start in range(0, n, _CHUNK):
        cells = (spread[start : min(start + _CHUNK, n)] >> shift).view(np.int64)
        first = int(cells[0])
        part = np.bincount(cells - first)
        counts[first : first + len(part)] += part.astype(np.uint32)
    crowd = int(counts.max()) if len(counts) else 0
    np.cumsum(counts, dtype=np.uint32, out=counts)
    return KeyRun(spread, offsets, starts, shift, crowd)


def empty_run() -> KeyRun:
    """A run without keys: only its end mark, which searches stop at."""
    return run_of(np.array([MARK]), np.array([MISSING], np.int64))


def shift_of(n_keys: int) -> np.uint64:
    """How far to shift hashes of a run of this size: at least one cell for four keys, fewer than one for two."""
    return np.uint64(64 - max(1, int(np.ceil(np.log2(max(n_keys, 2) / _CELL_KEYS_MAX)))))


class SliceMerge:
    """One run out of a run and a table, slice by slice. `bound`: keys with smaller hashes are in `run` already, the others in the sources.

    The sources' hashes must stay as they are; offsets at or above the bound may change meanwhile.
    """

    def __init__(self, source: KeyRun, table: KeyTable) -> None:
        self._source, self._table = source, table
        self._slot = self._read = self._released = 0
        n_max = len(source.spread) + int(np.count_nonzero(table.spread)) + 1  # removed keys may come back
        self._memory = mmap.mmap(-1, 16 * n_max, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)  # lookups jump: large pages save half of their time
        self._spread = np.frombuffer(self._memory, np.uint64, n_max)
        self._offsets = np.frombuffer(self._memory, np.int64, n_max, 8 * n_max)
        self._spread[0], self._offsets[0] = MARK, MISSING
        shift = shift_of(n_max)
        starts = np.zeros((1 << (64 - int(shift))) + 1, np.uint32)
        self.run = KeyRun(self._spread[:1], self._offsets[:1], starts, shift, 0, self._memory)
        self.bound = 0

    def advance(self, n_keys: int) -> bool:
        """Merge about `n_keys` entries of the source, and what of the table lies between them; True when all is merged."""
        source, table = self._source, self._table
        step = max(1, n_keys * len(table.spread) // len(source.spread))
        slot, bound = table.gap(self._slot + step)
        is_last = bound >= 1 << 64
        read = len(source.spread) if is_last else int(np.searchsorted(source.spread, np.uint64(bound)))
        old, old_offsets = source.spread[self._read : read], source.offsets[self._read : read]
        live = old_offsets >= 0
        if not live.all():
            old, old_offsets = old[live], old_offsets[live]
        new, new_offsets = table.items(self._slot, slot)
        by_hash = np.argsort(new, kind="stable")  # nearly sorted: by home slot
        new, new_offsets = new[by_hash], new_offsets[by_hash]
        n = len(old) + len(new)
        new_at = old.searchsorted(new) + np.arange(len(new))
        is_old = np.ones(n, np.bool_)
        is_old[new_at] = False
        old_at = np.flatnonzero(is_old)
        start = len(self.run.spread) - 1
        stop = start + n
        spread, offsets = self._spread[start:stop], self._offsets[start:stop]
        offsets[old_at], offsets[new_at] = old_offsets, new_offsets
        self._spread[stop], self._offsets[stop] = MARK, MISSING
        spread[old_at], spread[new_at] = old, new  # overwrites the last mark: readers below the bound stop there as before
        crowd = max(self.run.crowd, self._fill_directory(spread, start, bound))
        self.run = self.run._replace(spread=self._spread[: stop + 1], offsets=self._offsets[: stop + 1], crowd=crowd)
        self._read, self._slot, self.bound = read, slot, bound
        return is_last

    def release(self) -> None:
        """Give back the source's memory of the slices before the last one."""
        self._source.release(self._released)
        self._released = self._read

    def rest(self) -> tuple[Hashes, Int64s, Hashes, Int64s]:
        """What is not merged: entries of the source with its mark, and living keys of the table."""
        return self._source.spread[self._read :], self._source.offsets[self._read :], *self._table.items(self._slot)

    def _fill_directory(self, spread: Hashes, start: int, bound: int) -> int:
        """Starts of the cells between the last bound and this one, for `spread` at `start`; the keys of the fullest of them so far."""
        shift, starts = self.run.shift, self.run.starts
        first, stop = (-(-edge >> int(shift)) for edge in (self.bound, bound))
        open_cell = self.bound >> int(shift)
        counts = np.bincount(((spread >> shift) - np.uint64(open_cell)).view(np.int64), minlength=stop - open_cell)
        before = np.cumsum(counts)
        starts[open_cell + 1 : stop] = start + before[: stop - open_cell - 1]
        if first == open_cell:
            starts[first] = start
        if bound >= 1 << 64:
            starts[-1] = start + len(spread)
        counts[0] += start - int(starts[open_cell])
        return int(counts.max())
