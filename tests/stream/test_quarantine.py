"""Poison rows: the job stops by default; with 'quarantine' they are set aside exactly once, and stream = batch holds without them."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from query_engine.verify import verify
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_job
from storage_engine.stream.jobs import quarantine as quarantine_module
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

TABLES = """
CREATE TABLE db.raw (id BIGINT, text STRING) WITH ('bucket.num' = '3', 'bucket.key' = 'id');
CREATE TABLE db.orders (id BIGINT, shop BIGINT, n BIGINT, text STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('bucket.num' = '2');
CREATE TABLE db.numbers (id BIGINT, n INT);
CREATE TABLE db.totals (shop BIGINT, total BIGINT, mean BIGINT, rows BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
SET 'pipeline.name' = 'job';
"""
NUMBERS = "INSERT INTO db.numbers SELECT id, CAST(text AS INT) FROM db.raw"
SET_ASIDE = "SET 'pipeline.poison-row' = 'quarantine';"


@pytest.fixture
def db(session: SqlSession) -> SqlSession:
    session.execute(TABLES)
    return session


def append(store: Store, texts: list[str | None], base: int = 0) -> None:
    ids = pa.array(range(base, base + len(texts)), pa.int64())
    store.table("db.raw").append(pa.table({"id": ids, "text": pa.array(texts, pa.string())}))


def set_aside(store: Store) -> list[dict[str, object]]:
    return store.table("db.job_quarantine").scan().read_all().to_pylist()


def test_a_poison_row_stops_the_job_and_a_mended_cause_lets_it_go_on(store: Store, db: SqlSession) -> None:
    db.execute(NUMBERS)
    append(store, ["1", "x"])
    Worker(store).run_until_idle()
    assert load_job(store, "job").state == "FAILED"
    assert 'Could not convert string "x"' in load_job(store, "job").last_error
    assert sink_rows(store, "db.numbers") == []

    db.execute(f"{SET_ASIDE} {NUMBERS}")
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.numbers") == [(0, 1)]


def test_each_poison_row_is_set_aside_once_with_its_place_and_reason(store: Store, db: SqlSession) -> None:
    db.execute(f"{SET_ASIDE} {NUMBERS}")
    rng = random.Random(4)
    texts = [rng.choice(["x", "99999999999"]) if rng.random() < 0.02 else str(n) for n in range(2_000)]
    worker = Worker(store)
    for base in range(0, 2_000, 500):
        append(store, list(texts[base : base + 500]), base)
        worker.run_until_idle()

    bad = {n for n, text in enumerate(texts) if text != str(n)}
    aside = set_aside(store)
    assert sink_rows(store, "db.numbers") == [(n, n) for n in sorted(set(range(2_000)) - bad, key=lambda n: repr((n, n)))]
    assert sorted(json.loads(str(row["row_text"]))["id"] for row in aside) == sorted(bad)
    assert {row["job"] for row in aside} == {"job"}
    assert all(str(row["reason"]).startswith(("Conversion Error: ", "Invalid Input Error: ")) for row in aside), aside
    places = {(row["source_bucket"], row["source_offset"]): json.loads(str(row["row_text"]))["id"] for row in aside}
    for row in store.table("db.raw").scan(metadata=True).read_all().to_pylist():
        assert places.pop((row["_bucket"], row["_log_offset"]), row["id"]) == row["id"]
    assert places == {}
    assert verify(store, None, "db.numbers")[0].holds
    found = db.execute("DESCRIBE JOB job")[-1].rows
    assert dict(zip(found["property"].to_pylist(), found["value"].to_pylist(), strict=True))["n_quarantined"] == str(len(bad))


def test_bisecting_takes_a_logarithmic_number_of_runs(store: Store, db: SqlSession, monkeypatch: pytest.MonkeyPatch) -> None:
    db.execute(f"{SET_ASIDE} {NUMBERS}")
    append(store, ["bad" if n == 7_777 else str(n) for n in range(16_384)])
    runs = []
    from storage_engine.stream.run.runner import JobRunner

    run = JobRunner._run
    monkeypatch.setattr(JobRunner, "_run", lambda self, work: (runs.append(work.n_rows), run(self, work)))
    Worker(store).run_until_idle()
    assert len(sink_rows(store, "db.numbers")) == 16_383
    assert len(runs) <= 1 + 14 + 4  # the whole batch, halving down to the row, and the rest after it


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_was_not_taken_in_is_not_taken_back(store: Store, db: SqlSession, seed: int) -> None:
    """A sum that overflows depends on the other rows: taking the row back would not fail, and would be wrong."""
    db.execute(
        f"{SET_ASIDE} INSERT INTO db.totals SELECT shop, SUM(n), AVG(CAST(text AS BIGINT)), COUNT(*) FROM db.orders "
        "WHERE shop IS NOT NULL GROUP BY shop"
    )
    rng = random.Random(seed)
    orders = store.table("db.orders")
    worker = Worker(store, n_rows_max=rng.choice([3, 50, 10_000]))
    for _ in range(25):
        ids = rng.sample(range(20), rng.randrange(1, 8))
        rows = {
            "id": ids,
            "shop": [rng.randrange(2) for _ in ids],
            "n": [rng.choice([1, 2, 2**62, 2**62 + 1]) for _ in ids],
            "text": [rng.choice(["1", "2", "3", "x"]) for _ in ids],
        }
        orders.upsert(rows)
        if rng.random() < 0.5:
            orders.delete({"id": rng.sample(range(20), 3)})
        if rng.random() < 0.7:
            worker.run_until_idle()
        if rng.random() < 0.2:
            worker.close()
            worker = Worker(store, n_rows_max=rng.choice([3, 50, 10_000]))
    worker.run_until_idle()
    assert load_job(store, "job").state == "RUNNING", load_job(store, "job").last_error
    assert len(set_aside(store)) > 5
    assert differing_jobs(store) == []
    poisoned = {(row["source_bucket"], row["source_offset"]) for row in set_aside(store)}
    last = {row["id"]: row for row in orders.scan(metadata=True).read_all().to_pylist()}
    left = [row for row in last.values() if row["_change_type"] in ("+I", "+U") and (row["_bucket"], row["_log_offset"]) not in poisoned]
    oracle = "SELECT shop, sum(n)::BIGINT, CAST(trunc(sum(text::BIGINT) / count(*)) AS BIGINT), count(*) FROM orders GROUP BY shop"
    plain = [{"shop": row["shop"], "n": row["n"], "text": row["text"]} for row in left]
    assert sink_rows(store, "db.totals") == (query_rows(oracle, orders=plain) if plain else [])


def test_a_job_whose_every_row_fails_stops(store: Store, db: SqlSession, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage_engine.stream.run import runner

    assert quarantine_module.N_IN_A_ROW_MAX == 1_000
    monkeypatch.setattr(runner, "N_IN_A_ROW_MAX", 20)
    db.execute(f"{SET_ASIDE} {NUMBERS}")
    append(store, ["x"] * 100)
    Worker(store).run_until_idle()
    assert load_job(store, "job").state == "FAILED"
    assert len(set_aside(store)) == 20


def test_a_join_that_reads_its_tables_itself_refuses_the_option(db: SqlSession) -> None:
    with pytest.raises(StatementRefused, match=r"a join that reads db\.orders itself"):
        db.execute(
            f"CREATE TABLE db.s (id BIGINT, other BIGINT, PRIMARY KEY (id) NOT ENFORCED); {SET_ASIDE} "
            "INSERT INTO db.s SELECT a.id, b.n FROM db.orders a JOIN db.orders b ON a.id = b.id"
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_poison_row_of_a_far_future_does_not_close_windows(tmp_path: Path, seed: int) -> None:
    """What is in quarantine has no event time: it moves no watermark and makes no row late, in the stream and in the proof."""
    rng = random.Random(seed)
    with storage_engine.connect(f"file://{tmp_path}/store", sync="none") as store:
        store.execute("""
          CREATE TABLE db.ev (k BIGINT, n STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
            WITH ('bucket.num' = '2', 'bucket.key' = 'k');
          CREATE TABLE db.w (k BIGINT, t TIMESTAMP(3), total BIGINT);
          SET 'pipeline.name' = 'w'; SET 'pipeline.poison-row' = 'quarantine';
          INSERT INTO db.w SELECT k, window_start, SUM(CAST(n AS BIGINT)) FROM TABLE(TUMBLE(TABLE db.ev, DESCRIPTOR(ts),
            INTERVAL '5' SECOND)) GROUP BY k, window_start, window_end""")
        worker, ms, n_poison = Worker(store, n_rows_max=rng.choice([3, 50])), 10_000, 0
        for _ in range(30):
            rows = []
            for _ in range(rng.randrange(1, 8)):
                ms += rng.randrange(900)
                is_poison = rng.random() < 0.1
                n_poison += is_poison
                moved = 60_000 if is_poison else -rng.choice([0, 0, 1_500, 4_000])
                at = datetime(2020, 1, 1) + timedelta(milliseconds=ms + moved)  # noqa: DTZ001 - a TIMESTAMP has no zone
                rows.append({"k": rng.randrange(4), "n": "x" if is_poison else str(rng.randrange(9)), "ts": at})
            store.table("db.ev").append(rows)
            if rng.random() < 0.4:
                worker.run_until_idle()
        worker.run_until_idle()

        (report,) = verify(store, None, "db.w")

        assert (report.rows_differing, store.table("db.job_quarantine").count()) == (0, n_poison)
        assert store.table("db.w").count() > 10
