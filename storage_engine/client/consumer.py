"""Consumer: a named reader of one table's log. Its offsets live in the store and move by commit().

Holds: rows polled but not committed are polled again after a restart (at least once); commit() is atomic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from storage_engine.api import Backend, CommitRequest, Progress
from storage_engine.schema.descriptor import Offsets

if TYPE_CHECKING:
    from storage_engine.client.table import Table


class Consumer:
    """Reads a table's log from its committed offsets on. One consumer name has one reader at a time."""

    def __init__(self, backend: Backend, table: Table, name: str) -> None:
        self._backend = backend
        self._table = table
        self._owner = f"consumer:{name}:{table.name}"
        recorded = backend.progress(self._owner).get(self._owner)
        self._committed: Offsets = dict(recorded.offsets.get(table.name, {})) if recorded else {}
        self._position: Offsets = dict(self._committed)

    @property
    def position(self) -> Offsets:
        """Next offset per bucket that poll() will return."""
        return dict(self._position)

    def poll(self, max_rows: int = 100_000) -> pa.Table | None:
        """The next rows in the order of their commits, with metadata columns, at most about `max_rows`; None when there is nothing new."""
        while True:
            latest = self._table.offsets("latest")
            earliest = self._table.offsets("earliest")
            begin = {bucket: self._position.get(bucket, earliest.get(bucket, 0)) for bucket in latest}
            stop = _ahead(begin, latest if _n_rows(begin, latest) <= max_rows else self._stop(begin, max_rows))
            if not stop:
                return None
            rows = self._table.scan(start=self._position, stop=stop, metadata=True).read_all()
            self._position.update(stop)
            if rows.num_rows:  # else these offsets belong to rows that moved between buckets: nothing happened to them
                return rows

    def _stop(self, begin: Offsets, max_rows: int) -> Offsets:
        """Where at most `max_rows` rows end: at a commit, because after a rescale a key's changes lie in two buckets; inside a commit
        only when it alone is larger.
        """
        low, high = 0, self._backend.version()  # rows at low fit, rows at high do not
        while high - low > 1:
            middle = (low + high) // 2
            if _n_rows(begin, self._table.offsets(at_version=middle)) <= max_rows:
                low = middle
            else:
                high = middle
        stop = self._table.offsets(at_version=low)
        if _ahead(begin, stop):
            return stop
        cut: Offsets = {}
        for bucket, end in _ahead(begin, self._table.offsets(at_version=high)).items():
            cut[bucket] = min(end, begin.get(bucket, 0) + max_rows)
            max_rows -= cut[bucket] - begin.get(bucket, 0)
        return cut

    def commit(self) -> None:
        """Record the position; ProgressConflict if someone else moved this consumer meanwhile."""
        expected = {self._table.name: self._committed} if self._committed else {}
        progress = Progress(self._owner, {self._table.name: dict(self._position)}, expected)
        self._backend.commit(CommitRequest((), (progress,)))
        self._committed = dict(self._position)

    def lag(self) -> int:
        """Rows in the log after the committed offsets."""
        earliest = self._table.offsets("earliest")
        return sum(end - self._committed.get(bucket, earliest.get(bucket, 0)) for bucket, end in self._table.offsets("latest").items())


def _n_rows(begin: Offsets, end: Offsets) -> int:
    return sum(max(offset - begin.get(bucket, 0), 0) for bucket, offset in end.items())


def _ahead(begin: Offsets, end: Offsets) -> Offsets:
    """The buckets of `end` that have rows after `begin`."""
    return {bucket: offset for bucket, offset in end.items() if offset > begin.get(bucket, 0)}
