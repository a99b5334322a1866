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


NULLS = """
CREATE TABLE db.n (id BIGINT, s STRING, v INT, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.m (id BIGINT, w INT, PRIMARY KEY (id) NOT ENFORCED);
INSERT INTO db.n VALUES (1, 'a', 1), (2, NULL, 2), (3, NULL, NULL);
INSERT INTO db.m VALUES (3, 30), (4, 40);
"""


@pytest.mark.parametrize(
    ("select", "column"),
    [
        ("SELECT s, COUNT(*) AS n FROM db.n GROUP BY s", "s"),
        ("SELECT DISTINCT s FROM db.n", "s"),
        ("SELECT x.s, COUNT(*) AS n FROM db.n x LEFT JOIN db.m y ON x.id = y.id WHERE y.w > 1 GROUP BY x.s", "s"),
        ("SELECT v, s, COUNT(*) AS n FROM db.n WHERE s IS NOT NULL OR id > 1 GROUP BY v, s", "v"),
    ],
)
def test_a_key_that_may_be_null_is_refused_at_creation(db: SqlSession, select: str, column: str) -> None:
    """The first NULL would stop the view's job, whenever it comes."""
    db.execute(NULLS)
    with pytest.raises(StatementRefused, match=rf"column {column} identifies .*may be NULL.*IS NOT NULL, select COALESCE"):
        db.execute(f"CREATE MATERIALIZED VIEW db.mv AS {select}")


@pytest.mark.parametrize(
    ("select", "rows"),
    [
        ("SELECT s, COUNT(*) AS n FROM db.n WHERE s IS NOT NULL GROUP BY s", [("a", 1)]),
        ("SELECT s, COUNT(*) AS n FROM db.n WHERE s <> 'b' GROUP BY s", [("a", 1)]),
        ("SELECT COALESCE(s, '-') AS s, COUNT(*) AS n FROM db.n GROUP BY s", [("-", 2), ("a", 1)]),
        ("SELECT COALESCE(s, '-') AS s, COUNT(*) AS n FROM db.n GROUP BY COALESCE(s, '-')", [("-", 2), ("a", 1)]),
        ("SELECT DISTINCT s FROM (SELECT s, v FROM db.n WHERE s IS NOT NULL) AS q", [("a",)]),
        ("SELECT x.v, COUNT(*) AS n FROM db.n x JOIN db.n y ON x.v = y.v GROUP BY x.v", [(1, 1), (2, 1)]),
        ("SELECT 'all' AS name, COUNT(*) AS n FROM db.n", [("all", 3)]),
        (
            "SELECT COALESCE(x.id, y.id) AS id, x.v, y.w FROM db.n x FULL JOIN db.m y ON x.id = y.id",
            [(1, 1, None), (2, 2, None), (3, None, 30), (4, None, 40)],
        ),
    ],
)
def test_a_view_whose_key_is_never_null_holds_its_result(store: Store, db: SqlSession, select: str, rows: list[tuple[object, ...]]) -> None:
    db.execute(NULLS)
    db.execute(f"CREATE MATERIALIZED VIEW db.mv AS {select}")
    assert sink_rows(store, "db.mv") == rows
    db.execute("INSERT INTO db.n VALUES (5, NULL, NULL), (6, 'a', 2); DELETE FROM db.n WHERE id = 5; REFRESH MATERIALIZED VIEW db.mv")
    assert differing_jobs(store) == []


def test_rows_with_a_null_key_may_be_left_out_and_are_counted(store: Store, db: SqlSession) -> None:
    db.execute(NULLS + "SET 'table.exec.sink.not-null-enforcer' = 'DROP';")
    db.execute("CREATE MATERIALIZED VIEW db.mv AS SELECT s, COUNT(*) AS n FROM db.n GROUP BY s")
    assert sink_rows(store, "db.mv") == [("a", 1)]
    described = {row["property"]: row["value"] for row in db.execute("DESCRIBE JOB db.mv")[0].rows.to_pylist()}
    assert described["n_dropped_nulls"] == "1"


def test_a_result_of_one_row_needs_a_constant_as_its_key(db: SqlSession) -> None:
    with pytest.raises(StatementRefused, match=r"the result is one row.*SELECT 'all' AS name, COUNT\(\*\)"):
        db.execute("CREATE MATERIALIZED VIEW db.mv AS SELECT COUNT(*) AS n FROM db.t")


@pytest.mark.parametrize(
    ("clause", "says"),
    [
        ("PARTITION BY k", "PARTITION BY k: the table of a materialized view has no partitions"),
        ("PARTITION BY date_trunc('month', k)", "has no partitions.*asset.partitions"),
        ("PROPERTIES ('resource_group' = 'rg1')", "property 'resource_group' of a materialized view is not known"),
    ],
)
def test_clauses_that_would_have_no_effect_are_refused(store: Store, db: SqlSession, clause: str, says: str) -> None:
    with pytest.raises(FlashlakeError, match=says):
        db.execute(f"CREATE MATERIALIZED VIEW db.mv {clause} AS {PER_K}")
    assert "db.mv" not in store.tables()
    db.execute(f"CREATE MATERIALIZED VIEW db.mv PROPERTIES ('asset.owner' = 'team:x') AS {PER_K}")


def test_jobs_are_named_bare_as_show_jobs_prints_them(db: SqlSession) -> None:
    db.execute("CREATE TABLE db.copy (id BIGINT, k INT, PRIMARY KEY (id) NOT ENFORCED); INSERT INTO db.copy (id, k) SELECT id, k FROM db.t")
    db.execute(f"CREATE MATERIALIZED VIEW db.mv AS {PER_K}")
    names = db.execute("SHOW JOBS")[0].rows["job"].to_pylist()
    assert names == ["db.mv", "insert-into_db.copy(id,k)"]
    for name in names:
        messages = [result.message for result in db.execute(f"STOP JOB {name}; RESUME JOB {name}; DESCRIBE JOB {name}")]
        assert messages == [f"stopped job {name}", f"resumed job {name}, which was STOPPED", "job"]
