"""Unnesting: the elements that UNNEST makes rows of: of an array each element, of a map each entry.

An element that is a ROW gives one column for each of its fields; an entry gives key and value. As in Flink a NULL among elements that are
rows makes no row, unless WITH ORDINALITY numbers them; a NULL among other elements is a row with NULL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.render import cast, render
from storage_engine.stream.dialect.sqltypes import INT, SqlType, array_of, row_of
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import Value

ORDINALITY = "ORDINALITY"
ONE = "EXPR$0"


@dataclass(frozen=True)
class Elements:
    """What UNNEST gives: the array, the columns of an element as (name, part, type), and the column that tells entries of a map apart."""

    array: exp.Expr
    columns: tuple[tuple[str, str, SqlType], ...]
    key: str | None = None


@dataclass(frozen=True)
class Written:
    """UNNEST as a statement writes it: its argument, its alias, the names that it gives its columns, and whether it numbers elements."""

    argument: exp.Expr
    alias: str
    names: tuple[str, ...]
    is_numbered: bool
    what: str


def written(node: exp.Unnest, where: str) -> Written:
    """Errors: StatementRefused for several arrays side by side, which Flink does not know either."""
    offset, alias = node.args.get("offset"), node.args.get("alias")
    shown = node.copy()
    shown.set("alias", None)
    what = text_of(shown)
    if len(node.expressions) != 1:
        raise StatementRefused(f"{what} takes one array or map", where=where, next_step="Write one UNNEST for each.")
    columns = [item.name for item in (alias.args.get("columns") or ())] if alias is not None else []
    columns += [offset.name] if isinstance(offset, exp.Identifier) else []
    return Written(node.expressions[0], alias.name if alias is not None else "", tuple(columns), bool(offset), what)


def elements_of(value: Value, of: Written, where: str) -> Elements:
    """The elements of the argument, bound. Errors: StatementRefused for what is neither an array nor a map."""
    kind = value.type
    if kind.name == "MAP":
        (_, key), (_, held) = kind.parts
        entry = row_of([("key", key), ("value", held)])
        return Elements(_typed(render("map_entries(_0)", value.ast), entry), (("KEY", "key", key), ("VALUE", "value", held)), "key")
    if kind.name != "ARRAY":
        raise StatementRefused(
            f"{of.what}: its argument is {kind}, no array or map", where=where, next_step="Write UNNEST(SPLIT(text, ',')), or ARRAY[...]."
        )
    element = kind.parts[0][1]
    if element.name != "ROW":
        return Elements(value.ast, ((of.alias or ONE, "", element),))
    rows = _typed(value.ast, element)
    kept = rows if of.is_numbered else render("list_filter(_0, _e -> _e IS NOT NULL)", rows)
    return Elements(kept, tuple((label, label, held) for label, held in element.parts))


def _typed(array: exp.Expr, element: SqlType) -> exp.Expr:
    """The array with elements whose parts have the names that the type says."""
    return cast(array, array_of(element).duckdb)


def named(elements: Elements, of: Written, where: str) -> list[tuple[str, str, SqlType]]:
    """The columns under the names that the statement gives them, the number of an element last (with part ORDINALITY)."""
    columns = [*elements.columns, *([(ORDINALITY, ORDINALITY, INT)] if of.is_numbered else [])]
    if not of.names:
        return columns
    if len(of.names) != len(columns):
        what = f"{of.alias} names {len(of.names)} columns, {of.what} has {len(columns)}"
        raise StatementRefused(what, where=where, next_step="Name as many.")
    return [(name, part, kind) for name, (_, part, kind) in zip(of.names, columns, strict=True)]


def selected(array: str, parts: Sequence[tuple[str, str]], rest: Sequence[str], body: str, *, ordinal: str | None, is_outer: bool) -> str:
    """DuckDB's SELECT of the columns `rest` of `body`, the parts (name, part) of each element of its column `array`, and its number.

    Elements come in their order, behind one another; unnest() of several lists puts their elements side by side.
    """
    some = f"CASE WHEN len({array}) > 0 THEN {array} ELSE [NULL] END" if is_outer else array
    numbers = f"generate_subscripts({array}, 1)"
    if is_outer:
        numbers = f"unnest(CASE WHEN len({array}) > 0 THEN range(1, len({array}) + 1) ELSE [NULL] END)"
    inner = [*rest, f"unnest({some}) AS __element", *([f"{numbers} AS __number"] if ordinal is not None else [])]
    listed = [*rest, *(f"{_part(part)} AS {name}" for name, part in parts)]
    listed += [f"CAST(__number AS INT) AS {ordinal}"] if ordinal is not None else []
    return f"SELECT {', '.join(listed)} FROM (SELECT {', '.join(inner)} FROM ({body}))"


def _part(part: str) -> str:
    return '__element."' + part.replace('"', '""') + '"' if part else "__element"
