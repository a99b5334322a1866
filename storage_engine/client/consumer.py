"""Consumer: a named reader of one table's log. Its offsets live in the store and move by commit().

A name has one reader, or several members that share its buckets (client/groups.py says how).
Holds: rows polled but not committed are polled again after a restart (at least once); commit() is atomic; a commit of a reader that was
       overtaken (another one moved the offsets, members came or went, the offsets were reset) raises ProgressConflict and moves nothing.
       A partition that was dropped is forgotten; one created again under its name is read from its beginning.
Cheap when idle: a poll without a commit in between asks for the store's version and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa

from storage_engine.api import Backend, CommitRequest, Progress
from storage_engine.client import groups
from storage_engine.errors import OffsetOutOfRange, PartitionChanged, ProgressConflict
from storage_engine.schema.descriptor import Offsets, TableBucket

if TYPE_CHECKING:
    from storage_engine.client.table import Table

BEATS_PER_SESSION = 3
KEEPALIVE_S = 3600.0
"""The one reader of a name that has nothing to commit says so often that it lives: the store forgets consumers that are dead."""


class Consumer:
    """Reads a table's log from its committed offsets on. A context manager: a member that closes gives its buckets free at once."""

    def __init__(self, backend: Backend, table: Table, name: str, member: str | None = None, session_timeout_s: float = 30.0) -> None:
        self._backend = backend
        self._table = table
        self._name = name
        self._owner = groups.owner_of(name, table.name)
        self._member = member
        self._session_ms = int(session_timeout_s * 1000)
        self._members: tuple[str, ...] = ()
        self._generation = -1
        self._committed: Offsets = {}
        self._position: Offsets = {}
        self._partition_ids: dict[str, int] = {}
        self._as_of: int | None = None
        self._seen = -1
        self._is_drained = False
        self._heard_s = time.monotonic()
        self._reload()

    @property
    def position(self) -> Offsets:
        """Next offset per bucket that poll() will return."""
        return dict(self._position)

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the group, as this one was told at its last poll; empty for the one reader of a name."""
        return self._members

    def poll(
        self,
        max_rows: int = 100_000,
        timeout_s: float = 0.0,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
    ) -> pa.Table | None:
        """The next rows, with metadata columns, at most about `max_rows`; None when there is nothing new for `timeout_s`.

        where  leaves rows out; the position moves over them as well, so that an answer may have no rows
        A member takes part in its group by polling: buckets are given to it, and taken from it, between polls. When that happens, what
        was polled before and not committed is given out again, perhaps to another member.
        Errors: OffsetOutOfRange when the log no longer holds the position: reset() chooses another.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            rows = self._next(max_rows, columns, where)
            left_s = deadline - time.monotonic()
            if rows is not None or left_s <= 0:
                return rows
            self._backend.await_version(self._seen, min(left_s, self._beat_s()))

    def commit(self) -> None:
        """Record the position. Errors: ProgressConflict when this reader was overtaken; a member goes on with its next poll()."""
        try:
            self._commit()
        except ProgressConflict:
            if not self._forget_dropped():
                self._generation = -1
                raise
            self._commit()

    def lag(self) -> int:
        """Rows in the log after the committed offsets, of all buckets."""
        earliest = self._table.offsets("earliest")
        return sum(end - self._committed.get(bucket, earliest.get(bucket, 0)) for bucket, end in self._table.offsets("latest").items())

    def lag_ms(self) -> int:
        """Age of the oldest row after the committed offsets; 0 when there is none."""
        ages = self._backend.bucket_statistics(self._table.name, self._committed)["unread_ms"].to_pylist()
        return max((age for age in ages if age is not None), default=0)

    def reset(self, to: groups.ResetTo) -> None:
        """Move the committed offsets (see groups.reset) and go on from there. Members of the group are fenced and follow."""
        groups.reset(self._backend, self._table, self._name, to)
        self._reload()

    def close(self) -> None:
        """Leave the group; rows polled and not committed go to another member."""
        if self._member is not None:
            self._backend.leave_group(self._owner, self._member)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # reading

    def _next(self, max_rows: int, columns: Sequence[str] | None, where: str | None) -> pa.Table | None:
        while True:
            version = self._backend.version()
            is_due = time.monotonic() - self._heard_s >= self._beat_s()
            if version == self._seen and self._is_drained and not is_due:
                return None
            if self._member is not None:
                self._beat(self._member)
            elif is_due:
                self._keep_alive(version)
            if version == self._seen and self._is_drained:
                return None
            self._forget_dropped()
            try:
                rows = self._rows_until(version, max_rows, columns, where)
            except PartitionChanged:
                continue  # the next round finds it dropped, and forgets it
            if rows is None or rows.num_rows or where is not None:
                return rows  # else these offsets belong to rows that moved between buckets: nothing happened to them

    def _rows_until(self, version: int, max_rows: int, columns: Sequence[str] | None, where: str | None) -> pa.Table | None:
        latest = self._mine_at(version)
        earliest = self._table.offsets("earliest") if any(bucket not in self._position for bucket in latest) else {}
        begin = {bucket: self._position.get(bucket, earliest.get(bucket, 0)) for bucket in latest}
        stop = _ahead(begin, latest if _n_rows(begin, latest) <= max_rows else self._stop(begin, version, max_rows))
        rows = self._table.scan(columns, where, self._position, stop, metadata=True, as_of=version).read_all() if stop else None
        self._position.update(stop)
        self._as_of = self._seen = version
        self._is_drained = not _ahead({**begin, **stop}, latest)
        return rows

    def _mine_at(self, version: int) -> Offsets:
        return {bucket: end for bucket, end in self._table.offsets("latest", at_version=version).items() if self._is_mine(bucket)}

    def _mine_if_known(self, version: int) -> Offsets:
        """As _mine_at; nothing for a version older than what the log retains, whose rows nobody can read any more."""
        try:
            return self._mine_at(version)
        except OffsetOutOfRange:
            return {}

    def _stop(self, begin: Offsets, version: int, max_rows: int) -> Offsets:
        """Where at most `max_rows` rows end: at a commit, because after a rescale a key's changes lie in two buckets; inside a commit
        only when it alone is larger.
        """
        low, high = 0, version  # rows at low fit, rows at high do not
        while high - low > 1:
            middle = (low + high) // 2
            if _n_rows(begin, self._mine_if_known(middle)) <= max_rows:
                low = middle
            else:
                high = middle
        stop = self._mine_if_known(low)
        if _ahead(begin, stop):
            return stop
        cut: Offsets = {}
        for bucket, end in _ahead(begin, self._mine_at(high)).items():
            cut[bucket] = min(end, begin.get(bucket, 0) + max_rows)
            max_rows -= cut[bucket] - begin.get(bucket, 0)
        return cut

    def _is_mine(self, bucket: TableBucket) -> bool:
        return self._member is None or groups.member_of(bucket, self._members) == self._member

    # the group

    def _beat_s(self) -> float:
        return KEEPALIVE_S if self._member is None else self._session_ms / 1000 / BEATS_PER_SESSION

    def _beat(self, member: str) -> None:
        membership = self._backend.heartbeat(self._owner, member, self._session_ms)
        self._heard_s = time.monotonic()
        self._members = membership.members
        if membership.generation != self._generation:
            self._reload()
            self._generation = membership.generation

    def _keep_alive(self, version: int) -> None:
        """Commit again what is committed. Errors: ProgressConflict when this reader was overtaken."""
        self._forget_dropped()
        offsets = {self._table.name: dict(self._committed)}
        self._backend.commit(CommitRequest((), (Progress(self._owner, offsets, offsets, {}, version, generation=self._generation),)))
        self._heard_s = time.monotonic()

    # offsets

    def _reload(self) -> None:
        """Begin at what is recorded. Partitions first: one dropped and created again after that is then found to be another one."""
        self._partition_ids = self._ids()
        recorded = self._backend.progress(self._owner).get(self._owner)
        self._committed = dict(recorded.offsets.get(self._table.name, {})) if recorded else {}
        self._position = dict(self._committed)
        self._generation = groups.generation_of(recorded)
        self._is_drained = False

    def _ids(self) -> dict[str, int]:
        return self._backend.partitions(self._table.name) if self._table.descriptor.partition_keys else {}

    def _forget_dropped(self) -> bool:
        """Forget the offsets of partitions that are gone, or are others by now; True when there were any."""
        now = self._ids()
        gone = {name for name, partition_id in self._partition_ids.items() if now.get(name) != partition_id}
        self._partition_ids = now
        for offsets in (self._committed, self._position):
            for bucket in [bucket for bucket in offsets if bucket.partition in gone]:
                del offsets[bucket]
        return bool(gone)

    def _commit(self) -> None:
        moved = {bucket: offset for bucket, offset in self._position.items() if self._committed.get(bucket, 0) != offset}
        name = self._table.name
        if self._member is None:
            progress = Progress(
                self._owner, {name: dict(self._position)}, {name: self._committed}, {}, self._as_of, generation=self._generation
            )
        elif moved:
            before = {bucket: self._committed.get(bucket, 0) for bucket in moved}
            progress = Progress(self._owner, {name: moved}, {name: before}, {}, self._as_of, merges=True, generation=self._generation)
        else:
            return
        self._backend.commit(CommitRequest((), (progress,)))
        self._heard_s = time.monotonic() if self._member is None else self._heard_s
        self._committed = dict(self._position)


def _n_rows(begin: Offsets, end: Offsets) -> int:
    return sum(max(offset - begin.get(bucket, 0), 0) for bucket, offset in end.items())


def _ahead(begin: Offsets, end: Offsets) -> Offsets:
    """The buckets of `end` that have rows after `begin`."""
    return {bucket: offset for bucket, offset in end.items() if offset > begin.get(bucket, 0)}
