"""Lane: one table's way into the lake. Rounds, repair and maintenance of a table run here, one after another.

Owner: Tierer holds one lane per tiered table.
State: the truth is the Delta log (what the lake covers). The store's progress `tier:<table>` follows it and adds what the
       lake cannot know: which table and which partitions, of all that ever had that name, are meant.
First round of a primary-key table whose log has expired in part, and the first after a pause in which rows expired untiered: the lake
       takes the rows current at a version, and goes on by the changelog from there. A log goes on at its earliest offset.
Order of a round: intent in the store (durable, so nothing is tiered that a power loss could take back; new partitions are
       named with offset 0) -> one Delta commit with offsets -> done in the store. Killed anywhere, the next round finds
       the lake at the old or at the new offsets, and the store's progress is set to what the lake says.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage_engine.api import TIER_PREFIX, Progress
from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.errors import FlashlakeError, LakeChanged, OffsetOutOfRange, PartitionChanged, ProgressConflict, SchemaMismatch
from storage_engine.lake.delta import LakeTable, Target
from storage_engine.lake.netting import net_changes
from storage_engine.lake.outlived import n_rows_differ, outlived_keys
from storage_engine.lake.planning import Limits, begin_of, n_rows_between, n_rows_gone, plan_stop
from storage_engine.lake.record import LakeRecord, entries_back
from storage_engine.schema.descriptor import Offsets
from storage_engine.schema.partitions import partition_values_of
from storage_engine.schema.row_ttl import may_outlive

log = logging.getLogger(__name__)

OWNER_PREFIX = TIER_PREFIX
ATTEMPTS = 5
"""A partition dropped in the middle of a round ends it; so many rounds in a row are begun anew."""


@dataclass(frozen=True)
class Round:
    """One round of one table.

    n_rows     log or changelog rows covered
    version    store version the lake now equals
    delta_version  the Delta commit
    seconds    wall time of the round with its maintenance
    has_more   rows that this round left for the next one
    """

    table: str
    n_rows: int
    version: int
    delta_version: int
    seconds: float
    has_more: bool


def table_path(lake_root: Path, table: str) -> Path:
    """Where a table lives in the lake: LAKE_ROOT/<database>/<table>."""
    database, _, name = table.rpartition(".")
    return lake_root / database / name


class Lane:
    """One tiered table."""

    def __init__(self, store: Store, lake_root: Path, table: str, limits: Limits) -> None:
        self.table = table
        self.path = table_path(lake_root, table)
        self._store = store
        self._limits = limits
        self._owner = OWNER_PREFIX + table
        self._epoch = 0
        self._lake: LakeTable | None = None
        self._data_commits = 0
        self._n_compactions = 0
        self._vacuumed = time.monotonic()

    def run(self) -> Round | None:
        """One round; None when the lake has everything already.

        Errors: LakeChanged, ProgressConflict (another tierer took over), OffsetOutOfRange (the store dropped rows before they
        were tiered), WriteFailed. After any of them the next round starts from what store and lake hold.
        """
        for attempt in range(ATTEMPTS):
            schema_id = self._store.describe(self.table).schema_id
            try:
                return self._run()
            except (PartitionChanged, SchemaMismatch) as error:  # columns renamed or dropped while the round ran: by the present ones
                self._lake = None
                is_same = isinstance(error, SchemaMismatch) and self._store.describe(self.table).schema_id == schema_id
                if is_same or attempt == ATTEMPTS - 1:
                    raise
            except BaseException:
                self._lake = None
                raise
        raise AssertionError("the last attempt returned or raised")

    def _run(self) -> Round | None:
        began = time.monotonic()
        table = self._store.table(self.table)
        progress = self._claim(table) if self._epoch == 0 else self._progress(table)
        lake = self._lake = self._lake or self._open_lake(table, progress)
        record, progress = self._reconcile(lake, lake.refresh(), progress)
        covered = progress.offsets[self.table]
        version = self._store.version()
        latest = table.offsets(at_version=version)
        earliest = table.offsets("earliest")
        start = begin_of(covered, earliest)
        n_gone = n_rows_gone(covered, earliest)
        is_keyed = table.descriptor.has_primary_key
        is_afresh = is_keyed and n_gone > 0
        if not is_afresh and n_rows_between(start, latest) == 0:
            return self._idle_round(lake, table, record, progress, latest, version, began)
        if lake.add_columns(table.descriptor):
            record = lake.record
        if n_gone and not is_keyed:
            log.warning("%s: %d rows expired while it was not tiered; the lake goes on with what the log holds", self.table, n_gone)
        if is_afresh:
            to_version, stop = version, latest
        else:
            rows_max = self._limits.round_changes_max if is_keyed else self._limits.round_rows_max
            to_version, stop = plan_stop(record.version, start, version, lambda at: _offsets_at(table, at), rows_max)
        to = Target(to_version, {**covered, **stop}, self._epoch, record.detached)
        self._announce(covered, stop, progress, to_version, version)
        if is_afresh:
            record = self._write_snapshot(lake, table, record, to, latest, version)
        else:
            record = self._write(lake, table, record, start, stop, to, version)
            if to_version == version:
                record = self._remove_outlived(lake, table, record, to, latest, version)
        detail = {**progress.detail, "version": record.version, "lake_version": record.delta_version}
        detail.pop("error", None)
        self._commit_progress(record.offsets, covered, detail, as_of=version)
        self._data_commits += 1
        self._maintain(lake)
        n_rows = n_rows_between(start, stop)
        return Round(self.table, n_rows, record.version, record.delta_version, time.monotonic() - began, n_rows_between(stop, latest) > 0)

    def _idle_round(
        self, lake: LakeTable, table: Table, record: LakeRecord, progress: Progress, ends: Offsets, version: int, began: float
    ) -> Round | None:
        """The log has nothing new. Rows may have outlived their time all the same."""
        to = Target(record.version, record.offsets, self._epoch, record.detached)
        written = self._remove_outlived(lake, table, record, to, ends, version)
        if written is record:
            return None
        covered = progress.offsets[self.table]
        self._commit_progress(covered, covered, {**progress.detail, "lake_version": written.delta_version}, as_of=version)
        self._data_commits += 1
        self._maintain(lake)
        return Round(self.table, 0, written.version, written.delta_version, time.monotonic() - began, has_more=False)

    def undo(self) -> LakeRecord:
        """Make lake and store agree again on the tierer's newest commit in the lake; rows that others changed are set back.

        Errors: LakeChanged when there is nothing to go back to: the table is gone or another one.
        """
        table = self._store.table(self.table)
        progress = self._claim(table) if self._epoch == 0 else self._progress(table)
        if not LakeTable.exists(self.path):
            raise self._is_gone(progress)
        record = LakeTable.open(self.path, progress.detail["lake_id"], undo_epoch=self._epoch).record
        recorded = progress.offsets.get(self.table, {})
        live = {bucket.partition for bucket in recorded}
        covered = {bucket: offset for bucket, offset in record.offsets.items() if bucket.partition in live}
        detail = {**progress.detail, "version": record.version, "lake_version": record.delta_version}
        detail.pop("error", None)
        self._commit_progress({**dict.fromkeys(recorded, 0), **covered}, recorded, detail)
        self._lake = None
        return record

    # store side

    def note_error(self, text: str) -> None:
        """Show an error in the store's progress, where status pages find it; the next successful round clears it."""
        progress = self._store.progress(self._owner).get(self._owner)
        detail = progress.detail if progress else {}
        if self._epoch not in (0, detail.get("epoch", 0)) or detail.get("error") == text:
            return
        offsets = progress.offsets.get(self.table, {}) if progress else {}
        self._commit_progress(offsets, offsets, {**detail, "error": text})

    def _progress(self, table: Table) -> Progress:
        progress = self._store.progress(self._owner).get(self._owner)
        if progress is None or progress.detail.get("epoch") != self._epoch:
            theirs = progress.detail.get("epoch") if progress else "none"
            raise ProgressConflict(
                f"another tierer took over {self.table} (epoch {theirs}, ours is {self._epoch})",
                where=self._owner,
                next_step="Run one tiering worker per store; this one stops.",
            )
        self._require_same_table(table, progress)
        return progress

    def _require_same_table(self, table: Table, progress: Progress) -> None:
        if progress.detail["table_id"] != table.descriptor.table_id:
            raise LakeChanged(
                f"{self.table} was dropped and created again; the lake still holds the rows of the first one",
                where=str(self.path),
                next_step="Move it away, then `python -m storage_engine.lake --forget TABLE`; or give the new table another name.",
            )

    def _claim(self, table: Table) -> Progress:
        """Take the lane over: a new epoch, durable before anything is written."""
        as_of = self._store.version()
        recorded = self._store.progress(self._owner).get(self._owner)
        before = recorded.offsets.get(self.table, {}) if recorded else {}
        if recorded is not None and "lake_id" in recorded.detail:
            self._require_same_table(table, recorded)
            detail, offsets = recorded.detail, before
        else:
            if LakeTable.exists(self.path):
                raise LakeChanged(
                    "there is a Delta table that this store did not write",
                    where=str(self.path),
                    next_step="Move it away, or choose another lake root.",
                )
            epoch = int(recorded.detail.get("epoch", 0)) if recorded else 0
            detail = {"lake_id": uuid.uuid4().hex, "table_id": table.descriptor.table_id, "version": 0, "lake_version": -1, "epoch": epoch}
            offsets = dict.fromkeys(table.offsets(), 0)  # the lake has nothing; that the log may begin later is seen in each round
        epoch = int(detail["epoch"]) + 1
        progress = self._commit_progress(offsets, before, {**detail, "epoch": epoch}, as_of=as_of, found_epoch=epoch - 1)
        self._epoch = epoch
        return progress

    def _announce(self, start: Offsets, stop: Offsets, progress: Progress, version: int, as_of: int) -> None:
        """Record the intent: makes every commit up to `version` durable, and names partitions before the lake has rows of them."""
        new = {bucket: 0 for bucket in stop if bucket not in start}
        self._commit_progress({**start, **new}, start, {**progress.detail, "intent": version}, as_of=as_of)

    def _commit_progress(
        self, offsets: Offsets, expected: Offsets, detail: Mapping[str, Any], *, as_of: int | None = None, found_epoch: int = 0
    ) -> Progress:
        """Errors: PartitionChanged when only a dropped partition stands between; ProgressConflict for another tierer.

        found_epoch  the epoch of the tierer before, when the lane is taken over
        """
        progress = Progress(self._owner, {self.table: offsets}, {self.table: expected}, detail, as_of)
        try:
            self._store.commit(progress=[progress])
        except ProgressConflict as error:
            recorded = self._store.progress(self._owner).get(self._owner)
            epoch = self._epoch or found_epoch
            if epoch and recorded is not None and recorded.detail.get("epoch") == epoch:
                what = f"a partition of {self.table} was dropped while it was tiered"
                raise PartitionChanged(what, where=self._owner, next_step="The next round begins from what is there.") from error
            raise
        return progress

    # lake side

    def _open_lake(self, table: Table, progress: Progress) -> LakeTable:
        lake_id = progress.detail["lake_id"]
        if LakeTable.exists(self.path):
            lake = LakeTable.open(self.path, lake_id)
        elif progress.detail["version"] > 0:
            raise self._is_gone(progress)
        else:
            lake = LakeTable.create(self.path, table.descriptor, lake_id, self._epoch)
        self._data_commits = commits_since_compaction(self.path, lake.delta_version)
        return lake

    def _is_gone(self, progress: Progress) -> LakeChanged:
        return LakeChanged(
            f"the Delta table is gone; the store recorded its version {progress.detail['lake_version']}",
            where=str(self.path),
            next_step="Put it back, or tier afresh what the store still holds: `python -m storage_engine.lake --forget TABLE`.",
        )

    def _reconcile(self, lake: LakeTable, record: LakeRecord, progress: Progress) -> tuple[LakeRecord, Progress]:
        """Set the store's progress to what the lake covers, after a crash between the two commits; notice dropped partitions.

        A partition that the lake covers and the store's progress does not name was dropped since (the store forgets
        progress of what is gone). The lake keeps its rows; a new partition of that name starts at offset 0.
        """
        recorded = progress.offsets[self.table]
        live = {bucket.partition for bucket in recorded}
        covered = {bucket: offset for bucket, offset in record.offsets.items() if bucket.partition in live}
        gone = {bucket.partition for bucket in record.offsets} - live
        known = int(progress.detail["version"])
        is_afresh = known == record.version == 0  # nothing was tiered yet: what is recorded says nothing
        differs = _without_zeros(covered) != _without_zeros(recorded)
        if record.version < known or (record.version == known and differs and not is_afresh):
            raise LakeChanged(
                f"the lake covers store version {record.version}, the store recorded {known}: the table was set back",
                where=str(self.path),
                next_step="Go on from there with `python -m storage_engine.lake --undo TABLE`, or put the newer commits back.",
            )
        if record.version > known or (is_afresh and differs):
            log.info("%s: the lake is at store version %d, progress was at %d: repaired", self.table, record.version, known)
            offsets = {**dict.fromkeys(recorded, 0), **covered}
            detail = {**progress.detail, "version": record.version, "lake_version": record.delta_version}
            progress = self._commit_progress(offsets, recorded, detail)
        if gone:
            detached = tuple(sorted({*record.detached, *gone}))
            record = lake.note(record, Target(record.version, covered, self._epoch, detached))
        return record, progress

    def _write(self, lake: LakeTable, table: Table, base: LakeRecord, start: Offsets, stop: Offsets, to: Target, as_of: int) -> LakeRecord:
        """A stretch of the log or changelog, from `start` to `stop`."""
        start = {bucket: start.get(bucket, 0) for bucket in stop}

        def scan() -> pa.RecordBatchReader:
            return table.scan(start=start, stop=stop, metadata=True, as_of=as_of)

        try:
            if table.descriptor.has_primary_key:
                are_inserts_new = not may_outlive(table.descriptor)
                net = net_changes(scan().read_all(), table.descriptor.primary_key, are_inserts_new=are_inserts_new)
                return lake.merge(base, to, table.descriptor, net)
            return self._streamed(lake, table, scan, lambda rows: lake.append(base, to, rows))
        except OffsetOutOfRange as error:
            raise OffsetOutOfRange(
                f"the store no longer holds rows of {self.table} that were not tiered: {error.what}",
                where=self._owner,
                next_step="The next round begins with what is there: the current rows, or the log from its earliest offset.",
            ) from error

    def _write_snapshot(self, lake: LakeTable, table: Table, base: LakeRecord, to: Target, ends: Offsets, as_of: int) -> LakeRecord:
        """The rows current at `ends`, a batch at a time, instead of all that the lake has: the log begins behind what the lake covers.

        Rows of partitions that were dropped in the store stay: there are no others of them.
        """
        names = sorted({*base.detached} - {bucket.partition for bucket in ends})
        keys = table.descriptor.partition_keys
        kept = partition_values_of(names, table.descriptor.column(keys[0]).arrow.type).to_pylist() if names and keys else []
        log.info("%s: the lake takes the current rows of version %d, its log begins later", self.table, to.version)

        def current() -> pa.RecordBatchReader:
            return table.snapshot(ends=ends, as_of=as_of)

        return self._streamed(lake, table, current, lambda rows: lake.replace(base, to, rows, kept))

    def _streamed(
        self,
        lake: LakeTable,
        table: Table,
        source: Callable[[], pa.RecordBatchReader],
        write: Callable[[Callable[[], pa.RecordBatchReader]], LakeRecord],
    ) -> LakeRecord:
        """Write rows of the store in the lake's columns, a batch at a time. What the source raises is raised."""
        schema = lake.write_schema(table.descriptor)
        failures: list[FlashlakeError] = []

        def rows() -> pa.RecordBatchReader:
            mapped = _lake_batches(source(), lambda batch: lake.to_lake(batch, table.descriptor), failures)
            return pa.RecordBatchReader.from_batches(schema, mapped)

        try:
            return write(rows)
        except FlashlakeError as error:
            raise (failures[-1] if failures else error) from error

    def _remove_outlived(self, lake: LakeTable, table: Table, base: LakeRecord, to: Target, ends: Offsets, as_of: int) -> LakeRecord:
        """Take out of the lake what left the store by its time to live; the record as it was when there is nothing of that."""
        if not may_outlive(table.descriptor) or base.version == 0:
            return base
        keys = outlived_keys(lake, table, ends, as_of)
        record = lake.remove(base, to, table.descriptor, keys) if keys.num_rows else base
        if n_rows_differ(lake, table, ends):  # a key twice: earlier releases took a key written again for a new one
            record = self._write_snapshot(lake, table, record, to, ends, as_of)
        return record

    def _maintain(self, lake: LakeTable) -> None:
        if self._data_commits >= self._limits.compact_commits:
            self._data_commits = 0
            self._n_compactions += 1
            is_full = self._n_compactions % self._limits.full_compact_every == 0
            lake.compact(self._limits.full_compact_bytes if is_full else self._limits.compact_bytes)
        if time.monotonic() - self._vacuumed > self._limits.vacuum_every_s:
            self._vacuumed = time.monotonic()
            lake.vacuum(self._limits.vacuum_hours)


def _lake_batches(
    scan: pa.RecordBatchReader, to_lake: Callable[[pa.RecordBatch], pa.Table], failures: list[FlashlakeError]
) -> Iterator[pa.RecordBatch]:
    """The scan in the lake's columns. What it raises is kept in `failures`: the Delta writer makes another error of it."""
    try:
        for batch in scan:
            yield from to_lake(batch).to_batches()
    except FlashlakeError as error:
        failures.append(error)
        raise


def _offsets_at(table: Table, version: int) -> Offsets | None:
    """The ends at a version; None where the log does not reach back to it."""
    try:
        return table.offsets(at_version=version)
    except OffsetOutOfRange:
        return None


def _without_zeros(offsets: Offsets) -> Offsets:
    return {bucket: offset for bucket, offset in offsets.items() if offset}


def commits_since_compaction(path: Path, delta_version: int, limit: int = 64) -> int:
    """Data commits after the newest compaction, looking back at most `limit` commits."""
    n = 0
    for entry in entries_back(path, delta_version):
        if n >= limit or (entry.record is not None and entry.record.kind in ("compact", "create")):
            break
        n += entry.changes_data
    return n
