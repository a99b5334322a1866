"""Scenario 1 against the running platform: what is sent, what is measured, what is compared."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.comparing import Check, compare, require
from assets.scenarios.conversion_attribution.events import History
from assets.scenarios.conversion_attribution.expected import expected
from assets.scenarios.following import Follower, LakeWatch, Received
from assets.scenarios.pacing import Pace, send
from assets.scenarios.report import Options, Report
from assets.scenarios.stage import Stage
from assets.scenarios.statements import statements
from flashlake.sql import open_session
from storage_engine import Store
from storage_engine.lake import table_path

NAME = "conversion_attribution"
DETAIL = "db.log_page_ord_detail_ri"
DETAIL_COLUMNS = ["user_id", "order_id", "first_page_time", "order_time", "pv", "pay_amt", "is_matched", "ds"]
LAKE_FRESHNESS = "5s"
N_USERS, DISTANCE = 300_000, 16_384


def deploy(store: Store) -> None:
    """Tables, views and jobs."""
    store.execute(statements(NAME))
    store.execute(f"ALTER TABLE {DETAIL} SET ('table.datalake.freshness' = '{LAKE_FRESHNESS}')")  # printed: 3min


def history_of(seed: int, now: datetime, rate: float, *, n_users: int = N_USERS, distance: int = DISTANCE) -> History:
    """Events of today and yesterday, from now on."""
    days = ((now - timedelta(days=1)).strftime("%Y%m%d"), now.strftime("%Y%m%d"))
    return History(seed, n_users=n_users, distance=distance, days=days, start_ms=int(now.timestamp() * 1000), rate=rate)


def writer(store: Store, history: History) -> Callable[[int, int], None]:
    """Writes events [start, stop) in one commit."""
    visits, orders = store.table("db.log_page_ri"), store.table("db.order_ri")

    def write(start: int, stop: int) -> None:
        batch = history.batch(start, stop)
        parts = (
            (visits, "upsert", batch.visits), (visits, "delete", batch.gone_visits),
            (orders, "upsert", batch.orders), (orders, "delete", batch.gone_orders),
        )  # fmt: skip
        store.commit([table.operation(kind, rows) for table, kind, rows in parts if rows.num_rows])

    return write


def checks(store: Store, history: History, n_events: int, query: Callable[[str], pa.Table]) -> list[Check]:
    """Every table against the independent answer. `query` runs SQL over the store."""
    right = expected(history, n_events)
    return [
        compare("attribution in the store", right.detail, store.table(DETAIL).read(DETAIL_COLUMNS)),
        compare("unmatched visits", right.unmatched, query("SELECT * FROM db.unmatched_page_ri")),
        compare("conversion", right.conversion, store.table("db.conversion_ri").read()),
    ]


def run(stage: Stage, options: Options) -> Report:
    """Send at the given rate, follow result and lake, compare all at the end."""
    report = Report(NAME)
    deploy(stage.store)
    history = history_of(options.seed, datetime.now().astimezone(), options.rate)
    write = writer(stage.store, history)
    with Follower(stage.config, DETAIL, ["user_id", "order_id", "pv"]) as results, LakeWatch(stage.config, DETAIL) as lake:
        pace = send(write, rate=options.rate, n_events=options.n_events, on_sent=options.advance)
        options.say(f"{NAME}: jobs caught up after {stage.await_jobs():.1f} s")
        stage.await_lake(DETAIL)
    report.n_events, report.rate = options.n_events, pace.achieved
    latencies, to_lake = latencies_of(history, pace, results.received, lake.reached)
    report.latencies_ms = {"event to attributed row": latencies, "event to Delta": to_lake}
    query = open_session(stage.config, stage.store)
    answers = checks(stage.store, history, options.n_events, lambda text: query.execute(text)[0].rows)
    in_lake = deltalake.DeltaTable(str(table_path(stage.lake, DETAIL))).to_pyarrow_table(columns=DETAIL_COLUMNS)
    report.checks = [*answers, compare("attribution in Delta", expected(history, options.n_events).detail, in_lake)]
    counted = int(stage.store.progress("job:attribution")["job:attribution"].detail["n_dropped_nulls"])
    report.checks.append(require("unmatched visits were counted", holds=counted > 0))
    report.facts = {"unmatched visits now": answers[1].n_found, "visits without an order when they came": counted,
                    "generator CPU, share of one core": round(pace.cpu_seconds / pace.seconds, 3)}  # fmt: skip
    return report


def latencies_of(history: History, pace: Pace, received: list[Received], lake: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds from when the later of visit and order was due until their joined row was received, and until the lake had it.

    Each received row names its order (o17) and the visit's number among its user's (pv), hence the two events that made it.
    Only the first row of an order and a visit counts: corrected orders are written again under the same name.
    """
    numbers, at_ms, versions = [], [], []
    for one in received:
        rows = one.rows.filter(pc.not_equal(one.rows["_change_type"], "-D"))
        rows = rows.filter(pc.not_equal(rows["_change_type"], "-U"))
        numbers.append(later_events(history, rows))
        at_ms.append(np.full(rows.num_rows, one.at_ms))
        versions.append(np.full(rows.num_rows, one.version))
    events, order = np.unique(np.concatenate(numbers), return_index=True)
    events, order = events[events >= 0], order[events >= 0]
    arrived, version = np.concatenate(at_ms)[order], np.concatenate(versions)[order]
    reached_ms, reached = np.array([ms for ms, _ in lake]), np.array([version for _, version in lake])
    place = np.searchsorted(reached, version)
    is_there = place < len(reached)
    return pace.warm(events, arrived), pace.warm(events[is_there], reached_ms[place[is_there]])


def later_events(history: History, rows: pa.Table) -> np.ndarray:
    """The number of the later of the two events that made each row. Shapes: (n,) -> (n,)."""
    users = pc.utf8_slice_codeunits(rows["user_id"], 1).cast(pa.int64()).to_numpy()
    orders = pc.utf8_slice_codeunits(rows["order_id"], 1).cast(pa.int64()).to_numpy()
    return np.maximum(history.visit_event(users, rows["pv"].to_numpy()), history.order_event(orders))
