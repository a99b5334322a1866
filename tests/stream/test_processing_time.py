"""Windows over PROCTIME(): a row's processing time is when its commit was done, so when it is read changes nothing.

The store runs on a clock in the test's hands; the oracle knows what it said at each append, and asks no log.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_job, load_jobs, plan_job
from storage_engine.stream.planning.explain import explain
from tests.engine.cleaning import START_MS, Clock, backend_of, opened
from tests.stream.comparing import Rows, differing_jobs, sink_rows
from tests.stream.windows import Windows, aggregated, cumulate, grouped, hop, moment, tumbling

BID = "CREATE TABLE db.bid (id BIGINT, bidder STRING, price INT, ts TIMESTAMP(3)) WITH ('bucket.num' = '2', 'bucket.key' = 'id')"
SINK = (
    "CREATE TABLE db.{} (bidder STRING, starttime TIMESTAMP(3), endtime TIMESTAMP(3), n BIGINT, total INT, low INT, prices BIGINT, "
    "PRIMARY KEY (bidder, starttime, endtime) NOT ENFORCED)"
)
Log = list[tuple[int, dict[str, Any]]]


tumble = tumbling(10_000)
TIMED = "(SELECT *, PROCTIME() AS p_time FROM db.bid)"
KINDS: dict[str, tuple[str, Windows]] = {
    "tumble": (f"TUMBLE(TABLE {TIMED}, DESCRIPTOR(p_time), INTERVAL '10' SECOND)", tumble),
    "hop": (f"HOP({TIMED}, DESCRIPTOR(p_time), INTERVAL '3' SECOND, INTERVAL '9' SECOND)", hop),
    "cumulate": (f"CUMULATE({TIMED}, DESCRIPTOR(p_time), INTERVAL '2' SECOND, INTERVAL '8' SECOND)", cumulate),
}


def insert(kind: str, sink: str = "s") -> str:
    prices = "COUNT(DISTINCT price)" if kind != "hop" else "BITMAP_BUILD_CARDINALITY_AGG(price)"  # by pane, and window by window
    return (
        f"INSERT INTO db.{sink} SELECT bidder, window_start, window_end, COUNT(*), SUM(price), MIN(price), {prices} FROM "
        f"TABLE({KINDS[kind][0]}) WHERE price >= 0 GROUP BY bidder, window_start, window_end"
    )


def expected(log: Log, windows: Windows) -> Rows:
    return aggregated(grouped(((ms, row["bidder"], row["price"]) for ms, row in log), windows))


def append(store: Store, rng: random.Random, clock: Clock, log: Log) -> None:
    """One commit, some time after the one before; the events' own times say nothing of it."""
    clock.pass_ms(rng.choice([0, 1, 400, 1999, 2600, 9000, 30_000]))
    rows = [
        {"id": len(log) + i, "bidder": rng.choice("abc"), "price": rng.randrange(-2, 9), "ts": moment(rng.randrange(START_MS))}
        for i in range(rng.randrange(1, 12))
    ]
    types = {"id": pa.int64(), "bidder": pa.string(), "price": pa.int32(), "ts": pa.timestamp("ms")}
    store.table("db.bid").append(pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}))
    log += [(clock.now_ms, row) for row in rows]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_lies_in_the_windows_of_its_commit_whenever_it_is_read(tmp_path: Path, kind: str, seed: int) -> None:
    rng = random.Random(f"{kind}{seed}")
    clock, log = Clock(), Log()
    with opened(tmp_path / "s", clock) as store:
        SqlSession(store).execute(f"{BID}; {SINK.format('s')}; SET 'pipeline.name' = 'job'; {insert(kind)}")
    for _ in range(4):
        with opened(tmp_path / "s", clock) as store:  # a store and a worker that begin again
            worker = Worker(store, n_rows_max=rng.choice([1, 4, 100_000]))
            for _ in range(rng.randrange(1, 6)):
                append(store, rng, clock, log)
                if rng.random() < 0.5:
                    clock.pass_ms(rng.choice([0, 50_000]))  # read at once, or much later
                    worker.run_until_idle()
            worker.run_until_idle()
            worker.close()
            assert load_job(store, "job").last_error == ""
            assert sink_rows(store, "db.s") == expected(log, KINDS[kind][1])
            assert differing_jobs(store) == []
    assert len({window for ms, _ in log for window in KINDS[kind][1](ms)}) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_reads_everything_again_gives_the_same_rows_also_after_frames_were_packed_together(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    clock, log = Clock(), Log()
    with opened(tmp_path / "s", clock) as store:
        session = SqlSession(store)
        session.execute(f"{BID}; {SINK.format('s')}; {SINK.format('again')}; SET 'pipeline.name' = 'job'; {insert(kind)}")
        worker = Worker(store)
        for _ in range(48):
            append(store, rng, clock, log)
            worker.run_until_idle()
        assert sink_rows(store, "db.s") == expected(log, KINDS[kind][1])
        n_frames = len(list(store.table("db.bid").scan()))
        clock.pass_ms(86_400_000)
        backend_of(store).clean()
        assert len(list(store.table("db.bid").scan())) < n_frames  # commits share frames now
        session.execute(f"SET 'pipeline.name' = 'second'; {insert(kind, 'again')}")
        worker.run_until_idle()
        assert sink_rows(store, "db.again") == sink_rows(store, "db.s")
        assert differing_jobs(store) == []
        worker.close()


LOG_SINK = "CREATE TABLE db.{} (bidder STRING, starttime TIMESTAMP(3), endtime TIMESTAMP(3), n BIGINT, total INT, low INT, prices BIGINT)"


def sent(log: Log, windows: Windows) -> Rows:
    """The groups whose window ended before the newest row was committed."""
    newest = moment(max(ms for ms, _ in log))
    return [row for row in expected(log, windows) if row[2] <= newest]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_into_a_log_a_window_is_sent_once_when_a_row_was_committed_after_it(tmp_path: Path, kind: str, seed: int) -> None:
    rng = random.Random(f"log{kind}{seed}")
    clock, log = Clock(), Log()
    with opened(tmp_path / "s", clock) as store:
        SqlSession(store).execute(f"{BID}; {LOG_SINK.format('s')}; SET 'pipeline.name' = 'job'; {insert(kind)}")
    for _ in range(5):
        with opened(tmp_path / "s", clock) as store:
            worker = Worker(store, n_rows_max=rng.choice([1, 4, 100_000]))
            for _ in range(rng.randrange(1, 6)):
                append(store, rng, clock, log)
                if rng.random() < 0.5:
                    clock.pass_ms(rng.choice([0, 50_000]))
                    worker.run_until_idle()
                    assert sink_rows(store, "db.s") == sent(log, KINDS[kind][1])
            worker.run_until_idle()
            worker.close()
            assert load_job(store, "job").last_error == ""
            assert sink_rows(store, "db.s") == sent(log, KINDS[kind][1])
            assert differing_jobs(store) == []
    with opened(tmp_path / "s", clock) as store:  # another job, over the same rows in other pieces
        SqlSession(store).execute(f"{LOG_SINK.format('again')}; SET 'pipeline.name' = 'second'; {insert(kind, 'again')}")
        with_worker(store)
        assert sink_rows(store, "db.again") == sink_rows(store, "db.s") != []
        clock.pass_ms(60_000)
        append(store, rng, clock, log)
        with_worker(store)
        assert sink_rows(store, "db.s") == sent(log, KINDS[kind][1])
        append(store, rng, clock, log)
        with_worker(store)
        open_windows = {window for ms, _ in log for window in KINDS[kind][1](ms) if window[1] > clock.now_ms}
        states = [name for name in store.tables() if "__state_job" in name]
        assert states != []
        assert all(store.table(name).count() <= 3 * 9 * len(open_windows) for name in states)  # groups, and values of DISTINCT


def test_sent_windows_can_be_ranked_and_joined_without_state_of_their_own(tmp_path: Path) -> None:
    rng = random.Random(8)
    clock, log = Clock(), Log()
    counts = f"(SELECT bidder, window_end AS e, COUNT(*) AS n FROM TABLE({KINDS['hop'][0]}) GROUP BY bidder, window_start, window_end)"
    ranked = f"SELECT *, ROW_NUMBER() OVER (PARTITION BY e ORDER BY n DESC, bidder) AS r FROM {counts}"
    highest = f"SELECT e, MAX(n) AS high FROM {counts} GROUP BY e"
    best = f"SELECT bidder, e, n FROM ({ranked}) WHERE r <= 1"
    most = f"SELECT a.bidder, a.e, a.n FROM {counts} a JOIN ({highest}) b ON a.e = b.e AND a.n = b.high"
    with opened(tmp_path / "s", clock) as store:
        SqlSession(store).execute(BID)
        for name, select in (("best", best), ("most", most)):
            SqlSession(store).execute(
                f"CREATE TABLE db.{name} (bidder STRING, e TIMESTAMP(3), n BIGINT); SET 'pipeline.name' = '{name}'; "
                f"INSERT INTO db.{name} {select}"
            )
        worker = Worker(store)
        for _ in range(30):
            append(store, rng, clock, log)
            if rng.random() < 0.4:
                worker.run_until_idle()
        worker.run_until_idle()
        worker.close()
        groups = Counter((end, row["bidder"]) for ms, row in log for _, end in hop(ms) if end <= log[-1][0])
        ends = {end: max(n for (e, _), n in groups.items() if e == end) for end, _ in groups}
        winners = [(bidder, moment(end), n) for (end, bidder), n in groups.items() if n == ends[end]]
        assert sink_rows(store, "db.most") == sorted(winners, key=repr)
        assert sink_rows(store, "db.best") == sorted({e: (b, e, n) for b, e, n in sorted(winners, reverse=True)}.values(), key=repr)
        assert differing_jobs(store) == []


def test_a_job_may_go_by_event_time_and_by_processing_time_at_once(tmp_path: Path) -> None:
    rng = random.Random(4)
    clock, log = Clock(), Log()
    timed = BID.replace("ts TIMESTAMP(3))", "ts TIMESTAMP(3), WATERMARK FOR ts AS ts)")
    halves = [
        f"SELECT '{name}', bidder, window_end, COUNT(*) FROM TABLE(TUMBLE({data}, INTERVAL '10' SECOND)) GROUP BY bidder, window_end"
        for name, data in (("event", "TABLE db.bid, DESCRIPTOR(ts)"), ("commit", f"{TIMED}, DESCRIPTOR(p_time)"))
    ]
    with opened(tmp_path / "s", clock) as store:
        SqlSession(store).execute(
            f"{timed}; CREATE TABLE db.s (what STRING, bidder STRING, e TIMESTAMP(3), n BIGINT); SET 'pipeline.name' = 'job'; "
            f"INSERT INTO db.s {' UNION ALL '.join(halves)}"
        )
        worker = Worker(store, n_rows_max=3)
        for _ in range(20):
            append(store, rng, clock, log)
            if rng.random() < 0.4:
                worker.run_until_idle()
        worker.run_until_idle()
        worker.close()
        counts = Counter((row["bidder"], tumble(ms)[0][1]) for ms, row in log if tumble(ms)[0][1] <= log[-1][0])
        found = [row[1:] for row in sink_rows(store, "db.s") if row[0] == "commit"]
        assert found == sorted(((bidder, moment(end), n) for (bidder, end), n in counts.items()), key=repr)
        assert store.progress("job:job")["job:job"].detail["n_late_rows"] > 20  # the events' own times are in no order
        assert differing_jobs(store) == []


COUNTS = (
    "SELECT bidder, COUNT(*), window_start, window_end FROM TABLE(TUMBLE({}, INTERVAL '10' SECOND)) "
    "GROUP BY bidder, window_start, window_end"
)
SPELLINGS = {
    "a view of all columns": COUNTS.format("TABLE db.timed, DESCRIPTOR(p_time)"),
    "named arguments": COUNTS.format("DATA => TABLE db.timed, TIMECOL => DESCRIPTOR(p_time)"),
    "a view over a view": COUNTS.format("TABLE db.passed, DESCRIPTOR(p_time)"),
    "by another name": COUNTS.format("(SELECT x.bidder AS bidder, x.p_time AS t FROM db.timed x), DESCRIPTOR(t)"),
    "names behind the alias": COUNTS.format(
        "(SELECT q.b AS bidder, q.t FROM (SELECT bidder, PROCTIME() FROM db.bid AS e (i, bidder, p, ts)) AS q (b, t)), DESCRIPTOR(t)"
    ),
    "taken above": COUNTS.format("(SELECT *, PROCTIME() AS p FROM (SELECT bidder, price FROM db.bid)), DESCRIPTOR(p)"),
    "WITH": "WITH q AS (SELECT *, PROCTIME() AS p FROM db.bid) " + COUNTS.format("TABLE q, DESCRIPTOR(p)"),
    "no column": COUNTS.format("TABLE db.bid, DESCRIPTOR(PROCTIME())"),
    "looked up": COUNTS.format(
        "(SELECT t.bidder AS bidder, p.city, t.p_time FROM db.timed t LEFT JOIN db.people FOR SYSTEM_TIME AS OF t.p_time AS p "
        "ON t.bidder = p.name), DESCRIPTOR(p_time)"
    ),
    "GROUP BY TUMBLE": (
        "SELECT B.bidder, COUNT(*), TUMBLE_START(B.p_time, INTERVAL '10' SECOND), TUMBLE_END(B.p_time, INTERVAL '10' SECOND) FROM "
        f"{TIMED} B GROUP BY TUMBLE(B.p_time, INTERVAL '10' SECOND), B.bidder"
    ),
    "GROUP BY TUMBLE with WHERE": (
        "SELECT bidder, COUNT(*), TUMBLE_START(PROCTIME(), INTERVAL '10' SECOND), TUMBLE_END(PROCTIME(), INTERVAL '10' SECOND) FROM "
        "db.bid WHERE price > -99 GROUP BY TUMBLE(PROCTIME(), INTERVAL '10' SECOND), bidder"
    ),
    "each window summed up": (
        "SELECT bidder, CAST(SUM(n) AS BIGINT), s, e FROM (SELECT bidder, price, COUNT(*) AS n, window_start AS s, window_end AS e FROM "
        f"TABLE(TUMBLE({TIMED}, DESCRIPTOR(p_time), INTERVAL '10' SECOND)) GROUP BY bidder, price, window_start, window_end) "
        "GROUP BY bidder, s, e"
    ),
}
FURTHER = """
CREATE VIEW db.timed AS SELECT *, PROCTIME() AS p_time FROM db.bid;
CREATE VIEW db.passed AS SELECT * FROM db.timed WHERE price > -99;
CREATE TABLE db.people (name STRING, city STRING, PRIMARY KEY (name) NOT ENFORCED);
"""


def test_every_way_to_write_it_gives_the_same_windows(tmp_path: Path) -> None:
    rng = random.Random(5)
    clock, log = Clock(), Log()
    with opened(tmp_path / "s", clock) as store:
        session = SqlSession(store)
        session.execute(f"{BID}; {FURTHER}")
        for i, select in enumerate(SPELLINGS.values()):
            session.execute(
                f"CREATE TABLE db.s{i} (bidder STRING, n BIGINT, s TIMESTAMP(3), e TIMESTAMP(3), PRIMARY KEY (bidder, s, e) NOT ENFORCED); "
                f"SET 'pipeline.name' = 'j{i}'; INSERT INTO db.s{i} {select}"
            )
        worker = Worker(store)
        for _ in range(20):
            append(store, rng, clock, log)
            if rng.random() < 0.5:
                worker.run_until_idle()
        worker.run_until_idle()
        worker.close()
        counts = Counter((row["bidder"], *tumble(ms)[0]) for ms, row in log)
        rows = sorted(((k, n, moment(s), moment(e)) for (k, s, e), n in counts.items()), key=repr)
        assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
        assert {name: sink_rows(store, f"db.s{i}") == rows for i, name in enumerate(SPELLINGS)} == dict.fromkeys(SPELLINGS, True)
        assert differing_jobs(store) == []


def test_windows_without_any_column_count_all_rows(tmp_path: Path) -> None:
    clock, log = Clock(), Log()
    with opened(tmp_path / "s", clock) as store:
        session = SqlSession(store)
        session.execute(f"{BID}; CREATE TABLE db.s (e TIMESTAMP(3), n BIGINT, PRIMARY KEY (e) NOT ENFORCED); SET 'pipeline.name' = 'job'")
        session.execute(f"INSERT INTO db.s SELECT window_end, COUNT(*) FROM TABLE({KINDS['tumble'][0]}) GROUP BY window_end")
        for _ in range(10):
            append(store, random.Random(len(log)), clock, log)
        with_worker(store)
        counts = Counter(tumble(ms)[0][1] for ms, _ in log)
        assert sink_rows(store, "db.s") == sorted(((moment(end), n) for end, n in counts.items()), key=repr)
        assert differing_jobs(store) == []


def test_in_batch_mode_the_windows_are_the_same(tmp_path: Path) -> None:
    rng = random.Random(1)
    clock, log = Clock(), Log()
    with opened(tmp_path / "s", clock) as store:
        session = SqlSession(store)
        session.execute(f"{BID}; {SINK.format('s')}")
        for _ in range(12):
            append(store, rng, clock, log)
        clock.pass_ms(500_000)
        session.execute(f"SET 'execution.runtime-mode' = 'batch'; {insert('hop')}")
        assert sink_rows(store, "db.s") == expected(log, hop)


def test_explain_says_what_the_processing_time_of_a_row_is(tmp_path: Path) -> None:
    with opened(tmp_path / "s", Clock()) as store:
        SqlSession(store).execute(f"{BID}; {SINK.format('s')}; SET 'pipeline.name' = 'job'; {insert('tumble')}")
        lines = explain(plan_job(store, load_job(store, "job")))
    assert any(line.startswith("Processing time: PROCTIME() of a row of db.bid is when its commit was done") for line in lines)
    assert "Reproducible: yes: the batch over the recorded offsets gives the same rows" in lines


def with_worker(store: Store) -> None:
    worker = Worker(store)
    worker.run_until_idle()
    worker.close()


def test_a_star_of_the_statement_leaves_processing_time_out(tmp_path: Path) -> None:
    with opened(tmp_path / "s", Clock()) as store:
        session = SqlSession(store)
        session.execute(
            f"{BID}; {FURTHER} CREATE TABLE db.s (id BIGINT, bidder STRING, price INT, ts TIMESTAMP(3)); SET 'pipeline.name' = 'j'"
        )
        session.execute("INSERT INTO db.s SELECT * FROM db.passed")
        session.execute("INSERT INTO db.bid VALUES (1, 'a', 2, CAST(NULL AS TIMESTAMP(3)))")
        with_worker(store)
        assert sink_rows(store, "db.s") == [(1, "a", 2, None)]


WINDOW = "SELECT bidder, window_end, COUNT(*) FROM TABLE({}) GROUP BY bidder, window_end"


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        (WINDOW.format("SESSION(TABLE db.timed PARTITION BY bidder, DESCRIPTOR(p_time), INTERVAL '1' SECOND)"), "sessions of processing"),
        (
            WINDOW.format("TUMBLE((SELECT name AS bidder, PROCTIME() AS p FROM db.people), DESCRIPTOR(p), INTERVAL '1' SECOND)"),
            "not those of one log",
        ),
        (
            WINDOW.format(
                "TUMBLE((SELECT a.bidder, PROCTIME() AS p FROM db.bid a JOIN db.bid b ON a.id = b.id), DESCRIPTOR(p), INTERVAL '1' SECOND)"
            ),
            "not those of one log",
        ),
        (
            WINDOW.format(
                "TUMBLE((SELECT a.bidder, PROCTIME() AS p FROM db.bid a JOIN db.people b ON a.bidder = b.name), DESCRIPTOR(p), "
                "INTERVAL '1' SECOND)"
            ),
            "not those of one log",
        ),
        (
            WINDOW.format(
                "TUMBLE((SELECT bidder, MAX(id), PROCTIME() AS p FROM db.bid GROUP BY bidder), DESCRIPTOR(p), INTERVAL '1' SECOND)"
            ),
            "not those of one log",
        ),
        ("SELECT bidder, p_time, 1 FROM db.timed", "can only stand in FOR SYSTEM_TIME AS OF, or be the time of a window"),
        ("SELECT bidder, p_time, 1 FROM (SELECT DISTINCT bidder, PROCTIME() AS p_time FROM db.bid)", "DISTINCT with PROCTIME"),
        ("SELECT bidder, PROCTIME(), 1 FROM db.bid", "PROCTIME"),
        ("SELECT bidder, `$proctime`, 1 FROM db.bid", "processing time"),
        ("SELECT bidder, MAX(p_time), 1 FROM db.timed GROUP BY bidder", "processing time"),
        ("SELECT bidder, p_time, COUNT(*) FROM db.timed GROUP BY bidder, p_time", "processing time"),
        ("SELECT bidder, ts, 1 FROM db.timed WHERE p_time > ts", "processing time"),
        (
            "SELECT bidder, window_end, CAST(EXTRACT(HOUR FROM p_time) AS BIGINT) FROM "
            "TABLE(TUMBLE(TABLE db.timed, DESCRIPTOR(p_time), INTERVAL '1' SECOND))",
            "processing time",
        ),
    ],
)
def test_what_else_asks_for_a_processing_time_is_refused_with_its_reason(tmp_path: Path, select: str, reason: str) -> None:
    with opened(tmp_path / "s", Clock()) as store:
        session = SqlSession(store)
        session.execute(f"{BID}; {FURTHER} CREATE TABLE db.s (a STRING, b TIMESTAMP(3), n BIGINT, PRIMARY KEY (a, b) NOT ENFORCED)")
        with pytest.raises(StatementRefused, match=reason):
            session.execute(f"SET 'pipeline.name' = 'job'; INSERT INTO db.s {select}")
