"""Scenario 3 against the running platform: a day's orders in the time of the run; in its middle newer baselines come into the lake."""

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
from assets.scenarios.order_forecast.day import HOURS, Day, figure
from assets.scenarios.order_forecast.events import LAST_WEEK, SOURCES, YESTERDAY, Events
from assets.scenarios.order_forecast.expected import COLUMNS, GMV_COLUMNS, counts, expected, expected_gmv, sums
from assets.scenarios.pacing import Pace, send
from assets.scenarios.report import Listing, Options, Report
from assets.scenarios.stage import Stage
from assets.scenarios.statements import statements
from flashlake.sql import open_session
from storage_engine import Store
from storage_engine.lake import table_path

NAME = "order_forecast"
FUNCTIONS = {"com.example.flink.udf.FutureHourlyForecastUDF": "assets.scenarios.order_forecast.model.predict_day_orders"}
"""What [functions] of flashlake.toml says."""
TABLE, GMV_TABLE = "db.order_forecast_mm", "db.gmv_forecast_mm"
BASELINE, GMV_BASELINE = "db.order_mm_his_str", "db.gmv_mm_his"


def deploy(store: Store, events: Events, now: datetime) -> None:
    """Tables, functions and jobs; and the baselines of last week."""
    store.execute(statements(NAME))
    store.execute(statements(NAME, "gmv"))
    add_baselines(store, events, "last week", LAST_WEEK, now - timedelta(days=7))


def add_baselines(store: Store, events: Events, name: str, day: tuple[float, float], date: datetime) -> None:
    """A past day as a new partition of either baseline, in one commit each."""
    ds = date.strftime("%Y%m%d")
    store.table(BASELINE).upsert(events.baseline(name, *day, ds))
    store.table(GMV_BASELINE).upsert(events.gmv_baseline(name, *day, ds))


def writer(store: Store, events: Events) -> Callable[[int, int], None]:
    """Writes events [start, stop) into the log of orders."""
    table = store.table("db.order_log")

    def write(start: int, stop: int) -> None:
        table.append(events.rows(start, stop))

    return write


def check(store: Store, events: Events, n_events: int, changed_at: int) -> list[Check]:
    """What the jobs made of events [0, n_events), against the independent answer. changed_at: before which event the baselines changed."""
    right = {
        "orders so far, by minute (order_dtm)": ("db.order_dtm", counts(events, n_events)),
        "GMV so far, by minute (gmv_dtm)": ("db.gmv_dtm", sums(events, n_events)),
        "forecasts of orders in the store": (TABLE, expected(events, n_events, changed_at)),
        "forecasts of GMV in the store": (GMV_TABLE, expected_gmv(events, n_events, changed_at)),
    }
    return [compare(name, rows, store.table(table).read(rows.column_names)) for name, (table, rows) in right.items()]


def run(stage: Stage, options: Options) -> Report:
    """Send half a day, wait, bring the newer baselines, send the other half; compare store and lake, and the forecasts with the day."""
    report = Report(NAME)
    now = datetime.now().astimezone()
    open_session(stage.config, stage.store)  # this process takes functions from where the project says
    events = Events(options.seed, n_events=options.n_events, day=now.strftime("%Y%m%d"))
    deploy(stage.store, events, now)
    half = options.n_events // 2
    write = writer(stage.store, events)
    with (
        Follower(stage.config, TABLE, ["order_source", "cumulative_order_cnt"]) as forecasts,
        Follower(stage.config, GMV_TABLE, ["order_source", "cumulative_gmv"]) as gmv_forecasts,
    ):
        pace = send(write, rate=options.rate, n_events=half, on_sent=options.advance)
        stage.await_jobs()
        add_baselines(stage.store, events, "yesterday", YESTERDAY, now - timedelta(days=1))
        options.say(f"{NAME}: newer baselines are in")
        send(write, rate=options.rate, n_events=options.n_events - half, first=half, on_sent=options.advance)
        options.say(f"{NAME}: jobs caught up after {stage.await_jobs():.1f} s")
    report.n_events, report.rate = options.n_events, pace.achieved
    report.latencies_ms = {
        "order to forecast of orders": latencies_of(events, pace, *_received(forecasts.received, "cumulative_order_cnt")),
        "order to forecast of GMV": latencies_of(events, pace, *counted(events, *_received(gmv_forecasts.received, "cumulative_gmv"))),
    }
    report.checks = check(stage.store, events, options.n_events, half)
    for table in (TABLE, GMV_TABLE, BASELINE, GMV_BASELINE):
        stage.await_lake(table)
    orders, gmv = in_lake(stage, TABLE, COLUMNS), in_lake(stage, GMV_TABLE, GMV_COLUMNS)
    report.checks += [
        compare("forecasts of orders in Delta", expected(events, options.n_events, half), orders),
        compare("forecasts of GMV in Delta", expected_gmv(events, options.n_events, half), gmv),
        require("both days of both baselines are in the lake", holds=all(n == 2 for n in n_days(stage, BASELINE, GMV_BASELINE))),
    ]
    days = {
        "orders": Day.of(orders, "cumulative_order_cnt", "forecast_daily_order_cnt"),
        "GMV": Day.of(gmv, "cumulative_gmv", "forecast_daily_gmv"),
    }
    changed_minute = int(events.minutes[half])
    report.listings = {"forecasts of the day, as they were known at a time of it, out of the rows in Delta": against_the_day(days)}
    report.figures = {"gmv": figure("the day's GMV: forecast and what it came to", days["GMV"], {changed_minute: "newer baseline"})}
    report.facts = {
        "time of day when the newer baselines came": f"{changed_minute // 60:02}:{changed_minute % 60:02}",
        **{
            f"error, had the GMV of {name} been the forecast": f"{events.gmv_of_day(name, *day)[:, -1].sum() / days['GMV'].actual - 1:+.2%}"
            for name, day in (("last week", LAST_WEEK), ("yesterday", YESTERDAY))
        },
    }
    return report


def against_the_day(days: dict[str, Day]) -> Listing:
    """What was forecast at each of the hours, what the day came to, and the error. days: of what -> its day."""
    columns, rows = ["at"], [[f"{hour:02}:00"] for hour in HOURS]
    for what, day in days.items():
        columns += [f"{what}, forecast", f"{what}, actual day", "error"]
        for row, hour in zip(rows, HOURS, strict=True):
            row += [f"{day.at(hour):,.0f}", f"{day.actual:,.0f}", f"{day.error_at(hour):+.2%}"]
    return Listing(columns, rows)


def in_lake(stage: Stage, table: str, columns: list[str]) -> pa.Table:
    """A table's rows as any reader of Delta sees them."""
    return deltalake.DeltaTable(str(table_path(stage.lake, table))).to_pyarrow_table(columns=columns)


def n_days(stage: Stage, *tables: str) -> list[int]:
    """How many days each of these tables has in the lake."""
    return [len(in_lake(stage, table, ["ds"])["ds"].unique()) for table in tables]


def _received(received: list[Received], column: str) -> tuple[np.ndarray, pa.ChunkedArray, np.ndarray]:
    """What a follower saw: source by number, the column, and when."""
    rows = pa.concat_tables([one.rows for one in received])
    at_ms = np.concatenate([np.full(one.rows.num_rows, one.at_ms) for one in received])
    return pc.index_in(rows["order_source"], pa.array(SOURCES)).to_numpy().astype(np.int64), rows[column], at_ms


def counted(events: Events, sources: np.ndarray, gmv: pa.ChunkedArray, at_ms: np.ndarray) -> tuple[np.ndarray, pa.ChunkedArray, np.ndarray]:
    """The same with the number of orders instead of their GMV: amounts are above 0, so that one says the other."""
    cents = np.rint(gmv.cast(pa.float64()).to_numpy() * 100).astype(np.int64)
    n_orders = np.zeros(len(cents), np.int64)
    for source in range(len(SOURCES)):
        mine = sources == source
        n_orders[mine] = np.searchsorted(events.gmv_cents[events.sources == source], cents[mine], side="right")
    return sources, pa.chunked_array([n_orders]), at_ms


def latencies_of(events: Events, pace: Pace, sources: np.ndarray, seen: pa.ChunkedArray, at_ms: np.ndarray) -> np.ndarray:
    """Milliseconds from when an order was due until a forecast that holds it was received. The first half of the run."""
    numbers = np.arange(pace.n_sent)
    return pace.warm(numbers, arrivals(events.sources[numbers].astype(np.int64), sources, seen.to_numpy(), at_ms))
