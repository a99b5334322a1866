"""Event time: the watermarks of a job's sources at one micro-batch, from what came before and its rows.

A lane is a bucket's number, over all partitions of the table; its time is the largest that its rows had so far. A row's watermark is its
lane's time before it, less the table's delay; the table's watermark is the least over its lanes, none as long as a lane had no row.
With `watermark.idle-after` a lane is never further behind than that: a row's lane counts as at least the largest time of all rows that were
committed before the row's moment, less the bound. Commits of one millisecond are one moment: rows that come together do not make each other
late.
Processing time has one clock for all buckets, that of the store: how far it has come is when the newest row was committed.
State: clocks, and what operators keep until later, live in the job's progress, so they commit with the offsets they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.descriptor import TableDescriptor, Watermark
from storage_engine.stream.operators.compile_time import WATERMARK
from storage_engine.stream.plan.tree_time import Emission

KEY: Final = "event_time"
_NONE: Final = -(1 << 62)
"""A time before every row; milliseconds of a TIMESTAMP are far from it."""


@dataclass(frozen=True)
class Clock:
    """How far the event time of a table has come.

    lanes   the largest time of each bucket's rows
    moment  when the newest rows were committed (milliseconds); `newest` the largest time of all rows, `before` of those before that moment
    """

    lanes: np.ndarray
    moment: int = _NONE
    newest: int = _NONE
    before: int = _NONE

    @classmethod
    def at_begin(cls, table: TableDescriptor) -> Clock:
        return cls(np.full(table.n_buckets, _NONE, np.int64))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Clock:
        lanes = [_NONE if time is None else time for time in value["lanes"]]
        return cls(np.array(lanes, np.int64), *(_NONE if value[name] is None else value[name] for name in ("moment", "newest", "before")))

    def to_json(self) -> dict[str, Any]:
        def shown(time: int) -> int | None:
            return None if time == _NONE else int(time)

        listed = [shown(time) for time in self.lanes]
        return {"lanes": listed, "moment": shown(self.moment), "newest": shown(self.newest), "before": shown(self.before)}

    def watermark_ms(self, declared: Watermark) -> int | None:
        """The least watermark that a further row of the table would have; None where a lane without rows holds it back."""
        least = int(self.lanes.min())
        if declared.idle_after_ms is not None and self.before != _NONE:
            least = max(least, self.before - declared.idle_after_ms)
        return None if least == _NONE else least - declared.delay_ms


class EventTime:
    """One micro-batch. `recorded` is what the one before left in the job's progress, `emissions` what the plan waits for."""

    def __init__(self, emissions: Sequence[Emission] = (), recorded: Mapping[str, Any] | None = None) -> None:
        kept = (recorded or {}).get(KEY, {})
        clocks = kept.get("clocks", {})
        scanned = [(item.by_commit, scan) for item in emissions for scan in item.scans]
        self._tables = {scan.table.name: scan.table for by_commit, scan in scanned if not by_commit}
        self._scans = {scan.id for by_commit, scan in scanned if not by_commit}
        self._by_commit = {scan.id: scan.table.name for by_commit, scan in scanned if by_commit}
        self._moments_before: dict[str, int] = dict(kept.get("moments", {}))
        self._moments_after = dict(self._moments_before)
        self._before = {
            name: Clock.from_json(clocks[name]) if name in clocks else Clock.at_begin(table) for name, table in self._tables.items()
        }
        self._after = dict(self._before)
        self.open_ms: dict[str, tuple[int, int]] = {name: (low, high) for name, (low, high) in kept.get("open", {}).items()}
        """Per operator: between which watermarks everything becomes final that it keeps; absent when it keeps nothing."""
        self.has_late_rows = False

    def is_timed(self, scan_id: int) -> bool:
        return scan_id in self._scans

    def marked(self, table: TableDescriptor, rows: pa.Table, position: Sequence[str]) -> pa.Table:
        """The rows (in the order of the log) with WATERMARK; the clock moves on. A second scan of the table gets the same marks.

        position  the columns of the moment of the row's commit and of its bucket
        """
        declared = declared_of(table)
        moment, bucket = (rows[name] for name in position)
        marks, times, self._after[table.name] = mark(table, rows[declared.column], moment, bucket, self._before[table.name])
        self.has_late_rows = self.has_late_rows or bool((times <= marks).any())
        return rows.append_column(WATERMARK, _shown(marks))

    def note_commits(self, scan_id: int, rows: pa.Table, moment: str) -> None:
        """The rows of a scan whose commits say what is final. `moment`: the column that says when."""
        name = self._by_commit.get(scan_id)
        if name is not None and rows.num_rows:
            self._moments_after[name] = max(self._moments_after.get(name, _NONE), pc.max(rows[moment]).as_py())

    def keep_open(self, operator: str, bounds: Sequence[int | None]) -> None:
        """Between the least and the largest of these watermarks everything is final that the operator keeps. None: it keeps nothing."""
        known = [bound for bound in bounds if bound is not None]
        self.open_ms.pop(operator, None)
        if known:
            self.open_ms[operator] = (min(known), max(known))

    def is_due(self, operator: str, emission: Emission) -> bool:
        """True when the watermark may have made something final that the operator keeps."""
        span, watermark_ms = self.open_ms.get(operator), self.watermark_ms(emission)
        return span is not None and watermark_ms is not None and span[0] <= watermark_ms

    def watermark_ms(self, emission: Emission) -> int | None:
        """The watermark of the emission's logs after this micro-batch; None as long as one of their buckets had no row."""
        if emission.by_commit:
            return least_watermark([passed_ms(self._moments_after.get(scan.table.name)) for scan in emission.scans])
        return least_watermark([self._after[scan.table.name].watermark_ms(declared_of(scan.table)) for scan in emission.scans])

    def watermark_before_ms(self, emission: Emission) -> int | None:
        """The watermark up to which the micro-batches before this one have sent."""
        if emission.by_commit:
            return least_watermark([passed_ms(self._moments_before.get(scan.table.name)) for scan in emission.scans])
        return least_watermark([self._before[scan.table.name].watermark_ms(declared_of(scan.table)) for scan in emission.scans])

    def recorded(self) -> dict[str, Any]:
        """What to keep in the job's progress, and the job's watermark for people to see: the least over its sources."""
        if not self._tables:
            return {KEY: {"moments": self._moments_after, "open": self.open_ms}} if self._by_commit else {}
        least = least_watermark([self._after[name].watermark_ms(declared_of(table)) for name, table in self._tables.items()])
        clocks = {name: clock.to_json() for name, clock in self._after.items()}
        return {KEY: {"clocks": clocks, "moments": self._moments_after, "open": self.open_ms}, "watermark_ms": least}


def least_watermark(marks: Sequence[int | None]) -> int | None:
    """The watermark of several logs; None while one of them has none."""
    known = [mark_ms for mark_ms in marks if mark_ms is not None]
    return min(known) if len(known) == len(marks) else None


def passed_ms(moment: int | None) -> int | None:
    """The watermark of processing time, from when the newest row was committed: rows of that moment may still come, of one before not."""
    return None if moment is None else moment - 1


def declared_of(table: TableDescriptor) -> Watermark:
    """The watermark that a table declares."""
    assert table.watermark is not None, "only a table with WATERMARK has an event time"
    return table.watermark


def mark(
    table: TableDescriptor, time: pa.ChunkedArray, moment: pa.ChunkedArray, bucket: pa.ChunkedArray, clock: Clock
) -> tuple[np.ndarray, np.ndarray, Clock]:
    """Watermarks and times of the rows in milliseconds, and the clock after them.

    Shapes: time, moment (of the commit, milliseconds) and bucket (n,) in the order of the log -> (n,), (n,).
    Errors: SchemaMismatch for a row without a time.
    """
    declared = declared_of(table)
    if time.null_count:
        raise SchemaMismatch(
            f"{time.null_count} row(s) of {table.name} have no event time: {declared.column} is null",
            where=f"WATERMARK FOR {declared.column}",
            next_step="Declare the column NOT NULL, so that such rows are refused when they are written.",
        )
    if not len(time):
        return np.empty(0, np.int64), np.empty(0, np.int64), clock
    times = time.cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy()
    buckets = bucket.to_numpy()
    marks = np.empty(len(times), np.int64)
    lanes = clock.lanes.copy()
    by_lane = np.argsort(buckets, kind="stable")
    numbers, starts = np.unique(buckets[by_lane], return_index=True)
    for number, at in zip(numbers, np.split(by_lane, starts[1:]), strict=True):
        running = np.maximum.accumulate(np.concatenate([[lanes[number]], times[at]]))
        marks[at] = running[:-1]
        lanes[number] = running[-1]
    moments = moment.cast(pa.int64()).to_numpy()
    earlier, after = _earlier(times, moments, Clock(lanes, clock.moment, clock.newest, clock.before))
    if declared.idle_after_ms is not None:
        marks = np.maximum(marks, np.where(earlier == _NONE, _NONE, earlier - declared.idle_after_ms))
    return np.where(marks == _NONE, _NONE, marks - declared.delay_ms), times, after


def _earlier(times: np.ndarray, moments: np.ndarray, clock: Clock) -> tuple[np.ndarray, Clock]:
    """For each row the largest time of all rows before its moment, and the clock after the rows.

    A moment is a run of rows with equal commit times.
    """
    begins = np.flatnonzero(np.concatenate([[moments[0] != clock.moment], moments[1:] != moments[:-1]]))
    goes_on = len(begins) == 0 or begins[0] != 0
    first = np.concatenate([[0], begins]) if goes_on else begins
    largest = np.maximum.reduceat(times, first)
    newest = np.maximum.accumulate(np.concatenate([[clock.newest], largest]))
    before = newest[:-1].copy()
    if goes_on:
        before[0] = clock.before
    per_row = np.repeat(before, np.diff(np.concatenate([first, [len(times)]])))
    return per_row, Clock(clock.lanes, int(moments[-1]), int(newest[-1]), int(before[-1]))


def marked_batches(
    table: TableDescriptor, batches: pa.RecordBatchReader, position: Sequence[str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """A whole log's batches with WATERMARK, for a recomputation that reads them once."""
    clock = Clock.at_begin(table)
    for batch in batches:
        time, moment, bucket = (pa.chunked_array([batch[name]]) for name in (declared_of(table).column, *position))
        marks, _, clock = mark(table, time, moment, bucket, clock)
        yield pa.RecordBatch.from_arrays([*batch.columns, _shown(marks)], schema=schema)


def _shown(marks: np.ndarray) -> pa.Array:
    return pa.array(marks, mask=marks <= _NONE // 2)
