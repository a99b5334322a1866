"""Pushdown: the part of a query's condition that the store may check instead of DuckDB, because both mean the same by it.

Pure. Owner: query_engine and the union read, which filter again themselves.
Holds: rows that the part does not keep are not kept by the whole condition in DuckDB either. Left out are columns of FLOAT and
       DOUBLE (DuckDB orders NaN above all numbers, Arrow nowhere), of instants and bytes, and LIKE but for a plain prefix.
"""

from __future__ import annotations

import pyarrow as pa
from sqlglot import exp
from sqlglot.expressions.core import Expr

from storage_engine.errors import StatementRefused
from storage_engine.schema.predicate import parse_predicate, parsed, shallow, unwrapped

_CONNECTIVES = (exp.And, exp.Or, exp.Not, exp.Paren)
_LEAVES = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.In, exp.Between, exp.Is, exp.Like)


def pushable(where: str | None, schema: pa.Schema) -> str | None:
    """Those of the parts joined by AND that the store may check, as a condition over `schema`; None when there is none.

    >>> pushable("a = 1 AND lower(b) = 'x' AND a < 9", pa.schema([("a", pa.int64()), ("b", pa.string())]))
    '"a" = 1 AND "a" < 9'
    >>> pushable("f > 1", pa.schema([("f", pa.float64())])) is None
    True
    """
    if not where:
        return None
    try:
        tree = parsed(where)
        with shallow():
            parts = [_text(part) for part in _conjuncts(tree) if _means_the_same(part, schema)]
    except StatementRefused:
        return None
    return " AND ".join(parts) or None


def _conjuncts(node: Expr) -> list[Expr]:
    plain = unwrapped(node)
    if isinstance(plain, exp.And):
        return [*_conjuncts(plain.this), *_conjuncts(plain.expression)]
    return [plain]


def _means_the_same(node: Expr, schema: pa.Schema) -> bool:
    if not _is_plain(node, schema):
        return False
    try:
        parse_predicate(node, schema)
    except StatementRefused:
        return False
    return True


def _is_plain(node: Expr, schema: pa.Schema) -> bool:
    if isinstance(node, _CONNECTIVES):
        return all(_is_plain(child, schema) for child in node.iter_expressions())
    if not isinstance(node, _LEAVES):
        return False
    if isinstance(node, exp.Like):
        pattern = node.expression.name if isinstance(node.expression, exp.Literal) else ""
        if not pattern.endswith("%") or set(pattern[:-1]) & {"%", "_", "\\"}:
            return False
    if any(isinstance(item, exp.Literal) and not item.is_string and "E" in item.name.upper() for item in node.walk()):
        return False  # a DOUBLE: it is compared as one
    if not all(_is_time_literal(item, schema, node) for item in node.find_all(exp.Cast)):
        return False
    columns = list(node.find_all(exp.Column))
    return len(columns) == 1 and not columns[0].table and columns[0].name in schema.names and _compares_alike(schema, columns[0].name)


def _is_time_literal(cast: exp.Cast, schema: pa.Schema, node: Expr) -> bool:
    """True for DATE '...' and TIMESTAMP '...' beside a column of times: their text is their value."""
    to = cast.args["to"]
    if to.expressions or not (isinstance(cast.this, exp.Literal) and cast.this.is_string):
        return False
    if to.this == exp.DType.DATE and len(cast.this.name) != len("2026-01-31"):
        return False  # the time of day is cut off
    kinds = [schema.field(column.name).type for column in node.find_all(exp.Column) if column.name in schema.names]
    return to.this in (exp.DType.DATE, exp.DType.TIMESTAMP) and all(pa.types.is_date(kind) or pa.types.is_timestamp(kind) for kind in kinds)


def _compares_alike(schema: pa.Schema, name: str) -> bool:
    t, kind = pa.types, schema.field(name).type
    is_zoneless = t.is_timestamp(kind) and kind.tz is None
    return t.is_integer(kind) or t.is_decimal(kind) or t.is_string(kind) or t.is_date(kind) or t.is_boolean(kind) or is_zoneless


def _text(node: Expr) -> str:
    tree = node.copy()
    for column in tree.find_all(exp.Column):
        column.this.set("quoted", True)  # noqa: FBT003 - sqlglot's own form
    text = tree.sql(dialect="")
    return f"({text})" if isinstance(node, exp.Or) else text
