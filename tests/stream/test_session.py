"""What the statements of a session do: jobs are made, shown, stopped and refused; views and single runs too."""

from __future__ import annotations

import pyarrow as pa
import pytest

from storage_engine import Store
from storage_engine.errors import AlreadyExists, InvalidOption, StatementRefused, UnknownTable
from storage_engine.stream import SqlSession, Worker, load_job, load_jobs
from tests.stream.comparing import sink_rows

TABLES = """
CREATE TABLE db.a (id BIGINT, shop BIGINT, qty INT);
CREATE TABLE db.copy (id BIGINT, shop BIGINT);
CREATE TABLE db.totals (shop BIGINT, qty INT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.named (shop BIGINT, name STRING, PRIMARY KEY (shop) NOT ENFORCED);
"""
TOTALS = "INSERT INTO db.totals (shop, qty) SELECT shop, SUM(qty) FROM db.a GROUP BY shop"


@pytest.fixture
def db(store: Store, session: SqlSession) -> SqlSession:
    session.execute(TABLES)
    return session


def append(store: Store, *rows: tuple[int | None, int | None, int | None]) -> None:
    types = {"id": pa.int64(), "shop": pa.int64(), "qty": pa.int32()}
    store.table("db.a").append(pa.table({name: pa.array([row[i] for row in rows], types[name]) for i, name in enumerate(types)}))


def one(session: SqlSession, sql: str) -> pa.Table:
    rows = session.execute(sql)[-1].rows
    assert rows is not None
    return rows


def property_of(session: SqlSession, job: str, name: str) -> str:
    found = one(session, f"DESCRIBE JOB `{job}`")
    return dict(zip(found["property"].to_pylist(), found["value"].to_pylist(), strict=True))[name]


def test_a_job_runs_until_it_is_stopped_and_goes_on_when_submitted_again(store: Store, db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; {TOTALS}")
    worker = Worker(store)
    append(store, (1, 1, 10))
    worker.run_until_idle()
    db.execute("STOP JOB t")
    append(store, (2, 1, 5))
    worker.run_until_idle()
    assert sink_rows(store, "db.totals") == [(1, 10, None)]
    assert one(db, "SHOW JOBS")["lag_rows"].to_pylist() == [1]
    db.execute(TOTALS)
    worker.run_until_idle()
    assert sink_rows(store, "db.totals") == [(1, 15, None)]


def test_the_same_job_twice_is_one_job(store: Store, db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; {TOTALS}")
    message = db.execute(f"-- again\n{TOTALS.replace('SELECT', 'SELECT  /* x */ ')}")[-1].message
    assert message == "job t runs already"
    assert one(db, "SHOW JOBS")["job"].to_pylist() == ["t"]


def test_another_statement_under_the_same_name_is_refused(db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; {TOTALS}")
    with pytest.raises(AlreadyExists, match="job t exists with another definition"):
        db.execute("INSERT INTO db.totals (shop, qty) SELECT shop, SUM(qty) FROM db.a WHERE id > 1 GROUP BY shop")


def test_a_job_without_a_name_is_named_by_table_and_columns(db: SqlSession) -> None:
    db.execute(TOTALS)
    assert one(db, "SHOW JOBS")["job"].to_pylist() == ["insert-into_db.totals(shop,qty)"]


def test_two_jobs_cannot_keep_state_in_one_column(db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; {TOTALS}; SET 'pipeline.name' = 'u'")
    with pytest.raises(StatementRefused, match=r"column qty of db\.totals is kept by job t"):
        db.execute("INSERT INTO db.totals (shop, qty) SELECT shop, SUM(qty) FROM db.a WHERE id > 1 GROUP BY shop")


def test_a_column_with_values_cannot_become_state(store: Store, db: SqlSession) -> None:
    store.table("db.totals").upsert({"shop": [1], "qty": pa.array([5], pa.int32()), "n": [1]})
    with pytest.raises(StatementRefused, match="has values already"):
        db.execute(TOTALS)


def test_what_is_refused_leaves_nothing_behind(store: Store, db: SqlSession) -> None:
    with pytest.raises(StatementRefused):
        db.execute("INSERT INTO db.totals SELECT shop, AVG(qty), COUNT(DISTINCT id) FROM db.a GROUP BY shop, qty")
    assert store.objects("job") == {}
    assert [name for name in store.tables() if "state" in name] == []


def test_a_null_in_the_key_fails_the_job_and_only_that_job(store: Store, db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 'bad'; {TOTALS}; SET 'pipeline.name' = 'good'; INSERT INTO db.copy SELECT id, shop FROM db.a")
    append(store, (1, None, 10))
    Worker(store).run_until_idle()
    assert load_job(store, "bad").state == "FAILED"
    assert "column shop of db.totals is NOT NULL" in load_job(store, "bad").last_error
    assert sink_rows(store, "db.copy") == [(1, None)]


def test_a_null_in_the_key_is_dropped_and_counted_when_the_job_says_so(store: Store, db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; SET 'table.exec.sink.not-null-enforcer' = 'DROP'; {TOTALS}")
    append(store, (1, None, 10), (2, 1, 5))
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.totals") == [(1, 5, None)]
    assert property_of(db, "t", "n_dropped_nulls") == "1"
    assert property_of(db, "t", "lag_rows") == "0"


def test_an_error_of_the_computation_fails_the_job_with_its_words(store: Store, db: SqlSession) -> None:
    db.execute("SET 'pipeline.name' = 't'; INSERT INTO db.copy SELECT id, id / qty FROM db.a")
    append(store, (1, 1, 0))
    Worker(store).run_until_idle()
    assert "division by zero" in load_job(store, "t").last_error
    assert sink_rows(store, "db.copy") == []


def test_describe_job_shows_plan_offsets_and_counters(store: Store, db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; {TOTALS}")
    append(store, (1, 1, 10), (2, 2, 10))
    Worker(store).run_until_idle()
    assert property_of(db, "t", "n_rows_in") == "2"
    assert property_of(db, "t", "offsets db.a") == "/0:2"
    plan = [row["value"] for row in one(db, "DESCRIBE JOB t").to_pylist() if row["property"] == "plan"]
    assert plan[0] == "Sink: upsert into db.totals (shop, qty), key (shop)"
    assert any("the result columns are the state" in line for line in plan)


def test_a_column_added_while_a_job_runs_belongs_to_the_next_job(store: Store, db: SqlSession) -> None:
    db.execute(f"SET 'pipeline.name' = 't'; {TOTALS}")
    worker = Worker(store)
    append(store, (1, 1, 10))
    worker.run_until_idle()
    db.execute(
        "ALTER TABLE db.totals ADD top INT; SET 'pipeline.name' = 'u'; INSERT INTO db.totals (shop, top) SELECT shop, MAX(qty) FROM "
        "db.a GROUP BY shop"
    )
    append(store, (2, 1, 7))
    worker.run_until_idle()
    assert sink_rows(store, "db.totals") == [(1, 17, None, 10)]


def test_a_job_that_writes_all_columns_leaves_a_later_column_alone(store: Store, db: SqlSession) -> None:
    db.execute("SET 'pipeline.name' = 't'; INSERT INTO db.named SELECT shop, CAST(qty AS STRING) FROM db.a")
    worker = Worker(store)
    append(store, (1, 1, 10))
    worker.run_until_idle()
    db.execute("ALTER TABLE db.named ADD extra INT")
    store.table("db.named").upsert({"shop": [1], "extra": pa.array([3], pa.int32())}, columns=["shop", "extra"])
    append(store, (1, 1, 11))
    worker.run_until_idle()
    assert sink_rows(store, "db.named") == [(1, "11", 3)]
    assert (
        db.execute("SET 'pipeline.name' = 't'; INSERT INTO db.named SELECT shop, CAST(qty AS STRING) FROM db.a")[-1].message
        == "job t runs already"
    )


def test_batch_mode_runs_once_and_overwrites(store: Store, db: SqlSession) -> None:
    append(store, (1, 1, 10), (2, 1, 5))
    for _ in range(2):
        db.execute(f"SET 'execution.runtime-mode' = 'batch'; {TOTALS}")
    assert sink_rows(store, "db.totals") == [(1, 15, None)]
    assert one(db, "SHOW JOBS").num_rows == 0


def test_values_are_inserted(store: Store, db: SqlSession) -> None:
    db.execute("INSERT INTO db.named VALUES (1, 'x'), (2, NULL); INSERT INTO db.named (shop, name) VALUES (-3, UPPER('y'))")
    assert sink_rows(store, "db.named") == [(-3, "Y"), (1, "x"), (2, None)]
    with pytest.raises(StatementRefused, match="takes 2"):
        db.execute("INSERT INTO db.named VALUES (1)")
    with pytest.raises(StatementRefused, match="is STRING, the value 5 \\+ 1 is INT"):
        db.execute("INSERT INTO db.named VALUES (1, 5 + 1)")


def test_a_select_without_from_inserts_one_row_once(store: Store, db: SqlSession) -> None:
    db.execute("INSERT INTO db.named SELECT 1, CONCAT('x', 'y') AS name; INSERT INTO db.named (name, shop) SELECT 'z', 2")
    assert sink_rows(store, "db.named") == [(1, "xy"), (2, "z")]
    assert load_jobs(store) == {}
    with pytest.raises(StatementRefused, match=r"a row has 1 values, db\.named takes 2"):
        db.execute("INSERT INTO db.named SELECT 1")
    with pytest.raises(StatementRefused, match="without FROM has nothing to follow"):
        db.execute("INSERT INTO db.named SELECT 1, 'x' WHERE TRUE")


def test_a_job_over_a_temporary_view_outlives_the_session(store: Store, db: SqlSession) -> None:
    db.execute("USE db; CREATE TEMPORARY VIEW v AS SELECT id, shop FROM a WHERE qty > 1; INSERT INTO copy SELECT * FROM v")
    append(store, (1, 1, 1), (2, 2, 2))
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.copy") == [(2, 2)]
    with pytest.raises(UnknownTable):
        SqlSession(store).execute("INSERT INTO db.copy SELECT * FROM db.v")


def test_a_view_is_kept_in_the_store_and_its_names_belong_to_its_database(store: Store, db: SqlSession) -> None:
    db.execute("USE db; CREATE VIEW v (k, s) AS SELECT id, shop FROM a")
    other = SqlSession(store)
    other.execute("USE elsewhere; INSERT INTO db.copy SELECT k, s FROM db.v")
    append(store, (1, 7, 1))
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.copy") == [(1, 7)]
    assert one(other, "SHOW VIEWS").to_pylist() == [{"view": "db.v", "kind": "view"}]


def test_a_materialized_view_holds_what_its_query_says(store: Store, db: SqlSession) -> None:
    text = "CREATE MATERIALIZED VIEW db.mv REFRESH MANUAL AS SELECT shop, COUNT(*) AS n, SUM(qty) AS q FROM db.a "
    text += "WHERE shop IS NOT NULL GROUP BY shop"
    db.execute(text)
    assert db.execute(text)[-1].message == "materialized view db.mv exists"
    append(store, (1, 1, 10), (2, 1, 5), (3, 2, 1))
    assert sink_rows(store, "db.mv") == []
    db.execute("REFRESH MATERIALIZED VIEW db.mv")
    assert sink_rows(store, "db.mv") == [(1, 2, 15), (2, 1, 1)]
    db.execute("DROP MATERIALIZED VIEW db.mv")
    assert store.objects("materialized_view") == {}


def test_a_materialized_view_that_lacks_its_key_is_refused(store: Store, db: SqlSession) -> None:
    with pytest.raises(StatementRefused, match="are not selected"):
        db.execute("CREATE MATERIALIZED VIEW db.mv AS SELECT COUNT(*) AS n FROM db.a GROUP BY shop")
    assert "db.mv" not in store.tables()


@pytest.mark.parametrize(
    ("key", "default", "other", "instead"),
    [
        ("table.local-time-zone", "UTC", "Europe/Berlin", "CONVERT_TZ"),
        ("table.local-time-zone", "Etc/UTC", "Nowhere/X", "Times are UTC here"),
        ("table.exec.state.ttl", "0 ms", "1 h", "WATERMARK"),
        ("table.exec.state.ttl", "0", "36000", "State is kept"),
    ],
)
def test_settings_that_would_change_answers_take_their_default_only(
    db: SqlSession, key: str, default: str, other: str, instead: str
) -> None:
    assert "how it is here" in db.execute(f"SET '{key}' = '{default}'")[0].message
    with pytest.raises(InvalidOption, match=instead):
        db.execute(f"SET '{key}' = '{other}'")


def test_a_database_that_was_created_is_listed(store: Store, session: SqlSession) -> None:
    session.execute("CREATE DATABASE empty; CREATE TABLE shop.t (a INT)")
    assert session.execute("SHOW DATABASES")[0].rows["database"].to_pylist() == ["empty", "shop"]
    other = SqlSession(store)
    assert other.execute("SHOW DATABASES")[0].rows["database"].to_pylist() == ["shop"]
    session.execute("USE empty; CREATE TABLE t (a INT)")
    assert other.execute("SHOW DATABASES")[0].rows["database"].to_pylist() == ["empty", "shop"]


def test_settings_are_known_inert_or_refused(db: SqlSession) -> None:
    assert "no effect" in db.execute("SET 'table.exec.mini-batch.enabled' = 'true'")[-1].message
    with pytest.raises(InvalidOption, match=r"Did you mean 'pipeline\.name'"):
        db.execute("SET 'pipeline.nam' = 'x'")
    with pytest.raises(InvalidOption, match="ERROR or DROP"):
        db.execute("SET 'table.exec.sink.not-null-enforcer' = 'MAYBE'")


def test_a_select_is_refused_without_a_query_engine_and_answered_with_one(store: Store, db: SqlSession) -> None:
    with pytest.raises(StatementRefused, match="query engine"):
        db.execute("SELECT 1")
    answering = SqlSession(store, query=lambda text, **_: pa.table({"text": [text]}))
    assert one(answering, "SELECT 1").to_pylist() == [{"text": "SELECT 1"}]


def test_two_workers_of_one_store_count_each_row_once(store: Store, db: SqlSession) -> None:
    db.execute(TOTALS)
    first, second = Worker(store, n_rows_max=3), Worker(store, n_rows_max=3)
    for n in range(20):
        append(store, (n, 1, 1))
        first.run_once(ignore_schedule=True)
        second.run_once(ignore_schedule=True)
    first.run_until_idle()
    second.run_until_idle()
    assert sink_rows(store, "db.totals") == [(1, 20, None)]


def test_an_error_names_the_line_in_the_users_text(db: SqlSession) -> None:
    with pytest.raises(StatementRefused, match="line 4, column"):
        db.execute("SET 'pipeline.name' = 't';\nINSERT INTO db.copy\nSELECT id,\n  shop shop shop FROM db.a")
    with pytest.raises(StatementRefused, match="statement at line 2"):
        db.execute("SET 'pipeline.name' = 't';\nINSERT INTO db.copy SELECT id, nothing FROM db.a")


def test_state_tables_are_not_shown_among_the_users_tables(store: Store, db: SqlSession) -> None:
    db.execute("INSERT INTO db.totals (shop, n) SELECT shop, COUNT(DISTINCT id) FROM db.a GROUP BY shop")
    assert any("__state_" in name for name in store.tables())
    assert one(db, "SHOW TABLES")["table"].to_pylist() == ["db.a", "db.copy", "db.named", "db.totals"]
