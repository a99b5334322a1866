"""Whole statements mean what real Flink says they mean: types, rows, and the history of each key; differences are listed with reasons.

Each VALUES of a statement becomes a log whose rows are committed one by one, the job running after each.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlglot import exp

from storage_engine import Store
from storage_engine.errors import FlashlakeError, StatementRefused
from storage_engine.stream import SqlSession, Worker, load_jobs, open_connection
from storage_engine.stream.dialect.render import render, sql
from storage_engine.stream.dialect.sqltypes import STRING, common_type
from storage_engine.stream.dialect.syntax import Flink, parse_select
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.planning.bind import Binder
from storage_engine.stream.planning.catalog import StoreCatalog
from tests.stream.comparing import differing_jobs

VECTORS = Path(__file__).parents[1] / "vectors" / "flink_semantics"
NULL = "<null>"

REFUSED = {
    "non-equi join": "no equality",  # each change would read all rows of the other side
    "RANK": "RANK is not kept",  # Flink refuses it as well
}
"""Queries that are refused here, with a part of the reason."""
ANSWERED = {
    "EXISTS correlated": [("1",)],  # a planner error there
    "GROUP BY ordinal": [("a", "1")],
}
"""Queries that Flink refuses and that have their plain meaning here."""
OTHER_FORM = {"EXPLAIN two-level MAX"}
"""The plan of another engine."""
KEYS = {
    "AVG of INT": ["c0"],
    "SUM of INT / BIGINT / DECIMAL(10,2) / FLOAT": [],
    "agg result unchanged: is an update sent?": ["c0"],
    "AVG DECIMAL(10,2), SUM DECIMAL(38,2), SUM0": [],
    "STDDEV, VAR of INT": [],
    "Top-1 with rank column": ["c1", "c3"],
    "UNION / UNION ALL / INTERSECT / EXCEPT": ["c0"],
    "DISTINCT": ["c0"],
    "HAVING": ["c0"],
}
"""Queries whose changes do not depend on the order in which Flink's sources are read, and the columns that key their result."""


def vectors(name: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / name).read_text())]


class Logs:
    """The VALUES of a statement as logs db.v0, db.v1, ... of one column per value."""

    def __init__(self, session: SqlSession, tree: exp.Expr) -> None:
        self.rows: list[tuple[str, pa.Table]] = []
        for number, values in enumerate(list(tree.find_all(exp.Values))):
            rows = [list(item.expressions) if isinstance(item, exp.Tuple) else [item] for item in values.expressions]
            alias = values.args.get("alias") or values.parent.args["alias"]  # type: ignore[union-attr]
            names = [column.name for column in alias.args["columns"]]
            bound = [[ExpressionBinder(lambda c: pytest.fail(str(c)), where="test").bind(item) for item in row] for row in rows]
            types = [common_type([row[i].type for row in bound]) for i in range(len(names))]
            nullable = [any(row[i].nullable for row in bound) for i in range(len(names))]
            for i in [i for i, kind in enumerate(types) if kind.name == "ARRAY"]:
                self._split(tree, names[i])
                types[i] = STRING
                bound = [
                    [replace(v, ast=render("array_to_string(_0, ',')", v.ast)) if n == i else v for n, v in enumerate(row)] for row in bound
                ]
            columns = ", ".join(f"`{n}` {t}{'' if null else ' NOT NULL'}" for n, t, null in zip(names, types, nullable, strict=True))
            session.execute(f"CREATE TABLE db.v{number} ({columns})")
            for row in bound:
                listed = ", ".join(f'CAST({sql(v.ast)} AS {t.duckdb}) AS "{n}"' for v, t, n in zip(row, types, names, strict=True))
                self.rows.append((f"db.v{number}", open_connection().execute(f"SELECT {listed}").to_arrow_table()))
            inner = values.parent if isinstance(values.parent, exp.From) is False and isinstance(values.parent, exp.Subquery) else values
            table = exp.to_table(f"db.v{number}")
            table.set("alias", exp.TableAlias(this=exp.to_identifier(alias.name)))
            inner.replace(table)

    @staticmethod
    def _split(tree: exp.Expr, name: str) -> None:
        """A table holds no array: the column holds the elements as text, and the statement splits it."""
        for item in [found for found in tree.find_all(exp.Column) if found.name == name]:
            item.replace(exp.Anonymous(this="SPLIT", expressions=[item.copy(), exp.Literal.string(",")]))

    def feed(self, store: Store) -> None:
        worker = Worker(store)
        for table, rows in self.rows:
            store.table(table).append(rows)
            worker.run_until_idle()


def text(value: Any) -> str:
    return NULL if value is None else str(value)


def final(changes: list[list[Any]]) -> Counter[tuple[str, ...]]:
    rows: Counter[tuple[str, ...]] = Counter()
    for kind, *values in changes:
        rows[tuple(map(text, values))] += 1 if kind in ("+I", "+U") else -1
    return +rows


def histories(changes: list[list[Any]], key: list[int]) -> dict[tuple[str, ...], list[tuple[str, ...] | None]]:
    """The states that each key goes through; None where it has no row in between."""
    found: dict[tuple[str, ...], list[tuple[str, ...] | None]] = defaultdict(list)
    for (kind, *values), after in pairwise([*changes, ["", *([None] * 9)]]):
        row = tuple(map(text, values))
        name = tuple(row[i] for i in key)
        if kind == "-U" or (kind == "-D" and after[0] == "+I" and name == tuple(text(after[i + 1]) for i in key)):
            continue
        found[name].append(row if kind in ("+I", "+U") else None)
    return found


@pytest.mark.parametrize("vector", vectors("queries.json"))
def test_a_query_gives_what_flink_gives(store: Store, vector: dict[str, Any]) -> None:
    name = vector["name"]
    if name in OTHER_FORM:
        return
    session = SqlSession(store)
    tree = parse_select(vector["sql"])
    if name in REFUSED:
        with pytest.raises(StatementRefused, match=REFUSED[name]):
            planned(store, session, tree)
        return
    logs, query = planned(store, session, tree)
    kinds = [item.type for item in query.root.fields]
    if "error" not in vector:
        for ours, flinks in zip(kinds, vector["types"], strict=True):
            flinks = flinks.replace(" NOT NULL", "")
            assert str(ours) == ("STRING" if flinks.startswith(("CHAR", "VARCHAR")) else flinks)
    names = [f"c{i}" for i in range(len(kinds))]
    inner = f"({tree.sql(dialect=Flink)})"
    columns = ", ".join(f"{column} STRING" for column in names)
    session.execute(f"CREATE TABLE db.bag ({columns}, n BIGINT, PRIMARY KEY ({', '.join(names)}) NOT ENFORCED)")
    session.execute(f"CREATE VIEW db.q ({', '.join(names)}) AS {inner[1:-1]}")
    printed = ", ".join(f"COALESCE(CAST({column} AS STRING), '{NULL}')" for column in names)
    session.execute(f"INSERT INTO db.bag SELECT {printed}, COUNT(*) FROM db.q GROUP BY {printed}")
    keyed = KEYS.get(name)
    if keyed is not None:
        declared = ", ".join(f"{column} {kind}" for column, kind in zip(names, kinds, strict=True))
        session.execute(f"CREATE TABLE db.keyed (one INT, {declared}, PRIMARY KEY ({', '.join(['one', *keyed])}) NOT ENFORCED)")
        session.execute("INSERT INTO db.keyed SELECT 1, q.* FROM db.q")

    logs.feed(store)

    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []
    got = Counter({tuple(row.values())[:-1]: row["n"] for row in store.table("db.bag").read().to_pylist()})
    assert got == (Counter(ANSWERED[name]) if name in ANSWERED else final(vector["rows"]))
    assert differing_jobs(store) == []
    if keyed is not None:
        rows = store.table("db.keyed").scan(metadata=True).read_all().to_pylist()
        ours_ = [[row["_change_type"], *(row[column] for column in names)] for row in rows]
        key = [names.index(column) for column in keyed]
        assert histories(ours_, key) == histories(vector["rows"], key)


def planned(store: Store, session: SqlSession, tree: exp.Query) -> tuple[Logs, Any]:
    logs = Logs(session, tree)
    return logs, Binder(StoreCatalog(store), default_database="db").bind(tree.sql(dialect=Flink))


SINKS_REFUSED = {
    "PK (k) != upsert key (id), materialize AUTO": "does not contain the query's key",  # two rows of the result meet in one key there
    "PK (k) != upsert key (id), materialize NONE": "does not contain the query's key",  # and a row is lost
    "changelog into a log table": "cannot take back rows",
    "INT into BIGINT / BIGINT into INT": "column k of db.s8 is INT, the value .* is BIGINT",
    "first_row engine, updating query": "cannot take back rows",  # the first value of a total says nothing
    "INSERT OVERWRITE": "INSERT OVERWRITE is not supported",
}
SINKS_ANSWERED = {"CHAR(3) sink, TRIM_PAD": [("1", "abcd"), ("2", "a")]}
"""Lengths of CHAR and VARCHAR are not kept: text is text."""


@pytest.mark.parametrize("vector", vectors("sinks.json"))
def test_a_table_holds_what_flink_leaves_in_it(store: Store, vector: dict[str, Any]) -> None:
    session = SqlSession(store)
    name = vector["name"]
    table = f"db.{vector['ddl'].split()[2]}"
    session.execute(f"USE db; {vector['ddl']}")
    if name in SINKS_REFUSED:
        with pytest.raises(FlashlakeError, match=SINKS_REFUSED[name]):
            run(store, session, vector["sql"])
        return
    run(store, session, vector["sql"])
    errors = [job.last_error for job in load_jobs(store).values() if job.last_error]
    if "error" in vector and name not in SINKS_ANSWERED:
        assert errors
        return
    assert errors == []
    wanted = SINKS_ANSWERED.get(name) or [tuple(row) for row in vector["result"]["rows"]]
    assert sorted(tuple(map(str, row.values())) for row in store.table(table).read().to_pylist()) == sorted(wanted)


def run(store: Store, session: SqlSession, statements: str) -> None:
    for statement in statements.split(";"):
        target, _, select = statement.partition(" SELECT ")
        if not select:
            session.execute(statement)
            continue
        tree = parse_select(f"SELECT {select}")
        logs = Logs(session, tree)
        session.execute(f"{target} {tree.sql(dialect=Flink)}")
        logs.feed(store)
