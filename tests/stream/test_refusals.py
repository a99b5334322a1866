"""What cannot be maintained is refused when it is submitted: with the clause, the reason, and what to write instead."""

from __future__ import annotations

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, load_jobs

TABLES = """CREATE TABLE db.log (id BIGINT, kind STRING, n INT, ts TIMESTAMP(3));
CREATE TABLE db.pk (id BIGINT, kind STRING, n INT, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.s (id BIGINT, kind STRING, n INT, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.t (id BIGINT, kind STRING, n INT); USE db;"""

# statement -> clause or piece that is named, reason, suggestion
REFUSED = [
    ("t SELECT id, kind, n FROM log ORDER BY id", "ORDER BY", "a stream has no end", "Add LIMIT"),
    ("t SELECT id, kind, n FROM log LIMIT 3", "LIMIT without ORDER BY", "which rows are first changes", "Add ORDER BY"),
    ("t SELECT id, kind, n FROM log ORDER BY id LIMIT 0", "LIMIT 0", "keeps nothing", "at least one"),
    ("t SELECT a.id, a.kind, b.n FROM log a JOIN log b ON a.n < b.n", "join with log AS b", "read all rows of the other side", "Join ON"),
    ("t SELECT a.id, a.kind, b.n FROM log a CROSS JOIN log b", "join with log AS b", "no equality", "Join ON"),
    ("t SELECT id, kind, n FROM log EXCEPT ALL SELECT id, kind, n FROM log", "EXCEPT ALL", "how often", "Use EXCEPT"),
    ("t SELECT id, kind, n FROM log INTERSECT ALL SELECT id, kind, n FROM log", "INTERSECT ALL", "how often", "Use INTERSECT"),
    ("t SELECT id, kind, n FROM pk", "log table", "cannot take back rows", "primary-key table"),
    ("t SELECT MAX(id), kind, MAX(n) FROM log GROUP BY kind", "db.t is a log table", "the query's result changes", "primary-key table"),
    ("s SELECT n, kind, n FROM log WHERE n > (SELECT n FROM log)", "SELECT n FROM log", "may give several rows", "Aggregate"),
    ("s SELECT id, kind, (SELECT n FROM pk WHERE kind = log.kind) FROM log", "kind = log.kind", "may give several rows", "primary key"),
    ("s SELECT id, kind, n FROM log WHERE n > (SELECT MAX(b.n) FROM log b WHERE b.id < log.id)", "b.id < log.id", "more than equality",
     "Compare by ="),
    ("t SELECT id, kind, CAST(RAND() * 5 AS INT) FROM log", "RAND", "another value at each evaluation", "column of the event"),
    ("t SELECT id, CAST(NOW() AS STRING), n FROM log", "NOW", "could not be recomputed", "column of the event"),
    ("s SELECT MAX(id), kind, n FROM pk GROUP BY kind, n HAVING LAST_VALUE(n) > 1", "LAST_VALUE", "in which rows arrive", "ROW_NUMBER"),
    ("s SELECT MAX(a.id), LISTAGG(b.kind), 1 FROM log a JOIN log b ON a.id = b.id", "LISTAGG", "order in which rows arrive", "log itself"),
    ("s SELECT MAX(id), kind, COLLECT(n) FROM log GROUP BY kind", "COLLECT", "multiset", "Use SUM"),
    ("t SELECT id, kind, ROW_NUMBER() OVER (PARTITION BY kind ORDER BY id) FROM log", "ROW_NUMBER", "has no bound", "Keep the first rows"),
    ("t SELECT id, kind, n FROM log WHERE COUNT(*) > 1", "WHERE", "uses an aggregate", "Use HAVING"),
    ("s WITH RECURSIVE r AS (SELECT id, kind, n FROM log) SELECT * FROM r", "WITH RECURSIVE", "not kept incrementally", "Unfold"),
    ("s SELECT id, kind, n FROM s", "db.s", "would feed itself", "another table"),
    ("s SELECT a.id, a.kind, b.n FROM log a JOIN log b ON a.n = b.n", "primary key of db.s", "could meet in one row", "GROUP BY columns"),
    ("s SELECT id, kind, MAX(n) FROM pk GROUP BY id, kind", "primary key of db.s", "could meet in one row", "GROUP BY columns"),
    ("t SELECT id, JSON_VALUE(kind, '$.a[*]'), n FROM log", "JSON_VALUE", "cannot be followed", "names and positions"),
    ("t SELECT id, SPLIT(kind, ','), n FROM log", "column kind", "ARRAY<STRING>", "CAST"),
    ("t SELECT id, ARRAY[kind][0], n FROM log", "ARRAY", "positions begin at 1", "array[1]"),
    ("s SELECT id, kind, COUNT(DISTINCT n, kind) FROM log GROUP BY id, kind", "COUNT(DISTINCT n, kind)", "one argument", "one argument"),
]  # fmt: skip

UNREAD = [
    ("t SELECT id, kind, n FROM log TABLESAMPLE (10 PERCENT)", "TABLESAMPLE"),
    ("t SELECT id, kind, n FROM log FOR UPDATE", "FOR UPDATE"),
    ("s SELECT MAX(id), kind, SUM(n) FROM log GROUP BY kind WITH ROLLUP", "ROLLUP"),
    ("t SELECT id, kind, n FROM log SORT BY id", "SORT"),
    ("t SELECT id, kind, n FROM log CLUSTER BY id", "CLUSTER"),
    ("s SELECT id, kind, n FROM pk ORDER BY id LIMIT 3 PERCENT", "LIMIT OPTIONS"),
    ("s SELECT id, kind, n FROM pk ORDER BY id FETCH FIRST 3 ROWS WITH TIES", "WITH TIES"),
    ("t SELECT id, kind, n FROM log PIVOT (SUM(n) FOR kind IN ('a'))", "PIVOT"),
    ("t SELECT id, kind, CAST(n AS BIGINT FORMAT 'x') FROM log", "FORMAT"),
    ("t SELECT DISTINCT ON (id) id, kind, n FROM log", "ON"),
    ("t SELECT a.id, a.kind, a.n FROM log a ASOF JOIN pk ON a.id = pk.id", "this kind of JOIN"),
    ("t SELECT id, kind, n FROM log UNION ALL BY NAME SELECT id, kind, n FROM log", "BY NAME"),
    ("t WITH r AS MATERIALIZED (SELECT id, kind, n FROM log) SELECT id, kind, n FROM r", "MATERIALIZED"),
    ("t SELECT id, kind, n FROM log WHERE kind IS JSON OBJECT WITH UNIQUE KEYS", "WITH"),
]
"""What the parser takes and Flink's SQL, or our planner, does not know: it would be left out in silence."""


@pytest.mark.parametrize(("statement", "part"), UNREAD, ids=[item[0] for item in UNREAD])
def test_a_part_of_a_statement_that_nobody_reads_is_refused_by_name(store: Store, statement: str, part: str) -> None:
    session = SqlSession(store)
    session.execute(TABLES)
    with pytest.raises(StatementRefused, match=rf"^{part} is not supported: "):
        session.execute(f"USE db; INSERT INTO {statement}")
    assert load_jobs(store) == {}


@pytest.mark.parametrize(("statement", "clause", "reason", "suggestion"), REFUSED, ids=[item[0] for item in REFUSED])
def test_a_refusal_names_clause_reason_and_what_to_do(store: Store, statement: str, clause: str, reason: str, suggestion: str) -> None:
    session = SqlSession(store)
    session.execute(TABLES)
    with pytest.raises(StatementRefused) as refused:
        session.execute(f"USE db; INSERT INTO {statement}")
    assert clause in refused.value.what
    assert reason in refused.value.what
    assert suggestion in refused.value.next_step
    assert "line 1" in refused.value.where
    assert load_jobs(store) == {}
