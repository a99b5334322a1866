"""Scenario 5 against the running platform: both paths at several stops, with services killed in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.comparing import Check, compare, require
from assets.scenarios.counted import arrivals
from assets.scenarios.following import Follower, LakeWatch, Received
from assets.scenarios.pacing import Pace, send
from assets.scenarios.report import Options, Report
from assets.scenarios.stage import Stage
from assets.scenarios.statements import statements
from assets.scenarios.unique_visitors.events import Events, Seen
from flashlake.sql import open_session
from storage_engine import Store

NAME = "unique_visitors"
N_SHARDS = 16
N_USERS = 400_000
KILLED = ("stream", "store", "tiering")
"""Ended with SIGKILL in the middle of the second, third and fourth part of the run."""
UNDISTURBED = 0.4
"""Share of the events before the first kill: what latency is measured on."""

PATH_A_DAY = """SELECT ds, SUM(users) AS users FROM (
  SELECT ds, shard_id, BITMAP_UNION_COUNT(uv_bitmap) AS users FROM db.ads_uv_agg GROUP BY ds, shard_id) GROUP BY ds"""
PATH_B_DAY = "SELECT ds, COUNT(DISTINCT CAST(uid_int32 AS BIGINT) * {n} + shard_id) AS users FROM db.ads_uv_detail{side} GROUP BY ds"
Query = Callable[[str], pa.Table]


def deploy(store: Store, day: str) -> None:
    """Tables, views and jobs."""
    store.execute(statements(NAME, N=str(N_SHARDS), date=day))


def check_path_a(store: Store, seen: Seen, query: Query, at: str) -> list[Check]:
    """The kept counts per minute, and a day's count out of the bitmaps."""
    return [
        compare(f"path A, minutes, {at}", seen.per_minute(), store.table("db.uv_minute").read()),
        compare(f"path A, day, {at}", seen.of_day(), query(PATH_A_DAY)),
    ]


def check_path_b(seen: Seen, query: Query, at: str, *, is_in_lake: bool = True) -> list[Check]:
    """A day's count by deduplication: of lake and store as one, of the lake alone, and by the printed view."""
    found = [compare(f"path B, lake and store, {at}", seen.of_day(), query(PATH_B_DAY.format(n=N_SHARDS, side="")))]
    if is_in_lake:
        found.append(compare(f"path B, lake alone, {at}", seen.of_day(), query(PATH_B_DAY.format(n=N_SHARDS, side="$lake"))))
    query("REFRESH MATERIALIZED VIEW db.mv_global_uv")
    view = query("SELECT ds, rbm_user_count AS users FROM db.mv_global_uv")
    return [*found, compare(f"path B, mv_global_uv, {at}", seen.of_day(), view)]


def check_ids(store: Store, seen: Seen) -> Check:
    """Ids are dense: 1 to the number of users, each once."""
    ids = np.sort(store.table("db.user_mapping_table").read(["uid_int64"])["uid_int64"].to_numpy())
    n_users = seen.of_day()["users"][0].as_py()
    return require("ids are 1 .. number of users", holds=len(ids) == n_users and bool(np.all(ids == np.arange(1, n_users + 1))))


def run(stage: Stage, options: Options) -> Report:
    """Send in four parts; at the end of each wait for both paths and compare; in all but the first kill a service."""
    report = Report(NAME)
    day = datetime.now().astimezone().strftime("%Y%m%d")
    deploy(stage.store, day)
    events = Events(options.seed, n_users=N_USERS, day=day)
    seen = Seen(events)
    session = open_session(stage.config, stage.store)
    log = stage.store.table("db.log_exp_ri")

    def query(text: str) -> pa.Table:
        rows = session.execute(text)[-1].rows
        return pa.table({}) if rows is None else rows

    def write(start: int, stop: int) -> None:
        log.append(events.rows(start, stop))

    def checked(n_events: int, at: str) -> list[Check]:
        seen.advance(n_events)
        stage.await_jobs(only=lambda job: job != "db.mv_global_uv")
        stage.await_lake("db.ads_uv_detail")
        return [*check_path_a(stage.store, seen, query, at), *check_path_b(seen, query, at)]

    first = int(options.n_events * UNDISTURBED)
    with (
        Follower(stage.config, "db.uv_minute", ["hh", "mm", "users"]) as counts,
        Follower(stage.config, "db.ads_uv_detail", ["shard_id", "uid_int32"]) as details,
        LakeWatch(stage.config, "db.ads_uv_detail") as lake,
    ):
        pace = send(write, rate=options.rate, n_events=first, on_sent=options.advance)
        report.checks += checked(first, "undisturbed")
    sent = first
    for number, service in enumerate(KILLED, 1):
        n_events = (options.n_events - first) * number // len(KILLED) + first - sent
        began = time.monotonic()
        _send_and_kill(stage, write, replace(options, rate=options.rate), service, sent, n_events)
        sent += n_events
        report.checks += checked(sent, f"{service} killed")
        report.facts[f"{service} killed: seconds of sending, restart, catching up, checking"] = round(time.monotonic() - began, 1)
    report.checks.append(check_ids(stage.store, seen))
    report.n_events, report.rate = options.n_events, pace.achieved
    report.latencies_ms = {
        "path A: event to visible count": latencies_of_counts(events, pace, counts.received),
        "path B: event to Delta": latencies_to_lake(events, pace, details.received, lake.reached, stage.store),
    }
    report.facts |= {
        "users": seen.of_day()["users"][0].as_py(),
        "generator CPU, share of one core": round(pace.cpu_seconds / pace.seconds, 3),
    }
    return report


def _send_and_kill(stage: Stage, write: Callable[[int, int], None], options: Options, service: str, first: int, n_events: int) -> None:
    """Send a part of the events; at half of it a service is killed, and it is back before this returns."""
    killed: list[int] = []

    def at(n_sent: int) -> None:
        if n_sent >= n_events // 2 and not killed:
            killed.append(stage.kill(service))
            options.say(f"{NAME}: {service} killed")

    send(write, rate=options.rate, n_events=n_events, first=first, on_sent=options.advance, at=at)
    stage.await_service(service, killed[0])


def first_visits(pairs: np.ndarray) -> np.ndarray:
    """The numbers of the events that are the first of their pair (a user, or a user in a minute), in order. Shapes: (n,) -> (m,)."""
    return np.sort(np.unique(pairs, return_index=True)[1])


def latencies_of_counts(events: Events, pace: Pace, received: list[Received]) -> np.ndarray:
    """Milliseconds from when a user's first visit of a minute was due until a count of that minute that includes it was received."""
    users, minutes = events.drawn(0, pace.n_sent)
    firsts = first_visits(minutes * events.n_users + users)
    rows = pa.concat_tables([one.rows for one in received])
    at_ms = np.concatenate([np.full(one.rows.num_rows, one.at_ms) for one in received])
    seen = pc.add(pc.multiply(rows["hh"].cast(pa.int64()), 60), rows["mm"].cast(pa.int64())).to_numpy()
    return pace.warm(firsts, arrivals(minutes[firsts], seen, rows["users"].to_numpy(), at_ms))


def latencies_to_lake(events: Events, pace: Pace, received: list[Received], lake: list[tuple[float, int]], store: Store) -> np.ndarray:
    """Milliseconds from when a user's first visit was due until the lake had the user's row."""
    mapping = store.table("db.user_mapping_table").read(["user_id", "uid_int64"])
    user_of = dict(zip(mapping["uid_int64"].to_pylist(), mapping["user_id"].to_pylist(), strict=True))
    users, _ = events.drawn(0, pace.n_sent)
    firsts = first_visits(users)
    event_of = dict(zip(events.user_ids(users[firsts]).tolist(), firsts.tolist(), strict=True))
    reached_ms, reached = np.array([ms for ms, _ in lake]), np.array([version for _, version in lake])
    numbers, arrived = [], []
    for one in received:
        rows = one.rows.filter(pc.equal(one.rows["_change_type"], "+I"))
        place = int(np.searchsorted(reached, one.version))
        if not rows.num_rows or place == len(reached):
            continue
        uids = (rows["uid_int32"].to_numpy().astype(np.int64) * N_SHARDS + rows["shard_id"].to_numpy()).tolist()
        numbers.append(np.array([event_of[user_of[uid]] for uid in uids]))
        arrived.append(np.full(rows.num_rows, reached_ms[place]))
    return pace.warm(np.concatenate(numbers), np.concatenate(arrived))
