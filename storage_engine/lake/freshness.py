"""Freshness: how old is what the lake does not have yet. The tierer schedules by it, status pages show it.

State: Pending follows the commit journal and remembers, per tiered table, the commits the lake lacks; derived, rebuilt on start.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from storage_engine.client.store import Store
from storage_engine.lake.lane import OWNER_PREFIX
from storage_engine.lake.planning import begin_of, n_rows_between
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import option_value

_COMMITS_PER_READ = 2_000


@dataclass(frozen=True)
class TierLag:
    """How far the lake is behind one table.

    lag_ms        age of the oldest row that is not in the lake; 0 when all are
    n_rows        log or changelog rows that are not in the lake
    freshness_ms  the bound that the table's definition gives
    version, lake_version  store version the lake equals, and the Delta version that has it (-1: no lake table yet)
    error        why tiering of this table stands still, empty when it does not
    """

    table: str
    lag_ms: int
    n_rows: int
    freshness_ms: int
    version: int
    lake_version: int
    error: str = ""

    @property
    def is_met(self) -> bool:
        return self.lag_ms <= self.freshness_ms


def freshness_ms(descriptor: TableDescriptor) -> int:
    """The bound of a tiered table, in milliseconds."""
    return int(option_value(descriptor.options, "table.datalake.freshness"))


def tiered_tables(store: Store) -> list[TableDescriptor]:
    """Tables with 'table.datalake.enabled' = 'true', by name."""
    return sorted((d for d in store.backend.tables() if d.is_tiered), key=lambda d: d.name)


class Pending:
    """Commits that the lake lacks, per table, oldest first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = -1
        self._commits: dict[str, deque[tuple[int, int]]] = {}

    def follow(self) -> None:
        """Read the journal to its end."""
        if self._seen < 0:
            progress = self._store.progress(OWNER_PREFIX)
            versions = [
                int(progress[name].detail.get("version", 0)) if (name := OWNER_PREFIX + d.name) in progress else 0
                for d in tiered_tables(self._store)
            ]
            self._seen = min(versions, default=self._store.version())
        while commits := self._store.commits(self._seen, _COMMITS_PER_READ):
            tiered = {descriptor.name for descriptor in tiered_tables(self._store)}
            for commit in commits:
                for table in tiered & commit.ranges.keys():
                    self._commits.setdefault(table, deque()).append((commit.version, commit.timestamp_ms))
            self._seen = commits[-1].version
            if len(commits) < _COMMITS_PER_READ:
                break

    def done(self, table: str, version: int) -> None:
        """The lake has everything of the table up to `version`."""
        commits = self._commits.get(table, deque())
        while commits and commits[0][0] <= version:
            commits.popleft()

    def oldest_ms(self, table: str) -> int | None:
        """Wall clock of the oldest commit that the lake lacks, None when it has all."""
        commits = self._commits.get(table)
        return commits[0][1] if commits else None


def tier_lag(store: Store, table: str | None = None) -> list[TierLag]:
    """The lag of each tiered table (or of one), read from the store alone: no tierer needs to run, no lake is opened."""
    progress = store.progress(OWNER_PREFIX)
    now_ms = time.time_ns() // 1_000_000
    lags = []
    for descriptor in tiered_tables(store):
        if table is not None and descriptor.name != table:
            continue
        recorded = progress.get(OWNER_PREFIX + descriptor.name)
        offsets = recorded.offsets.get(descriptor.name, {}) if recorded else {}
        detail = recorded.detail if recorded else {}
        version = int(detail.get("version", 0))
        handle = store.table(descriptor.name)
        n_rows = n_rows_between(begin_of(offsets, handle.offsets("earliest")), handle.offsets("latest"))
        oldest = _oldest_commit_ms(store, descriptor.name, version) if n_rows else None
        lags.append(
            TierLag(
                table=descriptor.name,
                lag_ms=0 if oldest is None else max(now_ms - oldest, 0),
                n_rows=n_rows,
                freshness_ms=freshness_ms(descriptor),
                version=version,
                lake_version=int(detail.get("lake_version", -1)),
                error=str(detail.get("error", "")),
            )
        )
    return lags


def _oldest_commit_ms(store: Store, table: str, after: int) -> int | None:
    while commits := store.commits(after, _COMMITS_PER_READ):
        for commit in commits:
            if table in commit.ranges:
                return commit.timestamp_ms
        after = commits[-1].version
    return None
