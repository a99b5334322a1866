"""Sink: writes a series of made events into a table, each event once however often it is asked for; or measures without writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flashlake.generate.events import EventBatch
from flashlake.generate.series import Series
from flashlake.positions import SourcePositions
from storage_engine import Store

Write = Callable[[pa.RecordBatch, str, int], None]
"""Takes a batch, the part it belongs to, and the position after it."""


@dataclass(frozen=True)
class GenerateReport:
    """What one call did. `n_events` are in the series; `n_new` of them were made now, of those `n_late` and `n_duplicates`."""

    target: str
    n_events: int
    n_new: int = 0
    n_late: int = 0
    n_duplicates: int = 0
    seconds: float = 0.0


def write_series(
    series: Series,
    store: Store,
    table: str,
    *,
    batch_rows: int = 20_000,
    rate: float | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> GenerateReport:
    """Append the events that the table does not have yet, in order of arrival.

    rate     events per second to pace by, in real time; None: as fast as the store takes them
    on_rows  called with the number of events of each written batch
    Errors: those of the store; ProgressConflict when another process writes the same series.
    """
    positions = SourcePositions(store, f"generate:{series.name}", table)
    return _drive(
        series, table, positions.of, lambda rows, part, reached: positions.append(pa.Table.from_batches([rows]), {part: reached}),
        batch_rows=batch_rows, rate=rate, on_rows=on_rows,
    )  # fmt: skip


def write_parquet(
    series: Series, path: Path, *, batch_rows: int = 100_000, on_rows: Callable[[int], None] = lambda _: None
) -> GenerateReport:
    """Write the whole series into one Parquet file (.part, then renamed)."""
    part_file = path.with_name(path.name + ".part")
    opened: list[pq.ParquetWriter] = []  # at the first batch, which knows the schema

    def write(rows: pa.RecordBatch, part: str, reached: int) -> None:  # noqa: ARG001 - a file has no positions
        if not opened:
            opened.append(pq.ParquetWriter(part_file, rows.schema, compression="zstd"))
        opened[0].write_batch(rows)

    report = _drive(series, str(path), lambda _: 0, write, batch_rows=batch_rows, rate=None, on_rows=on_rows)
    for writer in opened:
        writer.close()
        part_file.replace(path)
    return report


def measure_series(series: Series, *, batch_rows: int = 65_536) -> GenerateReport:
    """Make every event and keep none: how fast events can be made."""
    return _drive(series, "nothing", lambda _: 0, lambda *_: None, batch_rows=batch_rows, rate=None, on_rows=lambda _: None)


def _drive(
    series: Series,
    target: str,
    reached_of: Callable[[str], int],
    write: Write,
    *,
    batch_rows: int,
    rate: float | None,
    on_rows: Callable[[int], None],
) -> GenerateReport:
    started = time.monotonic()
    if rate is not None:
        batch_rows = max(1, min(batch_rows, round(rate / 10)))  # ten batches a second, or one event at a time
    report = GenerateReport(target, 0)
    for part in series.parts():
        report = replace(report, n_events=report.n_events + series.n_events(part))
        position = reached_of(part)
        for batch in series.batches(part, position, batch_rows):
            position += batch.rows.num_rows
            if rate is not None:
                time.sleep(max(0.0, started + (report.n_new + batch.rows.num_rows) / rate - time.monotonic()))
            write(batch.rows, part, position)
            report = _counted(report, batch)
            on_rows(batch.rows.num_rows)
    return replace(report, seconds=time.monotonic() - started)


def _counted(report: GenerateReport, batch: EventBatch) -> GenerateReport:
    return replace(
        report,
        n_new=report.n_new + batch.rows.num_rows,
        n_late=report.n_late + batch.n_late,
        n_duplicates=report.n_duplicates + batch.n_duplicates,
    )
