"""Merged columns: `SELECT *` over JOIN ... USING and NATURAL JOIN in the order that Flink has: the merged columns first, each once.

DuckDB leaves them at the left table's place. What a merged column's bare name means, both have alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.sqltypes import SqlType


def expanded(items: Sequence[exp.Expr], joins: Sequence[exp.Join], sources: Sequence[tuple[str, Mapping[str, SqlType]]]) -> list[exp.Expr]:
    """The items of SELECT, with `*` as the columns that it means where a join merges columns. `sources`: those of FROM, in order.

    Errors: StatementRefused where a relation's columns are not known.
    """
    if not any(join.args.get("using") or _is_natural(join) for join in joins) or not any(isinstance(item, exp.Star) for item in items):
        return list(items)
    if not all(columns for _, columns in sources):
        raise StatementRefused("SELECT * over USING or NATURAL JOIN of a relation whose columns are not known", where="query",
                               next_step="Name the columns.")  # fmt: skip
    shown = [(alias, name) for alias, name in _of(sources[0])]
    for join, source in zip(joins, sources[1:], strict=True):
        right = _of(source)
        behind = {name for _, name in right}
        using = join.args.get("using")
        names = [item.name for item in using] if using else []
        if _is_natural(join):
            names = [name for _, name in shown if name in behind]
        merged = [("", name) for name in dict.fromkeys(names)]
        shown = [*merged, *(item for item in [*shown, *right] if item[1] not in names)]
    listed = [_column(alias, name) for alias, name in shown]
    return [part for item in items for part in (listed if isinstance(item, exp.Star) else [item])]


def _is_natural(join: exp.Join) -> bool:
    return str(join.args.get("method") or "").upper() == "NATURAL"


def _of(source: tuple[str, Mapping[str, SqlType]]) -> list[tuple[str, str]]:
    alias, columns = source
    return [(alias, name) for name in columns]


def _column(alias: str, name: str) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(alias, quoted=True) if alias else None)
