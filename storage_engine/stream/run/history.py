"""History: the input of a recomputation, from wherever it is held now, or the clear statement that it is gone.

A job read a log row by row while it was there; its recomputation comes later. What has expired of a tiered log since is read from the lake,
by offsets. Of a primary-key table the current rows do not expire with the changelog, and a recomputation needs no more: the rows as they
stood at the job's offsets. What neither holds, and rows of partitions that were dropped, cannot be computed again.
Holds: an answer is the whole input, or all of it that makes the partitions asked for; anything else is InputGone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import TIER_PREFIX
from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.errors import OffsetOutOfRange, StatementRefused
from storage_engine.schema.descriptor import Offsets, TableBucket
from storage_engine.schema.options import ttl_ms
from storage_engine.stream.jobs.held import Gap, InputGone, dropped, expired, gaps_of
from storage_engine.stream.jobs.quarantine import is_kept
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.operators.point_reads import changes_between, matching, put_back
from storage_engine.stream.plan.by_partition import following
from storage_engine.stream.plan.tree import Scan, scans


class Lake(Protocol):
    """What the lake holds of tiered tables (storage_engine/lake/history.py)."""

    def log_rows(self, table: str, columns: Sequence[str], ranges: Mapping[TableBucket, tuple[int, int]]) -> pa.Table:
        """Rows of a log by their offsets, those that are there, with the metadata of a scan, in no particular order."""
        ...

    def all_rows(self, table: str, columns: Sequence[str], at: int) -> pa.Table:
        """What SELECT shows of a table at a version; a log's rows with the metadata of a scan."""
        ...


class StoreOnly:
    """The view of who sees the store alone, where nothing shows the lake's rows either."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def log_rows(self, table: str, columns: Sequence[str], ranges: Mapping[TableBucket, tuple[int, int]]) -> pa.Table:
        """None: what the store does not hold is not there."""
        held = {bucket: 0 for bucket in ranges}
        return self._store.table(table).scan(columns, stop=held, metadata=True).read_all()

    def all_rows(self, table: str, columns: Sequence[str], at: int) -> pa.Table:
        """What the store holds at a version."""
        handle = self._store.table(table)
        if handle.descriptor.has_primary_key:
            return handle.read(columns, at=at)
        return handle.scan(columns, stop=dict(sorted(handle.offsets(at_version=at).items())), metadata=True).read_all()


@dataclass(frozen=True)
class History:
    """Where a recomputation reads.

    lake        None: not at hand
    column, partitions  of the sink: the partitions that have to be right, under every name that they may have; none: all rows
    forgotten   table -> partition -> rows read before they were dropped (held.py)
    """

    store: Store
    lake: Lake | None = None
    column: str = ""
    partitions: frozenset[str] = frozenset()
    forgotten: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def check_dropped(self, plan: JobPlan) -> None:
        """Errors: InputGone when the result has rows of a partition that was dropped in a source."""
        for scan in scans(plan.root):
            gone = self.forgotten.get(scan.table.name, {})
            if gone and not self._is_apart(plan, scan, gone):
                what = dropped(scan.table.name, gone)
                step = self._step(plan, scan) or "What the job made of them stays as it is."
                raise InputGone(f"{what}: the result cannot be recomputed", where=plan.sink.name, next_step=step)

    def log(
        self, plan: JobPlan, scan: Scan, columns: Sequence[str], start: Offsets, stop: Offsets, *, metadata: bool, in_order: bool = False
    ) -> pa.RecordBatchReader:
        """Rows [start, stop) of a log. in_order: in the order of their commits, which the lake does not tell.

        Errors: InputGone.
        """
        table = self.store.table(scan.table.name)
        gaps = gaps_of(table, start, stop)
        begin = {bucket: start.get(bucket, 0) for bucket in stop} | {gap.bucket: gap.held for gap in gaps}
        held = table.scan(columns, start=begin, stop=dict(sorted(stop.items())), metadata=metadata)
        if not gaps or self._is_apart(plan, scan, [gap.bucket.partition for gap in gaps]):
            return held
        older = None
        if self.lake is not None and scan.table.is_tiered and not in_order:
            older = self.lake.log_rows(table.name, columns, {gap.bucket: (gap.start, gap.held) for gap in gaps})
        if older is None or older.num_rows != sum(gap.n_rows for gap in gaps):
            raise self.gone(plan, scan, gaps)
        batches: Iterator[pa.RecordBatch] = chain(older.select(held.schema.names).cast(held.schema).to_batches(), held)
        return pa.RecordBatchReader.from_batches(held.schema, batches)

    def rows(
        self, plan: JobPlan, scan: Scan, columns: list[str], stop: Offsets, at_version: int | None, left_out: pa.Table | None
    ) -> pa.Table:
        """The rows of a primary-key table as they stood at `stop`: those of now, with the keys put back that have changed since.

        Errors: InputGone where the present rows and what is left of the changelog do not tell.
        """
        table = self.store.table(scan.table.name)
        gaps = gaps_of(table, {}, stop)
        lives = table.descriptor.options.get("table.kv.ttl")
        if lives is not None and ttl_ms(lives) is not None:
            raise self.gone(plan, scan, gaps, "and so may rows themselves ('table.kv.ttl')")
        version = self.store.version() if at_version is None else at_version
        try:
            latest = {bucket: end for bucket, end in table.offsets(at_version=version).items() if bucket in stop}
            found = table.read(columns, at=version, of_partitions={bucket.partition for bucket in stop})
            later = changes_between(table, stop, latest, columns)
        except OffsetOutOfRange as error:
            raise self.gone(plan, scan, gaps, error.what) from error
        found = put_back(found.select(columns), later, table.descriptor.primary_key)
        return found if left_out is None else self._without(plan, scan, found, gaps, stop, left_out)

    def _without(self, plan: JobPlan, scan: Scan, found: pa.Table, gaps: list[Gap], stop: Offsets, left_out: pa.Table) -> pa.Table:
        """The rows but those whose newest change is in quarantine."""
        first = {gap.bucket: gap.held for gap in gaps}
        places = left_out.rename_columns(["_partition", "_bucket", "_log_offset"])
        for partition, bucket, offset in zip(*(places[name].to_pylist() for name in places.column_names), strict=True):
            if offset < first.get(TableBucket(partition, bucket), 0):
                raise self.gone(plan, scan, gaps, "among them rows in quarantine")
        key = list(scan.table.primary_key)
        begin = {bucket: first.get(bucket, 0) for bucket in stop}
        changes = self.store.table(scan.table.name).scan(key, start=begin, stop=dict(stop), metadata=True).read_all()
        kept = is_kept(changes.select(places.column_names), left_out)
        numbered = changes.select(key).append_column("__n", pa.array(np.arange(changes.num_rows)))
        newest = numbered.group_by(key, use_threads=False).aggregate([("__n", "max")])
        return matching(found, newest.filter(pc.invert(kept.take(newest["__n_max"]))), key, "left anti")

    def shown(self, scan: Scan, columns: list[str], at: int) -> pa.Table:
        """What SELECT shows of a table at a version: of a tiered table the rows of lake and store. A log's rows have a scan's metadata.

        Errors: StatementRefused where the lake may hold more than the store, and is not at hand.
        """
        table = self.store.table(scan.table.name)
        if scan.table.is_tiered and self.lake is not None:
            return self.lake.all_rows(table.name, columns, at)
        if scan.table.is_tiered and self._may_be_more_in_lake(table):
            raise StatementRefused(
                f"the lake may hold rows of {table.name} that the store does not hold any more, and it is not at hand here",
                where=table.name,
                next_step="Run the statement with flashlake sql, or in SqlSession(store, query=..., lake=LakeHistory(store, lake_root)).",
            )
        return StoreOnly(self.store).all_rows(table.name, columns, at)

    def _may_be_more_in_lake(self, table: Table) -> bool:
        """Rows of partitions that were dropped stay in the lake, and so do rows that have expired."""
        owner = f"{TIER_PREFIX}{table.name}"
        lives = table.descriptor.options.get("table.kv.ttl")
        if owner not in self.store.progress(owner):
            return False
        if table.descriptor.partition_keys or (lives is not None and ttl_ms(lives) is not None):
            return True
        return not table.descriptor.has_primary_key and any(table.offsets("earliest").values())

    def gone(self, plan: JobPlan, scan: Scan, gaps: Sequence[Gap], reason: str = "") -> InputGone:
        """The refusal for rows that are needed and not there."""
        if reason == "" and scan.table.is_tiered:
            reason = "and the lake does not hold them all" if self.lake is not None else "and the lake is not at hand here"
        what = " ".join(filter(None, [expired(scan.table.name, gaps), reason]))
        keeps = (
            f"'table.log.ttl' of {scan.table.name} says how long its log is kept; with 'table.datalake.enabled' the lake keeps it longer."
        )
        return InputGone(f"{what}: the result cannot be recomputed", where=plan.sink.name, next_step=self._step(plan, scan) or keeps)

    def _is_apart(self, plan: JobPlan, scan: Scan, gone: Sequence[str] | Mapping[str, int]) -> bool:
        """True when no row of the partitions asked for comes from those that are gone."""
        if not self.partitions or "" in gone or not self.partitions.isdisjoint(gone) or plan.emissions:
            return False
        if plan.is_last_row and self.column not in plan.sink.primary_key:
            return False  # a row of another partition may have been the last of its key
        return scan.id in following(plan.root, self.column)

    def _step(self, plan: JobPlan, scan: Scan) -> str:
        """What can be done: "" when only some partitions are asked for already, or none can be told apart."""
        if self.partitions:
            return ""
        ids = {item.id for item in scans(plan.root) if item.table.name == scan.table.name}
        keys = plan.sink.partition_keys
        if keys and ids <= following(plan.root, keys[0]):
            return "Name the partitions whose input is still held: they can be proved."
        return ""
