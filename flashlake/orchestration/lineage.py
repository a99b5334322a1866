"""Lineage: which tables a SELECT reads, and which of their columns each output column comes from.

Never: decides whether a statement can run; that is the stream planner's part. What cannot be resolved has no lineage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.scope import Scope, build_scope

from storage_engine.errors import StatementRefused


class ColumnSource(NamedTuple):
    """A column of a table, as "database.table" and column name."""

    table: str
    column: str


def tables_read(select_sql: str) -> list[str]:
    """Tables a SELECT reads, in order of appearance, each once; common table expressions are not tables.

    >>> tables_read("SELECT a FROM ods.t AS x LEFT JOIN ods.p FOR SYSTEM_TIME AS OF PROCTIME() AS p ON x.i = p.i")
    ['ods.t', 'ods.p']
    """
    tree = _parse(select_sql)
    common = {cte.alias for cte in tree.find_all(exp.CTE)}
    tables = sorted(tree.find_all(exp.Table), key=lambda table: table.this.meta.get("start", 0))
    names = (_table_name(table) for table in tables)
    return list(dict.fromkeys(name for name in names if name not in common))


def column_sources(select_sql: str, schemas: Mapping[str, Mapping[str, str]]) -> dict[str, list[ColumnSource]]:
    """For each output column, in order, the table columns it is computed from (its value, not its filters or joins).

    schemas  table -> column -> type: resolves names without a qualifier.
    """
    tree = _parse(select_sql)
    scope = build_scope(tree)
    if scope is None:
        return {}
    outputs: dict[str, list[ColumnSource]] = {}
    for position, projection in enumerate(_query(scope).selects):
        found = list(dict.fromkeys(_sources(projection, scope, schemas)))
        outputs[projection.alias_or_name or f"_{position}"] = found
    return outputs


def _sources(expression: exp.Expr, scope: Scope, schemas: Mapping[str, Mapping[str, str]]) -> Iterator[ColumnSource]:
    for column in expression.find_all(exp.Column):
        for alias, source in scope.sources.items():
            if column.table and column.table != alias:
                continue
            if isinstance(source, Scope):
                inner = next((item for item in _query(source).selects if item.alias_or_name == column.name), None)
                if inner is not None:
                    yield from _sources(inner, source, schemas)
                    break
            else:
                table = _table_name(source)
                if column.table or column.name in schemas.get(table, {}):
                    yield ColumnSource(table, column.name)
                    break


def _query(scope: Scope) -> exp.Query:
    assert isinstance(scope.expression, exp.Query), "a scope belongs to a query"
    return scope.expression


def _table_name(table: exp.Table) -> str:
    return f"{table.db}.{table.name}" if table.db else table.name


def _parse(select_sql: str) -> exp.Query:
    try:
        tree = sqlglot.parse_one(_without_backquotes(select_sql))
    except SqlglotError as error:
        first = str(error).splitlines()[0]
        raise StatementRefused(
            f"the SELECT cannot be parsed: {first}", where=f"SELECT ... {select_sql.strip()[:40]!r}", next_step="Correct the statement."
        ) from error
    if not isinstance(tree, exp.Query):
        raise StatementRefused(
            "a table is filled by a SELECT", where=f"{select_sql.strip()[:40]!r}", next_step="Write INSERT INTO ... SELECT ..."
        )
    return tree


def _without_backquotes(sql: str) -> str:
    """Backquoted names as double-quoted ones, which the default dialect reads; text between single quotes stays."""
    parts = sql.split("'")
    return "'".join(part.replace("`", '"') if position % 2 == 0 else part for position, part in enumerate(parts))
