"""Tierer: keeps the lake within each table's freshness. It picks the table whose bound ends first and runs one round of it.

Owner of: one Lane per tiered table. One tierer per store; a second one takes over by a new epoch and the first stops.
Holds: exactly once. What a Delta version of a table contains equals the store at the version recorded in it.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError, ProgressConflict, UserError
from storage_engine.lake.freshness import Pending, TierLag, freshness_ms, tier_lag, tiered_tables
from storage_engine.lake.lane import OWNER_PREFIX, Lane, Round
from storage_engine.lake.planning import Limits, due_ms
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.row_ttl import may_outlive

log = logging.getLogger(__name__)

_IDLE_S = 1.0
_TICK_S = 0.2
_LOOK_SHARE = 0.05
"""Part of the shortest freshness that a commit may wait until the journal is looked at."""
_RETRY_S = 5.0
_SMOOTHING = 0.3
_CLEANING_MS = 60_000
"""The store looks for rows to remove once a minute."""


class Tierer:
    """Tiers a store into a lake root.

    with Tierer(store, "/data/lake") as tierer:
        tierer.run_once(force=True)       # everything that is in the store now
    """

    def __init__(self, store: Store, lake_root: str | Path, limits: Limits | None = None) -> None:
        self.lake_root = Path(lake_root).absolute()
        self._store = store
        self._limits = limits or Limits()
        self._lanes: dict[str, Lane] = {}
        self._pending = Pending(store)
        self._round_ms: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._looked_ms: dict[str, float] = {}
        self.errors: dict[str, FlashlakeError] = {}

    def run_once(self, table: str | None = None, *, force: bool = False) -> list[Round]:
        """Run the rounds that are due, one per table; with `force` run until the lake has all that was in the store at the call.

        table  only this one. Errors: UserError when it is not tiered; with `force` or `table`, the first error of a lane is raised.
               Without, an error is kept in `errors`, logged, and its table is tried again some seconds later.
        """
        descriptors = tiered_tables(self._store)
        if table is not None:
            descriptors = [d for d in descriptors if d.name == table]
            if not descriptors:
                self._store.describe(table)
                raise UserError(
                    f"{table} is not tiered",
                    where="tiering",
                    next_step="ALTER TABLE ... SET ('table.datalake.enabled' = 'true') switches it on.",
                )
        else:
            for name in self._lanes.keys() - {d.name for d in descriptors}:  # switched off: when it is on again, it is looked at at once
                del self._lanes[name]
        if force:
            return [done for d in descriptors for done in self._run_all(d.name)]
        self._pending.follow()
        is_strict = table is not None
        ordered = sorted((due, d.name) for d in descriptors if (due := self._next_ms(d)) is not None)
        rounds = []
        for due, name in ordered:
            if due > _now_ms() or (not is_strict and time.monotonic() < self._retry_at.get(name, 0.0)):
                continue
            done = self._run_lane(name, is_strict=is_strict)
            if done is not None:
                rounds.append(done)
        return rounds

    def run(self, stop: threading.Event) -> None:
        """Tier until `stop` is set: within each table's freshness, waiting on the journal in between.

        Errors: ProgressConflict when another tierer took over.
        """
        while not stop.is_set():
            seen = self._store.version()
            self.run_once()
            conflict = next((e for e in self.errors.values() if isinstance(e, ProgressConflict)), None)
            if conflict is not None:
                raise conflict
            wait_s = self._wait_s()
            if wait_s is None:
                self._store.await_version(seen, _IDLE_S)
                stop.wait(self._pause_s())
            elif wait_s > 0:
                stop.wait(min(wait_s, _TICK_S))

    def lag(self) -> list[TierLag]:
        """How far the lake is behind, per table."""
        return tier_lag(self._store)

    def undo(self, table: str) -> None:
        """Make lake and store agree again after somebody else changed a lake table: back to the tierer's newest commit in it."""
        self._lanes[table] = lane = Lane(self._store, self.lake_root, table, self._limits)
        lane.undo()
        self.errors.pop(table, None)

    def forget(self, table: str) -> None:
        """Drop what the store recorded about a lake table that was moved away; the next round tiers the table afresh."""
        owner = OWNER_PREFIX + table
        recorded = self._store.progress(owner).get(owner)
        self._lanes.pop(table, None)
        if recorded is not None:
            self._store.commit(progress=[Progress(owner, {}, recorded.offsets, {"epoch": recorded.detail.get("epoch", 0)})])

    def close(self) -> None:
        """Let go of the lanes. Nothing is pending: every round ends with its commits."""
        self._lanes.clear()

    def __enter__(self) -> Tierer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_all(self, table: str) -> list[Round]:
        target = self._store.version()
        rounds = []
        while (done := self._run_lane(table, is_strict=True)) is not None:
            rounds.append(done)
            if done.version >= target or not done.has_more:
                break
        return rounds

    def _run_lane(self, table: str, *, is_strict: bool) -> Round | None:
        lane = self._lanes.get(table)
        if lane is None:
            lane = self._lanes[table] = Lane(self._store, self.lake_root, table, self._limits)
        version = self._store.version()
        try:
            done = lane.run()
        except FlashlakeError as error:
            if is_strict:
                raise
            log.error("%s: %s", table, error)
            self.errors[table] = error
            lane.note_error(str(error))
            self._retry_at[table] = time.monotonic() + _RETRY_S
            return None
        self.errors.pop(table, None)
        self._looked_ms[table] = _now_ms()
        self._pending.done(table, done.version if done else version)
        if done is not None:
            before = self._round_ms.get(table, done.seconds * 1000)
            self._round_ms[table] = before + _SMOOTHING * (done.seconds * 1000 - before)
        return done

    def _due_ms(self, descriptor: TableDescriptor) -> float | None:
        """When the table's next round must start; at once when this tierer has not looked at it yet; None: nothing to do."""
        if descriptor.name not in self._lanes:
            return 0.0
        oldest = self._pending.oldest_ms(descriptor.name)
        if oldest is None:
            return None
        return due_ms(oldest, freshness_ms(descriptor), self._round_ms.get(descriptor.name, 0.0))

    def _next_ms(self, descriptor: TableDescriptor) -> float | None:
        """As _due_ms; a table with row time to live is looked at without new rows too, for those that have outlived."""
        due = self._due_ms(descriptor)
        if due is not None or not may_outlive(descriptor):
            return due
        return self._looked_ms.get(descriptor.name, 0.0) + max(freshness_ms(descriptor), _CLEANING_MS)

    def _pause_s(self) -> float:
        """How long commits may wait for a look at the journal: one look takes many of them, and a busy store is not asked for each."""
        shortest_ms = min(map(freshness_ms, tiered_tables(self._store)), default=int(_TICK_S * 1000 / _LOOK_SHARE))
        return min(shortest_ms / 1000 * _LOOK_SHARE, _TICK_S)

    def _wait_s(self) -> float | None:
        """Seconds until the next round is due, None when none is."""
        now_ms = _now_ms()
        waits = []
        for descriptor in tiered_tables(self._store):
            due = self._due_ms(descriptor)
            if due is not None:
                retry_s = self._retry_at.get(descriptor.name, 0.0) - time.monotonic() if descriptor.name in self.errors else 0.0
                waits.append(max((due - now_ms) / 1000, retry_s))
        return min(waits, default=None)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
