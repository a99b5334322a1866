"""Unnest: UNNEST of an array or a map in FROM, with Flink's columns, as a subquery that DuckDB evaluates for each row before it."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp, parse_one

from storage_engine.stream.dialect.render import sql
from storage_engine.stream.dialect.sqltypes import SqlType
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.unnesting import ORDINALITY, elements_of, named, selected, written


def unnested(node: exp.Unnest, bind: Callable[[exp.Expr], Value]) -> tuple[exp.Expr, str, dict[str, SqlType]]:
    """What stands in its place, its alias, and its columns; an argument that only DuckDB knows goes through unchanged.

    Errors: StatementRefused for an argument that is neither an array nor a map.
    """
    of = written(node, "query")
    value = bind(of.argument)
    if not value.type.is_known:
        made = node.copy()
        made.set("expressions", [value.ast])
        return made, of.alias, {}
    elements = elements_of(value, of, "query")
    columns = named(elements, of, "query")
    parts = [(_quoted(name), part) for name, part, _ in columns if part != ORDINALITY]
    number = next((_quoted(name) for name, part, _ in columns if part == ORDINALITY), None)
    body = selected("__elements", parts, [], f"SELECT {sql(elements.array)} AS __elements", ordinal=number, is_outer=False)
    alias = of.alias or "$unnest"
    subquery = parse_one(f"SELECT * FROM ({body}) AS {_quoted(alias)}", dialect="duckdb").find(exp.Subquery)
    assert subquery is not None, "FROM has one subquery"
    return subquery, alias, {name: of_type for name, _, of_type in columns}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
