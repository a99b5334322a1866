"""Event times: logs with a WATERMARK, how their rows come, and an oracle that walks the log in its order.

What is sent, when, and which rows are late, are facts of the log alone: the oracle asks of each row what had come before it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

import storage_engine
from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, load_job
from tests.stream.comparing import Rows, sink_rows
from tests.stream.windows import EPOCH, Groups, Windows, aggregated, cumulate, hop, tumbling

DELAY_MS = 2000
EVENTS = """CREATE TABLE db.ev (id BIGINT, k STRING, v INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
  WITH ('bucket.num' = '2', 'bucket.key' = 'k', 'watermark.late-rows' = '{}')"""
PARTITIONED = """CREATE TABLE db.ev (id BIGINT, k STRING, v INT, ts TIMESTAMP(3), day STRING, WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
  PARTITIONED BY (day) WITH ('bucket.num' = '2', 'bucket.key' = 'k', 'watermark.late-rows' = '{}')"""
LATE = "CREATE TABLE db.late (id BIGINT, k STRING, v INT, ts TIMESTAMP(3))"
IDLE = """CREATE TABLE db.ev (id BIGINT, k STRING, v INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
  WITH ('bucket.num' = '2', 'bucket.key' = 'k', 'watermark.late-rows' = 'table:db.late', 'watermark.idle-after' = '7s')"""
IDLE_MS = 7000
FIELDS = {"id": pa.int64(), "k": pa.string(), "v": pa.int32(), "ts": pa.timestamp("ms")}

Row = dict[str, Any]

tumble = tumbling(5000)
_HEAD = "CREATE TABLE db.s (k STRING, window_start TIMESTAMP(3), window_end TIMESTAMP(3), n BIGINT, total INT, low INT, kinds BIGINT"
LOG_SINK = _HEAD + ")"
KEYED_SINK = _HEAD + ", PRIMARY KEY (k, window_start, window_end) NOT ENFORCED)"
SELECT = (
    "SELECT k, window_start, window_end, COUNT(*), SUM(v), MIN(v), COUNT(DISTINCT v) FROM TABLE({}) WHERE v >= 0 "
    "GROUP BY k, window_start, window_end"
)
KINDS: dict[str, tuple[str, Windows]] = {
    "tumble": ("TUMBLE(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '5' SECOND)", tumble),
    "hop": ("HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND)", hop),
    "cumulate": ("CUMULATE(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '2' SECOND, INTERVAL '8' SECOND)", cumulate),
}
PANES = " by pane"
KINDS |= {name + PANES: KINDS[name] for name in ("hop", "cumulate")}
SESSION_GAP_MS = 3000
SESSION = "SESSION(TABLE db.ev PARTITION BY k, DESCRIPTOR(ts), INTERVAL '3' SECOND)"


def select_of(kind: str) -> str:
    """DISTINCT is counted window by window; a bitmap of the same values says as many, and is put together from panes."""
    call = KINDS[kind][0] if kind in KINDS else SESSION
    text = SELECT.format(call)
    return text.replace("COUNT(DISTINCT v)", "BITMAP_BUILD_CARDINALITY_AGG(v)") if kind.endswith(PANES) else text


def table(rows: list[Row], *, by_day: bool = False) -> pa.Table:
    made = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in FIELDS.items()})
    return made.append_column("day", pa.array([f"d{row['ts'] // 20_000:03d}" for row in rows])) if by_day else made


def drifting(rng: random.Random, n: int) -> list[Row]:
    """Events whose time goes on, with rows that come late and very late, and now and then a silence."""
    rows, now = [], 10_000
    for number in range(n):
        now += rng.choice([0, 100, 700, 900, 15_000 if rng.random() < 0.1 else 300])
        behind = rng.choice([0, 0, 0, 500, 1900, 4000, 12_000])
        rows.append({"id": number, "k": rng.choice("abcdef"), "v": rng.randrange(-2, 9), "ts": max(now - behind, 0)})
    return rows


def arrived(store: Store, name: str = "db.ev") -> list[tuple[int, Row]]:
    """The log in its order, each row with its bucket: what the store says came first, came first."""
    found = store.table(name).scan(["id", "k", "v", "ts"], metadata=True).read_all().to_pylist()
    return [
        (row["_bucket"], {**row, "moment": row["_commit_timestamp"], "ts": (row["ts"] - EPOCH) // dt.timedelta(milliseconds=1)})
        for row in found
    ]


def marks(log: list[tuple[int, Row]]) -> tuple[list[int | None], int | None]:
    """The watermark of each row, and that of the table."""
    largest: dict[int, int] = {}
    found: list[int | None] = []
    for bucket, row in log:
        found.append(largest[bucket] - DELAY_MS if bucket in largest else None)
        largest[bucket] = max(largest.get(bucket, row["ts"]), row["ts"])
    return found, min(largest.values()) - DELAY_MS if len(largest) == 2 else None


def idle_marks(log: list[tuple[int, Row]]) -> tuple[list[int | None], int | None]:
    """As marks(), where a bucket counts as at most IDLE_MS behind what was committed at earlier moments."""
    largest: dict[int, int] = {}
    found: list[int | None] = []
    moment, newest, before = None, None, None
    for bucket, row in log:
        if row["moment"] != moment:
            moment, before = row["moment"], newest
        known = [*([largest[bucket]] if bucket in largest else []), *([before - IDLE_MS] if before is not None else [])]
        found.append(max(known) - DELAY_MS if known else None)
        largest[bucket] = max(largest.get(bucket, row["ts"]), row["ts"])
        newest = row["ts"] if newest is None else max(newest, row["ts"])
    least = [*([min(largest.values())] if len(largest) == 2 else []), *([before - IDLE_MS] if before is not None else [])]
    return found, max(least) - DELAY_MS if least else None


Marks = Callable[[list[tuple[int, Row]]], tuple[list[int | None], int | None]]


def expected_windows(log: list[tuple[int, Row]], windows: Windows, marks_of: Marks = marks) -> tuple[Rows, set[int]]:
    """The groups that are final, and the ids of late rows."""
    found, now = marks_of(log)
    groups: Groups = {}
    late: set[int] = set()
    for (_, row), mark in zip(log, found, strict=True):
        for start, end in windows(row["ts"]):
            if row["v"] < 0:
                continue
            if mark is not None and end - 1 <= mark:
                late.add(row["id"])
            else:
                groups.setdefault((row["k"], start, end), []).append(row["v"])
    return aggregated({key: values for key, values in groups.items() if now is not None and key[2] - 1 <= now}), late


def expected_sessions(log: list[tuple[int, Row]]) -> tuple[Rows, set[int]]:
    found, now = marks(log)
    late = {row["id"] for (_, row), mark in zip(log, found, strict=True) if mark is not None and row["ts"] + SESSION_GAP_MS - 1 <= mark}
    groups: Groups = {}
    for k in "abcdef":
        rows = sorted((row for _, row in log if row["k"] == k and row["id"] not in late), key=lambda row: row["ts"])
        session: list[Row] = []
        for row in [*rows, None]:
            if session and (row is None or row["ts"] > session[-1]["ts"] + SESSION_GAP_MS):
                end = session[-1]["ts"] + SESSION_GAP_MS
                if now is not None and end + SESSION_GAP_MS - 1 <= now:
                    groups[k, session[0]["ts"], end] = [item["v"] for item in session if item["v"] >= 0]
                session = []
            if row is not None:
                session.append(row)
    return aggregated({key: values for key, values in groups.items() if values}), late


def lived(
    path: Path, rng: random.Random, rows: list[Row], create: list[str], check: Callable[[Store], None], *, by_day: bool = False
) -> None:
    """Append the rows in pieces, with micro-batches of any size in between, and the store opened anew now and then; check at every stop."""
    url = path.as_uri()
    with storage_engine.connect(url, sync="none") as store:
        SqlSession(store).execute(";".join(create))
    while rows:
        with storage_engine.connect(url, sync="none") as store:
            worker = Worker(store, n_rows_max=rng.choice([3, 20, 100_000]))
            for _ in range(rng.randrange(1, 4)):
                n = rng.randrange(1, 30)
                if rows:
                    store.table("db.ev").append(table(rows[:n], by_day=by_day))
                rows = rows[n:]
                if rng.random() < 0.7:
                    worker.run_until_idle()
            worker.run_until_idle()
            assert load_job(store, "job").last_error == ""
            check(store)
            worker.close()


def late_ids(store: Store) -> set[int]:
    found = [row[0] for row in sink_rows(store, "db.late")]
    assert len(found) == len(set(found)), "a late row is written once"
    return set(found)
