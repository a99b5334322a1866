"""Scenario 3 against the running platform: a day's orders in the time of the run; in its middle a newer baseline comes into the lake."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.comparing import Check, compare, require
from assets.scenarios.counted import arrivals
from assets.scenarios.following import Follower, Received
from assets.scenarios.order_forecast.events import LAST_WEEK, SOURCES, YESTERDAY, Events
from assets.scenarios.order_forecast.expected import COLUMNS, day_errors, expected
from assets.scenarios.pacing import Pace, send
from assets.scenarios.report import Options, Report
from assets.scenarios.stage import Stage
from assets.scenarios.statements import statements
from flashlake.sql import open_session
from storage_engine import Store
from storage_engine.lake import table_path

NAME = "order_forecast"
FUNCTIONS = {"com.example.flink.udf.FutureHourlyForecastUDF": "assets.scenarios.order_forecast.model.predict_hour_gmv"}
"""What [functions] of flashlake.toml says."""
TABLE, BASELINE = "db.order_forecast_mm", "db.order_mm_his_str"


def deploy(store: Store, events: Events, now: datetime) -> None:
    """Tables, function and job; and the baseline of last week."""
    store.execute(statements(NAME))
    add_baseline(store, events, "last week", LAST_WEEK, now - timedelta(days=7))


def add_baseline(store: Store, events: Events, name: str, day: tuple[float, float], date: datetime) -> None:
    """A past day's shares as a new partition, in one commit."""
    store.table(BASELINE).upsert(events.baseline(name, *day, date.strftime("%Y%m%d")))


def writer(store: Store, events: Events) -> Callable[[int, int], None]:
    """Writes the orders so far after events [start, stop)."""
    table = store.table("db.order_dtm")

    def write(start: int, stop: int) -> None:
        table.upsert(events.rows(start, stop))

    return write


def check(store: Store, events: Events, n_events: int, changed_at: int) -> Check:
    """The forecasts against the independent answer."""
    return compare("forecasts in the store", expected(events, n_events, changed_at), store.table(TABLE).read(COLUMNS))


def run(stage: Stage, options: Options) -> Report:
    """Send half a day, wait, bring the newer baseline, send the other half; compare store and lake."""
    report = Report(NAME)
    now = datetime.now().astimezone()
    open_session(stage.config, stage.store)  # this process takes functions from where the project says
    events = Events(options.seed, n_events=options.n_events, day=now.strftime("%Y%m%d"))
    deploy(stage.store, events, now)
    half = options.n_events // 2
    write = writer(stage.store, events)
    with Follower(stage.config, TABLE, ["order_source", "cumulative_order_cnt"]) as forecasts:
        pace = send(write, rate=options.rate, n_events=half, on_sent=options.advance)
        stage.await_jobs()
        add_baseline(stage.store, events, "yesterday", YESTERDAY, now - timedelta(days=1))
        options.say(f"{NAME}: a newer baseline is in")
        send(write, rate=options.rate, n_events=options.n_events - half, first=half, on_sent=options.advance)
        options.say(f"{NAME}: jobs caught up after {stage.await_jobs():.1f} s")
    report.n_events, report.rate = options.n_events, pace.achieved
    report.latencies_ms = {"order to forecast": latencies_of(events, pace, forecasts.received)}
    right = expected(events, options.n_events, half)
    report.checks = [check(stage.store, events, options.n_events, half)]
    stage.await_lake(TABLE)
    stage.await_lake(BASELINE)
    in_lake = deltalake.DeltaTable(str(table_path(stage.lake, TABLE))).to_pyarrow_table(columns=COLUMNS)
    baselines = deltalake.DeltaTable(str(table_path(stage.lake, BASELINE))).to_pyarrow_table(columns=["ds"])
    report.checks += [
        compare("forecasts in Delta", right, in_lake),
        require("both baselines are in the lake", holds=len(baselines["ds"].unique()) == 2),
    ]
    report.facts = {f"error of the day's forecast at {hour}": f"{error:.2%}" for hour, error in day_errors(events, half).items()}
    report.facts["orders of the day"] = options.n_events
    report.facts["time of day when the newer baseline came"] = expected(events, half, half)["mm"][-1].as_py()
    return report


def latencies_of(events: Events, pace: Pace, received: list[Received]) -> np.ndarray:
    """Milliseconds from when an order was due until a forecast that counts it was received. The first half of the run."""
    rows = pa.concat_tables([one.rows for one in received])
    at_ms = np.concatenate([np.full(one.rows.num_rows, one.at_ms) for one in received])
    sources = pc.index_in(rows["order_source"], pa.array(SOURCES)).to_numpy().astype(np.int64)
    numbers = np.arange(pace.n_sent)
    return pace.warm(numbers, arrivals(events.sources[numbers].astype(np.int64), sources, rows["cumulative_order_cnt"].to_numpy(), at_ms))
