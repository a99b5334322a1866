"""AutoIncrement: ids 1, 2, 3, ... of one table, given out inside the commit that uses them.

Owner: the engine keeps one counter per table; every bucket of the table takes ids from it, or has segments of it (IdSegments).
Holds: the commit record carries `last_id`, so an id is used at most once after any crash; rollback() takes back what a failed commit
       took. Without segments there are no gaps.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import option_value

SEGMENT_OPTION = "table.auto-increment.cache-size"


class Ids(Protocol):
    """What gives ids to a bucket."""

    def take(self, n: int) -> pa.Array: ...


class AutoIncrement:
    """Gives out ids. `last_id` is the last one given, 0 before the first; commit() makes it the recorded one.

    segment_ids   ids that a bucket takes at once; None: as many as it needs
    """

    def __init__(self, descriptor: TableDescriptor, last_id: int = 0) -> None:
        self._recorded = last_id
        self.last_id = last_id
        self._touched: list[IdSegments] = []
        self.alter(descriptor)

    def alter(self, descriptor: TableDescriptor) -> None:
        """The column was renamed or widened."""
        column = descriptor.auto_increment_column
        assert column is not None, f"{descriptor.name} has no auto-increment column"
        self.type: pa.DataType = descriptor.column(column).arrow.type
        self.segment_ids: int | None = None
        if SEGMENT_OPTION in descriptor.options:
            self.segment_ids = option_value(descriptor.options, SEGMENT_OPTION)
        self._where = f"table {descriptor.name}, column {column}"
        self._id_max = 2 ** (self.type.bit_width - 1) - 1

    def take(self, n: int) -> pa.Array:
        """The next `n` ids, in the column's type. Errors: SchemaMismatch when the type cannot hold them."""
        first = self.last_id + 1
        self._require(n)
        self.last_id += n
        return pa.array(np.arange(first, first + n, dtype=self.type.to_pandas_dtype()))

    def remember(self, segments: IdSegments) -> None:
        """Ids of these segments are taken in the running commit: they follow commit() and rollback()."""
        self._touched.append(segments)

    def take_segment(self, n: int) -> tuple[int, int]:
        """Ids start..stop for one bucket, at least `n`: whole segments, cut where the column's type ends."""
        assert self.segment_ids is not None, "the table has segments"
        start = self.last_id + 1
        self._require(n)
        self.last_id = min(self.last_id + -(-n // self.segment_ids) * self.segment_ids, self._id_max)
        return start, self.last_id + 1

    def commit(self) -> None:
        """What was taken is recorded."""
        self._recorded = self.last_id
        for segments in self._touched:
            segments.commit()
        self._touched.clear()

    def rollback(self) -> None:
        """The commit failed: what was taken since the last commit() is free again."""
        self.last_id = self._recorded
        for segments in self._touched:
            segments.rollback()
        self._touched.clear()

    def _require(self, n: int) -> None:
        if self.last_id + n > self._id_max:
            raise SchemaMismatch(
                f"{n:,} new keys need ids up to {self.last_id + n:,}, the column ends at {self._id_max:,}",
                where=self._where, next_step="Declare the column BIGINT in a new table.",
            )  # fmt: skip


class IdSegments:
    """The ids of one bucket: what is left of its last segment, then a new one. What is left when the process ends is never given out."""

    def __init__(self, counter: AutoIncrement) -> None:
        self._counter = counter
        self._recorded = self._free = (1, 1)

    def take(self, n: int) -> pa.Array:
        """`n` ids, ascending, in the column's type. Errors: as AutoIncrement.take()."""
        self._counter.remember(self)
        start, stop = self._free
        n_left = min(stop - start, n)
        ids = np.arange(start, start + n_left)
        self._free = (start + n_left, stop)
        if n > n_left:
            first, end = self._counter.take_segment(n - n_left)
            ids = np.concatenate([ids, np.arange(first, first + n - n_left)])
            self._free = (first + n - n_left, end)
        return pa.array(ids.astype(self._counter.type.to_pandas_dtype()))

    def commit(self) -> None:
        self._recorded = self._free

    def rollback(self) -> None:
        self._free = self._recorded
