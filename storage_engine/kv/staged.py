"""StagedChanges: what the transaction under way has changed in one bucket, for its own later operations to see.

Owner: kv.KvBucket. Only the writer comes here.
State: the changes in order; an index over them, made when a second operation of the transaction looks for keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from storage_engine.kv.change import KvChange
from storage_engine.kv.key_index import MISSING, Hashes, Int64s, KeyIndex

REMOVED: Final = np.iinfo(np.int64).max
"""In place of an offset: the key is gone in this transaction."""


class StagedChanges:
    """Changes with the offsets that their rows will have, and where they leave each key."""

    def __init__(self) -> None:
        self._changes: list[tuple[KvChange, int]] = []
        self._n_indexed = 0
        self._index = KeyIndex()
        self._homeless: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._changes)

    def add(self, change: KvChange, base_offset: int) -> None:
        """The change's rows will be at base_offset .. base_offset + n_rows."""
        if change.n_rows:
            self._changes.append((change, base_offset))

    def find(self, hashes: Hashes, committed: Int64s) -> Int64s:
        """Where this transaction sees the hashes (n,) of keys that are at `committed` (n,) without it; MISSING: nowhere."""
        if not self._changes:
            return committed
        self._index_changes()
        pending = self._index.get(hashes)
        return np.where(pending == MISSING, committed, np.where(pending == REMOVED, MISSING, pending))

    def homeless(self) -> Mapping[bytes, int]:
        """Encoded keys whose hash belongs to another key, with their offsets or REMOVED."""
        self._index_changes()
        return self._homeless

    def take(self) -> list[tuple[KvChange, int]]:
        """All changes with their base offsets, in order; none is left here."""
        changes = self._changes
        if changes:
            self._changes = []
        if self._n_indexed:
            self._n_indexed = 0
            self._index = KeyIndex()
            self._homeless = {}
        return changes

    def _index_changes(self) -> None:
        """Index what has come since the last time."""
        for change, base_offset in self._changes[self._n_indexed :]:
            is_live, is_gone = change.outcome()
            offsets = np.where(is_gone, REMOVED, base_offset + np.arange(change.n_rows))
            indexed = is_live | is_gone
            for row, key in change.homeless.items():
                if indexed[row]:
                    self._homeless[key] = int(offsets[row])
                    indexed[row] = False
            self._index.put(change.hashes[indexed], offsets[indexed])
        self._n_indexed = len(self._changes)
