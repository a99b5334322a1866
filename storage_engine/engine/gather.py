"""Gather: rows of many frames read in one pass, by the addresses at which their values lie in memory.

Owner: engine/buckets.py, one RowGather per bucket and schema, all under one GatherBudget.
State: per frame the addresses of its columns' buffers (24 B per column), of a sparse one also of its offsets, and the batch that keeps
       them alive. Derived, dropped at any time.
Holds: an address is used only while the batch it belongs to is referenced, and only for rows that the batch has; batches come from
       frames that matched their checksums and whose buffers Arrow has validated against the body.
Never: holds a copy of a row. A batch that lies on the heap (decompressed, or read beyond the mapping) counts against the budget.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from storage_engine.log.log_file import FrameMoved

Int64s = npt.NDArray[np.int64]
LoadFrame = Callable[[Any], tuple[pa.RecordBatch, int, Int64s | None]]
"""Of an entry of the frame index: its rows, their bytes on the heap, and the offsets of a sparse frame's rows."""

GATHER_ROWS_MAX: Final = 2048
"""Larger reads take whole runs from each frame: cheaper per row."""

_PAGE: Final = 4096  # nothing is ever mapped below it
_WORDS: Final = 3  # of a column in a frame: validity bitmap (0: no nulls), values or offsets, bytes
_everything: Any = (ctypes.c_uint8 * ((1 << 47) - _PAGE)).from_address(_PAGE)
_memory = np.frombuffer(_everything, np.uint8)
_MEMORY: Final = {1 << shift: _memory[: len(_memory) >> shift << shift].view(f"u{1 << shift}") for shift in range(4)}


class GatherBudget:
    """Bytes that all gathers of a store hold; the least recently filled gives way."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held: OrderedDict[RowGather, int] = OrderedDict()
        self._lock = Lock()

    @property
    def n_bytes(self) -> int:
        return sum(self._held.values())

    def grew(self, gather: RowGather, n_bytes: int) -> None:
        with self._lock:
            self._held[gather] = n_bytes
            self._held.move_to_end(gather)
            while self.n_bytes > self._bytes_max and self._held:
                oldest, _ = self._held.popitem(last=False)
                oldest.clear()

    def forget(self, gather: RowGather) -> None:
        with self._lock:
            self._held.pop(gather, None)


class _Known:
    """Frames whose addresses are known. `positions` (s,) of the frames in the log, `words` (s, 3 * columns + 1), `batches` that hold them.

    The last word is that of a sparse frame's offsets; 0: the frame is dense.
    """

    def __init__(self, n_columns: int) -> None:
        self.slot_of_frame = np.full(64, -1, np.int64)
        self.positions = np.full(16, -1, np.int64)
        self.words = np.zeros((16, _WORDS * n_columns + 1), np.int64)
        self.batches: list[tuple[pa.RecordBatch, Int64s | None]] = []
        self.heap_bytes = 0

    @property
    def n_bytes(self) -> int:
        arrays = self.slot_of_frame.nbytes + self.positions.nbytes + self.words.nbytes
        return arrays + self.heap_bytes + 1024 * len(self.batches)


class RowGather:
    """Rows of one bucket in the columns of `schema`."""

    def __init__(self, schema: pa.Schema, budget: GatherBudget) -> None:
        """`is_possible`: every column has a width of 1, 2, 4 or 8 bytes, or is a string or binary column."""
        self.schema = schema
        self._budget = budget
        self._lock = Lock()
        self._known = _Known(len(schema))
        widths = [_width(field.type) for field in schema]
        self.is_possible = None not in widths
        self._by_width = [(w, np.flatnonzero([x == w for x in widths])) for w in (1, 2, 4, 8) if w in widths]
        self._texts = np.flatnonzero([w == 0 for w in widths])

    def clear(self) -> None:
        self._known = _Known(len(self.schema))

    def rows(self, entries: npt.NDArray[np.void], frames: Int64s, offsets: Int64s, load: LoadFrame) -> pa.RecordBatch | None:
        """Rows at `offsets` (n,), in that order; frames (n,) index `entries`, the bucket's frames. None: read them another way."""
        with self._lock:
            known = self._known
            slots = self._slots(known, entries, frames, load)
            words = None if slots is None else known.words[slots]
        if words is None:
            return None
        local = offsets - entries["base_offset"][frames]
        sparse = np.flatnonzero(words[:, -1])
        if len(sparse):
            local[sparse] = _rows_of(words[sparse, -1], entries["n_rows"][frames[sparse]].astype(np.int64), offsets[sparse])
        arrays: list[pa.Array | None] = [None] * len(self.schema)
        for width, columns in self._by_width:
            values = _MEMORY[width].take(words[:, _WORDS * columns + 1].T // width + local)
            for i, column in enumerate(columns.tolist()):
                arrays[column] = self._array(column, words, local, [pa.py_buffer(values[i])])
        if len(self._texts):
            self._gather_texts(arrays, words, local)
        del known  # its batches held the memory until here
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _gather_texts(self, arrays: list[pa.Array | None], words: Int64s, local: Int64s) -> None:
        """String columns: all their bytes are moved in one take."""
        n = len(local)
        at = words[:, _WORDS * self._texts + 1].T // 4 + local
        begins = _MEMORY[4].take(at).astype(np.int64)
        lengths = _MEMORY[4].take(at + 1) - begins
        offsets = np.zeros((len(self._texts), n + 1), np.int32)
        np.cumsum(lengths, axis=1, out=offsets[:, 1:])
        sources = (words[:, _WORDS * self._texts + 2].T + begins).reshape(-1)
        flat = lengths.reshape(-1)
        ends = np.cumsum(flat)
        total = int(ends[-1])
        index = np.repeat(sources - (ends - flat), flat)
        index += np.arange(total)
        data = pa.py_buffer(_MEMORY[1].take(index))
        start = 0
        for i, column in enumerate(self._texts.tolist()):
            size = int(offsets[i, -1])
            arrays[column] = self._array(column, words, local, [pa.py_buffer(offsets[i]), data.slice(start, size)])
            start += size

    def _array(self, column: int, words: Int64s, local: Int64s, buffers: list[pa.Buffer]) -> pa.Array:
        bitmaps = words[:, _WORDS * column]
        validity = None
        if bitmaps.any():
            is_valid = np.ones(len(local), np.bool_)
            some = np.flatnonzero(bitmaps)
            bits = _MEMORY[1].take(bitmaps[some] - _PAGE + (local[some] >> 3)) >> (local[some] & 7).astype(np.uint8)
            is_valid[some] = bits & 1
            validity = pa.py_buffer(np.packbits(is_valid, bitorder="little"))
        return pa.Array.from_buffers(self.schema.field(column).type, len(local), [validity, *buffers])

    # frames

    def _slots(self, known: _Known, entries: npt.NDArray[np.void], frames: Int64s, load: LoadFrame) -> Int64s | None:
        """The slot of each row's frame; frames not known yet are loaded. None when one cannot be gathered from."""
        if len(known.slot_of_frame) < len(entries):
            grown = np.full(2 * len(entries), -1, np.int64)
            grown[: len(known.slot_of_frame)] = known.slot_of_frame
            known.slot_of_frame = grown
        slots = known.slot_of_frame.take(frames)
        stale = (slots < 0) | (known.positions.take(slots, mode="clip") != entries["position"][frames])
        if stale.any():
            for frame in np.unique(frames[stale]).tolist():
                if not self._learn(known, frame, entries[frame], load):
                    self.is_possible = False
                    return None
            slots = known.slot_of_frame.take(frames)
            self._budget.grew(self, known.n_bytes)
        return slots

    def _learn(self, known: _Known, frame: int, entry: Any, load: LoadFrame) -> bool:
        batch, heap_bytes, offsets = load(entry)
        words: list[int] = []
        for field, column in zip(self.schema, batch.columns, strict=True):
            buffers = column.buffers()
            width = _width(field.type)
            assert width is not None, "asked before"
            if column.type != field.type or column.offset or buffers[1] is None or buffers[1].address % (width or 4):
                return False
            validity = 0 if column.null_count == 0 or buffers[0] is None else buffers[0].address
            data = buffers[2].address if width == 0 and buffers[2] is not None else _PAGE
            words += [validity, buffers[1].address - _PAGE, data - _PAGE]
        if offsets is not None:
            offsets = np.require(offsets, np.int64, ["A", "C"])
        words.append(0 if offsets is None or len(offsets) == 0 else (offsets.ctypes.data - _PAGE) // 8)
        slot = len(known.batches)
        if slot == len(known.positions):
            known.positions = np.r_[known.positions, np.full(slot, -1, np.int64)]
            known.words = np.r_[known.words, np.zeros_like(known.words)]
        known.batches.append((batch, offsets))
        known.words[slot] = words
        known.positions[slot] = entry["position"]
        known.slot_of_frame[frame] = slot
        known.heap_bytes += heap_bytes
        return True


def _rows_of(at: Int64s, n_rows: Int64s, offsets: Int64s) -> Int64s:
    """Where `offsets` (n,) stand among the n_rows (n,) ascending ones at word `at` (n,) of the memory: one binary search for all."""
    low, high = np.zeros(len(offsets), np.int64), n_rows.copy()
    while (going := low < high).any():
        middle = np.minimum((low + high) >> 1, n_rows - 1)
        is_less = going & (_MEMORY[8].take(at + middle).view(np.int64) < offsets)
        low = np.where(is_less, middle + 1, low)
        high = np.where(going & ~is_less, middle, high)
    found = _MEMORY[8].take(at + np.minimum(low, n_rows - 1)).view(np.int64)
    if not np.array_equal(found, offsets):
        raise FrameMoved("rows of a sparse frame are gone")
    return low


def _width(kind: pa.DataType) -> int | None:
    """Bytes of a value; 0: a string or binary value with 32-bit offsets; None: neither."""
    if types.is_string(kind) or types.is_binary(kind):
        return 0
    if types.is_boolean(kind) or types.is_nested(kind) or types.is_dictionary(kind):
        return None
    try:
        return width if (width := kind.bit_width // 8) in (1, 2, 4, 8) else None
    except ValueError:
        return None
