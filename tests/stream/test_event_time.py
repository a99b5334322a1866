"""Windows over a log with a WATERMARK: sent once, when the log says so, without the rows that it says are late (event_times.py asks it)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, batch_select, load_job, plan_job
from tests.stream.comparing import Rows, differing_jobs, rows_of, sink_rows
from tests.stream.event_times import (
    EVENTS,
    IDLE,
    KEYED_SINK,
    KINDS,
    LATE,
    LOG_SINK,
    PARTITIONED,
    SELECT,
    SESSION_GAP_MS,
    Row,
    arrived,
    drifting,
    expected_sessions,
    expected_windows,
    idle_marks,
    late_ids,
    lived,
    marks,
    select_of,
    table,
)
from tests.stream.windows import Groups, Windows, aggregated, grouped, hop, moment


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
    lived(tmp_path / "store", rng, drifting(rng, 130), create, check)


@pytest.mark.parametrize("seed", range(2))
def test_a_bucket_of_a_new_partition_goes_on_where_the_old_one_was(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def check(store: Store) -> None:
        assert sink_rows(store, "db.s") == expected_windows(arrived(store), hop)[0]
        assert differing_jobs(store) == []

    create = [PARTITIONED.format("drop"), LOG_SINK, "SET 'pipeline.name' = 'job'", f"INSERT INTO db.s {SELECT.format(KINDS['hop'][0])}"]
    lived(tmp_path / "store", rng, drifting(rng, 130), create, check, by_day=True)


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
    rows = drifting(rng, 140)
    for row in rows[:80]:
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
    lived(tmp_path / "store", rng, drifting(rng, 90), create, check)


def final(log: list[tuple[int, Row]], windows: Windows) -> Rows:
    return aggregated(grouped(((row["ts"], row["k"], row["v"]) for _, row in log), windows))


def final_sessions(log: list[tuple[int, Row]]) -> Rows:
    groups: Groups = {}
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
