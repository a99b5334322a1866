"""Rows: fetch stored rows by offset. A changelog is the value store, so this is how a primary-key table reads its values.

Owner: engine/buckets.py, one RowReader per store.
State: a cache of decoded frames, bounded in bytes; derived, dropped at any time. Uncompressed frames decode from the mapped file
without a copy and cost the cache next to nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine.log.log_file import FrameMoved
from storage_engine.schema.evolve import fitted


@dataclass(frozen=True)
class RowSource:
    """Rows of one frame. `load` decodes them, `key` names the frame in the cache.

    offsets  of a sparse frame, (n_rows,); None: base_offset .. base_offset + n_rows
    """

    base_offset: int
    n_rows: int
    key: Any
    load: Callable[[], tuple[pa.RecordBatch, int]]
    offsets: np.ndarray | None = None

    def rows_of(self, offsets: np.ndarray) -> np.ndarray:
        """Positions of offsets in the frame. Errors: FrameMoved when a sparse frame has no row there (any more)."""
        if self.offsets is None:
            return offsets - self.base_offset
        rows = np.searchsorted(self.offsets, offsets)
        if not np.array_equal(self.offsets.take(rows, mode="clip"), offsets):
            raise FrameMoved(f"rows of the frame at {self.base_offset} are gone")
        return rows


class FrameCache:
    """Decoded frames, least recently used first out. A frame counts with its bytes on the heap (mapped bytes count nothing)."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[Any, tuple[pa.RecordBatch, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, source: RowSource) -> pa.RecordBatch:
        with self._lock:
            entry = self._entries.get(source.key)
            if entry is not None:
                self._entries.move_to_end(source.key)
                return entry[0]
        batch, heap_bytes = source.load()
        cost = heap_bytes + 2048
        with self._lock:
            if source.key not in self._entries:
                self._entries[source.key] = (batch, cost)
                self._bytes += cost
            while self._bytes > self._bytes_max and len(self._entries) > 1:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
        return batch

    def forget(self, keys: Iterable[Any]) -> None:
        """Let go of frames, and of the files that they lie in."""
        with self._lock:
            for key in keys:
                self._bytes -= self._entries.pop(key, (None, 0))[1]


def fetch_rows(sources: Sequence[RowSource], source_of: np.ndarray, offsets: np.ndarray, schema: pa.Schema, cache: FrameCache) -> pa.Table:
    """Rows at `offsets` (n,), in their order, as one contiguous table.

    Shapes: source_of (n,): row i lies in sources[source_of[i]]; sources are in the order of their offsets.
    Cost: one sort of the offsets, one take per frame touched, one take to restore the order.
    """
    n = len(offsets)
    if n == 0:
        return schema.empty_table()
    if n == 1:
        source = sources[int(source_of[0])]
        row = int(source.rows_of(offsets)[0])
        return pa.Table.from_batches([adapt(cache.get(source).slice(row, 1), schema)])
    order = np.argsort(offsets, kind="stable")
    ordered = offsets[order]
    frame_of = source_of[order]
    bounds = np.flatnonzero(np.diff(frame_of)) + 1
    pieces: list[pa.RecordBatch] = []
    for begin, end in zip(np.r_[0, bounds], np.r_[bounds, n], strict=True):
        source = sources[int(frame_of[begin])]
        local = source.rows_of(ordered[begin:end])
        batch = adapt(cache.get(source), schema)
        if end - begin == local[-1] - local[0] + 1 and (np.diff(local) == 1).all():  # a run; repeats can have a run's length
            pieces.append(batch.slice(int(local[0]), int(end - begin)))
        else:
            pieces.append(batch.take(pa.array(local)))
    table = pa.Table.from_batches(pieces, schema).combine_chunks()
    if (order[:-1] < order[1:]).all():
        return table
    inverse = np.empty(n, np.int64)
    inverse[order] = np.arange(n)
    return table.take(pa.array(inverse))


def adapt(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch of an older schema, or with more columns, in the columns of `schema`: those it lacks are null, narrower ones are widened.

    Columns are told by name: a frame is decoded with the names that its columns have now (engine/schemas.py).
    Every value fits: a type that does not hold them all is not taken for a wider one (schema/evolve.py, engine/instants.py).
    """
    if batch.schema.equals(schema):
        return batch
    at = {name: i for i, name in enumerate(batch.schema.names)}
    arrays = []
    for item in schema:
        i = at.get(item.name)
        if i is None:
            arrays.append(pa.nulls(batch.num_rows, item.type))
        else:
            arrays.append(fitted(batch.column(i), item.type, where=f"column {item.name}"))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
