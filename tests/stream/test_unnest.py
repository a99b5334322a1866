"""UNNEST: a row once per element of its array or map, in streams, batch and queries, as Flink has it.

Source of the answers: Flink 2.2 docs "Array, Multiset and Map Expansion", UnnestRowsFunction, BridgingFunctionGenUtil (a NULL row is none).
"""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

import pytest

from query_engine import QueryEngine
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.stream.comparing import Rows, differing_jobs, query_rows, rows_of, sink_rows

TABLES = """CREATE TABLE db.log (id BIGINT, tags STRING, n INT);
CREATE TABLE db.pk (id BIGINT NOT NULL, tags STRING, n INT, PRIMARY KEY (id) NOT ENFORCED)"""
ROWS: list[dict[str, Any]] = [{"id": 1, "tags": "b,a,b", "n": 1}, {"id": 2, "tags": None, "n": 2}, {"id": 3, "tags": "c=1,d,c=2", "n": 3}]
SPLIT = "SPLIT(tags, ',')"
EMPTY = f"ARRAY_REMOVE(ARRAY_REMOVE({SPLIT}, 'a'), 'b')"

ANSWERS: dict[str, tuple[str, str, Rows]] = {
    "CROSS JOIN: no row for NULL": (
        "id BIGINT, t STRING",
        f"SELECT id, t FROM db.log CROSS JOIN UNNEST({SPLIT}) AS u(t)",
        [(1, "a"), (1, "b"), (1, "b"), (3, "c=1"), (3, "c=2"), (3, "d")],
    ),
    "a comma, and no row for an empty array": (
        "id BIGINT, t STRING",
        f"SELECT id, t FROM db.log, UNNEST({EMPTY}) AS u(t)",
        [(3, "c=1"), (3, "c=2"), (3, "d")],
    ),
    "LEFT JOIN keeps rows without elements": (
        "id BIGINT, t STRING, place INT",
        f"SELECT id, t, place FROM db.log LEFT JOIN UNNEST({EMPTY}) WITH ORDINALITY AS u(t, place) ON TRUE",
        [(1, None, None), (2, None, None), (3, "c=1", 1), (3, "c=2", 3), (3, "d", 2)],
    ),
    "WITH ORDINALITY counts from 1, and a NULL among elements is one": (
        "id BIGINT, t INT, place INT",
        "SELECT id, t, place FROM db.log CROSS JOIN UNNEST(ARRAY[n, NULL, n + 1]) WITH ORDINALITY AS u(t, place) WHERE id < 3",
        [(1, 1, 1), (1, 2, 3), (1, None, 2), (2, 2, 1), (2, 3, 3), (2, None, 2)],
    ),
    "a condition of an inner join is a filter": (
        "id BIGINT, t INT",
        "SELECT id, t FROM db.log JOIN UNNEST(ARRAY[n, n * 10]) AS u(t) ON t > 2",
        [(1, 10), (2, 20), (3, 3), (3, 30)],
    ),
    "fields of rows are columns, and a NULL row is none": (
        "id BIGINT, a INT, b STRING",
        "SELECT id, u.* FROM db.log CROSS JOIN UNNEST(ARRAY[ROW(n, tags), CASE WHEN n > 2 THEN ROW(n + 1, 'x') END]) AS u(a, b)",
        [(1, 1, "b,a,b"), (2, 2, None), (3, 3, "c=1,d,c=2"), (3, 4, "x")],
    ),
    "numbered, a NULL row has its number": (
        "id BIGINT, a INT, place INT",
        "SELECT id, a, place FROM db.log CROSS JOIN UNNEST(ARRAY[CASE WHEN n > 2 THEN ROW(n) END, ROW(0)]) WITH ORDINALITY AS u(a, place)",
        [(1, 0, 2), (1, None, 1), (2, 0, 2), (2, None, 1), (3, 0, 2), (3, 3, 1)],
    ),
    "a map gives key and value": (
        "id BIGINT, k STRING, v STRING",
        "SELECT id, k, v FROM db.log CROSS JOIN UNNEST(STR_TO_MAP(tags)) AS u(k, v)",
        [(1, "a", None), (1, "b", None), (3, "c", "2"), (3, "d", None)],
    ),
    "names of its own": (
        "id BIGINT, k STRING, v INT, place INT, one INT",
        "SELECT id, KEY, `VALUE`, ORDINALITY, tag FROM db.log CROSS JOIN UNNEST(MAP['x', n]) WITH ORDINALITY "
        "CROSS JOIN UNNEST(ARRAY[7]) AS tag",
        [(1, "x", 1, 1, 7), (2, "x", 2, 1, 7), (3, "x", 3, 1, 7)],
    ),
    "one behind another": (
        "id BIGINT, t STRING, c STRING",
        f"SELECT id, t, c FROM db.log CROSS JOIN UNNEST({SPLIT}) AS u(t) CROSS JOIN UNNEST(SPLIT(u.t, '=')) AS w(c) WHERE t <> 'b'",
        [(1, "a", "a"), (3, "c=1", "1"), (3, "c=1", "c"), (3, "c=2", "2"), (3, "c=2", "c"), (3, "d", "d")],
    ),
    "an array column of a subquery": (
        "id BIGINT, t STRING",
        f"SELECT id, t FROM (SELECT id, {SPLIT} AS arr FROM db.log WHERE id > 1) x CROSS JOIN UNNEST(x.arr) AS u(t)",
        [(3, "c=1"), (3, "c=2"), (3, "d")],
    ),
    "SELECT * has the elements last": (
        "id BIGINT, tags STRING, n INT, t STRING, place INT",
        "SELECT * FROM db.log CROSS JOIN UNNEST(ARRAY['x']) WITH ORDINALITY AS u(t, place) WHERE id = 1",
        [(1, "b,a,b", 1, "x", 1)],
    ),
    "several rows of one under one key: the last element stays": (
        "id BIGINT, t STRING, PRIMARY KEY (id) NOT ENFORCED",
        f"SELECT id, t FROM db.log CROSS JOIN UNNEST({SPLIT}) AS u(t)",
        [(1, "b"), (3, "c=2")],
    ),
    "groups of elements": (
        "t STRING, n BIGINT, ids BIGINT, PRIMARY KEY (t) NOT ENFORCED",
        f"SELECT t, COUNT(*), COUNT(DISTINCT id) FROM db.log CROSS JOIN UNNEST({SPLIT}) AS u(t) GROUP BY t",
        [("a", 1, 1), ("b", 2, 1), ("c=1", 1, 1), ("c=2", 1, 1), ("d", 1, 1)],
    ),
}


def test_stream_batch_and_query_give_what_flink_gives(store: Store, tmp_path: Path) -> None:
    session = SqlSession(store)
    session.execute(TABLES)
    for i, (ddl, select, _) in enumerate(ANSWERS.values()):
        session.execute(f"CREATE TABLE db.s{i} ({ddl}); SET 'pipeline.name' = 'job{i}'; INSERT INTO db.s{i} {select}")
    worker = Worker(store)
    for row in ROWS:
        store.table("db.log").append([row])
        worker.run_until_idle()
    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
    engine = QueryEngine(store, tmp_path / "lake")
    for i, (case, (_, select, expected)) in enumerate(ANSWERS.items()):
        assert sink_rows(store, f"db.s{i}") == sorted(expected, key=repr), case
        if "under one key" not in case:  # a query has no sink
            assert rows_of(engine.query(select)) == sorted(expected, key=repr), case
    assert differing_jobs(store) == []
    engine.close()


def test_a_row_that_is_taken_back_takes_back_the_rows_made_of_it(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        f"""{TABLES};
        CREATE TABLE db.places (id BIGINT, place INT, t STRING, PRIMARY KEY (id, place) NOT ENFORCED);
        CREATE TABLE db.entries (id BIGINT, k STRING, v STRING, PRIMARY KEY (id, k) NOT ENFORCED);
        CREATE TABLE db.counts (t STRING, n BIGINT, high INT, PRIMARY KEY (t) NOT ENFORCED);
        INSERT INTO db.places SELECT id, place, t FROM db.pk CROSS JOIN UNNEST({SPLIT}) WITH ORDINALITY AS u(t, place);
        INSERT INTO db.entries SELECT id, k, v FROM db.pk CROSS JOIN UNNEST(STR_TO_MAP(tags)) AS u(k, v);
        INSERT INTO db.counts SELECT t, COUNT(*), MAX(n) FROM db.pk CROSS JOIN UNNEST({SPLIT}) AS u(t) GROUP BY t"""
    )
    worker, table = Worker(store), store.table("db.pk")
    table.upsert(ROWS)
    worker.run_until_idle()
    table.upsert([{"id": 1, "tags": "b", "n": 5}, {"id": 2, "tags": "d,a", "n": 2}])
    table.delete({"id": [3]})
    worker.run_until_idle()
    assert sink_rows(store, "db.places") == [(1, 1, "b"), (2, 1, "d"), (2, 2, "a")]
    assert sink_rows(store, "db.entries") == [(1, "b", None), (2, "a", None), (2, "d", None)]
    assert sink_rows(store, "db.counts") == [("a", 1, 2), ("b", 1, 5), ("d", 1, 2)]
    assert differing_jobs(store) == []
    changes = store.table("db.places").scan(metadata=True).read_all().to_pylist()
    assert [(row["_change_type"], row["id"], row["place"], row["t"]) for row in changes if row["id"] == 1 and row["place"] > 1] == [
        ("+I", 1, 2, "a"), ("+I", 1, 3, "b"), ("-D", 1, 2, "a"), ("-D", 1, 3, "b"),
    ]  # fmt: skip


ELEMENTS = "unnest(string_split(tags, ','))"
TWINS = {  # sink, statement over db.{source}, the same for DuckDB over `rows`
    "elements": (
        "id BIGINT, t STRING, n BIGINT, PRIMARY KEY (id, t) NOT ENFORCED",
        f"SELECT id, t, COUNT(*) FROM db.{{0}} CROSS JOIN UNNEST({SPLIT}) AS u(t) GROUP BY id, t",
        f"SELECT id, t, count(*) FROM (SELECT id, {ELEMENTS} AS t FROM rows) GROUP BY ALL",
    ),
    "left, numbered": (
        "t STRING, place INT, n BIGINT, low INT, PRIMARY KEY (t, place) NOT ENFORCED",
        f"SELECT COALESCE(t, '-'), COALESCE(place, 0), COUNT(*), MIN(n) FROM db.{{0}} "
        f"LEFT JOIN UNNEST({SPLIT}) WITH ORDINALITY AS u(t, place) ON TRUE GROUP BY COALESCE(t, '-'), COALESCE(place, 0)",
        "SELECT coalesce(t, '-'), coalesce(place, 0)::INT, count(*), min(n) FROM "
        "(SELECT n, unnest(coalesce(string_split(tags, ','), [NULL])) AS t, "
        "unnest(coalesce(range(1, len(string_split(tags, ',')) + 1), [NULL])) AS place FROM rows) GROUP BY 1, 2",
    ),
    "joined with a table by element": (
        "id BIGINT, t STRING, size INT, PRIMARY KEY (id, t, size) NOT ENFORCED",
        f"SELECT DISTINCT id, t, size FROM db.{{0}} CROSS JOIN UNNEST({SPLIT}) AS u(t) JOIN db.names ON names.name = u.t",
        f"SELECT DISTINCT id, t, size FROM (SELECT id, {ELEMENTS} AS t FROM rows) JOIN names ON name = t",
    ),
    "the first elements of each row": (
        "id BIGINT, rn BIGINT, t STRING, PRIMARY KEY (id, rn) NOT ENFORCED",
        "SELECT id, rn, t FROM (SELECT id, t, ROW_NUMBER() OVER (PARTITION BY id ORDER BY t) AS rn FROM "
        f"db.{{0}} CROSS JOIN UNNEST({SPLIT}) AS u(t)) WHERE rn <= 2",
        f"SELECT id, row_number() OVER (PARTITION BY id ORDER BY t) AS rn, t FROM (SELECT id, {ELEMENTS} AS t FROM rows) QUALIFY rn <= 2",
    ),
    "two branches": (
        "t STRING, n BIGINT, PRIMARY KEY (t) NOT ENFORCED",
        f"SELECT t, COUNT(*) FROM (SELECT t FROM db.{{0}} CROSS JOIN UNNEST({SPLIT}) AS u(t) UNION ALL "
        "SELECT CAST(n AS STRING) FROM db.{0} WHERE n IS NOT NULL) GROUP BY t",
        f"SELECT t, count(*) FROM (SELECT {ELEMENTS} AS t FROM rows UNION ALL SELECT n::VARCHAR FROM rows WHERE n IS NOT NULL) GROUP BY t",
    ),
    "rows with a tag": (
        "id BIGINT, n INT, PRIMARY KEY (id) NOT ENFORCED",
        f"SELECT id, n FROM db.{{0}} l WHERE EXISTS (SELECT 1 FROM db.{{0}} r CROSS JOIN UNNEST({SPLIT}) AS u(t) "
        "WHERE r.id = l.id AND t = 'a')",
        "SELECT id, n FROM rows WHERE id IN (SELECT id FROM rows WHERE list_contains(string_split(tags, ','), 'a'))",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "seed"), [("log", 0), ("pk", 1)])
def test_however_the_input_is_cut_the_result_is_that_of_one_query(store: Store, source: str, seed: int) -> None:
    rng = random.Random(seed)
    session = SqlSession(store)
    session.execute(f"{TABLES}; CREATE TABLE db.names (name STRING, size INT, PRIMARY KEY (name) NOT ENFORCED)")
    cases = {name: case for name, case in TWINS.items() if source == "pk" or "(id)" not in case[0]}
    for i, (ddl, select, _) in enumerate(cases.values()):
        session.execute(f"CREATE TABLE db.s{i} ({ddl}); SET 'pipeline.name' = 'job{i}'; INSERT INTO db.s{i} {select.format(source)}")
    rows: list[dict[str, Any]] = []
    names: dict[str, dict[str, Any]] = {}
    worker = Worker(store, n_rows_max=rng.choice([3, 1000]))
    for _ in range(6):
        new = {
            number: {
                "id": number,
                "tags": rng.choice([None, "", ",".join(rng.choices("abcd", k=rng.randrange(1, 5)))]),
                "n": rng.choice([None, 1, 2]),
            }
            for number in rng.sample(range(8), rng.randrange(1, 5))
        }
        if source == "log":
            store.table("db.log").append(list(new.values()))
            rows += new.values()
        else:
            store.table("db.pk").upsert(list(new.values()))
            gone = rng.sample(range(8), 2) if rng.random() < 0.4 else []
            if gone:
                store.table("db.pk").delete({"id": gone})
            rows = [*(row for row in rows if row["id"] not in new), *new.values()]
            rows = [row for row in rows if row["id"] not in gone]
        name = rng.choice("abc")
        names[name] = {"name": name, "size": rng.randrange(3)}
        store.table("db.names").upsert([names[name]])
        if rng.random() < 0.7:
            worker.run_until_idle()
    worker.run_until_idle()
    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
    for i, (name, (_, _, twin)) in enumerate(cases.items()):
        assert sink_rows(store, f"db.s{i}") == query_rows(twin, rows=rows, names=list(names.values())), name
    assert differing_jobs(store) == []


REFUSED = [
    ("CROSS JOIN UNNEST(tags) AS u(t)", "its argument is STRING, no array or map", "SPLIT"),
    (f"CROSS JOIN UNNEST({SPLIT}) AS u(t, x)", "u names 2 columns, UNNEST(SPLIT(tags, ',')) has 1", "as many"),
    (f"CROSS JOIN UNNEST({SPLIT}) WITH ORDINALITY AS u(t)", "u names 1 columns, UNNEST(SPLIT(tags, ',')) WITH ORDINALITY has 2", "as many"),
    (f"CROSS JOIN UNNEST({SPLIT}, {SPLIT}) AS u(t, x)", "takes one array or map", "one UNNEST for each"),
    (f"RIGHT JOIN UNNEST({SPLIT}) AS u(t) ON TRUE", "RIGHT JOIN with UNNEST", "LEFT JOIN"),
    (f"FULL JOIN UNNEST({SPLIT}) AS u(t) ON TRUE", "FULL JOIN with UNNEST", "LEFT JOIN"),
    (f"LEFT JOIN UNNEST({SPLIT}) AS u(t)", "has no ON", "ON TRUE"),
    (f"LEFT JOIN UNNEST({SPLIT}) AS u(t) ON t = 'a'", "takes ON TRUE only", "Filter"),
    (f"NATURAL JOIN UNNEST({SPLIT}) AS u(t)", "no columns in common", "NATURAL"),
    (f"CROSS JOIN UNNEST({SPLIT}) AS u(t) CROSS JOIN UNNEST({SPLIT}) AS u(t)", "alias u is used twice", "own alias"),
]  # fmt: skip


@pytest.mark.parametrize(("join", "what", "next_step"), REFUSED, ids=[item[0] for item in REFUSED])
def test_a_refusal_names_clause_reason_and_what_to_do(store: Store, join: str, what: str, next_step: str) -> None:
    session = SqlSession(store)
    session.execute(f"{TABLES}; CREATE TABLE db.s (id BIGINT, t STRING)")
    with pytest.raises(StatementRefused) as refused:
        session.execute(f"INSERT INTO db.s SELECT id, 'x' FROM db.log {join}")
    assert what in refused.value.what
    assert next_step in refused.value.next_step


def test_what_has_no_stream_or_no_key_and_what_would_be_kept_is_refused(store: Store) -> None:
    session = SqlSession(store)
    session.execute(f"{TABLES}; CREATE TABLE db.s (id BIGINT, t STRING, PRIMARY KEY (id, t) NOT ENFORCED); CREATE TABLE db.t (t INT)")
    with pytest.raises(StatementRefused, match="stands first in FROM"):
        session.execute("INSERT INTO db.t SELECT t FROM UNNEST(ARRAY[1, 2]) AS u(t)")
    with pytest.raises(StatementRefused, match="UNNEST makes several rows of one: WITH ORDINALITY tells them apart"):
        session.execute(f"INSERT INTO db.s SELECT id, t FROM db.pk CROSS JOIN UNNEST({SPLIT}) AS u(t)")
    with pytest.raises(StatementRefused, match=r"x.arr, which is ARRAY<STRING>, would have to be kept"):
        session.execute(
            f"INSERT INTO db.s SELECT DISTINCT x.id, t FROM (SELECT id, n, {SPLIT} AS arr FROM db.log) x JOIN db.log y ON x.n = y.n "
            "CROSS JOIN UNNEST(x.arr) AS u(t)"
        )
    assert load_jobs(store) == {}


def test_a_filter_on_the_row_is_tested_once_and_not_per_element(store: Store) -> None:
    session = SqlSession(store)
    session.execute(f"{TABLES}; CREATE TABLE db.s (id BIGINT, t STRING)")
    plan = session.execute(f"EXPLAIN INSERT INTO db.s SELECT id, t FROM db.log CROSS JOIN UNNEST({SPLIT}) AS u(t) WHERE n > 1 AND t <> 'a'")
    shown = [line.strip() for line in plan[0].rows["plan"].to_pylist()]
    unnest = next(i for i, line in enumerate(shown) if line.startswith("Unnest inner STR_SPLIT"))
    assert '"u.t" <> ' in shown[unnest - 1]
    assert shown[unnest + 1].endswith('where "log.n" > 1 [append-only]')


def at(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(second, dt.UTC).replace(tzinfo=None)


def test_windows_over_elements_are_sent_once_by_the_rows_watermark(store: Store) -> None:
    """Each element has its row's time and watermark; a late row is counted once, however many elements it has."""
    session = SqlSession(store)
    session.execute(
        """CREATE TABLE db.clicks (tags STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '0' SECOND);
        CREATE TABLE db.s (t STRING, ends TIMESTAMP(3), n BIGINT);
        CREATE VIEW db.elements AS SELECT t, ts FROM db.clicks CROSS JOIN UNNEST(SPLIT(tags, ',')) AS u(t);
        SET 'pipeline.name' = 'job';
        INSERT INTO db.s SELECT t, window_end, COUNT(*) FROM TABLE(TUMBLE(TABLE db.elements, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
        GROUP BY t, window_start, window_end"""
    )
    worker = Worker(store)
    for tags, second in (("a,b", 10), ("a,a", 50), ("b", 70), ("a,b,c", 20), ("c", 130)):
        store.table("db.clicks").append([{"tags": tags, "ts": at(second)}])
        worker.run_until_idle()
    assert sink_rows(store, "db.s") == [("a", at(60), 3), ("b", at(60), 1), ("b", at(120), 1)]
    assert store.progress("job:job")["job:job"].detail["n_late_rows"] == 1
    assert differing_jobs(store) == []
