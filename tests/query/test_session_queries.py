"""Queries of a session: its database, its views, the time zone, hints and samples; what a query does not follow it refuses by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import storage_engine
from query_engine import QueryEngine
from storage_engine.errors import StatementRefused, UnknownTable
from storage_engine.lake.tiering import Tierer
from storage_engine.stream import SqlSession

DDL = """
CREATE TABLE default.bid (a INT, f DOUBLE, s STRING);
CREATE TABLE shop.bid (a INT, f DOUBLE, s STRING);
INSERT INTO default.bid VALUES (-1, 0.5, 'd');
INSERT INTO shop.bid VALUES (42, 1.5, 'x'), (7, 2.5, 'y');
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SqlSession]:
    with storage_engine.connect(f"file://{tmp_path}/store", sync="none") as store:
        engine = QueryEngine(store, tmp_path / "lake")
        session = SqlSession(store, query=engine.query)
        session.execute(DDL)
        yield session
        engine.close()


def rows(session: SqlSession, text: str) -> list[tuple[object, ...]]:
    """The rows of a text's last statement, in an order of their own."""
    answer = session.execute(text)[-1].rows
    assert answer is not None
    return sorted((tuple(row.values()) for row in answer.to_pylist()), key=repr)


def test_the_time_zone_of_the_machine_changes_no_cursor(tmp_path: Path) -> None:
    """DuckDB's cursors inherit global settings only; a zone of the machine other than UTC would show."""
    script = (
        "from storage_engine.stream import open_connection; from storage_engine.lake.duck import connect_delta\n"
        "zone = \"SELECT current_setting('TimeZone')\"\n"
        "print([c.execute(zone).fetchone()[0] for con in (open_connection(), connect_delta()) for c in (con, con.cursor())])"
    )
    environment = {**os.environ, "TZ": "Asia/Shanghai"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['UTC', 'UTC', 'UTC', 'UTC']"


def test_the_time_zone_of_the_machine_changes_no_csv() -> None:
    script = (
        "import pyarrow as pa; from flashlake.cli.output import csv_text\n"
        "print(csv_text(pa.table({'t': pa.array([0], pa.timestamp('ms', 'UTC'))})))"
    )
    environment = {**os.environ, "TZ": "Asia/Shanghai"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["t", "1970-01-01", "00:00:00+00"]


def test_names_without_a_database_belong_to_the_one_in_use(session: SqlSession) -> None:
    assert rows(session, "SELECT a FROM bid") == [(-1,)]
    assert rows(session, "USE shop; SELECT a FROM bid") == [(42,), (7,)]
    assert rows(session, "SELECT b.a FROM bid AS b JOIN default.bid AS d ON b.a > d.a") == [(42,), (7,)]


def test_a_view_reads_the_database_it_was_made_in_and_its_columns_have_its_names(session: SqlSession) -> None:
    session.execute("USE shop; CREATE VIEW halves (h, word) AS SELECT a / 2, s FROM bid")
    session.execute("CREATE VIEW twice AS SELECT h * 2 AS t FROM halves; USE default")
    assert rows(session, "SELECT h / 2 AS q, word FROM shop.halves") == [(1, "y"), (10, "x")]
    assert rows(session, "SELECT t FROM shop.twice") == [(42,), (6,)]


def test_temporary_views_are_those_of_the_session(session: SqlSession) -> None:
    session.execute("CREATE TEMPORARY VIEW tv AS SELECT a / 2 AS h FROM shop.bid")
    assert rows(session, "SELECT h FROM tv WHERE h > 3") == [(21,)]
    other = SqlSession(session._store, query=session._query)
    with pytest.raises(UnknownTable, match=r"default\.tv"):
        other.execute("SELECT * FROM tv")


def test_columns_are_renamed_by_the_aliases_of_tables(session: SqlSession) -> None:
    assert rows(session, "SELECT n / 5 AS x, t FROM shop.bid AS b(n, g, t) WHERE n > 7") == [(8, "x")]
    assert rows(session, "SELECT y / 3 AS x FROM (VALUES (1, 2), (3, 9 / 2)) AS v(x, y)") == [(0,), (1,)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("COUNT(DISTINCT a, f)", "takes one argument"),
        ("COUNT(a, f)", "takes one argument"),
        ("SUM(a, f)", "takes one argument"),
        ("MAX(a, 2)", "takes one argument"),
        ("SUM(a, 2) OVER ()", "takes one argument"),
        ("LISTAGG(s, CHR(10))", "the separator is no literal"),
        ("LISTAGG(s, s)", "the separator is no literal"),
        ("MAX(a ORDER BY f)", "ORDER BY has no meaning"),
        ("LISTAGG(DISTINCT s)", "DISTINCT is not kept"),
        ("SUM(s) OVER (ORDER BY a)", "cannot be added up"),
        ("COLLECT(s)", "multiset"),
    ],
)
def test_an_aggregate_that_a_job_does_not_take_is_refused_alike(session: SqlSession, call: str, words: str) -> None:
    with pytest.raises(StatementRefused, match=words):
        session.execute(f"SELECT {call} AS x FROM shop.bid")


def test_texts_and_arrays_are_joined_in_the_order_that_is_asked_for(session: SqlSession) -> None:
    joined = "SELECT STRING_AGG(s, '-' ORDER BY a) AS x, LISTAGG(s, '') WITHIN GROUP (ORDER BY a DESC) AS y, ARRAY_AGG(a ORDER BY a) AS z"
    assert rows(session, f"{joined} FROM shop.bid") == [("y-x", "xy", [7, 42])]


def test_functions_over_windows_have_the_types_of_flink(session: SqlSession) -> None:
    answer = session.execute(
        "SELECT AVG(a) OVER w AS m, SUM(a) FILTER (WHERE a > 7) OVER w AS s, FIRST_VALUE(x) OVER w AS f, RANK() OVER w / 2 AS r, "
        "100 * SUM(a) OVER () / 49 AS p FROM (SELECT a, NULLIF(a, 7) AS x FROM shop.bid) AS q WINDOW w AS (ORDER BY a / 7) ORDER BY m"
    )[0].rows
    assert answer is not None
    assert [tuple(row.values()) for row in answer.to_pylist()] == [(7, None, None, 0, 100), (24, 42, 42, 1, 100)]
    assert [str(field.type) for field in answer.schema] == ["int32", "int32", "int32", "int64", "int32"]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ("'nonsense' = '2'", "'nonsense' = '2' on bid in a query"),
        ("'scan.snapshot-id' = '1'", "FOR VERSION AS OF"),
        ("'scan.startup.mode' = 'latest'", "'scan.startup.mode' = 'latest'"),
        ("'scan.startup.timestamp' = '1'", "'scan.startup.timestamp'"),
        ("'lookup.insert-if-not-exists' = 'true'", "lookup.insert-if-not-exists"),
    ],
)
def test_an_option_that_a_query_does_not_follow_is_refused(session: SqlSession, hint: str, words: str) -> None:
    for select in ("a", "COUNT(*)"):
        with pytest.raises(StatementRefused, match=words):
            session.execute(f"SELECT {select} FROM shop.bid /*+ OPTIONS({hint}) */")


def test_options_without_effect_pass_and_unknown_hints_do_not(session: SqlSession) -> None:
    sql = "SELECT /*+ BROADCAST(bid) */ a FROM shop.bid /*+ OPTIONS('scan.startup.mode' = 'full', 'lookup.async' = 'true') */"
    assert rows(session, sql) == [(42,), (7,)]
    with pytest.raises(StatementRefused, match="the hint FASTER is not known"):
        session.execute("SELECT /*+ FASTER(bid) */ a FROM shop.bid")


def test_a_sample_is_a_percentage_of_the_rows(session: SqlSession) -> None:
    session._store.table("shop.bid").append({"a": list(range(4000)), "f": [0.0] * 4000, "s": ["z"] * 4000})
    for table in ("shop.bid", "(SELECT * FROM shop.bid) AS v"):
        ((n,),) = rows(session, f"SELECT COUNT(*) AS n FROM {table} TABLESAMPLE BERNOULLI (50)")
        assert isinstance(n, int)
        assert 1600 < n < 2400
    session.execute("CREATE VIEW shop.v AS SELECT a FROM shop.bid")
    assert rows(session, "SELECT a FROM shop.v TABLESAMPLE BERNOULLI (0)") == []


def test_nan_and_zeros_are_the_same_wherever_the_rows_lie(session: SqlSession, tmp_path: Path) -> None:
    store = session._store
    numbers = {"id": [1, 2, 3, 4, 5], "f": [0.0, -0.0, float("nan"), 2.0, None]}
    store.execute("CREATE TABLE n.log (id BIGINT, f DOUBLE); CREATE TABLE n.now (id BIGINT, f DOUBLE, PRIMARY KEY (id) NOT ENFORCED)")
    store.execute("CREATE TABLE n.old (id BIGINT, f DOUBLE, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.datalake.enabled' = 'true')")
    store.table("n.log").append(numbers)
    store.table("n.now").upsert(numbers)
    store.table("n.old").upsert(numbers)
    Tierer(store, tmp_path / "lake").run_once(force=True)
    joined = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 4)]
    for table in ("n.log", "n.now", "n.old"):
        for condition, expected in {"f > 1": [4], "NOT (f <= 1)": [3, 4], "f > 1 OR id < 0": [4], "f = f": [1, 2, 3, 4]}.items():
            assert rows(session, f"SELECT id FROM {table} WHERE {condition}") == [(i,) for i in expected], (table, condition)
            shown = rows(session, f"SELECT id FROM (SELECT id, ({condition}) AS z FROM {table}) AS q WHERE z")
            assert shown == [(i,) for i in expected], (table, condition)
        for other in ("n.log", "n.now", "n.old"):
            found = rows(session, f"SELECT a.id, b.id AS i FROM {table} AS a JOIN {other} AS b ON a.f = b.f")
            assert found == joined, (table, other)
            assert rows(session, f"SELECT id FROM {table} WHERE f IN (SELECT f FROM {other})") == [(1,), (2,), (3,), (4,)], (table, other)


def test_a_condition_finer_than_its_column_is_not_rounded(session: SqlSession) -> None:
    session.execute("CREATE TABLE shop.fine (id BIGINT, ts TIMESTAMP(3), p DECIMAL(10, 2), s STRING)")
    session.execute("INSERT INTO shop.fine VALUES (1, TIMESTAMP '2020-01-01 23:59:59.999', 1.55, '2020-1-5')")
    for condition in (
        "ts < TIMESTAMP '2020-01-01 23:59:59.9995'", "ts <= TIMESTAMP '2020-01-01 23:59:59.9991'", "p < 1.555", "p > 1.545",
        "p BETWEEN 1.545 AND 1.555", "s < DATE '2020-01-10'",
    ):  # fmt: skip
        assert rows(session, f"SELECT id FROM shop.fine WHERE {condition}") == [(1,)], condition
    for condition in ("ts >= TIMESTAMP '2020-01-01 23:59:59.9995'", "p > 1.551"):
        assert rows(session, f"SELECT id FROM shop.fine WHERE {condition}") == [], condition


WINDOWED = (
    "SELECT CAST(window_start AS STRING) AS s, n, COUNT(*) AS c "
    "FROM TABLE(TUMBLE(TABLE %s, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end, n"
)


def test_windows_are_previewed_over_lake_and_store_as_one(session: SqlSession, tmp_path: Path) -> None:
    """Also through a view or WITH, and with what a job would refuse around them."""
    store = session._store
    store.execute("CREATE TABLE w.log (n INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('table.datalake.enabled' = 'true')")
    store.execute("INSERT INTO w.log VALUES (1, TIMESTAMP '2020-01-01 10:10:00'), (1, TIMESTAMP '2020-01-01 10:20:00')")
    Tierer(store, tmp_path / "lake").run_once(force=True)
    store.execute("INSERT INTO w.log VALUES (1, TIMESTAMP '2020-01-01 10:30:00'), (2, TIMESTAMP '2020-01-01 09:59:59.999')")
    expected = [("2020-01-01 09:00:00.000", 2, 1), ("2020-01-01 10:00:00.000", 1, 3)]
    assert rows(session, WINDOWED % "w.log") == expected
    assert rows(session, "USE w; " + WINDOWED % "log" + " ORDER BY n DESC") == expected
    assert rows(session, "CREATE TEMPORARY VIEW v AS SELECT n, ts FROM log WHERE n = 2; " + WINDOWED % "v") == expected[:1]
    assert rows(session, "WITH q AS (SELECT * FROM log) " + WINDOWED % "q") == expected
    ranked = "SELECT HOUR(TUMBLE_END(ts, INTERVAL '1' HOUR)) AS e, RANK() OVER (ORDER BY COUNT(*)) AS r "
    ranked += "FROM log GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)"
    assert rows(session, ranked) == [(10, 1), (11, 2)]
    with pytest.raises(StatementRefused, match="no length of time"):
        session.execute("SELECT * FROM TABLE(TUMBLE(TABLE log, DESCRIPTOR(ts), INTERVAL '1' MONTH))")
    with pytest.raises(StatementRefused, match=r"'scan\.startup\.mode' = 'latest'"):
        session.execute(WINDOWED % "log /*+ OPTIONS('scan.startup.mode' = 'latest') */")
