"""Casts: CAST and TRY_CAST with Flink's meaning, as DuckDB computes them."""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, column, paren, render, string
from storage_engine.stream.dialect.sqltypes import SqlType
from storage_engine.stream.functions.builtins import Value


def cast_tree(value: Value, target: SqlType, written: str) -> exp.Expr:
    """CAST with Flink's meaning: numbers are cut towards zero, text is trimmed, times print their declared fraction."""
    source = value.type
    if target.is_integer and source == types.STRING:
        return cast(render("trunc(CAST(trim(_0) AS DECIMAL(38, 10)))", value.ast), target.duckdb)
    if target.is_integer and (source.is_approximate or source.name == "DECIMAL"):
        return cast(render("trunc(_0)", value.ast), target.duckdb)
    if target == types.STRING:
        return _cast_to_text(value, written)
    if source == target:
        return value.ast
    if target.is_timestamp and (source == types.STRING or is_cut(source, target)):
        return as_precise(value.ast, target)
    return cast(value.ast, target.duckdb)


def is_cut(source: SqlType, target: SqlType) -> bool:
    """Whether a time loses digits of its fraction."""
    return source.is_timestamp and target.is_timestamp and (source.precision or 0) > (target.precision or 0)


def as_precise(ast: exp.Expr, target: SqlType) -> exp.Expr:
    """A time with the fraction that its type has: what is finer is cut off (DuckDB would round)."""
    unit = {0: "second", 3: "milliseconds"}.get(target.precision if target.precision is not None else 6)
    if unit is None:
        return cast(ast, target.duckdb)
    return cast(render(f"date_trunc('{unit}', _0)", cast(ast, "TIMESTAMPTZ" if "LTZ" in target.name else "TIMESTAMP")), target.duckdb)


def try_cast_tree(value: Value, target: SqlType, written: str) -> exp.Expr:
    """TRY_CAST: every cast on the way gives NULL instead of an error."""
    made = cast_tree(Value(column("_0"), value.type), target, written)
    for item in list(made.find_all(exp.Cast)):
        if type(item) is exp.Cast and item.parent is not None:
            item.replace(exp.TryCast(this=item.this, to=item.args["to"]))
    tried = exp.TryCast(this=made.this, to=made.args["to"]) if type(made) is exp.Cast else made
    return tried.transform(lambda item: paren(value.ast.copy()) if isinstance(item, exp.Column) and item.name == "_0" else item)


def _cast_to_text(value: Value, written: str) -> exp.Expr:
    source = value.type
    if source == types.BOOLEAN:
        made = render("upper(CAST(_0 AS TEXT))", value.ast)
    elif source.is_timestamp and (source.precision or 0) > 0:
        pattern = "%Y-%m-%d %H:%M:%S." + ("%g" if (source.precision or 0) <= 3 else "%f")
        made = render("strftime(_0, _1)", value.ast, string(pattern))
    elif source == types.BYTES:
        made = render("decode(_0)", value.ast)
    else:
        made = value.ast if source == types.STRING else cast(value.ast, "TEXT")
    upper = written.upper()
    if upper.startswith(("CHAR(", "VARCHAR(")):
        length = upper[upper.index("(") + 1 : upper.index(")")]
        made = render(f"SUBSTRING(_0, 1, {length})" if upper.startswith("VARCHAR") else f"rpad(_0, {length}, ' ')", made)
    return made
