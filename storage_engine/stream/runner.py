"""Runner: one job on one store: read the next rows, run the micro-batch, commit output and offsets together.

Holds: exactly once. A commit carries the operations, the new offsets and the offsets it started from; when another process
       has moved the job, the store refuses the commit and nothing of it is visible.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.errors import ProgressConflict
from storage_engine.schema.descriptor import Offsets
from storage_engine.stream.compile import source_name
from storage_engine.stream.execute import Executor
from storage_engine.stream.functions import open_connection
from storage_engine.stream.inputs import InputRange, next_range, read_scan, rows_between
from storage_engine.stream.job import JobDescriptor, plan_job
from storage_engine.stream.plan import Scan, scans
from storage_engine.stream.planner import JobPlan
from storage_engine.stream.point_reads import StoreReader
from storage_engine.stream.python_functions import function_failure, register

N_ROWS_MAX = 262_144
"""Rows of input per micro-batch; what bounds a job's memory."""


class JobRunner:
    """Runs one job's micro-batches. Make a new one when tables of the job were altered."""

    def __init__(self, store: Store, job: JobDescriptor, *, n_rows_max: int = N_ROWS_MAX) -> None:
        self.job = job
        self.plan: JobPlan = plan_job(store, job)
        self._store = store
        self._n_rows_max = n_rows_max
        self._con = open_connection()
        register(self._con, self.plan.functions, f"job {job.name}")
        self._executor = Executor(self.plan, self._con)
        self._scans = scans(self.plan.root)
        self._schema_ids = self._current_schemas()
        self._is_partitioned = any(store.describe(name).partition_keys for name in self.plan.source_tables)
        self._checked_version = -1
        self._reload()

    def step(self) -> int:
        """One micro-batch; the number of input rows it took, 0 when there is nothing to do.

        Errors: what reading, computing or committing raises; then nothing was committed.
        """
        began = time.perf_counter()
        work = next_range(self._store, self.plan.source_tables, self._offsets, self._version, self._n_rows_max)
        if work.n_rows == 0 and self._reloads_after_drop(work.as_of):
            work = next_range(self._store, self.plan.source_tables, self._offsets, self._version, self._n_rows_max)
        if work.n_rows == 0:
            return 0
        read = {scan.id: self._read(scan, work) for scan in self._scans}
        inputs = {source_name(scan): read[scan.id] for scan in self._scans}
        try:
            outcome = self._executor.run(inputs, StoreReader(self._store, work, read))
        except duckdb.Error as error:
            raise function_failure(error, f"job {self.job.name}") or error from error
        n_read = {scan.table.name: read[scan.id].num_rows for scan in self._scans}  # fewer than offsets where rows only moved
        detail = self._advanced_detail(work, sum(n_read.values()), outcome.n_rows_out, outcome.n_dropped_nulls, time.perf_counter() - began)
        try:
            self._store.commit(outcome.ops, [Progress(self.job.owner, work.stop, self._offsets, detail, work.as_of)])
        except ProgressConflict:
            self._reload()
            raise
        self._offsets, self._detail = dict(work.stop), detail
        self._version = work.version or self._version
        return work.n_rows

    def _read(self, scan: Scan, work: InputRange) -> pa.Table:
        return read_scan(self._store, scan, work, positioned=scan.id in self.plan.positioned_scans)

    def lag_rows(self) -> int:
        """Rows of the sources that the job has not read."""
        latest = {table: self._store.backend.offsets(table, "latest") for table in self.plan.source_tables}
        return rows_between(self._offsets, latest)

    def is_stale(self) -> bool:
        """True when a table of the job has other columns than it was planned with."""
        return self._current_schemas() != self._schema_ids

    def close(self) -> None:
        self._con.close()

    def _current_schemas(self) -> dict[str, tuple[int, int]]:
        mine = {self.plan.sink.name, *self.plan.source_tables, *self.plan.lookup_tables}
        return {item.name: (item.table_id, item.schema_id) for item in self._store.backend.tables() if item.name in mine}

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

    def _reload(self) -> None:
        recorded = self._store.progress(self.job.owner).get(self.job.owner)
        self._offsets: Mapping[str, Offsets] = recorded.offsets if recorded else {}
        self._detail: dict[str, Any] = dict(recorded.detail) if recorded else {}
        self._version = int(self._detail.get("version", 0))

    def _advanced_detail(self, work: InputRange, n_rows_in: int, n_rows_out: int, n_dropped: int, seconds: float) -> dict[str, Any]:
        before = self._detail
        return {
            "version": work.version or self._version,
            "n_rows_in": int(before.get("n_rows_in", 0)) + n_rows_in,
            "n_rows_out": int(before.get("n_rows_out", 0)) + n_rows_out,
            "n_dropped_nulls": int(before.get("n_dropped_nulls", 0)) + n_dropped,
            "n_batches": int(before.get("n_batches", 0)) + 1,
            "rows_per_s": round(n_rows_in / seconds, 1) if seconds > 0 else 0.0,
            "finished_ms": time.time_ns() // 1_000_000,
        }
