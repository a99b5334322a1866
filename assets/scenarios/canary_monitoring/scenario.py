"""Scenario 4 against the running platform: a wide log read in part, a cube per minute, and alerts on pages that break."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.canary_monitoring.events import CORE, MINUTE_EVENTS, MINUTE_NAMES, PAGES, POOL, Events, broken_page, is_broken
from assets.scenarios.canary_monitoring.expected import ALERT_COLUMNS, CUBE_COLUMNS, expected
from assets.scenarios.comparing import Check, compare, require
from assets.scenarios.counted import arrivals
from assets.scenarios.following import Follower, Received
from assets.scenarios.pacing import Pace, send
from assets.scenarios.report import Options, Report
from assets.scenarios.stage import Stage
from assets.scenarios.statements import statements
from storage_engine import Store
from storage_engine.lake import connect_delta, table_path

NAME = "canary_monitoring"
LOG, CANARY = "db.log_page_ri", "db.ads_gray_monitoring_ri"
GRAY_CUBE, BASE_CUBE, ALERTS = "db.ads_gray_monitoring_permm_ri", "db.ads_base_monitoring_permm_ri", "db.gray_alert_ri"
READ = [*CORE, "args", "ds"]
"""The 30 columns that the monitoring statement reads."""
LAKE_FRESHNESS = "15s"
_GROUPING = ["col1", "col2", "col3", "col4"]


def deploy(store: Store) -> None:
    """Tables and jobs."""
    store.execute(statements(NAME))
    store.execute(f"ALTER TABLE {LOG} SET ('table.datalake.freshness' = '{LAKE_FRESHNESS}')")  # printed: 3min


def writer(store: Store, events: Events) -> Callable[[int, int], None]:
    """Appends events [start, stop)."""
    log = store.table(LOG)

    def write(start: int, stop: int) -> None:
        log.append(events.rows(start, stop))

    return write


def checks(store: Store, events: Events, n_events: int) -> list[Check]:
    """Every table against the independent answer; and each page that broke has its alert."""
    right = expected(events, n_events)
    alerts = store.table(ALERTS).read(ALERT_COLUMNS)
    return [
        compare("canary rows, 29 columns", right.canary, store.table(CANARY).scan([*CORE, "ds"]).read_all()),
        compare("cube of the canary", right.gray, store.table(GRAY_CUBE).read(CUBE_COLUMNS)),
        compare("cube of the baseline", right.base, store.table(BASE_CUBE).read(CUBE_COLUMNS)),
        compare("alerts", right.alerts, alerts),
        require("each broken page has its alert", holds=broken_pages(n_events) <= alerted_pages(alerts)),
        require("no other page has an alert", holds=alerted_pages(alerts) <= broken_pages(n_events, whole_minutes=False)),
    ]


def broken_pages(n_events: int, *, whole_minutes: bool = True) -> set[tuple[str, str]]:
    """(minute, page) of each page that broke among the first events; `whole_minutes`: whose minute is over, so that it must be noticed."""
    minutes = np.arange(-(-n_events // MINUTE_EVENTS))
    ends = minutes * MINUTE_EVENTS + MINUTE_EVENTS
    is_counted = is_broken(minutes, np.minimum(ends, n_events) - 1) & (~np.bool_(whole_minutes) | (ends <= n_events))
    return {(MINUTE_NAMES[minute].as_py(), PAGES[broken_page(minute)]) for minute in minutes[is_counted].tolist()}


def alerted_pages(alerts: pa.Table) -> set[tuple[str, str]]:
    """(minute, page) of the alerts of a page as a whole."""
    page, *others = (pc.equal(alerts[name], "ALL") for name in _GROUPING)
    of_pages = alerts.filter(functools.reduce(pc.and_, others, pc.invert(page)))
    return set(zip(of_pages["mm"].to_pylist(), of_pages["col1"].to_pylist(), strict=True))


def bytes_read(store: Store, columns: list[str] | None) -> int:
    """Bytes that the server sends for the whole log, in these columns or all. Counted at the client, before decoding."""
    stop = store.backend.offsets(LOG, "latest")
    earliest = store.backend.offsets(LOG, "earliest")
    ranges = {bucket: (earliest.get(bucket, 0), end) for bucket, end in stop.items()}
    return sum(frame.message.size for frame in store.backend.fetch(LOG, ranges, columns))


def run(stage: Stage, options: Options) -> Report:
    """Send at the given rate, follow cube and alerts, compare all at the end."""
    report = Report(NAME)
    deploy(stage.store)
    events = Events(options.seed, day=datetime.now().astimezone().strftime("%Y%m%d"))
    with (
        Follower(stage.config, GRAY_CUBE, ["mm", *_GROUPING, "pv"]) as cells,
        Follower(stage.config, ALERTS, ["mm", *_GROUPING]) as alerts,
    ):
        pace = send(writer(stage.store, events), rate=options.rate, n_events=options.n_events, on_sent=options.advance)
        options.say(f"{NAME}: jobs caught up after {stage.await_jobs():.1f} s")
    report.n_events, report.rate = options.n_events, pace.achieved
    report.latencies_ms = {"canary event to cube cell": latencies_of_cells(events, pace, cells.received)}
    anomalies = latencies_of_alerts(events, pace, alerts.received)
    if len(anomalies):
        report.latencies_ms["broken page to alert"] = anomalies
    report.checks = checks(stage.store, events, options.n_events)
    stage.await_lake(LOG)
    report.checks.append(check_lake(stage, events, options.n_events))
    pruned, whole = bytes_read(stage.store, READ), bytes_read(stage.store, None)
    report.facts = {
        "bytes sent for 30 columns": pruned, "bytes sent for 95 columns": whole, "share": round(pruned / whole, 3),
        "pages that broke": len(broken_pages(options.n_events)), "alerts standing at the end": report.checks[3].n_found,
        "generator CPU, share of one core": round(pace.cpu_seconds / pace.seconds, 3),
    }  # fmt: skip
    return report


def check_lake(stage: Stage, events: Events, n_events: int) -> Check:
    """The log's rows in Delta, as sums over all of them: 95 columns by their number of rows, durations and failures per minute."""
    con = connect_delta()
    path = table_path(stage.lake, LOG)
    per_minute = (
        "SELECT col5 AS mm, count(*) AS n, sum(col6)::BIGINT AS cost, sum(col7)::BIGINT AS failed, count(args) AS args FROM {} GROUP BY mm"
    )
    found = con.execute(per_minute.format(f"delta_scan('{path}')")).to_arrow_table()
    minutes, cost, failed = events.measures(0, n_events)
    right = pa.table({"col5": MINUTE_NAMES.take(pa.array(minutes)), "col6": cost, "col7": failed.astype(np.int64), "args": minutes})
    plain = duckdb.connect()
    plain.register("sent", right)
    return compare("log in Delta, by minute", plain.execute(per_minute.format("sent")).to_arrow_table(), found)


def latencies_of_cells(events: Events, pace: Pace, received: list[Received]) -> np.ndarray:
    """Milliseconds from when a canary event was due until the cube's cell of all pages that counts it was received."""
    numbers = np.arange(pace.n_sent)
    canary = numbers[events.is_canary[numbers % POOL]]
    rows, at_ms = _new_rows(received)
    is_total = np.logical_and.reduce([pc.equal(rows[name], "ALL").to_numpy() for name in _GROUPING])
    counts = rows["pv"].to_numpy()[is_total]
    return pace.warm(canary, arrivals(canary // MINUTE_EVENTS, _minutes(rows)[is_total], counts, at_ms[is_total]))


def latencies_of_alerts(events: Events, pace: Pace, received: list[Received]) -> np.ndarray:
    """Milliseconds from the first failure-prone event of each broken page until its first alert was received. Shapes: -> (anomalies,)."""
    rows, at_ms = _new_rows(received)
    minutes = _minutes(rows)
    pages = np.array(rows["col1"].to_pylist(), dtype=object)
    found = []
    for name, page in sorted(broken_pages(pace.n_sent)):
        minute = int(name[:2]) * 60 + int(name[2:])
        numbers = np.arange(minute * MINUTE_EVENTS + MINUTE_EVENTS // 3, (minute + 1) * MINUTE_EVENTS)
        numbers = numbers[is_broken(np.full(len(numbers), minute), numbers)]
        hit = events.is_canary[numbers % POOL] & (events.pages[numbers % POOL] == PAGES.index(page))
        is_its = (minutes == minute) & (pages == page)
        assert np.any(is_its), f"no alert of {page} in minute {name}"
        found.append(at_ms[is_its].min() - pace.due_ms(numbers[hit][:1])[0])
    return np.array(found)


def _new_rows(received: list[Received]) -> tuple[pa.Table, np.ndarray]:
    """Rows as they stand after each change, and when they were received."""
    rows = pa.concat_tables([one.rows for one in received])
    at_ms = np.concatenate([np.full(one.rows.num_rows, one.at_ms) for one in received])
    is_new = pc.is_in(rows["_change_type"], pa.array(["+I", "+U"]))
    return rows.filter(is_new), at_ms[is_new.to_numpy()]


def _minutes(rows: pa.Table) -> np.ndarray:
    names = rows["mm"]
    hours, minutes = (pc.utf8_slice_codeunits(names, begin, begin + 2).cast(pa.int64()) for begin in (0, 2))
    return pc.add(pc.multiply(hours, 60), minutes).to_numpy()
