"""Statements over tiered tables see what SELECT shows: rows that only the lake holds are read, and not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from query_engine.engine import QueryEngine
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.lake import LakeHistory, Tierer
from storage_engine.stream import SqlSession
from tests.engine.cleaning import HOUR_MS, Clock, backend_of, opened

TABLES = """
CREATE TABLE db.log (id BIGINT, k INT, t TIMESTAMP(3), at TIME) WITH ('table.log.ttl' = '1h', 'table.datalake.enabled' = 'true');
CREATE TABLE db.pk (id BIGINT, ds STRING, v INT, PRIMARY KEY (id, ds) NOT ENFORCED) PARTITIONED BY (ds)
  WITH ('table.datalake.enabled' = 'true');
CREATE TABLE db.counts (k INT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.days (ds STRING, n BIGINT, PRIMARY KEY (ds) NOT ENFORCED);
CREATE TABLE db.last (k INT, id BIGINT, t TIMESTAMP(3), at TIME, PRIMARY KEY (k) NOT ENFORCED)
"""
BATCH = "SET 'execution.runtime-mode' = 'batch';"
Run = Callable[[str], str]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A log whose older half is in the lake only, and a partition that is."""
    clock = Clock()
    with opened(tmp_path / "s", clock) as store:
        SqlSession(store).execute(TABLES)
        for n in range(40):
            clock.pass_ms(HOUR_MS // 20)
            store.table("db.log").append({"id": [n], "k": [n % 4], "t": [1000 * n], "at": [1000 * n]})
        store.table("db.pk").upsert({"id": [1, 2, 3], "ds": ["a", "b", "b"], "v": [1, 2, 3]})
        Tierer(store, tmp_path / "lake").run_once(force=True)
        for n in range(40, 44):
            store.table("db.log").append({"id": [n], "k": [n % 4], "t": [1000 * n], "at": [1000 * n]})
        backend_of(store).clean()
        assert sum(store.table("db.log").offsets("earliest").values()) > 0
        store.execute("ALTER TABLE db.pk DROP PARTITION (ds = 'a')")
        store.table("db.pk").upsert({"id": [4], "ds": ["b"], "v": [4]})
        yield store


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> QueryEngine:
    return QueryEngine(store, tmp_path / "lake", tmp_path / "spill")


@pytest.fixture
def session(store: Store, engine: QueryEngine, tmp_path: Path) -> SqlSession:
    return SqlSession(store, query=engine.query, lake=LakeHistory(store, tmp_path / "lake"))


def rows(engine: QueryEngine, text: str) -> list[tuple[object, ...]]:
    return sorted(tuple(row.values()) for row in engine.query(text).to_pylist())


@pytest.mark.parametrize(
    ("sink", "text"),
    [
        ("db.counts", "SELECT k, COUNT(*) AS n FROM db.log GROUP BY k"),
        ("db.days", "SELECT ds, COUNT(*) AS n FROM db.pk GROUP BY ds"),
    ],
)
def test_an_insert_in_batch_mode_reads_what_select_shows(session: SqlSession, engine: QueryEngine, sink: str, text: str) -> None:
    session.execute(f"{BATCH} INSERT INTO {sink} {text}")

    assert rows(engine, f"SELECT * FROM {sink}") == rows(engine, text)
    assert sum(int(str(row[1])) for row in rows(engine, text)) in (44, 4)


def test_the_last_row_by_arrival_is_found_among_rows_of_lake_and_log(session: SqlSession, engine: QueryEngine) -> None:
    session.execute(f"{BATCH} INSERT INTO db.last SELECT k, id, t, at FROM db.log WHERE id < 5 OR k = 3")

    found = [(row[0], row[1]) for row in rows(engine, "SELECT k, id FROM db.last")]
    assert found == [(0, 4), (1, 1), (2, 2), (3, 43)]
    assert rows(engine, "SELECT k, id, t, at FROM db.last") == rows(engine, "SELECT k, id, t, at FROM db.log WHERE id IN (4, 1, 2, 43)")


def test_an_insert_in_batch_mode_without_the_lake_is_refused_where_it_would_be_missing(store: Store, engine: QueryEngine) -> None:
    for without in (SqlSession(store), SqlSession(store, query=engine.query)):
        for text in (
            "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log GROUP BY k",
            "INSERT INTO db.days SELECT ds, COUNT(*) FROM db.pk GROUP BY ds",
        ):
            with pytest.raises(StatementRefused, match="the lake may hold rows of db"):
                without.execute(f"{BATCH} {text}")
    hint = "/*+ OPTIONS('scan.startup.mode' = 'earliest') */"
    SqlSession(store).execute(f"{BATCH} INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log {hint} GROUP BY k")
    assert sum(store.table("db.counts").read(["n"])["n"].to_pylist()) == store.table("db.log").count()


@pytest.mark.parametrize("statement", ["UPDATE db.pk SET v = 100 WHERE {}", "DELETE FROM db.pk WHERE {}"])
def test_a_row_that_only_the_lake_holds_is_not_changed_and_that_is_said(session: SqlSession, engine: QueryEngine, statement: str) -> None:
    before = rows(engine, "SELECT * FROM db.pk")
    assert len(before) == 4

    with pytest.raises(StatementRefused, match="1 of the rows that are meant are in the lake only"):
        session.execute(statement.format("id < 3"))
    assert rows(engine, "SELECT * FROM db.pk") == before
    (result,) = session.execute(statement.format("id = 2"))
    assert " 1 rows" in result.message
    assert len([row for row in rows(engine, "SELECT * FROM db.pk") if row not in before or row[0] == 2]) == (
        1 if "UPDATE" in statement else 0
    )
