"""Windows over a log with a WATERMARK: what is sent, when, and which rows are late, are facts of the log alone.

The oracle is written out row by row in Python: it walks the log in its order and asks of each row what had come before it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import storage_engine
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, batch_select, load_job, plan_job
from storage_engine.stream.planning.explain import explain
from tests.stream.comparing import Rows, differing_jobs, rows_of, sink_rows

DELAY_MS = 2000
EVENTS = """CREATE TABLE db.ev (id BIGINT, k STRING, v INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
  WITH ('bucket.num' = '2', 'bucket.key' = 'k', 'watermark.late-rows' = '{}')"""
PARTITIONED = """CREATE TABLE db.ev (id BIGINT, k STRING, v INT, ts TIMESTAMP(3), day STRING, WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
  PARTITIONED BY (day) WITH ('bucket.num' = '2', 'bucket.key' = 'k', 'watermark.late-rows' = '{}')"""
LATE = "CREATE TABLE db.late (id BIGINT, k STRING, v INT, ts TIMESTAMP(3))"
IDLE = """CREATE TABLE db.ev (id BIGINT, k STRING, v INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
  WITH ('bucket.num' = '2', 'bucket.key' = 'k', 'watermark.late-rows' = 'table:db.late', 'watermark.idle-after' = '7s')"""
IDLE_MS = 7000
EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # as a TIMESTAMP is: without a zone
FIELDS = {"id": pa.int64(), "k": pa.string(), "v": pa.int32(), "ts": pa.timestamp("ms")}

Row = dict[str, Any]
Windows = Callable[[int], list[tuple[int, int]]]


def tumble(ms: int) -> list[tuple[int, int]]:
    start = ms // 5000 * 5000
    return [(start, start + 5000)]


def hop(ms: int) -> list[tuple[int, int]]:
    last = ms // 3000 * 3000
    return [(start, start + 9000) for start in (last, last - 3000, last - 6000)]


def cumulate(ms: int) -> list[tuple[int, int]]:
    start, step = ms // 8000 * 8000, ms // 2000 * 2000
    return [(start, end) for end in range(step + 2000, start + 8001, 2000)]


_HEAD = "CREATE TABLE db.s (k STRING, window_start TIMESTAMP(3), window_end TIMESTAMP(3), n BIGINT, total INT, low INT, kinds BIGINT"
LOG_SINK, KEYED_SINK = _HEAD + ")", _HEAD + ", PRIMARY KEY (k, window_start, window_end) NOT ENFORCED)"
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


def moment(ms: int) -> dt.datetime:
    return EPOCH + dt.timedelta(milliseconds=ms)


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


def aggregated(groups: dict[tuple[str, int, int], list[int]]) -> Rows:
    rows = [
        (k, moment(start), moment(end), len(values), sum(values), min(values), len(set(values)))
        for (k, start, end), values in groups.items()
    ]
    return sorted(rows, key=repr)


Marks = Callable[[list[tuple[int, Row]]], tuple[list[int | None], int | None]]


def expected_windows(log: list[tuple[int, Row]], windows: Windows, marks_of: Marks = marks) -> tuple[Rows, set[int]]:
    """The groups that are final, and the ids of late rows."""
    found, now = marks_of(log)
    groups: dict[tuple[str, int, int], list[int]] = {}
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
    groups: dict[tuple[str, int, int], list[int]] = {}
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


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [*KINDS, "session"])
def test_windows_are_sent_once_and_late_rows_are_what_the_log_says(tmp_path: Path, kind: str, seed: int) -> None:
    rng = random.Random(f"{kind}{seed}")
    sink = rng.choice([LOG_SINK, KEYED_SINK])

    def check(store: Store) -> None:
        log = arrived(store)
        rows, late = expected_windows(log, KINDS[kind][1]) if kind in KINDS else expected_sessions(log)
        assert sink_rows(store, "db.s") == rows
        detail = store.progress("job:job")["job:job"].detail
        assert late_ids(store) == late
        assert detail["n_late_rows"] == len(late)
        assert detail["watermark_ms"] == marks(log)[1]
        assert differing_jobs(store) == []

    create = [
        "USE db",
        LATE,
        EVENTS.format("table:db.late"),
        sink,
        "SET 'pipeline.name' = 'job'",
        f"INSERT INTO db.s {select_of(kind)}",
    ]
    lived(tmp_path / "store", rng, drifting(rng, 180), create, check)


def late_ids(store: Store) -> set[int]:
    found = [row[0] for row in sink_rows(store, "db.late")]
    assert len(found) == len(set(found)), "a late row is written once"
    return set(found)


@pytest.mark.parametrize("seed", range(2))
def test_a_bucket_of_a_new_partition_goes_on_where_the_old_one_was(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def check(store: Store) -> None:
        assert sink_rows(store, "db.s") == expected_windows(arrived(store), hop)[0]
        assert differing_jobs(store) == []

    create = [PARTITIONED.format("drop"), LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {SELECT.format(KINDS['hop'][0])}"]
    lived(tmp_path / "store", rng, drifting(rng, 200), create, check, by_day=True)


@pytest.mark.parametrize("kind", ["hop", "hop by pane"])
@pytest.mark.parametrize("seed", range(3))
def test_a_bucket_that_is_idle_in_event_time_does_not_hold_back_for_ever(tmp_path: Path, seed: int, kind: str) -> None:
    rng = random.Random(seed)

    def check(store: Store) -> None:
        log = arrived(store)
        rows, late = expected_windows(log, hop, idle_marks)
        assert sink_rows(store, "db.s") == rows
        assert late_ids(store) == late
        assert store.progress("job:job")["job:job"].detail["watermark_ms"] == idle_marks(log)[1]
        assert differing_jobs(store) == []
        found.update(late, (row[1] for row in rows))

    found: set[Any] = set()
    rows = drifting(rng, 200)
    for row in rows[:120]:
        row["k"] = "a"  # the other bucket has no row for long, and is behind when it has
    create = ["USE db", LATE, IDLE, LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {select_of(kind)}"]
    lived(tmp_path / "store", rng, rows, create, check)
    assert len(found) > 20


@pytest.mark.parametrize("kind", [*KINDS, "session"])
def test_with_late_rows_that_update_every_row_counts(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)

    def check(store: Store) -> None:
        log = [(0, row) for _, row in arrived(store)]
        everything = [*log, (1, {"id": -1, "k": "-", "v": -1, "ts": 10**9})]  # a bucket far ahead: all windows are final
        unmarked = [(number, row) for number, (_, row) in enumerate(everything)]  # each row alone in its bucket: none is late
        rows = final(unmarked, KINDS[kind][1]) if kind in KINDS else final_sessions(unmarked)
        assert sink_rows(store, "db.s") == rows
        assert differing_jobs(store) == []

    create = [EVENTS.format("update"), KEYED_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {select_of(kind)}"]
    lived(tmp_path / "store", rng, drifting(rng, 120), create, check)


def final(log: list[tuple[int, Row]], windows: Windows) -> Rows:
    groups: dict[tuple[str, int, int], list[int]] = {}
    for _, row in log:
        for start, end in windows(row["ts"]):
            if row["v"] >= 0:
                groups.setdefault((row["k"], start, end), []).append(row["v"])
    return aggregated(groups)


def final_sessions(log: list[tuple[int, Row]]) -> Rows:
    groups: dict[tuple[str, int, int], list[int]] = {}
    for k in "abcdef":
        session: list[Row] = []
        for row in [*sorted((row for _, row in log if row["k"] == k), key=lambda row: row["ts"]), None]:
            if session and (row is None or row["ts"] > session[-1]["ts"] + SESSION_GAP_MS):
                groups[k, session[0]["ts"], session[-1]["ts"] + SESSION_GAP_MS] = [item["v"] for item in session if item["v"] >= 0]
                session = []
            if row is not None:
                session.append(row)
    return aggregated({key: values for key, values in groups.items() if values})


@pytest.mark.parametrize(("kind", "n_tables"), [("tumble", 2), ("hop by pane", 1), ("cumulate by pane", 1)])
def test_state_is_dropped_when_its_windows_are_sent(store: Store, kind: str, n_tables: int) -> None:
    SqlSession(store).execute(
        ";".join([EVENTS.format("drop"), LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {select_of(kind)}"])
    )
    worker = Worker(store)
    for minute in range(5):
        store.table("db.ev").append(
            table([{"id": n, "k": "abcdef"[n % 6], "v": n % 7, "ts": minute * 60_000 + n * 1000} for n in range(60)])
        )
        worker.run_until_idle()
    state = [name for name in store.tables() if "__state_" in name]
    assert len(state) == n_tables
    assert all(0 < store.table(name).count() <= 24 for name in state)
    assert len(sink_rows(store, "db.s")) > 250


def test_in_batch_mode_the_log_ends_and_no_row_is_late(store: Store) -> None:
    rows = drifting(random.Random(1), 100)
    session = SqlSession(store)
    session.execute(";".join([EVENTS.format("drop"), LOG_SINK]))
    store.table("db.ev").append(table(rows))
    session.execute(f"SET 'execution.runtime-mode' = 'batch'; INSERT INTO db.s {SELECT.format(KINDS['hop'][0])}")
    assert sink_rows(store, "db.s") == final([(0, row) for row in rows], hop)


def test_a_recomputation_at_older_offsets_gives_what_was_sent_by_then(store: Store) -> None:
    rows = drifting(random.Random(2), 200)
    SqlSession(store).execute(
        ";".join(
            [EVENTS.format("drop"), LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {SELECT.format(KINDS['cumulate'][0])}"]
        )
    )
    worker, seen = Worker(store), []
    for start in range(0, 200, 20):
        store.table("db.ev").append(table(rows[start : start + 20]))
        worker.run_until_idle()
        seen.append((store.progress("job:job")["job:job"].offsets, sink_rows(store, "db.s")))
    plan = plan_job(store, load_job(store, "job"))
    for offsets, sent in seen:
        assert rows_of(batch_select(store, plan, offsets=offsets)) == sent


def test_a_row_without_a_time_stops_the_job_and_is_named(store: Store) -> None:
    SqlSession(store).execute(
        ";".join([EVENTS.format("drop"), LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {SELECT.format(KINDS['tumble'][0])}"])
    )
    store.table("db.ev").append({"id": [1], "k": ["a"], "v": [1], "ts": [None]})
    Worker(store).run_until_idle()
    assert "have no event time: ts is null" in load_job(store, "job").last_error


def test_describe_job_says_watermark_and_late_rows(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        ";".join([EVENTS.format("drop"), LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {SELECT.format(KINDS['tumble'][0])}"])
    )
    worker = Worker(store)

    def described() -> dict[str, str]:
        found = session.execute("DESCRIBE JOB job")[-1].rows
        assert found is not None
        return {row["property"]: row["value"] for row in found.to_pylist()}

    store.table("db.ev").append(table([{"id": 1, "k": "a", "v": 1, "ts": 60_000}]))
    worker.run_until_idle()
    waiting = described()
    every = [{"id": n, "k": k, "v": 1, "ts": 50_000} for n, k in enumerate("abcdef")]
    store.table("db.ev").append(table(every))
    worker.run_until_idle()

    assert waiting["watermark_ms"] == ""  # the other bucket has no row: its first one would be in time, however old
    assert described()["watermark_ms"] == "48000"
    assert int(described()["n_late_rows"]) == sum(bucket == arrived(store)[0][0] for bucket, _ in arrived(store)) - 1


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (KEYED_SINK.replace("(k, window_start, window_end)", "(k)"), "does not contain the query's key"),
        ("CREATE TABLE db.late (id INT)", "column id does not fit"),
        ("CREATE TABLE db.late (id BIGINT, PRIMARY KEY (id) NOT ENFORCED)", "does not take them"),
    ],
)
def test_what_would_lose_rows_is_refused(store: Store, sink: str, message: str) -> None:
    late = [] if "db.late" in sink else [LATE]
    create = [*late, EVENTS.format("table:db.late"), *([] if "db.s" in sink else [LOG_SINK]), sink]
    with pytest.raises(StatementRefused, match=message):
        SqlSession(store).execute(";".join([*create, f"INSERT INTO db.s {SELECT.format(KINDS['tumble'][0])}"]))


def test_a_log_with_a_watermark_keeps_its_buckets(store: Store) -> None:
    session = SqlSession(store)
    session.execute(EVENTS.format("drop"))
    with pytest.raises(StatementRefused, match="a new bucket would have no event time"):
        session.execute("ALTER TABLE db.ev SET ('bucket.num' = '3')")


def test_a_side_table_takes_the_columns_that_it_has(store: Store) -> None:
    """The source may get columns later, and the side table may have some of them only, and some of its own."""
    session = SqlSession(store)
    side = "CREATE TABLE db.late (ts TIMESTAMP(3), id BIGINT, note STRING)"
    job = ["SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {SELECT.format(KINDS['tumble'][0])}"]
    session.execute(";".join([side, EVENTS.format("table:db.late"), LOG_SINK, *job]))
    worker = Worker(store)
    session.execute("ALTER TABLE db.ev ADD more STRING")
    rows = [{"id": n, "k": "a", "v": 1, "ts": ts, "more": "x"} for n, ts in enumerate([50_000, 60_000, 1000])]
    store.table("db.ev").append({name: [row[name] for row in rows] for name in rows[0]} | {"ts": [moment(row["ts"]) for row in rows]})
    worker.run_until_idle()
    assert load_job(store, "job").last_error == ""
    assert sink_rows(store, "db.late") == [(moment(1000), 2, None)]


def test_windows_that_update_do_not_go_into_a_log(store: Store) -> None:
    with pytest.raises(StatementRefused, match="cannot take back rows"):
        SqlSession(store).execute(";".join([EVENTS.format("update"), LOG_SINK, f"INSERT INTO db.s {SELECT.format(KINDS['tumble'][0])}"]))


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
    lived(tmp_path / "store", random.Random(seed), drifting(random.Random(seed), 200), create, check)
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
    for _ in range(14):
        name = rng.choice(list(rows))
        n = rng.randrange(5, 30)
        if rows[name]:
            store.table(name).append(table(rows[name][:n]))
        rows[name] = rows[name][n:]
        worker.run_until_idle()
        logs = {of: [(bucket, row) for bucket, row in arrived(store, of) if of == "db.ev" or row["v"] != 5] for of in rows}
        nows = [marks(arrived(store, of))[1] for of in rows]
        groups: dict[tuple[str, int, int], list[int]] = {}
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
    lived(tmp_path / "store", random.Random(seed), drifting(random.Random(seed), 300), create, check)
    assert most[-1] < 100  # of 300 rows on each side


def test_a_join_without_bounds_on_both_sides_keeps_its_rows(store: Store) -> None:
    join = "SELECT l.id, r.id FROM db.ev l JOIN db.ev r ON l.k = r.k AND r.ts > l.ts - INTERVAL '1' SECOND"
    create = [EVENTS.format("drop"), "CREATE TABLE db.s (a BIGINT, b BIGINT)", "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {join}"]
    SqlSession(store).execute(";".join(create))
    assert "until the watermark" not in "\n".join(explain(plan_job(store, load_job(store, "job"))))
