"""Rows: fetch stored rows by offset. A changelog is the value store, so this is how a primary-key table reads its values.

Owner: engine/buckets.py, one RowReader per store.
State: a cache of decoded frames, bounded in bytes; derived, dropped at any time. Uncompressed frames decode from the mapped file
without a copy and cost the cache next to nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class RowSource:
    """Rows of one frame: offsets base_offset .. base_offset + n_rows. `load` decodes them, `key` names the frame in the cache."""

    base_offset: int
    n_rows: int
    key: Any
    load: Callable[[], tuple[pa.RecordBatch, int]]


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
        row = int(offsets[0]) - source.base_offset
        return pa.Table.from_batches([adapt(cache.get(source).slice(row, 1), schema)])
    order = np.argsort(offsets, kind="stable")
    ordered = offsets[order]
    frame_of = source_of[order]
    bounds = np.flatnonzero(np.diff(frame_of)) + 1
    pieces: list[pa.RecordBatch] = []
    for begin, end in zip(np.r_[0, bounds], np.r_[bounds, n], strict=True):
        source = sources[int(frame_of[begin])]
        local = ordered[begin:end] - source.base_offset
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
    """A batch of an older schema, or with more columns, in the columns of `schema`; columns it lacks are null."""
    if batch.schema.names == schema.names:
        return batch
    present = set(batch.schema.names)
    arrays = [batch.column(item.name) if item.name in present else pa.nulls(batch.num_rows, item.type) for item in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
