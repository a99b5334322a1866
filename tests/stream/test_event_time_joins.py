"""What is computed from more than one window or log with a WATERMARK: ranks, groups and joins of sent windows, unions, interval joins."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path

import pytest

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, load_job, plan_job
from storage_engine.stream.planning.explain import explain
from tests.stream.comparing import Rows, differing_jobs, sink_rows
from tests.stream.event_times import (
    EVENTS,
    KINDS,
    LATE,
    LOG_SINK,
    SELECT,
    Row,
    arrived,
    drifting,
    expected_windows,
    late_ids,
    lived,
    marks,
    table,
    tumble,
)
from tests.stream.windows import Groups, aggregated, hop

BEST = """SELECT window_end, k, n, rn FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_end ORDER BY n DESC, k) AS rn FROM
  (SELECT k, window_end, COUNT(*) AS n FROM TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND))
  GROUP BY k, window_start, window_end)) WHERE rn <= 2"""
TWICE = """SELECT window_end, MAX(n), COUNT(*), SUM(n) FROM (SELECT k, window_end, COUNT(*) AS n FROM
  TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND)) GROUP BY k, window_start, window_end)
  GROUP BY window_end"""
OF_WINDOWS = """SELECT l.window_end, l.k, l.n, r.most FROM (SELECT k, window_end, COUNT(*) AS n FROM
  TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND)) GROUP BY k, window_start, window_end) l JOIN
  (SELECT window_start + INTERVAL '9' SECOND AS calculated, window_end, MAX(v) AS most FROM
  TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND)) GROUP BY window_start, window_end) r
  ON l.window_end = r.window_end AND l.n > 1"""
OF_TWO_LENGTHS = """SELECT l.window_start, l.k, l.n, r.n FROM (SELECT k, window_start, COUNT(*) AS n FROM
  TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '9' SECOND)) GROUP BY k, window_start, window_end) l JOIN
  (SELECT k, window_start, COUNT(*) AS n FROM
  TABLE(HOP(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '6' SECOND)) GROUP BY k, window_start, window_end) r
  ON l.window_start = r.window_start AND l.k = r.k"""


@pytest.mark.parametrize("seed", range(2))
def test_what_is_computed_over_sent_windows_is_sent_once_and_keeps_nothing_for_long(tmp_path: Path, seed: int) -> None:
    """The best groups of a window, groups of its groups, and a join of windows: into logs, without state of their own; a join of windows
    that begin at once and end apart keeps what is ahead.
    """

    def check(store: Store) -> None:
        log = [(bucket, {**row, "v": row["v"] + 2}) for bucket, row in arrived(store)]  # no row is left out: all count as v >= 0
        counted = [(k, end, n, total - 2 * n) for k, _, end, n, total, *_ in expected_windows(log, hop)[0]]
        ends = sorted({end for _, end, _, _ in counted})
        by_end = {end: sorted(((n, k) for k, of, n, _ in counted if of == end), key=lambda pair: (-pair[0], pair[1])) for end in ends}
        best = [(end, k, n, i + 1) for end in ends for i, (n, k) in enumerate(by_end[end][:2])]
        twice = [(end, by_end[end][0][0], len(by_end[end]), sum(n for n, _ in by_end[end])) for end in ends]
        assert sink_rows(store, "db.best") == sorted(best, key=repr)
        assert sink_rows(store, "db.twice") == sorted(twice, key=repr)
        joined = [(row[0], row[1], row[2]) for row in sink_rows(store, "db.joined")]
        assert joined == sorted([(end, k, n) for end in ends for n, k in by_end[end] if n > 1], key=repr)
        assert differing_jobs(store) == []
        kept.append(max(store.table(name).count() for name in store.tables() if "apart__rows_" in name) - len(counted))
        assert [name for name in store.tables() if "__rows_" in name and "apart" not in name] == []

    kept: list[int] = []
    create = [
        EVENTS.format("drop"),
        "CREATE TABLE db.best (e TIMESTAMP(3), k STRING, n BIGINT, rn BIGINT)",
        "CREATE TABLE db.twice (e TIMESTAMP(3), most BIGINT, groups BIGINT, n BIGINT)",
        "CREATE TABLE db.joined (e TIMESTAMP(3), k STRING, n BIGINT, most INT)",
        "CREATE TABLE db.apart (e TIMESTAMP(3), k STRING, n BIGINT, shorter BIGINT)",
        *(f"SET 'pipeline.name' = '{name}'; INSERT INTO db.{sink} {select}" for name, sink, select in
          (("job", "best", BEST), ("twice", "twice", TWICE), ("joined", "joined", OF_WINDOWS), ("apart", "apart", OF_TWO_LENGTHS))),
    ]  # fmt: skip
    lived(tmp_path / "store", random.Random(seed), drifting(random.Random(seed), 130), create, check)
    assert kept[-1] < 0  # fewer than were sent


def test_groups_of_nulls_and_groups_without_aggregates_are_sent_as_well(tmp_path: Path) -> None:
    window = "TABLE(TUMBLE(TABLE db.ev, DESCRIPTOR(ts), INTERVAL '5' SECOND))"

    def check(store: Store) -> None:
        log = [(bucket, {**row, "v": 1}) for bucket, row in arrived(store)]
        groups = [(k, end, n) for k, _, end, n, *_ in expected_windows(log, tumble)[0]]
        ends: dict[tuple[str | None, dt.datetime], int] = {}
        for k, end, n in groups:
            key = (None if k in "ef" else k, end)
            ends[key] = ends.get(key, 0) + n
        assert sink_rows(store, "db.counts") == sorted(((*key, n) for key, n in ends.items()), key=repr)
        assert sink_rows(store, "db.seen") == sorted(((k, end) for k, end, _ in groups), key=repr)
        assert differing_jobs(store) == []

    create = [
        EVENTS.format("drop"),
        "CREATE TABLE db.counts (k STRING, e TIMESTAMP(3), n BIGINT)",
        "CREATE TABLE db.seen (k STRING, e TIMESTAMP(3))",
        "SET 'pipeline.name' = 'job'; INSERT INTO db.counts SELECT CASE WHEN k < 'e' THEN k END, window_end, COUNT(*) "
        f"FROM {window} GROUP BY CASE WHEN k < 'e' THEN k END, window_end",
        f"SET 'pipeline.name' = 'seen'; INSERT INTO db.seen SELECT DISTINCT k, window_end FROM {window}",
    ]
    lived(tmp_path / "store", random.Random(5), drifting(random.Random(5), 150), create, check)


@pytest.mark.parametrize("seed", range(2))
def test_windows_over_two_logs_wait_for_both(store: Store, seed: int) -> None:
    """Each row is late by its own log's watermark; the least of both sends."""
    rng = random.Random(seed)
    union = "WITH u AS (SELECT k, v, ts FROM db.ev UNION ALL SELECT k, v, ts FROM db.other WHERE v <> 5)"
    select = f"{union} {SELECT.format(KINDS['hop'][0].replace('db.ev', 'u'))}"
    others = EVENTS.format("drop").replace("db.ev", "db.other")
    create = [LATE, EVENTS.format("table:db.late"), others, LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {select}"]
    SqlSession(store).execute(";".join(create))
    rows = {"db.ev": drifting(rng, 150), "db.other": drifting(rng, 150)}
    worker = Worker(store, n_rows_max=rng.choice([5, 50]))
    for _ in range(10):
        name = rng.choice(list(rows))
        n = rng.randrange(5, 30)
        if rows[name]:
            store.table(name).append(table(rows[name][:n]))
        rows[name] = rows[name][n:]
        worker.run_until_idle()
        logs = {of: [(bucket, row) for bucket, row in arrived(store, of) if of == "db.ev" or row["v"] != 5] for of in rows}
        nows = [marks(arrived(store, of))[1] for of in rows]
        groups: Groups = {}
        late = {of: 0 for of in rows}
        for of in rows:
            of_id = {row["id"]: mark for (_, row), mark in zip(arrived(store, of), marks(arrived(store, of))[0], strict=True)}
            for _, row in logs[of]:
                closed = [end - 1 <= mark if (mark := of_id[row["id"]]) is not None else False for _, end in hop(row["ts"])]
                late[of] += row["v"] >= 0 and any(closed)
                for (start, end), is_closed in zip(hop(row["ts"]), closed, strict=True):
                    if row["v"] >= 0 and not is_closed:
                        groups.setdefault((row["k"], start, end), []).append(row["v"])
        now = min((ms for ms in nows if ms is not None), default=None) if None not in nows else None
        assert sink_rows(store, "db.s") == aggregated({key: vs for key, vs in groups.items() if now is not None and key[2] - 1 <= now})
        assert store.progress("job:job")["job:job"].detail["n_late_rows"] == sum(late.values())
        assert store.table("db.late").count() == late["db.ev"]
        assert differing_jobs(store) == []
    assert len(sink_rows(store, "db.s")) > 30


JOIN = """SELECT l.id, r.id FROM db.ev l JOIN db.ev r ON l.k = r.k AND
  r.ts BETWEEN l.ts - INTERVAL '1' SECOND AND l.ts + INTERVAL '4' SECOND AND l.id <> r.id"""
WIDTH_MS = 5000


def expected_pairs(log: list[tuple[int, Row]]) -> tuple[Rows, set[int]]:
    late = {row["id"] for (_, row), mark in zip(log, marks(log)[0], strict=True) if mark is not None and row["ts"] + WIDTH_MS < mark}
    rows = [row for _, row in log if row["id"] not in late]
    pairs = [
        (left["id"], right["id"])
        for left in rows
        for right in rows
        if left["k"] == right["k"] and left["id"] != right["id"] and -1000 <= right["ts"] - left["ts"] <= 4000
    ]
    return sorted(pairs, key=repr), late


@pytest.mark.parametrize("seed", range(3))
def test_an_interval_join_forgets_rows_and_misses_no_pair_of_rows_in_time(tmp_path: Path, seed: int) -> None:
    def check(store: Store) -> None:
        pairs, late = expected_pairs(arrived(store))
        assert sink_rows(store, "db.s") == pairs
        assert late_ids(store) == late
        assert differing_jobs(store) == []
        kept = {name: store.table(name).count() for name in store.tables() if "__rows_" in name}
        most.append(max(kept.values()))

    most: list[int] = []
    create = ["USE db", LATE, EVENTS.format("table:db.late"), "CREATE TABLE db.s (a BIGINT, b BIGINT)", "SET 'pipeline.name' = 'job'",
              f"INSERT INTO db.s {JOIN}"]  # fmt: skip
    lived(tmp_path / "store", random.Random(seed), drifting(random.Random(seed), 180), create, check)
    assert most[-1] < 70  # of 180 rows on each side


def test_a_join_without_bounds_on_both_sides_keeps_its_rows(store: Store) -> None:
    join = "SELECT l.id, r.id FROM db.ev l JOIN db.ev r ON l.k = r.k AND r.ts > l.ts - INTERVAL '1' SECOND"
    create = [EVENTS.format("drop"), "CREATE TABLE db.s (a BIGINT, b BIGINT)", "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {join}"]
    SqlSession(store).execute(";".join(create))
    assert "until the watermark" not in "\n".join(explain(plan_job(store, load_job(store, "job"))))
