"""Jobs whose source loses partitions: they go on with the others, and read a partition created again from its beginning."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import storage_engine
from storage_engine.stream import SqlSession, Worker
from storage_engine.stream.jobs.job import load_jobs
from tests.meddling import meddled

TABLES = "CREATE TABLE a.src (x BIGINT, day STRING) PARTITIONED BY (day); CREATE TABLE a.out (x BIGINT, day STRING);"
JOB = "SET 'pipeline.name' = 'copy'; INSERT INTO a.out SELECT x, day FROM a.src"


def copied(store: storage_engine.Store) -> Counter[int]:
    return Counter(store.table("a.out").scan().read_all()["x"].to_pylist())


def test_a_job_reads_the_few_rows_of_a_partition_created_again_although_it_had_read_many_of_the_first(store):
    SqlSession(store).execute(TABLES + JOB)
    store.table("a.src").append({"x": list(range(100)), "day": ["a"] * 100})
    worker = Worker(store)
    worker.run_until_idle()

    store.execute("ALTER TABLE a.src DROP PARTITION (day = 'a')")
    store.table("a.src").append({"x": [100, 101], "day": ["a", "a"]})
    worker.run_until_idle()

    assert copied(store) == Counter(range(102))
    assert load_jobs(store)["copy"].state == "RUNNING"


def test_a_drop_between_any_two_calls_of_a_job_loses_and_doubles_no_row_of_what_stays(tmp_path: Path):
    n_gaps = 0
    for at_call in itertools.count(1):
        with storage_engine.connect((tmp_path / f"s{at_call}").as_uri(), sync="none") as store:
            SqlSession(store).execute(TABLES + JOB)
            source = store.table("a.src")
            source.append({"x": list(range(10)), "day": ["a"] * 10})
            source.append({"x": list(range(10, 15)), "day": ["b"] * 5})
            worker = Worker(store)
            worker.run_until_idle()
            source.append({"x": [15, 16, 17, 18], "day": ["a", "a", "a", "b"]})

            def drop_and_create(store=store, source=source):
                store.execute("ALTER TABLE a.src DROP PARTITION (day = 'a')")
                source.append({"x": list(range(100, 112)), "day": ["a"] * 12})

            other, meddler = meddled(store, at_call, drop_and_create)
            late = Worker(other)
            late.run_until_idle()
            late.close()
            found = copied(store)

            assert max(found.values()) == 1
            stays = {*range(10), *range(10, 15), 18} | ({15, 16, 17} if not meddler.has_acted else set(range(100, 112)))
            assert stays <= set(found) <= stays | {15, 16, 17}
            assert load_jobs(store)["copy"].state == "RUNNING"
        n_gaps += meddler.has_acted
        if not meddler.has_acted:
            break
    assert n_gaps > 8
