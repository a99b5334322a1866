"""Materialized views and their tables: when they are filled, who may write them, and what a DROP leaves behind."""

from __future__ import annotations

import threading

import pytest

from storage_engine import Store
from storage_engine.errors import AlreadyExists, FlashlakeError, StatementRefused
from storage_engine.stream import SqlSession, Worker, load_job
from tests.stream.comparing import differing_jobs, sink_rows

TABLES = """
CREATE TABLE db.t (id BIGINT, k INT NOT NULL, v INT, PRIMARY KEY (id) NOT ENFORCED);
INSERT INTO db.t VALUES (1, 1, 10), (2, 1, 20), (3, 2, 30);
"""
PER_K = "SELECT k, COUNT(*) AS n FROM db.t GROUP BY k"


@pytest.fixture
def db(session: SqlSession) -> SqlSession:
    session.execute(TABLES)
    return session


@pytest.mark.parametrize("clause", ["", "REFRESH MANUAL", "REFRESH IMMEDIATE MANUAL"])
def test_a_view_refreshed_by_hand_is_filled_when_it_is_created(store: Store, db: SqlSession, clause: str) -> None:
    message = db.execute(f"CREATE MATERIALIZED VIEW db.mv {clause} AS {PER_K}")[-1].message
    assert "filled from 3 rows" in message
    assert sink_rows(store, "db.mv") == [(1, 2), (2, 1)]
    db.execute("INSERT INTO db.t VALUES (4, 2, 40)")
    Worker(store).run_once()  # as a running worker does: it leaves a view by hand alone
    assert sink_rows(store, "db.mv") == [(1, 2), (2, 1)]
    db.execute("REFRESH MATERIALIZED VIEW db.mv")
    assert sink_rows(store, "db.mv") == [(1, 2), (2, 2)]
    assert differing_jobs(store) == []


def test_a_refresh_beside_a_running_worker_takes_turns_with_it(store: Store, db: SqlSession) -> None:
    db.execute(f"CREATE MATERIALIZED VIEW db.mv REFRESH ASYNC AS {PER_K}")
    stop, worker = threading.Event(), Worker(store)
    thread = threading.Thread(target=worker.run_forever, args=(stop,))
    thread.start()
    try:
        for i in range(40):
            store.table("db.t").upsert({"id": [100 + i], "k": [i % 3], "v": [1]})
            db.execute("REFRESH MATERIALIZED VIEW db.mv")
    finally:
        stop.set()
        thread.join()
    assert sink_rows(store, "db.mv") == [(0, 14), (1, 15), (2, 14)]
    assert load_job(store, "db.mv").last_error == ""


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO db.mv VALUES (7, 7)",
        "INSERT INTO db.mv SELECT k, COUNT(*) FROM db.t GROUP BY k",
        "SET 'execution.runtime-mode' = 'batch'; INSERT INTO db.mv SELECT k, COUNT(*) FROM db.t GROUP BY k",
        "EXECUTE STATEMENT SET BEGIN INSERT INTO db.mv SELECT k, COUNT(*) FROM db.t GROUP BY k; END",
        "UPDATE db.mv SET n = 7 WHERE k = 1",
        "DELETE FROM db.mv WHERE k = 1",
        "DROP TABLE db.mv",
    ],
)
def test_only_its_job_writes_a_views_table(store: Store, db: SqlSession, statement: str) -> None:
    db.execute(f"CREATE MATERIALIZED VIEW db.mv AS {PER_K}")
    with pytest.raises(StatementRefused, match=r"db\.mv holds the rows of materialized view db\.mv.*DROP MATERIALIZED VIEW db\.mv first"):
        db.execute(statement)
    assert sink_rows(store, "db.mv") == [(1, 2), (2, 1)]


JOB = "SET 'pipeline.name' = 'copy'; INSERT INTO db.copy SELECT id, k FROM db.t"


def test_a_table_that_is_read_or_written_is_not_dropped(store: Store, db: SqlSession) -> None:
    db.execute("CREATE TABLE db.copy (id BIGINT, k INT, PRIMARY KEY (id) NOT ENFORCED)")
    db.execute(f"CREATE MATERIALIZED VIEW db.mv AS SELECT k, COUNT(DISTINCT v) AS n FROM db.t GROUP BY k; {JOB}")
    with pytest.raises(StatementRefused, match=r"job copy reads db\.t .*STOP JOB copy; DROP JOB copy first"):
        db.execute("DROP TABLE db.t")
    with pytest.raises(StatementRefused, match=r"job copy writes db\.copy"):
        db.execute("DROP TABLE IF EXISTS db.copy")
    db.execute("STOP JOB copy")
    with pytest.raises(StatementRefused, match=r"materialized view db\.mv reads db\.t .*DROP MATERIALIZED VIEW db\.mv first"):
        db.execute("DROP TABLE db.t")
    state = next(name for name in store.tables() if name.startswith("db.mv__state"))
    db.execute("DROP MATERIALIZED VIEW db.mv")
    with pytest.raises(StatementRefused, match=r"job db\.mv keeps its state in .*DROP JOB"):
        db.execute(f"DROP TABLE {state}")
    db.execute("CREATE VIEW db.small AS SELECT id FROM db.t WHERE v < 15")
    with pytest.raises(StatementRefused, match=r"view db\.small reads db\.t .*DROP VIEW db\.small first"):
        db.execute("DROP TABLE db.t")
    db.execute("DROP VIEW db.small; DROP TABLE db.t; DROP TABLE db.copy")
    assert not {"db.t", "db.copy"} & set(store.tables())


@pytest.mark.parametrize("again", ["RESUME JOB copy", JOB])
def test_a_job_does_not_go_on_with_another_table_of_the_same_name(store: Store, db: SqlSession, again: str) -> None:
    """Offsets and rows of the sink are of the table that was dropped: rows of both would be mixed."""
    db.execute(f"CREATE TABLE db.copy (id BIGINT, k INT, PRIMARY KEY (id) NOT ENFORCED); {JOB}")
    Worker(store).run_until_idle()
    db.execute("STOP JOB copy; DROP TABLE db.t")
    db.execute(TABLES.replace("(1, 1, 10)", "(9, 9, 9)"))
    with pytest.raises(StatementRefused, match=r"db\.t is another table .*DROP JOB copy, and submit it again"):
        db.execute(again)
    db.execute(f"DROP JOB copy; {JOB}")
    Worker(store).run_until_idle()
    assert (9, 9) in sink_rows(store, "db.copy")


def test_a_running_job_fails_when_its_source_is_replaced_below_the_session(store: Store, db: SqlSession) -> None:
    db.execute(f"CREATE TABLE db.copy (id BIGINT, k INT, PRIMARY KEY (id) NOT ENFORCED); {JOB}")
    worker = Worker(store)
    worker.run_until_idle()
    store.backend.drop_table("db.t", if_exists=False)
    db.execute(TABLES.replace("(1, 1, 10)", "(9, 9, 9)"))
    worker.run_until_idle()
    job = load_job(store, "copy")
    assert (job.state, "another table" in job.last_error) == ("FAILED", True)
    assert sink_rows(store, "db.copy") == [(1, 1), (2, 1), (3, 2)]


def test_the_way_out_of_a_dropped_view_is_said(store: Store, db: SqlSession) -> None:
    db.execute(f"CREATE MATERIALIZED VIEW db.mv AS {PER_K}")
    other = "CREATE MATERIALIZED VIEW db.mv AS SELECT k, COUNT(*) * 10 AS n FROM db.t GROUP BY k"
    with pytest.raises(AlreadyExists, match=r"DROP MATERIALIZED VIEW db\.mv; DROP JOB db\.mv; DROP TABLE db\.mv"):
        db.execute(other)
    assert "DROP JOB db.mv; DROP TABLE db.mv" in db.execute("DROP MATERIALIZED VIEW db.mv")[-1].message
    for text in (other, "CREATE MATERIALIZED VIEW db.mv AS SELECT k, SUM(v) AS s, COUNT(*) AS n FROM db.t GROUP BY k"):
        with pytest.raises(AlreadyExists, match=r"was a materialized view .* DROP JOB db\.mv; DROP TABLE db\.mv"):
            db.execute(text)
    db.execute("DROP JOB 'db.mv'; DROP TABLE db.mv")
    db.execute(other)
    assert sink_rows(store, "db.mv") == [(1, 20), (2, 10)]


def test_a_view_over_a_name_that_a_table_has_is_refused(db: SqlSession) -> None:
    with pytest.raises(AlreadyExists, match=r"table db\.t exists"):
        db.execute(f"CREATE MATERIALIZED VIEW db.t AS {PER_K}")


def test_a_view_that_cannot_be_filled_says_so_and_how_to_go_on(db: SqlSession) -> None:
    db.execute("CREATE TABLE db.words (id BIGINT, w STRING, PRIMARY KEY (id) NOT ENFORCED); INSERT INTO db.words VALUES (1, 'x')")
    with pytest.raises(FlashlakeError, match=r"db\.mv cannot be filled.*DROP MATERIALIZED VIEW db\.mv"):
        db.execute("CREATE MATERIALIZED VIEW db.mv AS SELECT id, CAST(w AS INT) AS n FROM db.words")
