"""Computed columns: name AS expression in CREATE TABLE: not stored, computed by whoever reads the table, and written by nobody."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import storage_engine
from query_engine import QueryEngine
from storage_engine import Store
from storage_engine.errors import FlashlakeError, SchemaMismatch, StatementRefused
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.statements import CreateTable
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.stream.comparing import differing_jobs, query_rows, rows_of, sink_rows

LOG = """CREATE TABLE db.log (id BIGINT, total AS price * qty COMMENT 'of the line', price DECIMAL(8, 2), qty INT, p AS PROCTIME(),
  ms BIGINT, at AS TO_TIMESTAMP_LTZ(ms, 3), tags STRING, tag_list AS SPLIT(tags, ','), ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '0' SECOND)"""
PK = "CREATE TABLE db.pk (id BIGINT NOT NULL, n INT, twice AS COALESCE(n, 0) * 2, PRIMARY KEY (id) NOT ENFORCED)"


def at(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(second, dt.UTC).replace(tzinfo=None)


def line(number: int, qty: int, second: int = 0, tags: str | None = None) -> dict[str, Any]:
    return {"id": number, "price": Decimal("1.50"), "qty": qty, "ms": second * 1000, "tags": tags, "ts": at(second)}


def test_streams_and_queries_read_them_at_their_declared_places(store: Store, tmp_path: Path) -> None:
    session = SqlSession(store)
    session.execute(
        f"""{LOG}; {PK};
        CREATE TABLE db.all_of_it (id BIGINT, total DECIMAL(19, 2), price DECIMAL(8, 2), qty INT, ms BIGINT, at TIMESTAMP_LTZ(3),
          tags STRING, n BIGINT, ts TIMESTAMP(3));
        CREATE TABLE db.by_tag (tag STRING, total DECIMAL(38, 2), PRIMARY KEY (tag) NOT ENFORCED);
        CREATE TABLE db.copy (id BIGINT, n INT, twice INT, PRIMARY KEY (id) NOT ENFORCED);
        INSERT INTO db.all_of_it SELECT id, total, price, qty, ms, at, tags, CARDINALITY(tag_list), ts FROM db.log WHERE total > 2;
        INSERT INTO db.by_tag SELECT tag, SUM(total) FROM db.log CROSS JOIN UNNEST(tag_list) AS u(tag) GROUP BY tag;
        INSERT INTO db.copy SELECT * FROM db.pk"""
    )
    worker = Worker(store)
    store.table("db.log").append([line(1, 1, 5, "a,b"), line(2, 2, 6, "b")])
    store.table("db.pk").upsert([{"id": 1, "n": 1}, {"id": 2, "n": None}])
    worker.run_until_idle()
    store.table("db.pk").upsert([{"id": 1, "n": 4}])
    worker.run_until_idle()
    moment = dt.datetime.fromtimestamp(6, dt.UTC)
    assert sink_rows(store, "db.all_of_it") == [(2, Decimal("3.00"), Decimal("1.50"), 2, 6000, moment, "b", 1, at(6))]
    assert sink_rows(store, "db.by_tag") == [("a", Decimal("1.50")), ("b", Decimal("4.50"))]
    assert sink_rows(store, "db.copy") == [(1, 4, 8), (2, None, 0)]
    assert differing_jobs(store) == []
    engine = QueryEngine(store, tmp_path / "lake")
    assert rows_of(engine.query("SELECT * FROM db.pk")) == [(1, 4, 8), (2, None, 0)]
    assert rows_of(engine.query("SELECT x.id FROM db.pk x WHERE x.twice > 3")) == [(1,)]
    assert rows_of(engine.query("SELECT COUNT(*) FROM db.log WHERE total > 2")) == [(1,)]
    assert engine.query("SELECT * FROM db.log").column_names == ["id", "total", "price", "qty", "ms", "at", "tags", "tag_list", "ts"]
    assert engine.query("SELECT * FROM db.log$changelog").column_names[3:] == ["id", "price", "qty", "ms", "tags", "ts"]
    engine.close()


def test_event_and_processing_time_are_those_of_the_stored_rows(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        f"""{LOG}; CREATE TABLE db.sums (ends TIMESTAMP(3), total DECIMAL(38, 2)); CREATE TABLE db.marks (id BIGINT, mark TIMESTAMP(3));
        CREATE TABLE db.counts (one INT, n BIGINT, PRIMARY KEY (one) NOT ENFORCED);
        INSERT INTO db.sums SELECT window_end, SUM(total) FROM TABLE(TUMBLE(TABLE db.log, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
          GROUP BY window_start, window_end;
        INSERT INTO db.marks SELECT id, CURRENT_WATERMARK(ts) FROM db.log;
        INSERT INTO db.counts SELECT 1, SUM(n) FROM (SELECT window_end, COUNT(*) AS n FROM
          TABLE(TUMBLE(TABLE db.log, DESCRIPTOR(p), INTERVAL '1' MINUTE)) GROUP BY window_start, window_end)"""
    )
    worker = Worker(store)
    for number, second in enumerate((10, 50, 70, 20)):
        store.table("db.log").append([line(number, 2, second)])
        worker.run_until_idle()
    assert sink_rows(store, "db.sums") == [(at(60), Decimal("6.00"))]
    assert sink_rows(store, "db.marks") == sorted([(0, None), (1, at(10)), (2, at(50)), (3, at(70))], key=repr)
    assert sink_rows(store, "db.counts") == [(1, 4)]
    assert differing_jobs(store) == []


def test_a_lookup_join_computes_those_of_the_row_that_it_finds(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        f"""{LOG}; {PK}; CREATE TABLE db.s (id BIGINT, n INT, twice INT); CREATE TABLE db.t (id BIGINT, twice INT);
        INSERT INTO db.s SELECT l.id, k.n, k.twice FROM db.log l LEFT JOIN db.pk FOR SYSTEM_TIME AS OF l.p AS k ON k.id = l.id;
        INSERT INTO db.t SELECT id, twice FROM db.log JOIN db.pk FOR SYSTEM_TIME AS OF PROCTIME() USING (id) WHERE twice > 0"""
    )
    store.table("db.pk").upsert([{"id": 1, "n": 3}, {"id": 2, "n": None}])
    store.table("db.log").append([line(1, 1), line(2, 1), line(3, 1)])
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.s") == sorted([(1, 3, 6), (2, None, 0), (3, None, None)], key=repr)
    assert sink_rows(store, "db.t") == [(1, 6)]
    assert differing_jobs(store) == []
    with pytest.raises(StatementRefused, match=r"ON names k.twice, which is computed"):
        session.execute(
            "INSERT INTO db.t SELECT l.id, 1 FROM db.log l JOIN db.pk FOR SYSTEM_TIME AS OF l.p AS k ON k.id = l.id AND twice > 1"
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_job_over_computed_columns_is_one_over_their_expressions(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    session = SqlSession(store)
    session.execute(
        f"""{PK}; CREATE TABLE db.s (k INT, n BIGINT, low INT, PRIMARY KEY (k) NOT ENFORCED);
        CREATE TABLE db.pairs (a BIGINT, b BIGINT, PRIMARY KEY (a, b) NOT ENFORCED);
        INSERT INTO db.s SELECT twice % 4, COUNT(*), MIN(n) FROM db.pk GROUP BY twice % 4;
        INSERT INTO db.pairs SELECT x.id, y.id FROM db.pk x JOIN db.pk y ON x.twice = y.id"""
    )
    worker = Worker(store, n_rows_max=rng.choice([2, 1000]))
    rows: dict[int, dict[str, Any]] = {}
    for _ in range(8):
        new = {number: {"id": number, "n": rng.choice([None, 0, 1, 2, 3])} for number in rng.sample(range(7), 3)}
        store.table("db.pk").upsert(list(new.values()))
        rows.update(new)
        gone = [number for number in rows if rng.random() < 0.2]
        if gone:
            store.table("db.pk").delete({"id": gone})
            rows = {number: row for number, row in rows.items() if number not in gone}
        if rng.random() < 0.6:
            worker.run_until_idle()
    worker.run_until_idle()
    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
    held = list(rows.values())
    groups = "SELECT (coalesce(n, 0) * 2) % 4 AS k, count(*), min(n) FROM rows GROUP BY 1"
    assert sink_rows(store, "db.s") == query_rows(groups, rows=held)
    assert sink_rows(store, "db.pairs") == query_rows(
        "SELECT x.id, y.id AS b FROM rows x JOIN rows y ON coalesce(x.n, 0) * 2 = y.id", rows=held
    )
    assert differing_jobs(store) == []


def test_the_catalog_shows_and_keeps_them(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url, sync="none") as store:
        SqlSession(store).execute(f"{LOG}; {PK}; ALTER TABLE db.pk ADD more STRING")
        described = SqlSession(store).execute("DESCRIBE db.log")[0].rows.to_pylist()
        shown = {row["column"]: (row["type"], row["computed"], row["comment"]) for row in described}
        assert list(shown) == ["id", "total", "price", "qty", "p", "ms", "at", "tags", "tag_list", "ts"]
        assert shown["total"] == ("DECIMAL(19, 2)", "AS price * qty", "of the line")
        assert shown["at"] == ("TIMESTAMP_LTZ(3)", "AS TO_TIMESTAMP_LTZ(ms, 3)", "")
        assert shown["p"][:2] == ("PROCTIME", "AS PROCTIME()")
        assert shown["qty"][1] == ""
    with storage_engine.connect(url, sync="none") as store:
        for name in ("db.log", "db.pk"):
            descriptor = store.describe(name)
            text = SqlSession(store).execute(f"SHOW CREATE TABLE {name}")[0].rows["sql"][0].as_py()
            (again,) = parse_statements(text)
            assert isinstance(again, CreateTable)
            assert again.descriptor.computed == descriptor.computed
            assert again.descriptor.column_names == descriptor.column_names
        assert "twice AS COALESCE(n, 0) * 2" in text
        assert [column.name for column in store.describe("db.pk").shown_columns] == ["id", "n", "twice", "more"]


def test_a_descriptor_without_them_is_written_as_before() -> None:
    (statement,) = parse_statements("CREATE TABLE db.t (a INT)")
    assert isinstance(statement, CreateTable)
    value = statement.descriptor.to_json()
    assert "computed" not in value
    assert type(statement.descriptor).from_json(value) == statement.descriptor
    (statement,) = parse_statements(LOG)
    assert isinstance(statement, CreateTable)
    assert type(statement.descriptor).from_json(statement.descriptor.to_json()) == statement.descriptor


WRITES = [
    "INSERT INTO db.pk (id, twice) VALUES (1, 2)",
    "INSERT INTO db.pk (id, twice) SELECT id, qty FROM db.log",
    "UPDATE db.pk SET twice = 2 WHERE id = 1",
]


@pytest.mark.parametrize("statement", WRITES)
def test_no_statement_writes_one(store: Store, statement: str) -> None:
    session = SqlSession(store)
    session.execute(f"{LOG}; {PK}")
    with pytest.raises(StatementRefused, match=r"column twice of db.pk is computed \(COALESCE\(n, 0\) \* 2\): it is not written"):
        session.execute(statement)


def test_no_writer_writes_one_and_changes_may_go_by_it(store: Store) -> None:
    session = SqlSession(store)
    session.execute(f"{PK}; INSERT INTO db.pk VALUES (1, 2), (2, 3), (3, 4)")
    table = store.table("db.pk")
    for write in (lambda: table.upsert([{"id": 1, "twice": 2}]), lambda: table.upsert([{"id": 1, "n": 2}], columns=["id", "twice"])):
        with pytest.raises(SchemaMismatch, match=r"column twice of db.pk is computed"):
            write()
    session.execute("UPDATE db.pk SET n = 10 WHERE twice = 4; DELETE FROM db.pk WHERE twice = 6")
    assert sink_rows(store, "db.pk") == [(1, 10), (3, 4)]


REFUSED = [
    ("a INT, b AS c + 1", "column c is not known"),
    ("a INT, b AS a, c AS b", "column b is not known"),
    ("a INT, b AS SUM(a)", "an expression over the columns of one row"),
    ("a INT, b AS (SELECT MAX(id) FROM db.pk)", "an expression over the columns of one row"),
    ("a INT, b AS ROW_NUMBER() OVER (ORDER BY a)", "an expression over the columns of one row"),
    ("a INT, b AS RAND()", "another value at each evaluation"),
    ("a INT, b AS UNKNOWN_ONE(a)", "UNKNOWN_ONE"),
    ("a INT, b AS a + 1, PRIMARY KEY (b) NOT ENFORCED", "PRIMARY KEY names b, which is computed"),
    ("a INT, a AS a + 1", "column a is declared twice"),
    ("a BIGINT, PRIMARY KEY (a) NOT ENFORCED, p AS PROCTIME()", "rows of a primary-key table have no one commit"),
    ("a BIGINT, ts AS TO_TIMESTAMP(FROM_UNIXTIME(a)), WATERMARK FOR ts AS ts", "WATERMARK FOR ts: the column is computed"),
    ("a BIGINT, b STRING METADATA VIRTUAL", "column b: metadata columns are not supported"),
]


@pytest.mark.parametrize(("columns", "reason"), REFUSED, ids=[item[0] for item in REFUSED])
def test_what_cannot_be_computed_from_a_row_is_refused_with_its_column(store: Store, columns: str, reason: str) -> None:
    session = SqlSession(store)
    session.execute(PK)
    with pytest.raises(FlashlakeError, match=reason):
        session.execute(f"CREATE TABLE db.x ({columns})")
    assert store.tables() == ["db.pk"]


ALTERS = [
    ("RENAME n TO m", "column n is named by the computed column twice"),
    ("DROP n", "column n is named by the computed column twice"),
    ("MODIFY n BIGINT", "column n is named by the computed column twice"),
    ("DROP twice", "column twice is computed"),
    ("RENAME twice TO double", "column twice is computed"),
    ("ADD twice INT", "column twice is declared twice"),
    ("ADD y AS n + 1", "computed columns are declared by CREATE TABLE"),
]


@pytest.mark.parametrize(("change", "reason"), ALTERS, ids=[item[0] for item in ALTERS])
def test_what_an_expression_names_stays(store: Store, change: str, reason: str) -> None:
    session = SqlSession(store)
    session.execute(PK)
    before = store.describe("db.pk")
    with pytest.raises(StatementRefused, match=reason):
        session.execute(f"ALTER TABLE db.pk {change}")
    assert store.describe("db.pk") == before
