"""Gather: rows of many frames read in one pass, by the addresses at which their values lie in memory.

Owner: engine/buckets.py, one RowGather per bucket and schema, all under one GatherBudget.
State: per frame where its columns' buffers lie (16 to 24 B per column), and the batch that keeps them alive. Derived, dropped at any time.
Holds: an address is used only while the batch it belongs to is referenced, and only for rows that the batch has; batches come from
       frames that matched their checksums and whose buffers Arrow has validated against the body.
Never: holds a copy of a row. A batch that lies on the heap (decompressed, or read beyond the mapping) counts against the budget.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from storage_engine.log.log_file import FrameMoved
from storage_engine.log.message_template import ColumnBuffers, MessageTemplate

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
LoadFrame = Callable[[Any], tuple[pa.RecordBatch, int, Int64s | None]]
"""Of an entry of the frame index: its rows, their bytes on the heap, and the offsets of a sparse frame's rows."""
_View = tuple[memoryview | None, memoryview, memoryview | None]  # validity bitmap, numbers or offsets, texts

GATHER_ROWS_MAX: Final = 2048
"""Larger reads take whole runs from each frame, which is cheaper per row, unless their rows lie far apart."""

_SMALL_ROWS: Final = 1024
_TO_BINARY: Final = pc.CastOptions(pa.binary())
_VIEW_CODES: Final = {"float": "f", "double": "d"}
_PAGE: Final = 4096  # nothing is ever mapped below it
_INLINE_BYTES: Final = 12  # a text of at most so many bytes lies inside its view (Arrow's BinaryView layout)
_REACH: Final = (1 << 31) - 1  # an offset of a view, and the bytes of one text column
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


class _Reach(NamedTuple):
    """Where the texts of all known frames lie in memory, the bytes of the largest column, whether some are at most _INLINE_BYTES long."""

    low: int
    high: int
    column_bytes_max: int
    has_short: bool


class _Known:
    """Frames whose addresses are known, one slot (column of the arrays) each.

    slot_of_frame (f,) by place in the bucket's index, a guess: that moves when frames before it go; slots by position in the log
    positions (s,) of the frames in the log; values[w] (columns of width w, s): where _MEMORY[w] holds the first value;
    text_offsets (t, s): where _MEMORY[4] holds the first offset; text_bytes (t, s): where _MEMORY[1] holds byte 0;
    bitmaps (all columns, s): where _MEMORY[1] holds the validity bitmap, -1 without nulls.
    """

    def __init__(self, by_width: dict[int, Int64s], n_texts: int, n_columns: int) -> None:
        self.slot_of_frame = np.full(64, -1, np.int64)
        self.slots: dict[int, int] = {}
        self.positions = np.full(16, -1, np.int64)
        self.values = {width: np.zeros((len(columns), 16), np.int64) for width, columns in by_width.items()}
        self.text_offsets = np.zeros((n_texts, 16), np.int64)
        self.text_bytes = np.zeros((n_texts, 16), np.int64)
        self.bitmaps = np.full((n_columns, 16), -1, np.int64)
        self.has_nulls = False
        self.has_short_texts = False
        self.texts: list[tuple[int, int, int]] = []  # where the text bytes of each frame lie, and the most of one column
        self.reach = _Reach(1 << 62, 0, 0, has_short=False)
        self.batches: list[pa.RecordBatch] = []
        self.sparse: dict[int, Int64s] = {}  # slot of a sparse frame -> offsets of its rows
        self.views: list[list[_View] | None] = []
        self.heap_bytes: list[int] = []

    @property
    def n_bytes(self) -> int:
        arrays = (self.slot_of_frame, self.positions, *self.values.values(), self.text_offsets, self.text_bytes, self.bitmaps)
        return sum(array.nbytes for array in arrays) + sum(self.heap_bytes) + (1024 + 512 * self.bitmaps.shape[0]) * len(self.batches)

    def new_slot(self) -> int:
        slot = len(self.batches)
        if slot == len(self.positions):
            self.positions = _doubled(self.positions)
            self.values = {width: _doubled(starts) for width, starts in self.values.items()}
            self.text_offsets, self.text_bytes = _doubled(self.text_offsets), _doubled(self.text_bytes)
            self.bitmaps = _doubled(self.bitmaps)
        return slot

    def extend_reach(self, low: int, high: int, column_bytes: int) -> None:
        """The text bytes of one more frame."""
        reach = self.reach
        self.reach = _Reach(min(reach.low, low), max(reach.high, high), max(reach.column_bytes_max, column_bytes), self.has_short_texts)

    def only(self, positions: Int64s) -> _Known:
        """What is known of the frames at these positions; this one stays as it is, for those who read by it now, or learn."""
        kept = np.flatnonzero(np.isin(self.positions[: len(self.batches)], positions))
        at = np.zeros(max(len(kept), 16), np.int64)
        at[: len(kept)] = kept
        other = copy(self)
        other.slot_of_frame = np.full(64, -1, np.int64)
        other.positions = self.positions[at]
        other.values = {width: starts[:, at] for width, starts in self.values.items()}
        other.text_offsets, other.text_bytes, other.bitmaps = self.text_offsets[:, at], self.text_bytes[:, at], self.bitmaps[:, at]
        chosen = kept.tolist()
        other.slots = {int(position): slot for slot, position in enumerate(self.positions[kept])}
        other.sparse = {slot: self.sparse[old] for slot, old in enumerate(chosen) if old in self.sparse}
        for name in ("batches", "views", "heap_bytes", "texts"):
            setattr(other, name, [getattr(self, name)[slot] for slot in chosen])
        other.reach = _Reach(1 << 62, 0, 0, self.has_short_texts)
        for texts in other.texts:
            other.extend_reach(*texts)
        return other


class RowGather:
    """Rows of one bucket in the columns of `schema`."""

    def __init__(self, schema: pa.Schema, budget: GatherBudget) -> None:
        """`is_possible`: every column has a width of 1, 2, 4 or 8 bytes, or is a string or binary column."""
        self.schema = schema
        self._types = [field.type for field in schema]
        self._budget = budget
        self._lock = Lock()
        widths = [_width(kind) for kind in self._types]
        self.is_possible = None not in widths
        self._by_width = {w: np.flatnonzero([x == w for x in widths]) for w in (1, 2, 4, 8) if w in widths}
        self._texts = np.flatnonzero([w == 0 for w in widths])
        self._known = self._nothing_known()
        self._template = MessageTemplate(schema)

    def _nothing_known(self) -> _Known:
        return _Known(self._by_width, len(self._texts), len(self.schema))

    def clear(self) -> None:
        self._known = self._nothing_known()

    def keep(self, positions: Int64s) -> None:
        """Let go of all frames but those at these positions of the log."""
        self._known = self._known.only(positions)

    def columns(self, entries: npt.NDArray[np.void], frames: Int64s, offsets: Int64s, load: LoadFrame) -> list[ColumnBuffers] | None:
        """Rows at `offsets` (n,), in that order, as the buffers of their columns. None: read them another way.

        Shapes: n at least 1; frames (n,) index `entries`, the bucket's frames.
        """
        with self._lock:
            known = self._known
            slots = self._slots(known, entries, frames, load)
            if slots is None:
                return None
            value_starts = [(columns, width, known.values[width].take(slots, axis=1)) for width, columns in self._by_width.items()]
            text_starts, text_bytes = known.text_offsets.take(slots, axis=1), known.text_bytes.take(slots, axis=1)
            bitmaps = known.bitmaps.take(slots, axis=1) if known.has_nulls else None
            reach = known.reach
            sparse = known.sparse
            batches = known.batches  # hold the memory until the rows are copied; clear() replaces the list, it does not empty it
        local = offsets - entries["base_offset"][frames]
        if sparse:
            _place_sparse(local, slots, offsets, sparse)
        columns: list[ColumnBuffers | None] = [None] * len(self._types)
        for members, width, at in value_starts:
            at += local
            values = _MEMORY[width].take(at)
            for i, column in enumerate(members.tolist()):
                columns[column] = ColumnBuffers(*_validity(bitmaps, column, local), (values[i],))
        if len(self._texts):
            texts = _gathered_texts(text_starts, text_bytes, local, reach)
            if texts is None:
                return None
            for column, parts in zip(self._texts.tolist(), texts, strict=True):
                columns[column] = ColumnBuffers(*_validity(bitmaps, column, local), parts)
        del batches
        return columns  # type: ignore[return-value]  # every column is in one of the groups

    def rows(self, entries: npt.NDArray[np.void], frames: Int64s, offsets: Int64s, load: LoadFrame) -> pa.RecordBatch | None:
        """As columns(), as a record batch."""
        columns = self.columns(entries, frames, offsets, load)
        if columns is None:
            return None
        if len(offsets) <= _SMALL_ROWS:  # copying a few kilobytes takes less time than making arrays one by one
            return pa.ipc.read_record_batch(pa.py_buffer(b"".join(self._template.parts(len(offsets), columns))), self.schema)
        arrays = [
            pa.Array.from_buffers(
                kind, len(offsets), [None if validity is None else pa.py_buffer(validity), *map(pa.py_buffer, data)], null_count=n_nulls
            )
            for kind, (n_nulls, validity, data) in zip(self._types, columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def values(self, entries: npt.NDArray[np.void], offset: int, load: LoadFrame) -> list[Any] | None:
        """The row at one offset as Python values, numbers as stored, texts as bytes. None: read it another way."""
        frame = bisect_right(entries["end_offset"], offset)
        base_offset, _, position, *_ = entries[frame].item()
        with self._lock:
            known = self._known
            slot = known.slot_of_frame.item(frame) if frame < len(known.slot_of_frame) else -1
            if slot < 0 or known.positions.item(slot) != position:
                if self._slots(known, entries, np.array([frame]), load) is None:
                    return None
                slot = known.slot_of_frame.item(frame)
            views = known.views[slot]
            if views is None:
                views = known.views[slot] = _views(known.batches[slot])
            held = known.sparse.get(slot)
        row = offset - base_offset
        if held is not None:
            row = int(np.searchsorted(held, offset))
            if row == len(held) or held.item(row) != offset:
                raise FrameMoved("a row of a sparse frame is gone")
        values: list[Any] = []
        for bitmap, stored, texts in views:
            if bitmap is not None and not bitmap[row >> 3] >> (row & 7) & 1:
                values.append(None)
            elif texts is None:
                values.append(stored[row])
            else:
                values.append(bytes(texts[stored[row] : stored[row + 1]]))
        return values

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
                entry = entries[frame]
                slot = known.slots.get(int(entry["position"]))
                if slot is None and (slot := self._learn(known, entry, load)) is None:
                    self.is_possible = False
                    return None
                known.slot_of_frame[frame] = slot
            slots = known.slot_of_frame.take(frames)
            self._budget.grew(self, known.n_bytes)
        return slots

    def _learn(self, known: _Known, entry: Any, load: LoadFrame) -> int | None:
        """The slot of a frame that is loaded now; None when its rows cannot be gathered."""
        batch, heap_bytes, offsets = load(entry)
        buffers = [column.buffers() for column in batch.columns]
        for kind, column, parts in zip(self._types, batch.columns, buffers, strict=True):
            width = _width(kind)
            assert width is not None, "asked before"
            if column.type != kind or column.offset or parts[1] is None or parts[1].address % (width or 4):
                return None
        slot = known.new_slot()
        for width, columns in self._by_width.items():
            known.values[width][:, slot] = [(buffers[column][1].address - _PAGE) // width for column in columns.tolist()]
        texts = self._texts.tolist()
        known.text_offsets[:, slot] = [(buffers[column][1].address - _PAGE) // 4 for column in texts]
        known.text_bytes[:, slot] = [buffers[column][2].address - _PAGE if buffers[column][2] is not None else 0 for column in texts]
        low, high, longest = 1 << 62, 0, 0
        for column in texts:
            size = 0 if buffers[column][2] is None else buffers[column][2].size
            lengths = np.diff(np.frombuffer(buffers[column][1], np.int32, batch.num_rows + 1))
            known.has_short_texts |= bool((lengths <= _INLINE_BYTES).any())
            if size:
                at = buffers[column][2].address - _PAGE
                low, high, longest = min(low, at), max(high, at + size), max(longest, size)
        known.texts.append((low, high, longest))
        known.extend_reach(low, high, longest)
        has_nulls = [column.null_count > 0 for column in batch.columns]
        known.bitmaps[:, slot] = [parts[0].address - _PAGE if some else -1 for parts, some in zip(buffers, has_nulls, strict=True)]
        known.has_nulls |= any(has_nulls)
        if offsets is not None:
            known.sparse[slot] = offsets
        known.views.append(None)
        known.positions[slot] = entry["position"]
        known.slots[int(entry["position"])] = slot
        known.heap_bytes.append(heap_bytes)
        known.batches.append(batch)  # last: only() takes the slots that are whole
        return slot


def _place_sparse(local: Int64s, slots: Int64s, offsets: Int64s, sparse: dict[int, Int64s]) -> None:
    """Put into `local` (n,) the places of rows in sparse frames: one search per frame. Errors: FrameMoved when a row is gone."""
    for slot in np.unique(slots).tolist():
        held = sparse.get(slot)
        if held is not None:
            at = np.flatnonzero(slots == slot)
            place = np.searchsorted(held, offsets[at])
            if len(held) == 0 or not np.array_equal(held[np.minimum(place, len(held) - 1)], offsets[at]):
                raise FrameMoved("rows of a sparse frame are gone")
            local[at] = place


def _views(batch: pa.RecordBatch) -> list[_View]:
    views = []
    for column in batch.columns:
        bitmap, stored, *texts = column.buffers()
        width = _width(column.type) or 4
        code: Any = _VIEW_CODES.get(str(column.type)) or {1: "b", 2: "h", 4: "i", 8: "q"}[width]
        numbers = memoryview(stored)[: stored.size - stored.size % width].cast(code)
        held = None if column.null_count == 0 or bitmap is None else memoryview(bitmap)
        views.append((held, numbers, None if not texts else memoryview(texts[0]) if texts[0] is not None else memoryview(b"")))
    return views


def _doubled(array: Int64s) -> Int64s:
    return np.concatenate([array, np.full_like(array, -1)], axis=-1)


def _validity(bitmaps: Int64s | None, column: int, local: Int64s) -> tuple[int, npt.NDArray[np.uint8] | None]:
    """Number of nulls and validity bitmap of a gathered column; None without nulls."""
    if bitmaps is None or not (some := np.flatnonzero(bitmaps[column] >= 0)).size:
        return 0, None
    is_valid = np.ones(len(local), np.uint8)
    is_valid[some] = _MEMORY[1].take(bitmaps[column][some] + (local[some] >> 3)) >> (local[some] & 7).astype(np.uint8) & 1
    n_nulls = len(is_valid) - int(np.count_nonzero(is_valid))
    return n_nulls, np.packbits(is_valid, bitorder="little") if n_nulls else None


def _gathered_texts(starts: Int64s, first_bytes: Int64s, local: Int64s, reach: _Reach) -> list[tuple[Int32s, memoryview]] | None:
    """Offsets (n + 1,) and bytes of each of t text columns. None: together they are too large.

    Shapes: starts and first_bytes (t, n): where the offsets and the bytes of each row's frame begin.
    Short texts are read byte by byte. Of longer ones each becomes a view (length, prefix, buffer, offset) of the memory it lies in;
    Arrow copies all of them in one pass.
    """
    starts += local
    begins = _MEMORY[4].take(starts)
    starts += 1
    lengths = (_MEMORY[4].take(starts) - begins).reshape(-1)
    if len(lengths) * reach.column_bytes_max > _REACH and int(lengths.sum(dtype=np.int64)) > _REACH:
        return None
    first_bytes += begins
    sources = first_bytes.reshape(-1)
    n_bytes = int(lengths.sum(dtype=np.int64)) if reach.has_short else _REACH
    if n_bytes <= _INLINE_BYTES * len(lengths):
        offsets = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        at = np.repeat(sources - offsets[:-1], lengths)
        at += np.arange(n_bytes)
        return _cut(offsets, _MEMORY[1].take(at).data, len(starts))
    views = np.empty((len(lengths), 4), np.uint32)
    views[:, 0] = lengths
    if reach.high - reach.low <= _REACH:
        views[:, 2] = 0
        views[:, 3] = sources - reach.low
        windows = [reach.low]
    else:
        at, window_of = np.unique(sources >> 30, return_inverse=True)
        views[:, 2] = window_of
        views[:, 3] = sources & ((1 << 30) - 1)
        windows = (at << 30).tolist()
    if reach.has_short and len(short := np.flatnonzero((lengths <= _INLINE_BYTES) & (lengths > 0))):
        n_bytes = lengths[short].astype(np.int64)
        at = sources[short, None] + np.minimum(np.arange(_INLINE_BYTES), n_bytes[:, None] - 1)  # never a byte behind the text
        views.view(np.uint8)[short, 4:16] = _MEMORY[1].take(at)
    memory = [pa.foreign_buffer(_PAGE + window, _REACH, base=_everything) for window in windows]
    viewed = pa.Array.from_buffers(pa.binary_view(), len(lengths), [None, pa.py_buffer(views), *memory])
    _, places, data = pc.call_function("cast", [viewed], _TO_BINARY).buffers()
    offsets = np.frombuffer(places, np.int32, len(lengths) + 1)
    return _cut(offsets, memoryview(data) if data is not None else memoryview(b""), len(starts))


def _cut(offsets: Int32s, held: memoryview, n_columns: int) -> list[tuple[Int32s, memoryview]]:
    """Offsets and bytes of each of several text columns that lie one behind the other."""
    n = (len(offsets) - 1) // n_columns
    columns = []
    for i in range(n_columns):
        own = offsets[i * n : (i + 1) * n + 1]
        first, last = own.item(0), own.item(n)
        columns.append((own - own[0] if first else own, held[first:last]))
    return columns


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
