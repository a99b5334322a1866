"""Positions: how far a source has been written into a table, kept by the store, moved in the same commit as the rows.

A source has named parts (days), each a fixed sequence of rows. The store keeps, per part, how many rows of it are written; a
repeated or resumed load starts there, so that nothing counts twice. Dropping a table or a partition forgets its positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from storage_engine import Progress, Store, TableBucket, WriteOp


class SourcePositions:
    """The positions of one source in one log table. Two loads at once: the second to commit gets ProgressConflict."""

    def __init__(self, store: Store, source: str, table: str) -> None:
        self._store = store
        self._table = table
        self._owner = source
        recorded = store.progress(source).get(source)
        self._reached: dict[TableBucket, int] = dict(recorded.offsets.get(table, {})) if recorded else {}

    def of(self, part: str) -> int:
        """Rows of this part that are written."""
        return self._reached.get(TableBucket(part, 0), 0)

    def append(self, rows: pa.Table, reached: Mapping[str, int]) -> None:
        """Append rows and move the positions of their parts to `reached`, in one commit."""
        moved = self._reached | {TableBucket(part, 0): position for part, position in reached.items()}
        progress = Progress(self._owner, {self._table: moved}, expected={self._table: self._reached})
        self._store.commit([WriteOp(self._table, "append", rows)], [progress])
        self._reached = moved
