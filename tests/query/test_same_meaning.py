"""One text, three ways: as a query, as a batch INSERT and as a job it gives the same rows in the same types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from query_engine import QueryEngine
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import plan_select

DDL = """
CREATE TABLE db.e (id BIGINT NOT NULL, k INT NOT NULL, a INT, b BIGINT, f DOUBLE, r FLOAT, d DECIMAL(10, 2), s STRING, ts TIMESTAMP(3),
                   at TIMESTAMP_LTZ(3), day DATE, WATERMARK FOR ts AS ts - INTERVAL '5' SECOND);
CREATE TABLE db.t (id BIGINT, name STRING, n INT, f DOUBLE, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.w (id BIGINT NOT NULL, k INT NOT NULL, a INT, d DECIMAL(10, 2), ts TIMESTAMP(3));
CREATE VIEW db.hours AS SELECT window_start, window_end, k, SUM(a) AS h
  FROM TABLE(TUMBLE((SELECT k, a, ts FROM w), DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end, k;
CREATE VIEW db.halves AS SELECT id, k, a / 2 AS h FROM db.e;
INSERT INTO db.t VALUES (1, 'one', 3, 0.5), (2, 'two', NULL, CAST('NaN' AS DOUBLE)), (3, NULL, -5, CAST('-0.0' AS DOUBLE));
INSERT INTO db.e VALUES
  (1, 1, 7, 20, 2.7, CAST(0.1 AS FLOAT), 1.10, 'x', TIMESTAMP '2020-01-01 10:00:00', TO_TIMESTAMP_LTZ(1577808000000, 3), DATE '2020-01-31'),
  (2, 1, 2, -3, CAST('NaN' AS DOUBLE), CAST(1.5 AS FLOAT), 2.25, 'b', TIMESTAMP '2020-01-01 10:20:30.999', NULL, DATE '2019-12-31'),
  (3, 2, -7, NULL, 0.0, NULL, NULL, NULL, TIMESTAMP '2020-01-01 11:59:59.999', TO_TIMESTAMP_LTZ(0, 3), NULL),
  (4, 2, NULL, 9, -3.5, CAST(-2.5 AS FLOAT), -7.00, 'B', TIMESTAMP '2020-01-01 12:00:00', NULL, DATE '2020-02-29'),
  (5, 3, 4, 4, NULL, CAST(3 AS FLOAT), 0.05, 'x', TIMESTAMP '2020-01-02 00:00:00', TO_TIMESTAMP_LTZ(1, 3), DATE '2020-01-01');
"""

ROWS = [
    "SELECT id, a / 2 AS x, b / 3 AS y, a % 2 AS z, -7 / 2 AS w, b / a AS v FROM db.e WHERE a <> 0",
    "SELECT id, a + b AS x, a * d AS y, d / 3 AS z, d / a AS w, a / 2.0 AS v, f / 2 AS u FROM db.e",
    "SELECT id, r + 1 AS x, r * f AS y, f / 0.0 AS z, r / 3 AS w, d % 2 AS v FROM db.e",
    "SELECT id, CAST(f AS INT) AS x, CAST(d AS INT) AS y, CAST(a AS STRING) AS z, CAST('12' AS BIGINT) AS w FROM db.e WHERE f < 9",
    "SELECT id, CAST(ts AS STRING) AS x, CAST(at AS STRING) AS y, CAST(ts AS DATE) AS z, CAST(day AS TIMESTAMP(3)) AS w FROM db.e",
    "SELECT id, DATE_FORMAT(at, 'yyyy-MM-dd HH:mm') AS x, EXTRACT(HOUR FROM at) AS y, FLOOR(ts TO HOUR) AS z FROM db.e",
    "SELECT id, ts + INTERVAL '90' MINUTE AS x, day + INTERVAL '1' MONTH AS y, TIMESTAMPDIFF(HOUR, ts, at) AS z FROM db.e",
    "SELECT id, CASE WHEN a > 3 THEN a / 2 ELSE b END AS x, COALESCE(a, d) AS y, IF(s = 'x', 1, 2) / 2 AS z FROM db.e",
    "SELECT id, s || '!' AS x, UPPER(s) AS y, CHAR_LENGTH(s) / 2 AS z, SUBSTRING(s, 1, 1) AS w FROM db.e",
    "SELECT id, '[' || s IS JSON AS x, '{}' || s IS JSON OBJECT AS y, '[1]' IS NOT JSON OBJECT AS z, s IS JSON SCALAR AS w FROM db.e",
    "SELECT id FROM db.e WHERE f > 1",
    "SELECT id, f > 1 AS x, f >= f AS y, NOT (f <= 1) AS z, f BETWEEN -9 AND 9 AS w, f = f AS v FROM db.e",
    "SELECT id FROM db.e WHERE f > 1 OR id < 0",
    "SELECT id FROM db.e WHERE NOT (f <= 1) AND NOT (f BETWEEN 0 AND 1)",
    "SELECT id FROM db.e WHERE ts < TIMESTAMP '2020-01-01 11:59:59.9995'",
    "SELECT id FROM db.e WHERE d > 2.245 AND d < 2.255",
    "SELECT id FROM db.e WHERE a BETWEEN 2 AND 4 OR s IN ('b', 'B')",
    "SELECT id, x.h / 2 AS y FROM db.halves AS x WHERE h <> 0",
    "SELECT id, q FROM (SELECT id, a / 2 FROM db.e) AS x(id, q) WHERE q / 3 = 1",
    "SELECT e.id, SUM(e.a / t.n) AS x, MAX(t.name) AS y FROM db.e JOIN db.t ON e.id = t.id GROUP BY e.id",
    "SELECT e.id, SUM(e.k / 2 + t.n / 2) AS x FROM db.e LEFT JOIN db.t ON e.id = t.id GROUP BY e.id",
    "SELECT e.id, SUM(t.id) AS other FROM db.e JOIN db.t ON e.f = t.f GROUP BY e.id",
    "SELECT id, COUNT(*) AS x FROM db.e WHERE f IN (SELECT f FROM db.t) GROUP BY id",
    "SELECT id, COUNT(*) AS x FROM db.e WHERE EXISTS (SELECT 1 FROM db.t WHERE t.id = e.id AND t.n > 0) GROUP BY id",
    "SELECT id, MAX(x) / 2 AS x FROM (SELECT id, a AS x FROM db.e UNION ALL SELECT id + 10, d * 3 FROM db.e) AS q GROUP BY id",
]
"""Texts whose rows are told apart by id."""

GROUPS = [
    "SELECT k, COUNT(*) AS c, COUNT(a) AS n, SUM(a) AS s, AVG(a) AS m, MIN(a) AS lo, MAX(b) AS hi FROM db.e GROUP BY k",
    "SELECT k, SUM(d) AS x, AVG(d) AS y, SUM(f) AS z, AVG(r) AS w, SUM(b) / 2 AS v FROM db.e GROUP BY k",
    "SELECT k, COUNT(DISTINCT s) AS x, SUM(DISTINCT a) AS y, COUNT(*) FILTER (WHERE a > 2) AS z FROM db.e GROUP BY k",
    "SELECT k, SUM(CASE WHEN a > 3 THEN 1 ELSE 0 END) / COUNT(*) AS x, MAX(ts) AS y, MIN(s) AS z FROM db.e GROUP BY k",
    "SELECT k, STDDEV_POP(a) AS x, VAR_POP(d) AS y, VARIANCE(b) AS z FROM db.e GROUP BY k",
    "SELECT k, LISTAGG(s, '|') AS x, FIRST_VALUE(a) AS y, LAST_VALUE(s) AS z FROM db.e GROUP BY k",
    "SELECT k, SUM(a) + 1 AS x FROM db.e GROUP BY k HAVING AVG(a) >= 3",
    "SELECT COALESCE(k, -1) AS k, GROUPING(k) AS g, SUM(a) / 2 AS x FROM db.e GROUP BY ROLLUP (k)",
    "SELECT DISTINCT k / 2 AS k FROM db.e",
    "SELECT k, MAX(h) / 2 AS x FROM db.halves GROUP BY k",
    "SELECT k, BITMAP_UNION_COUNT(TO_BITMAP(id)) AS x FROM db.e GROUP BY k",
    "SELECT k, SUM(x) AS y FROM (SELECT k, SUM(a) / 2 AS x FROM db.e GROUP BY k, s) AS q GROUP BY k",
    "SELECT k, id, a FROM (SELECT id, k, a, ROW_NUMBER() OVER (PARTITION BY k ORDER BY id DESC) AS n FROM db.e) AS q WHERE n = 1",
]
"""Texts whose rows are told apart by k."""

OVER = [
    "SUM(a) OVER (PARTITION BY k ORDER BY id)",
    "AVG(a) OVER (PARTITION BY k ORDER BY id) / 2",
    "AVG(d) OVER (PARTITION BY k ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "COUNT(*) OVER (PARTITION BY k ORDER BY ts RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW) / 2",
    "COUNT(a) OVER (PARTITION BY k ORDER BY id)",
    "MIN(d) OVER (PARTITION BY k ORDER BY id)",
    "LAG(a) OVER (PARTITION BY k ORDER BY id) / 2",
    "LEAD(b, 1, 0) OVER (PARTITION BY k ORDER BY id)",
    "FIRST_VALUE(a) OVER (PARTITION BY k ORDER BY id DESC)",
    "LAST_VALUE(s) OVER (PARTITION BY k ORDER BY id)",
    "SUM(f) OVER (PARTITION BY k ORDER BY id)",
    "CAST(AVG(r) OVER (PARTITION BY k ORDER BY id) AS INT)",
]

WINDOWS = [
    "SELECT window_start, window_end, k, COUNT(*) AS c, SUM(a) / 2 AS x "
    "FROM TABLE(TUMBLE(TABLE db.w, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end, k",
    "SELECT window_start, window_end, k, AVG(a) AS x "
    "FROM TABLE(HOP(TABLE db.w, DESCRIPTOR(ts), INTERVAL '30' MINUTE, INTERVAL '1' HOUR)) GROUP BY window_start, window_end, k",
    "SELECT window_start, window_end, k, MAX(d) AS x "
    "FROM TABLE(CUMULATE(TABLE db.w, DESCRIPTOR(ts), INTERVAL '6' HOUR, INTERVAL '1' DAY)) GROUP BY window_start, window_end, k",
    "SELECT window_start, window_end, k, COUNT(*) AS x "
    "FROM TABLE(SESSION(TABLE db.w PARTITION BY k, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end, k",
    "SELECT TUMBLE_START(ts, INTERVAL '1' HOUR) AS window_start, TUMBLE_END(ts, INTERVAL '1' HOUR) AS window_end, k, AVG(d) AS x "
    "FROM db.w WHERE a > 0 GROUP BY TUMBLE(ts, INTERVAL '1' HOUR), k",
    "SELECT window_start, window_end, k, h / 2 AS x FROM db.hours",
]
"""Texts over a log without WATERMARK: over one with it a job sends the last windows when later rows come."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SqlSession, QueryEngine]]:
    root: Path = tmp_path_factory.mktemp("same")
    with storage_engine.connect(f"file://{root}/store", sync="none") as store:
        engine = QueryEngine(store, root / "lake")
        session = SqlSession(store, query=engine.query)
        session.execute(
            f"USE db; {DDL}; USE default; SET 'execution.runtime-mode' = 'batch'; INSERT INTO db.w SELECT id, k, a, d, ts FROM db.e"
        )
        yield session, engine
        engine.close()


def differing(opened: tuple[SqlSession, QueryEngine], label: str, key: str, texts: list[str]) -> str:
    """What differs between the three, a paragraph per text."""
    session, engine = opened
    store = engine.store
    session.execute("SET 'execution.runtime-mode' = 'streaming'")
    for i, text in enumerate(texts):
        table = f"same.{label}{i}"
        columns = plan_select(StoreCatalog(store), text).sink.columns
        listed = ", ".join(f"`{column.name}` {column.type}" for column in columns)
        for name in (table, f"{table}_once"):
            store.execute(f"CREATE TABLE {name} ({listed}, PRIMARY KEY ({key}) NOT ENFORCED)")
        session.execute(f"SET 'pipeline.name' = '{label}{i}'; INSERT INTO {table} {text}")
    Worker(store).run_until_idle()
    session.execute("SET 'execution.runtime-mode' = 'batch'")
    found = []
    for i, text in enumerate(texts):
        session.execute(f"INSERT INTO same.{label}{i}_once {text}")
        job, once = (as_text(store.table(f"same.{label}{i}{suffix}").read()) for suffix in ("", "_once"))
        asked = as_text(engine.query(text))
        assert job[0], f"{text}: nothing to compare"
        if not job == once == asked:
            found.append(f"{text}\n  job   {job}\n  batch {once}\n  query {asked}")
    return "\n".join(found)


def as_text(rows: pa.Table) -> tuple[list[str], list[str]]:
    """Rows in an order of their own, and the columns' names and types. As text, because NaN is not equal to itself."""
    return sorted(repr(tuple(row.values())) for row in rows.to_pylist()), [f"{field.name} {field.type}" for field in rows.schema]


def test_expressions_and_joins(opened: tuple[SqlSession, QueryEngine]) -> None:
    assert differing(opened, "rows", "id", ROWS) == ""


def test_groups(opened: tuple[SqlSession, QueryEngine]) -> None:
    assert differing(opened, "groups", "k", GROUPS) == ""


def test_functions_over_windows(opened: tuple[SqlSession, QueryEngine]) -> None:
    assert differing(opened, "over", "id", [f"SELECT id, k, {call} AS x FROM db.e" for call in OVER]) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT id, DATE_FORMAT(ts, 'yyyy-QQ') AS x FROM db.e", "'QQ' in the date pattern"),
        ("SELECT id, DATE_FORMAT(ts, s) AS x FROM db.e", "must be written as a literal"),
        ("SELECT id, s IS JSON OBJECT WITH UNIQUE KEYS AS x FROM db.e", "WITH UNIQUE KEYS"),
        ("SELECT k, COUNT(DISTINCT a, b) AS x FROM db.e GROUP BY k", "takes one argument"),
        ("SELECT k, LISTAGG(s, s) AS x FROM db.e GROUP BY k", "the separator is no literal"),
        ("SELECT id, SUM(s) OVER (PARTITION BY k ORDER BY id) AS x FROM db.e", "cannot be added up"),
        ("SELECT id, a > s AS x FROM db.e", "compares INT with STRING"),
        ("SELECT * FROM TABLE(TUMBLE(TABLE db.e, DESCRIPTOR(day), INTERVAL '1' HOUR))", "day is DATE"),
    ],
)
def test_what_a_job_refuses_by_its_meaning_a_query_refuses_alike(opened: tuple[SqlSession, QueryEngine], text: str, words: str) -> None:
    engine = opened[1]
    with pytest.raises(StatementRefused, match=words):
        plan_select(StoreCatalog(engine.store), text)
    with pytest.raises(StatementRefused, match=words):
        engine.query(text)


def test_windows(opened: tuple[SqlSession, QueryEngine]) -> None:
    assert differing(opened, "windows", "window_start, window_end, k", WINDOWS) == ""
