"""JOIN ... USING and NATURAL JOIN: the columns of one name are one, in streams, batch and queries, as Flink has them.

Source of the answers: the SQL standard as Calcite has it (SqlValidatorImpl.Permute): merged columns come first, then the left ones, then
the right ones; a merged column is COALESCE(left, right).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from query_engine import QueryEngine
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.stream.comparing import Rows, differing_jobs, query_rows, rows_of, sink_rows

TABLES = """CREATE TABLE db.a (x INT, k BIGINT NOT NULL, j INT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.b (y INT, j BIGINT, k BIGINT NOT NULL, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.c (k BIGINT NOT NULL, z INT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.d (k BIGINT, z INT);
CREATE TABLE db.log (k BIGINT, w INT)"""
A = [{"x": 10, "k": 1, "j": 1}, {"x": 20, "k": 2, "j": 0}, {"x": 30, "k": 3, "j": 1}]
B = [{"y": 200, "j": 0, "k": 2}, {"y": 300, "j": 7, "k": 3}, {"y": 400, "j": 0, "k": 4}]
C = [{"k": 2, "z": 2000}, {"k": 4, "z": 4000}, {"k": 9, "z": 9000}]
LOG = [{"k": 2, "w": 5}, {"k": 3, "w": None}, {"k": 8, "w": 6}, {"k": None, "w": 7}]
FIVE = "k BIGINT, x INT, ja INT, y INT, jb BIGINT, PRIMARY KEY (k) NOT ENFORCED"

ANSWERS: dict[str, tuple[str, str, Rows]] = {
    "the merged column first, and once": (FIVE, "SELECT * FROM db.a JOIN db.b USING (k)", [(2, 20, 0, 200, 0), (3, 30, 1, 300, 7)]),
    "LEFT: the left one": (
        FIVE,
        "SELECT * FROM db.a LEFT JOIN db.b USING (k)",
        [(1, 10, 1, None, None), (2, 20, 0, 200, 0), (3, 30, 1, 300, 7)],
    ),
    "RIGHT: the right one": (
        FIVE,
        "SELECT * FROM db.a RIGHT JOIN db.b USING (k)",
        [(2, 20, 0, 200, 0), (3, 30, 1, 300, 7), (4, None, None, 400, 0)],
    ),
    "FULL: the one that is there": (
        FIVE,
        "SELECT * FROM db.a FULL JOIN db.b USING (k)",
        [(1, 10, 1, None, None), (2, 20, 0, 200, 0), (3, 30, 1, 300, 7), (4, None, None, 400, 0)],
    ),
    "several, in the order of USING, of types that differ": (
        "j BIGINT, k BIGINT, x INT, y INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT * FROM db.a JOIN db.b USING (j, k)",
        [(0, 2, 20, 200)],
    ),
    "NATURAL: in the order of the left table": (
        "k BIGINT, j BIGINT, x INT, y INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT * FROM db.a NATURAL JOIN db.b",
        [(2, 0, 20, 200)],
    ),
    "NATURAL LEFT": (
        "k BIGINT, j BIGINT, x INT, y INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT * FROM db.a NATURAL LEFT JOIN db.b",
        [(1, 1, 10, None), (2, 0, 20, 200), (3, 1, 30, None)],
    ),
    "the tables' own columns are still there": (
        "k BIGINT, ak BIGINT, bk BIGINT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT k, a.k AS ak, b.k AS bk FROM db.a FULL JOIN db.b USING (k) WHERE k > 1",
        [(2, 2, 2), (3, 3, 3), (4, None, 4)],
    ),
    "alias.* is all of the table": (
        "y INT, j BIGINT, k BIGINT, x INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT b.*, x FROM db.a JOIN db.b USING (k)",
        [(200, 0, 2, 20), (300, 7, 3, 30)],
    ),
    "a wide table of three": (
        "k BIGINT, x INT, y INT, z INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT k, x, y, z FROM db.a FULL JOIN db.b USING (k) FULL JOIN db.c USING (k)",
        [(1, 10, None, None), (2, 20, 200, 2000), (3, 30, 300, None), (4, None, 400, 4000), (9, None, None, 9000)],
    ),
    "all of three": (
        "k BIGINT, x INT, ja INT, y INT, jb BIGINT, z INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT * FROM db.a FULL JOIN db.b USING (k) LEFT JOIN db.c USING (k)",
        [(1, 10, 1, None, None, None), (2, 20, 0, 200, 0, 2000), (3, 30, 1, 300, 7, None), (4, None, None, 400, 0, 4000)],
    ),
    "with a log, and a subquery": (
        "k BIGINT, w INT, z INT",
        "SELECT * FROM db.log JOIN (SELECT k, z FROM db.d WHERE z < 9000) q USING (k)",
        [(2, 5, 2000)],
    ),
    "groups by the merged column": (
        "k BIGINT, n BIGINT, w INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT k, COUNT(*), SUM(w) FROM db.c FULL JOIN db.log USING (k) WHERE k IS NOT NULL GROUP BY k",
        [(2, 1, 5), (3, 1, None), (4, 1, None), (8, 1, 6), (9, 1, None)],
    ),
}  # fmt: skip


def test_stream_batch_and_query_give_what_flink_gives(store: Store, tmp_path: Path) -> None:
    session = SqlSession(store)
    session.execute(TABLES)
    for i, (ddl, select, _) in enumerate(ANSWERS.values()):
        session.execute(f"CREATE TABLE db.s{i} ({ddl}); SET 'pipeline.name' = 'job{i}'; INSERT INTO db.s{i} {select}")
    worker = Worker(store)
    for i in range(0, 4, 2):
        for name, rows in (("a", A), ("b", B), ("c", C), ("d", C), ("log", LOG)):
            table = store.table(f"db.{name}")
            write = table.upsert if table.descriptor.has_primary_key else table.append
            write(rows[i : i + 2])
        worker.run_until_idle()
    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
    engine = QueryEngine(store, tmp_path / "lake")
    for i, (case, (_, select, expected)) in enumerate(ANSWERS.items()):
        assert sink_rows(store, f"db.s{i}") == sorted(expected, key=repr), case
        assert positional(engine.query(select)) == sorted(expected, key=repr), case
    assert differing_jobs(store) == []
    engine.close()


def positional(table: pa.Table) -> Rows:
    """The rows of a result in which two columns may have one name."""
    return rows_of(table.rename_columns([f"c{i}" for i in range(table.num_columns)]))


def test_a_lookup_join_takes_names_as_well(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        f"""{TABLES}; CREATE TABLE db.s1 (k BIGINT, w INT, z INT); CREATE TABLE db.s2 (k BIGINT, w INT, z INT); CREATE TABLE db.s3 (w INT);
        INSERT INTO db.s1 SELECT * FROM db.log JOIN db.c FOR SYSTEM_TIME AS OF PROCTIME() USING (k);
        INSERT INTO db.s2 SELECT * FROM db.log NATURAL LEFT JOIN db.c FOR SYSTEM_TIME AS OF PROCTIME();
        INSERT INTO db.s3 SELECT w FROM (SELECT k, w, 2000 AS z FROM db.log) l JOIN db.c FOR SYSTEM_TIME AS OF PROCTIME() USING (z, k)"""
    )
    store.table("db.c").upsert(C)
    store.table("db.log").append(LOG)
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.s1") == [(2, 5, 2000)]
    assert sink_rows(store, "db.s2") == sorted([(2, 5, 2000), (3, None, None), (8, 6, None), (None, 7, None)], key=repr)
    assert sink_rows(store, "db.s3") == [(5,)]
    assert differing_jobs(store) == []


TWINS = {
    "inner": (FIVE, "SELECT * FROM db.a JOIN db.b USING (k)", "SELECT a.k, x, a.j, y, b.j AS jb FROM a JOIN b ON a.k = b.k"),
    "left": (FIVE, "SELECT * FROM db.a LEFT JOIN db.b USING (k)", "SELECT a.k, x, a.j, y, b.j AS jb FROM a LEFT JOIN b ON a.k = b.k"),
    "right": (FIVE, "SELECT * FROM db.a RIGHT JOIN db.b USING (k)", "SELECT b.k, x, a.j, y, b.j AS jb FROM b LEFT JOIN a ON a.k = b.k"),
    "full": (
        "k BIGINT, x INT, y INT, z INT, PRIMARY KEY (k) NOT ENFORCED",
        "SELECT k, x, y, z FROM db.a FULL JOIN db.b USING (k) FULL JOIN db.c USING (k)",
        "SELECT ks.k, x, y, z FROM (SELECT k FROM a UNION SELECT k FROM b UNION SELECT k FROM c) ks LEFT JOIN a ON a.k = ks.k "
        "LEFT JOIN b ON b.k = ks.k LEFT JOIN c ON c.k = ks.k",
    ),
    "groups by a column that may be null on both sides": (
        "j BIGINT, n BIGINT, PRIMARY KEY (j) NOT ENFORCED",
        "SELECT COALESCE(j, -1), COUNT(*) FROM db.a FULL JOIN db.b USING (j) GROUP BY COALESCE(j, -1)",
        "SELECT coalesce(a.j, b.j, -1), count(*) FROM a FULL JOIN b ON a.j = b.j GROUP BY 1",
    ),
}


@pytest.mark.parametrize("seed", range(2))
def test_however_the_input_is_cut_the_result_is_that_of_one_query(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    session = SqlSession(store)
    session.execute(TABLES)
    for i, (ddl, select, _) in enumerate(TWINS.values()):
        session.execute(f"CREATE TABLE db.s{i} ({ddl}); SET 'pipeline.name' = 'job{i}'; INSERT INTO db.s{i} {select}")
    held: dict[str, dict[int, dict[str, Any]]] = {"a": {}, "b": {}, "c": {}}
    values = {"a": ("x", "j"), "b": ("y", "j"), "c": ("z",)}
    worker = Worker(store, n_rows_max=rng.choice([2, 1000]))
    for _ in range(8):
        name = rng.choice("abc")
        table = store.table(f"db.{name}")
        new = {
            k: {"k": k, **{value: rng.choice([None, 0, 1, 2]) for value in values[name]}} for k in rng.sample(range(6), rng.randrange(1, 4))
        }
        table.upsert(list(new.values()))
        held[name].update(new)
        gone = [k for k in held[name] if rng.random() < 0.2]
        if gone:
            table.delete({"k": gone})
            held[name] = {k: row for k, row in held[name].items() if k not in gone}
        if rng.random() < 0.6:
            worker.run_until_idle()
    worker.run_until_idle()
    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
    tables = {
        name: pa.Table.from_pylist(list(rows.values()), pa.schema([("k", pa.int64()), *((value, pa.int32()) for value in values[name])]))
        for name, rows in held.items()
    }
    for i, (name, (_, _, twin)) in enumerate(TWINS.items()):
        assert sink_rows(store, f"db.s{i}") == query_rows(twin, **tables), name
    assert differing_jobs(store) == []


REFUSED = [
    ("db.a JOIN db.b USING (q)", "no table before the join has a column q", "write ON"),
    ("db.a JOIN db.c USING (x)", "no table behind the join has a column x", "write ON"),
    ("db.a JOIN db.b ON a.k = b.k JOIN db.c USING (k)", "column k is ambiguous before the join", "write ON"),
    ("db.c NATURAL JOIN (SELECT x FROM db.a) q", "no column has the same name on both sides", "Join ON"),
    ("db.c JOIN (SELECT CAST(k AS STRING) AS k FROM db.a) q USING (k)", "BIGINT with STRING", "CAST"),
    ("(SELECT *, PROCTIME() AS p FROM db.log) l JOIN (SELECT w, PROCTIME() AS p FROM db.log) m USING (p)", "processing time", "write ON"),
]


@pytest.mark.parametrize(("source", "what", "next_step"), REFUSED, ids=[item[0] for item in REFUSED])
def test_a_refusal_names_the_column_and_what_to_do(store: Store, source: str, what: str, next_step: str) -> None:
    session = SqlSession(store)
    session.execute(f"{TABLES}; CREATE TABLE db.s (one INT, PRIMARY KEY (one) NOT ENFORCED)")
    with pytest.raises(StatementRefused) as refused:
        session.execute(f"INSERT INTO db.s SELECT 1 FROM {source}")
    assert what in refused.value.what
    assert next_step in refused.value.next_step


def test_a_bare_name_that_one_more_table_has_is_ambiguous(store: Store) -> None:
    session = SqlSession(store)
    session.execute(f"{TABLES}; CREATE TABLE db.s (k BIGINT, PRIMARY KEY (k) NOT ENFORCED)")
    with pytest.raises(StatementRefused, match="column k is ambiguous: a, b, c have it"):
        session.execute("INSERT INTO db.s SELECT k FROM db.a JOIN db.b USING (k) JOIN db.c ON b.k = c.k")
