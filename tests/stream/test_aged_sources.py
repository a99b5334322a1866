"""Jobs that begin on tables whose logs have begun to expire: from current rows where there are any, else they are told at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.engine.cleaning import HOUR_MS, Clock, backend_of, opened
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

TABLES = """
CREATE TABLE db.log (id BIGINT, k INT) WITH ('table.log.ttl' = '1h');
CREATE TABLE db.pk (id BIGINT, k INT, v INT, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h', 'bucket.num' = '2');
CREATE TABLE db.days (id BIGINT, ds STRING, v INT, PRIMARY KEY (id, ds) NOT ENFORCED) PARTITIONED BY (ds) WITH ('table.log.ttl' = '1h');
CREATE TABLE db.counts (k INT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.best (k INT, m INT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.pairs (id BIGINT, other BIGINT, v INT, w INT, PRIMARY KEY (id, other) NOT ENFORCED)
"""
PAIRS = "SELECT a.id, b.id AS other, a.v, b.v AS w FROM {pk} a JOIN {pk} b ON a.k = b.k"
PARTITIONS = "SELECT ds, COUNT(*) AS n FROM db.days GROUP BY ds"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with opened(tmp_path / "s", clock) as store:
        SqlSession(store).execute(TABLES)
        yield store


def age(store: Store, clock: Clock, first: int = 0) -> None:
    """Two hours of rows, of which the older half expires."""
    for n in range(first, first + 40):
        clock.pass_ms(HOUR_MS // 20)
        store.table("db.log").append({"id": [n, n], "k": [n % 4, n % 4]})
        store.table("db.pk").upsert({"id": [n % 25, n % 25 + 100], "k": [n % 5, n % 3], "v": [n, -n]})
        store.table("db.days").upsert({"id": [n], "ds": ["d1" if n < first + 20 else "d2"], "v": [n]})
    backend_of(store).clean()
    assert all(sum(store.table(name).offsets("earliest").values()) > 0 for name in ("db.log", "db.pk", "db.days"))


def submit(store: Store, name: str, text: str, **settings: str) -> None:
    given = "".join(f"SET '{key}' = '{value}';" for key, value in {"pipeline.name": name, **settings}.items())
    SqlSession(store).execute(f"{given} {text}")


def test_a_job_begins_with_the_current_rows_of_tables_whose_changelogs_have_expired(store: Store, clock: Clock) -> None:
    age(store, clock)
    submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.pk GROUP BY k")
    submit(store, "best", "INSERT INTO db.best SELECT k, MAX(v) FROM db.pk GROUP BY k")
    submit(store, "pairs", f"INSERT INTO db.pairs {PAIRS.format(pk='db.pk')}")
    SqlSession(store).execute(f"CREATE MATERIALIZED VIEW db.sizes REFRESH ASYNC AS {PARTITIONS}")
    worker = Worker(store)

    for _ in range(2):
        worker.run_until_idle()
        pk, days = store.table("db.pk").read(), store.table("db.days").read()
        assert sink_rows(store, "db.counts") == query_rows("SELECT k, count(*) FROM pk GROUP BY k", pk=pk)
        assert sink_rows(store, "db.best") == query_rows("SELECT k, max(v) FROM pk GROUP BY k", pk=pk)
        assert sink_rows(store, "db.pairs") == query_rows(PAIRS.format(pk="pk"), pk=pk)
        assert sink_rows(store, "db.sizes") == query_rows("SELECT ds, count(*) FROM days GROUP BY ds", days=days)
        assert differing_jobs(store) == []
        # rows from before they began are changed and deleted
        store.table("db.pk").upsert({"id": [0, 1, 104], "k": [4, 4, 0], "v": [1000, -1000, 7]})
        store.table("db.pk").delete({"id": [2, 101, 3]})
        store.table("db.days").delete({"id": [0, 39], "ds": ["d1", "d2"]})
    assert {job.state for job in load_jobs(store).values()} == {"RUNNING"}


def test_a_join_reads_one_aged_table_after_the_other(store: Store, clock: Clock) -> None:
    age(store, clock)
    SqlSession(store).execute(
        "CREATE TABLE db.joined (id BIGINT, other BIGINT, v INT, w INT, PRIMARY KEY (id) NOT ENFORCED);"
        "CREATE TABLE db.one (id BIGINT, v INT, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h')"
    )
    for n in range(40):
        clock.pass_ms(HOUR_MS // 20)
        store.table("db.one").upsert({"id": [n], "v": [n]})
    backend_of(store).clean()
    text = "SELECT a.id, b.id AS other, a.v, b.v AS w FROM {a} a LEFT JOIN {b} b ON a.id = b.id"
    submit(store, "joined", f"INSERT INTO db.joined {text.format(a='db.pk', b='db.one')}")
    worker = Worker(store)

    for _ in range(2):
        worker.run_until_idle()
        expected = query_rows(text.format(a="pk", b="one"), pk=store.table("db.pk").read(), one=store.table("db.one").read())
        assert sink_rows(store, "db.joined") == expected
        assert differing_jobs(store) == []
        store.table("db.one").delete({"id": [0, 5]})
        store.table("db.pk").upsert({"id": [30, 6], "k": [1, 1], "v": [1, 1]})


def test_a_log_whose_head_has_expired_is_refused_at_once_and_read_from_its_earliest_row_when_told(store: Store, clock: Clock) -> None:
    age(store, clock)
    earliest = sum(store.table("db.log").offsets("earliest").values())

    with pytest.raises(
        StatementRefused, match=rf"{earliest:,} rows of db.log have expired, its log begins at offset {earliest:,}"
    ) as refused:
        submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log GROUP BY k")
    assert "'scan.startup.mode' = 'earliest'" in refused.value.next_step
    with pytest.raises(StatementRefused, match=r"have expired"):
        SqlSession(store).execute(
            "CREATE MATERIALIZED VIEW db.v REFRESH ASYNC AS SELECT k, COUNT(*) AS c FROM db.log WHERE k IS NOT NULL GROUP BY k"
        )
    assert load_jobs(store) == {}
    assert "db.v" not in store.tables()

    hint = "/*+ OPTIONS('scan.startup.mode' = 'earliest') */"
    submit(store, "counts", f"INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log {hint} GROUP BY k")
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.counts") == query_rows(
        "SELECT k, count(*) FROM held GROUP BY k", held=store.table("db.log").scan().read_all()
    )
    assert differing_jobs(store) == []


def test_a_replay_of_a_log_that_has_expired_is_refused_before_anything_is_taken_out(store: Store, clock: Clock) -> None:
    submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log GROUP BY k")
    worker = Worker(store)
    for first in (0, 40):
        worker.run_until_idle()
        age(store, clock, first)
    worker.run_until_idle()
    before = sink_rows(store, "db.counts")
    replay = {"pipeline.upgrade": "replay"}

    with pytest.raises(StatementRefused, match=r"rows of .* have expired"):
        submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) * 2 FROM db.log GROUP BY k", **replay)
    worker.run_until_idle()
    assert sink_rows(store, "db.counts") == before
    assert load_jobs(store)["counts"].epoch == 0

    hint = "/*+ OPTIONS('scan.startup.mode' = 'earliest') */"
    submit(store, "counts", f"INSERT INTO db.counts SELECT k, COUNT(*) * 2 FROM db.log {hint} GROUP BY k", **replay)
    worker.run_until_idle()
    held = store.table("db.log").scan().read_all()
    assert sink_rows(store, "db.counts") == query_rows("SELECT k, count(*) * 2 FROM held GROUP BY k", held=held)
    assert differing_jobs(store) == []


def test_a_replay_whose_log_expires_before_a_worker_begins_it_leaves_the_rows(store: Store, clock: Clock) -> None:
    submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log GROUP BY k")
    store.table("db.log").append({"id": [1], "k": [1]})
    Worker(store).run_until_idle()
    submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) * 2 FROM db.log GROUP BY k", **{"pipeline.upgrade": "replay"})
    clock.pass_ms(HOUR_MS)
    age(store, clock)

    Worker(store).run_until_idle()

    assert sink_rows(store, "db.counts") == [(1, 1)]
    job = load_jobs(store)["counts"]
    assert job.state == "FAILED"
    assert "what it had written stays" in job.last_error


def test_a_replay_over_a_table_with_a_primary_key_begins_with_its_current_rows(store: Store, clock: Clock) -> None:
    submit(store, "best", "INSERT INTO db.best SELECT k, MAX(v) FROM db.pk GROUP BY k")
    worker = Worker(store)
    worker.run_until_idle()
    age(store, clock)
    worker.run_until_idle()

    submit(store, "best", "INSERT INTO db.best SELECT k, MIN(v) FROM db.pk GROUP BY k", **{"pipeline.upgrade": "replay"})
    worker.run_until_idle()

    assert sink_rows(store, "db.best") == query_rows("SELECT k, min(v) FROM pk GROUP BY k", pk=store.table("db.pk").read())
    assert differing_jobs(store) == []


def test_a_replay_that_would_lose_what_came_of_a_dropped_partition_has_to_be_meant(store: Store) -> None:
    SqlSession(store).execute("CREATE TABLE db.src (k INT, ds STRING) PARTITIONED BY (ds)")
    submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.src GROUP BY k")
    store.table("db.src").append({"k": [1, 2, 2], "ds": ["a", "b", "b"]})
    worker = Worker(store)
    worker.run_until_idle()
    store.execute("ALTER TABLE db.src DROP PARTITION (ds = 'a')")
    replay = {"pipeline.upgrade": "replay"}

    with pytest.raises(StatementRefused, match="could not bring it back"):
        submit(store, "counts", "INSERT INTO db.counts SELECT k, COUNT(*) * 2 FROM db.src GROUP BY k", **replay)
    worker.run_until_idle()
    assert sink_rows(store, "db.counts") == [(1, 1), (2, 2)]

    hint = "/*+ OPTIONS('scan.startup.mode' = 'earliest') */"
    submit(store, "counts", f"INSERT INTO db.counts SELECT k, COUNT(*) * 2 FROM db.src {hint} GROUP BY k", **replay)
    worker.run_until_idle()
    assert sink_rows(store, "db.counts") == [(2, 4)]
    assert differing_jobs(store) == []
