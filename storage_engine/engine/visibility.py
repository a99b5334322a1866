"""Visibility: how far readers may see under sync = commit: the newest durable commit, and where the newest commit of each table ends.

Owner: engine/core.py, under its readers' lock; begun anew with each recovery, when all that is there is durable.
Never: waits or syncs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from storage_engine.engine.state import CommitRecord


class Visibility:
    """Positions are ends of commits in the log. `catalog_end`, `progress_end`: of the newest commit that changed any of it."""

    def __init__(self, version: int, end: int) -> None:
        self.catalog_end = self.progress_end = end
        self._shown = version
        self._unsynced: deque[tuple[int, int]] = deque()
        self._table_ends: dict[int, int] = {}

    @property
    def has_unsynced(self) -> bool:
        """Whether commits were published that nobody has found durable yet."""
        return bool(self._unsynced)

    def published(self, record: CommitRecord, table_ids: Iterable[int], end: int, *, awaits_sync: bool) -> None:
        """A commit with rows of these tables ends at `end`; readers may know of it once that is durable, or at once."""
        self._table_ends.update(dict.fromkeys(table_ids, end))
        if record.changes:
            self.catalog_end = end
        if record.changes or record.progress:
            self.progress_end = end
        if awaits_sync:
            self._unsynced.append((end, record.version))
        else:
            self._shown = record.version

    def version(self, durable: int) -> int:
        """The newest version that readers may know of, when the log is durable to `durable`."""
        while self._unsynced and self._unsynced[0][0] <= durable:
            self._shown = self._unsynced.popleft()[1]
        return self._shown

    def end_of(self, table_id: int) -> int:
        """The end of the newest commit that touched the table, or the catalog."""
        return max(self._table_ends.get(table_id, 0), self.catalog_end)
