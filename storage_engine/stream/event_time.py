"""Event time: the watermarks of a job's sources at one micro-batch, from what came before and its rows.

A lane is a bucket's number, over all partitions of the table; its time is the largest that its rows had so far. A row's watermark is its
lane's time before it, less the table's delay; the table's watermark is the least over its lanes, none as long as a lane had no row.
State: lanes and what operators keep until later live in the job's progress, so they commit with the offsets they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.compile_time import WATERMARK
from storage_engine.stream.plan_time import Emission

KEY: Final = "event_time"
_NONE: Final = -(1 << 62)
"""A lane's time before its first row; milliseconds of a TIMESTAMP are far from it."""


class EventTime:
    """One micro-batch. `recorded` is what the one before left in the job's progress, `emissions` what the plan waits for."""

    def __init__(self, emissions: Sequence[Emission] = (), recorded: Mapping[str, Any] | None = None) -> None:
        kept = (recorded or {}).get(KEY, {})
        self._tables = {item.scan.table.name: item.scan.table for item in emissions}
        self._scans = {item.scan.id for item in emissions}
        self._before = {name: _lanes(table, kept.get("lanes", {}).get(name)) for name, table in self._tables.items()}
        self._after = dict(self._before)
        self.open_ms: dict[str, int] = dict(kept.get("open", {}))
        """Per operator: a bound below which no watermark completes anything that it keeps; absent when it keeps nothing."""
        self.has_late_rows = False

    def is_timed(self, scan_id: int) -> bool:
        return scan_id in self._scans

    def marked(self, table: TableDescriptor, rows: pa.Table, time: pa.ChunkedArray, bucket: pa.ChunkedArray) -> pa.Table:
        """The rows (in the order of the log) with WATERMARK; the lanes move on. A second scan of the table gets the same marks."""
        marks, times, self._after[table.name] = mark(table, time, bucket, self._before[table.name])
        self.has_late_rows = self.has_late_rows or bool((times <= marks).any())
        return rows.append_column(WATERMARK, pa.array(marks, mask=marks <= _NONE // 2))

    def keep_open(self, operator: str, bounds: Sequence[int | None]) -> None:
        """The least of these watermarks is the first that completes anything that the operator keeps; none: it keeps nothing."""
        self.open_ms.pop(operator, None)
        least = min((bound for bound in bounds if bound is not None), default=None)
        if least is not None:
            self.open_ms[operator] = least

    def watermark_ms(self, emission: Emission) -> int | None:
        """The watermark of the emission's log after this micro-batch; None as long as one of its buckets had no row."""
        return watermark_of(emission.scan.table, self._after[emission.scan.table.name])

    def recorded(self) -> dict[str, Any]:
        """What to keep in the job's progress, and the job's watermark for people to see: the least over its sources."""
        if not self._tables:
            return {}
        lanes = {name: [None if value == _NONE else int(value) for value in found] for name, found in self._after.items()}
        marks = [watermark_of(table, self._after[name]) for name, table in self._tables.items()]
        least = None if None in marks else min(value for value in marks if value is not None)
        return {KEY: {"lanes": lanes, "open": self.open_ms}, "watermark_ms": least}


def mark(
    table: TableDescriptor, time: pa.ChunkedArray, bucket: pa.ChunkedArray, lanes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Watermarks and times of the rows in milliseconds, and the lanes after them.

    Shapes: time and bucket (n,) in the order of the log; lanes (buckets,) -> (n,), (n,), (buckets,).
    Errors: SchemaMismatch for a row without a time.
    """
    declared = table.watermark
    assert declared is not None, "only a table with WATERMARK is marked"
    if time.null_count:
        raise SchemaMismatch(
            f"{time.null_count} row(s) of {table.name} have no event time: {declared.column} is null",
            where=f"WATERMARK FOR {declared.column}",
            next_step="Declare the column NOT NULL, so that such rows are refused when they are written.",
        )
    times = time.cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy()
    buckets = bucket.to_numpy()
    marks = np.empty(len(times), np.int64)
    after = lanes.copy()
    by_lane = np.argsort(buckets, kind="stable")
    numbers, starts = np.unique(buckets[by_lane], return_index=True)
    for number, at in zip(numbers, np.split(by_lane, starts[1:]), strict=True):
        running = np.maximum.accumulate(np.concatenate([[lanes[number]], times[at]]))
        marks[at] = running[:-1]
        after[number] = running[-1]
    return np.where(marks == _NONE, _NONE, marks - declared.delay_ms), times, after


def watermark_of(table: TableDescriptor, lanes: np.ndarray) -> int | None:
    """The least watermark that a further row of the table would have; None as long as a lane had no row."""
    declared = table.watermark
    assert declared is not None, "only a table with WATERMARK has one"
    least = int(lanes.min())
    return None if least == _NONE else least - declared.delay_ms


def empty_lanes(table: TableDescriptor) -> np.ndarray:
    return np.full(table.n_buckets, _NONE, np.int64)


def marked_batches(
    table: TableDescriptor, batches: pa.RecordBatchReader, time: str, bucket: str, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """A whole log's batches with WATERMARK, for a recomputation that reads them once."""
    lanes = empty_lanes(table)
    for batch in batches:
        marks, _, lanes = mark(table, pa.chunked_array([batch[time]]), pa.chunked_array([batch[bucket]]), lanes)
        yield pa.RecordBatch.from_arrays([*batch.columns, pa.array(marks, mask=marks <= _NONE // 2)], schema=schema)


def _lanes(table: TableDescriptor, recorded: Sequence[int | None] | None) -> np.ndarray:
    if recorded is None:
        return empty_lanes(table)
    return np.array([_NONE if value is None else value for value in recorded], np.int64)
