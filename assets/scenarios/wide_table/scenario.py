"""Scenario 2 against the running platform: five streams, in the middle a new column and a sixth."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.comparing import Check, compare
from assets.scenarios.counted import arrivals
from assets.scenarios.following import Follower, Received
from assets.scenarios.pacing import Pace, send
from assets.scenarios.report import Options, Report
from assets.scenarios.stage import Stage
from assets.scenarios.statements import statements
from assets.scenarios.wide_table.events import LOGS, N_HOURS, Events
from assets.scenarios.wide_table.expected import COLUMNS, expected
from storage_engine import Store

NAME = "wide_table"
TABLE = "db.shop_stat_wide"
N_SHOPS = 2_000
COUNTS = {log: column for log, column in LOGS.items() if log != "payment_log"}


def deploy(store: Store) -> None:
    """Tables and the five jobs."""
    store.execute(statements(NAME))


def add_sixth_stream(store: Store) -> None:
    """The new column and its job."""
    store.execute(statements(NAME, "sixth_stream"))


def events_of(seed: int, now: datetime, *, n_shops: int = N_SHOPS) -> Events:
    return Events(seed, n_shops=n_shops, day=now.strftime("%Y%m%d"))


def writer(store: Store, events: Events) -> Callable[[int, int], None]:
    """Writes events [start, stop) into their logs, in one commit."""
    tables = {log: store.table(f"db.{log}") for log in LOGS}

    def write(start: int, stop: int) -> None:
        parts = [(log, events.rows(log, start, stop)) for log in LOGS]
        store.commit([tables[log].operation("append", rows) for log, rows in parts if rows.num_rows])

    return write


def check(store: Store, events: Events, n_events: int) -> Check:
    """The wide table against the independent answer."""
    return compare("wide table, six streams", expected(events, n_events), store.table(TABLE).read(COLUMNS))


def run(stage: Stage, options: Options) -> Report:
    """Send at the given rate; at half time add the column and the job; follow the table; compare at the end."""
    report = Report(NAME)
    deploy(stage.store)
    events = events_of(options.seed, datetime.now().astimezone())
    submitted_at: list[float] = []
    half = options.n_events // 2

    def at(n_sent: int) -> None:
        if n_sent >= half and not submitted_at:
            began = time.monotonic()
            add_sixth_stream(stage.store)
            submitted_at.append(time.monotonic() - began)

    with Follower(stage.config, TABLE, ["shop_id", "stat_hour", *COUNTS.values()]) as results:
        pace = send(writer(stage.store, events), rate=options.rate, n_events=options.n_events, on_sent=options.advance, at=at)
        options.say(f"{NAME}: jobs caught up after {stage.await_jobs():.1f} s")
    report.n_events, report.rate = options.n_events, pace.achieved
    report.latencies_ms = {"event to visible row, five streams": latencies_of(events, pace, results.received)}
    report.checks = [check(stage.store, events, options.n_events)]
    jobs = [name for name, job in stage.store.objects("job").items() if job["state"] == "RUNNING"]
    report.facts = {
        "jobs running at the end": len(jobs), "ALTER TABLE and the sixth job, seconds": round(submitted_at[0], 3),
        "generator CPU, share of one core": round(pace.cpu_seconds / pace.seconds, 3),
    }  # fmt: skip
    return report


def latencies_of(events: Events, pace: Pace, received: list[Received]) -> np.ndarray:
    """Milliseconds from when each event of the five counted logs was due until a row that counts it was received."""
    found = []
    keys, at_ms, counts = _received_counts(received)
    for log, column in COUNTS.items():
        drawn = events.drawn(log, 0, pace.n_sent)
        found.append(pace.warm(drawn.numbers, arrivals(drawn.keys, keys, counts[column], at_ms)))
    return np.concatenate(found)


def _received_counts(received: list[Received]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Keys, times and counts of all received rows, in the order of their coming; a count that was null is 0."""
    rows = pa.concat_tables([one.rows for one in received])
    at_ms = np.concatenate([np.full(one.rows.num_rows, one.at_ms) for one in received])
    is_new = pc.is_in(rows["_change_type"], pa.array(["+I", "+U"])).to_numpy()
    keys = rows["shop_id"].to_numpy() * N_HOURS + rows["stat_hour"].cast(pa.int64()).to_numpy()
    counts = {column: pc.fill_null(rows[column], 0).to_numpy()[is_new] for column in COUNTS.values()}
    return keys[is_new], at_ms[is_new], counts
