"""ingest, generate: real data and made events into the store."""

from __future__ import annotations

import argparse
from datetime import datetime, time
from typing import TYPE_CHECKING

import pyarrow as pa

from flashlake.cli.options import a_span, config_of
from flashlake.cli.output import progress_bars, say, write_rows
from flashlake.cli.usage import INGESTED, KINDS
from flashlake.completejourney import FIRST_DAY
from flashlake.deploy import deploy
from flashlake.sql import open_store
from storage_engine.errors import InvalidConfiguration

if TYPE_CHECKING:
    from flashlake.generate import Series


def run_ingest(options: argparse.Namespace) -> int:
    from flashlake.ingest import ingest

    config = config_of(options)
    with open_store(config, options.store) as store, progress_bars() as bars:
        deploy(store, config.project / "assets", only=[table for table in options.tables if table in INGESTED])
        tasks = {table: bars.add_task(table, total=None, note="") for table in options.tables}
        reports = ingest(
            store, tables=options.tables, first_day=options.first_day or FIRST_DAY, days=options.days, batch_rows=options.batch_rows,
            on_rows=lambda table, n: bars.advance(tasks[table], n),
        )  # fmt: skip
    rows = [
        {"table": r.table, "rows": r.n_source, "new": r.n_new, "seconds": round(r.seconds, 3), "rows_per_s": round(r.n_new / r.seconds)}
        for r in reports
    ]
    write_rows(pa.Table.from_pylist(rows), options.format)
    return 0


def run_generate(options: argparse.Namespace) -> int:
    from flashlake.generate import measure_series, write_parquet, write_series

    config = config_of(options)
    series = series_of(options, config.demo.seed)
    if options.dry_run:
        report = measure_series(series)
    elif options.out:
        report = write_parquet(series, options.out)
    else:
        with open_store(config, options.store) as store, progress_bars() as bars:
            deploy(store, config.project / "assets", only=[options.target])
            total = sum(series.n_events(part) for part in series.parts())
            task = bars.add_task(options.target, total=total, note="")
            pace = options.rate if options.realtime else None
            report = write_series(
                series, store, options.target, batch_rows=options.batch_rows, rate=pace, on_rows=lambda n: bars.advance(task, n)
            )
        if not report.n_new and report.n_events:
            say("every event of this series is in the table already; another --seed makes others")
    row = {
        "target": report.target, "events": report.n_events, "new": report.n_new, "late": report.n_late, "duplicates": report.n_duplicates,
        "seconds": round(report.seconds, 3), "events_per_s": round(report.n_new / max(report.seconds, 1e-9)),
    }  # fmt: skip
    write_rows(pa.Table.from_pylist([row]), options.format)
    return 0


def series_of(options: argparse.Namespace, default_seed: int) -> Series:
    """The series that the options describe."""
    from flashlake.generate import BasketSeries, Disorder, RateSeries, load_baskets

    kind = options.kind or (options.target or "").rpartition(".")[2]
    if kind not in KINDS:
        raise InvalidConfiguration(
            f"{options.target or 'the target'} does not say which events to make",
            where="generate",
            next_step=f"Add --kind with one of: {', '.join(KINDS)}.",
        )
    if options.rate is None and (options.span or options.realtime):
        raise InvalidConfiguration(
            "--span and --realtime need --rate", where="generate", next_step="Add --rate, or give the span as --days."
        )
    if options.rate is not None and options.days:
        raise InvalidConfiguration(
            "--days is for events without --rate", where="generate", next_step="Give the span as --span, for example 1d."
        )
    start = options.start or datetime.combine(FIRST_DAY, time())
    seed = default_seed if options.seed is None else options.seed
    disorder = Disorder(options.late, options.duplicated)
    baskets = load_baskets()
    if options.rate is None:
        return BasketSeries(baskets, kind, first_day=start.date(), days=options.days or 1, seed=seed, disorder=disorder)
    span = options.span or a_span("10s")
    return RateSeries(baskets, kind, rate=options.rate, span=span, start=start, seed=seed, disorder=disorder)
