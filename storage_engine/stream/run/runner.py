"""Runner: one job on one store: read the next rows, run the micro-batch, commit output and offsets together.

Holds: exactly once. A commit carries the operations, the new offsets and the offsets it started from; when another process
       has moved the job, the store refuses the commit and nothing of it is visible.
       A poison row is found by halving: a micro-batch that fails is cut to half of its rows, down to the one row that fails; that one goes
       to the quarantine table in the commit that passes over it. Rows before it commit as smaller micro-batches, which changes nothing.
       A runner that overlaps sends a commit and computes the next micro-batch while it is on its way (behind.py), as long as there are
       rows left; a failed commit is then raised by the step after it, and that one goes back to what the store has recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa

from storage_engine.api import CommitResult, Progress, WriteOp
from storage_engine.client.store import Store
from storage_engine.errors import FlashlakeError, ProgressConflict
from storage_engine.schema.descriptor import Offsets, TableDescriptor
from storage_engine.stream.functions.bitmaps import open_connection
from storage_engine.stream.functions.python_functions import function_failure, register
from storage_engine.stream.jobs.held import FIRST_VERSION
from storage_engine.stream.jobs.job import JobDescriptor, plan_job
from storage_engine.stream.jobs.quarantine import N_IN_A_ROW_MAX, POISON, OpenKeys, poison_of
from storage_engine.stream.jobs.rates import advanced_detail
from storage_engine.stream.jobs.upgrade import adopt, eras_of
from storage_engine.stream.operators.beside import Beside
from storage_engine.stream.operators.compile import CLOCK, source_name
from storage_engine.stream.operators.compile_time import WATERMARK
from storage_engine.stream.operators.event_time import EventTime
from storage_engine.stream.operators.execute import Executor
from storage_engine.stream.operators.inputs import InputRange, next_range, read_scan
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.operators.point_reads import StoreReader
from storage_engine.stream.plan.tree import MARK, Scan, scans
from storage_engine.stream.run.behind import Behind

_log = logging.getLogger(__name__)

N_ROWS_MAX = 262_144
"""Rows of input per micro-batch; what bounds a job's memory."""


class JobRunner:
    """Runs one job's micro-batches. Make a new one when tables of the job were altered."""

    def __init__(self, store: Store, job: JobDescriptor, *, n_rows_max: int = N_ROWS_MAX, overlaps: bool = False) -> None:
        self.job = job
        self.plan: JobPlan = plan_job(store, job)
        self._store = store
        self.options = job.options
        self.n_rows_max = min(n_rows_max, self.options.n_rows_max or n_rows_max)
        self._bound = self.n_rows_max  # rows of the next micro-batch: smaller while a poison row is looked for
        self._n_suspect = 0  # rows from here on among which a poison row is known to be
        self._n_since_poison = 0
        self._n_poison_in_a_row = 0
        self._con = open_connection()
        register(self._con, self.plan.functions, f"job {job.name}")
        self._executor = Executor(self.plan, self._con)
        self._scans = scans(self.plan.root)
        self._keyed = tuple(dict.fromkeys(scan.table.name for scan in self._scans if scan.table.has_primary_key))
        self._beside = Beside()
        self._behind = Behind(self._beside)
        # a job that quarantines must know at once which rows a failed commit was about
        self._overlaps = overlaps and not self.options.quarantines and not self._reads_what_it_writes()
        self._has_lost_track = False
        self._schema_ids = self._current_schemas()
        self._is_partitioned = any(store.describe(name).partition_keys for name in self.plan.source_tables)
        self._checked_version = -1
        self.as_of = -1
        """The store's version at which the ends of its sources were last read."""
        self.is_at_end = False
        """True when the last micro-batch took all that was there then."""
        self.committed = -1
        """The version of its last commit that was answered."""
        self._reload()

    def step(self) -> int:
        """One micro-batch; the number of input rows it took, 0 when there is nothing to do.

        Errors: what reading, computing or committing raises; then nothing was committed, and rows of the micro-batch before may be taken
        again when it overlaps. A job that quarantines raises an error of its rows only when it meets N_IN_A_ROW_MAX of them one after
        another.
        """
        if self._has_lost_track:
            self._reload()
        while True:
            work = self._next_range()
            if work.n_rows == 0:
                self.settle()
                return 0
            try:
                self._run(work)
            except POISON as error:
                if not self.options.quarantines or work.is_snapshot or self.is_stale():
                    raise
                if work.n_rows > 1:
                    self._n_suspect, self._bound = work.n_rows, work.n_rows // 2
                    continue
                self._quarantine(work, error)
                return work.n_rows
            self._n_poison_in_a_row = 0
            self._n_since_poison += work.n_rows
            self._n_suspect = max(self._n_suspect - work.n_rows, 0)
            self._bound = max(self._n_suspect // 2, 1) if self._n_suspect else min(self._bound * 2, self.n_rows_max)
            return work.n_rows

    def _next_range(self) -> InputRange:
        def read() -> InputRange:
            return next_range(self._store, self.plan.source_tables, self._offsets, self._version, self._bound, self._keyed)

        work = read()
        if work.n_rows == 0 and self._reloads_after_drop(work.as_of):
            work = read()
        self.as_of, self.is_at_end = work.as_of, work.version == work.as_of
        return work

    def _run(self, work: InputRange) -> None:
        began = time.perf_counter()
        ended = {name: found for name in self.plan.source_tables if (found := self._ended(name, work)) is not None}
        event_time = EventTime(self.plan.emissions, self._detail)
        positioned = self.plan.positioned_scans
        scanned = self._beside.all([partial(read_scan, self._store, scan, work, positioned=scan.id in positioned) for scan in self._scans])
        read = {scan.id: self._timed(scan, rows, ended, event_time) for scan, rows in zip(self._scans, scanned, strict=True)}
        inputs = {source_name(scan): read[scan.id] for scan in self._scans}
        try:
            outcome = self._executor.run(inputs, StoreReader(self._store, work, read, self._beside, self.settle), event_time)
        except duckdb.Error as error:
            raise function_failure(error, f"job {self.job.name}") or error from error
        n_read = {scan.table.name: read[scan.id].num_rows for scan in self._scans}  # fewer than offsets where rows only moved
        counts = {
            "n_rows_in": sum(n_read.values()), "n_rows_out": outcome.n_rows_out,
            "n_dropped_nulls": outcome.n_dropped_nulls, "n_late_rows": outcome.n_late_rows,
        }  # fmt: skip
        self._commit(work, outcome.ops, counts, time.perf_counter() - began, event_time.recorded())
        for name, (_, keys) in ended.items():
            assert self._open_keys is not None, "it was asked above"
            self._open_keys.close(name, keys)

    def _quarantine(self, work: InputRange, error: Exception) -> None:
        """Pass over the one row of `work`, which fails."""
        self._n_poison_in_a_row += 1
        poison = poison_of(self._store, self.job, work, error)
        if poison is None or self._n_poison_in_a_row > N_IN_A_ROW_MAX:
            raise error
        self._commit(work, [poison.op], {"n_rows_in": 1, "n_quarantined": 1}, 0.0)
        assert self._open_keys is not None, "a job that quarantines knows what it has left out"
        self._open_keys.add(poison)
        self._bound = min(max(2 * self._n_since_poison, 2), self.n_rows_max)  # the next one may be as far away as this one was
        self._n_suspect = self._n_since_poison = 0

    def _commit(
        self, work: InputRange, ops: list[WriteOp], counts: Mapping[str, int], seconds: float, recorded: Mapping[str, Any] | None = None
    ) -> None:
        detail = advanced_detail(self._detail, counts, work.version or self._version, seconds, time.time_ns() // 1_000_000)
        detail |= recorded or {}
        if "n_batches" not in self._detail:
            detail[FIRST_VERSION] = work.as_of
        commit = partial(self._store.commit, ops, [Progress(self.job.owner, work.stop, self._offsets, detail, work.as_of)])
        self.settle()
        if self._overlaps and not self.is_at_end:
            self._behind.send(commit, {op.table for op in ops})
        else:
            self._answered(commit)
        self._offsets, self._detail = dict(work.stop), detail
        self._version = work.version or self._version

    def settle(self, table: str | None = None) -> None:
        """Wait for the commit that is on its way, if there is one and (where `table` is given) it writes that table. Errors: its own."""
        self._answered(partial(self._behind.settle, table))

    def _answered(self, commit: Callable[[], CommitResult | None]) -> None:
        try:
            result = commit()
        except ProgressConflict:
            self._reload()
            raise
        except Exception:
            self._has_lost_track = True
            raise
        if result is not None:
            self.committed = result.version

    def _ended(self, source: str, work: InputRange) -> tuple[pa.BooleanArray, pa.Table] | None:
        return None if self._open_keys is None else self._open_keys.ended(source, work)

    def _timed(self, scan: Scan, rows: pa.Table, ended: Mapping[str, tuple[pa.BooleanArray, pa.Table]], event_time: EventTime) -> pa.Table:
        """The rows of a scan, without those that follow a row in quarantine, with their watermarks where the plan waits for them."""
        if scan.table.name in ended:
            return rows.filter(ended[scan.table.name][0])
        event_time.note_commits(scan.id, rows, CLOCK[0])
        if not event_time.is_timed(scan.id) or scan.table.watermark is None:
            return rows
        marked = event_time.marked(scan.table, rows, CLOCK)
        return marked.append_column(f"{MARK}{scan.table.watermark.column}", marked[WATERMARK].cast(pa.timestamp("ms")))

    def is_stale(self, tables: Sequence[TableDescriptor] | None = None) -> bool:
        """True when a table of the job has other columns than it was planned with. `tables`: those of the store, if they are at hand."""
        return self._current_schemas(tables) != self._schema_ids

    def close(self) -> None:
        """Wait for what is on its way, and give everything free. A commit that fails then is done again by whoever takes up the job."""
        try:
            self.settle()
        except FlashlakeError as error:
            _log.warning("job %s: its last commit failed while it was let go: %s", self.job.name, error)
        self._beside.close()
        self._con.close()

    def _current_schemas(self, tables: Sequence[TableDescriptor] | None = None) -> dict[str, tuple[int, int]]:
        mine = {self.plan.sink.name, *self.plan.source_tables, *self.plan.lookup_tables}
        found = self._store.backend.tables() if tables is None else tables
        return {item.name: (item.table_id, item.schema_id) for item in found if item.name in mine}

    def _reloads_after_drop(self, version: int) -> bool:
        """True when the store has forgotten offsets of a dropped partition that this runner still held: one created again under its
        name begins at 0. A batch with rows needs no such look: its commit is compared.
        """
        if not self._is_partitioned or version == self._checked_version:
            return False
        self._checked_version = version
        recorded = self._store.progress(self.job.owner).get(self.job.owner)
        if (recorded.offsets if recorded else {}) == self._offsets:
            return False
        self._reload()
        return True

    def _reads_what_it_writes(self) -> bool:
        return self.plan.sink.name in (*self.plan.source_tables, *self.plan.lookup_tables)

    def _reload(self) -> None:
        recorded = adopt(self._store, self.job, self.plan)
        self._offsets: Mapping[str, Offsets] = recorded.offsets if recorded else {}
        self._detail: dict[str, Any] = dict(recorded.detail) if recorded else {}
        self._version = int(self._detail.get("version", 0))
        self._has_lost_track = False
        self._open_keys: OpenKeys | None = None
        if self.options.quarantines:
            epochs = (*(era.epoch for era in eras_of(recorded)), self.job.epoch)
            self._open_keys = OpenKeys(self._store, self.job, self.plan, self._offsets, epochs)
