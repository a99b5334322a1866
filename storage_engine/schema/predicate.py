"""Predicate: the text of a WHERE clause over one table, as an Arrow filter and as a choice of partitions.

Pure. Owner: Table.read and Table.scan, query_engine's push-down.
Holds: three-valued logic as in SQL: a comparison with null is null, and a null condition keeps no row.
       Literals are typed to their column; a literal the column's type cannot hold is refused.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.expressions.core import Expr
from sqlglot.tokens import Tokenizer

from storage_engine.errors import StatementRefused
from storage_engine.schema.partitions import partition_texts, partition_values_of

_SUPPORTED = "Supported: = <> < <= > >= IN, BETWEEN, LIKE, IS [NOT] NULL, AND, OR, NOT over columns and literals."
_COMPARISONS: dict[type[Expr], Callable[..., pc.Expression]] = {
    exp.EQ: pc.equal,
    exp.NEQ: pc.not_equal,
    exp.LT: pc.less,
    exp.LTE: pc.less_equal,
    exp.GT: pc.greater,
    exp.GTE: pc.greater_equal,
}
_FLIPPED: dict[type[Expr], type[Expr]] = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE}
_FRACTION = re.compile(r"[.,](\d+)")
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 6}
"""Fraction digits of a timestamp; Python's own has six at most."""
_INTEGER_DIGITS_MAX = 40
"""More than any integer type has."""
_KNOWN_ARGUMENTS = {"this", "expression", "expressions", "low", "high", "negate", "query", "field"}


class _PredicateDialect(Dialect):
    """Names in backquotes or double quotes, texts in single quotes."""

    class Tokenizer(Tokenizer):
        IDENTIFIERS = ["`", '"']  # noqa: RUF012 - sqlglot's own form


def parse_predicate(where: str | Expr, schema: pa.Schema) -> pc.Expression:
    """The condition as an Arrow filter over columns of `schema`.

    Errors: StatementRefused naming what is not understood: an unknown column, a function, a literal of another type.

    >>> rows = pa.table({"a": [1, 2, None]})
    >>> rows.filter(parse_predicate("NOT a = 1", rows.schema)).to_pylist()
    [{'a': 2}]
    """
    with shallow():
        return _condition(parsed(where), schema)


def predicate_columns(where: str | Expr) -> list[str]:
    """Names of the columns a condition reads, each once, in order of appearance."""
    return list(dict.fromkeys(column.name for column in parsed(where).find_all(exp.Column)))


def partition_values(where: str | Expr, partition_column: str, data_type: pa.DataType) -> set[str] | None:
    """The partitions the condition names by = and IN; None when it does not confine the partition column, of this type, so.

    >>> sorted(partition_values("ds IN ('a', 'b') AND x > 1", "ds", pa.string())), partition_values("d = '20170131'", "d", pa.date32())
    (['a', 'b'], {'2017-01-31'})
    """
    with shallow():
        return _named_partitions(parsed(where), partition_column, data_type)


def matching_partitions(where: str | Expr, schema: pa.Schema, partition_column: str, names: Sequence[str]) -> list[str]:
    """Those of the partitions that can hold a row that meets the condition; ranges and LIKE prune too. Order is kept.

    Meaning: parts of the condition over other columns count as true, so nothing is left out wrongly.
    """
    if not names:
        return []
    with shallow():
        relaxed = _relaxed(parsed(where), partition_column)
        condition = None if relaxed is None else _condition(relaxed, schema)
    if condition is None:
        return list(names)
    values = partition_values_of(names, schema.field(partition_column).type)
    table = pa.table({partition_column: values, "__name": pa.array(list(names), pa.string())})
    kept = table.filter(condition)
    return kept["__name"].to_pylist()


def parsed(where: str | Expr) -> Expr:
    """The condition as a syntax tree. Errors: StatementRefused for a text that is none."""
    if isinstance(where, Expr):
        return where.this if isinstance(where, exp.Where) else where
    if not where.strip():
        raise _refusal("the condition is empty")
    try:
        with shallow():
            parsed = sqlglot.parse_one(where, dialect=_PredicateDialect, into=exp.Condition)
    except SqlglotError as error:
        detail = error.errors[0] if isinstance(error, ParseError) and error.errors else {}
        said = detail.get("description") or str(error).splitlines()[0]
        raise _refusal(f"cannot read the condition {where!r}: {said}") from error
    return parsed


@contextmanager
def shallow() -> Iterator[None]:
    """Around whatever goes down a condition. Errors: StatementRefused where it is nested deeper than Python's stack."""
    try:
        yield
    except RecursionError:
        raise StatementRefused(
            "the condition is nested too deeply",
            where="where",
            next_step="A chain of OR counts a level each: write column IN (...), or several conditions one after the other.",
        ) from None


def _refusal(what: str) -> StatementRefused:
    return StatementRefused(what, where="where", next_step=_SUPPORTED)


def _condition(node: Expr, schema: pa.Schema) -> pc.Expression:
    negate = bool(node.args.get("negate"))
    modifiers = [name for name, value in node.args.items() if value and name not in _KNOWN_ARGUMENTS]
    if modifiers:
        raise _refusal(f"{node.sql()} is not understood ({modifiers[0]})")
    return ~_plain_condition(node, schema) if negate else _plain_condition(node, schema)


def _plain_condition(node: Expr, schema: pa.Schema) -> pc.Expression:
    match node:
        case exp.Paren():
            return _condition(node.this, schema)
        case exp.And():
            return _condition(node.this, schema) & _condition(node.expression, schema)
        case exp.Or():
            return _condition(node.this, schema) | _condition(node.expression, schema)
        case exp.Not():
            return ~_condition(node.this, schema)
        case exp.Boolean():
            return pc.scalar(bool(node.this))
        case exp.Column():
            name, data_type = _column(node, schema)
            if not pa.types.is_boolean(data_type):
                raise _refusal(f"column {name} is {data_type}, not a condition")
            return pc.field(name)
        case exp.Is():
            return _is(node, schema)
        case exp.In():
            return _in(node, schema)
        case exp.Between():
            name, data_type = _column(node.this, schema)
            low, high = (_literal(node.args[side], name, data_type) for side in ("low", "high"))
            return (pc.field(name) >= low) & (pc.field(name) <= high)
        case exp.Like():
            return _like(node, schema)
    if type(node) in _COMPARISONS:
        return _comparison(node, schema)
    raise _refusal(f"{node.sql()} is not understood")


def _comparison(node: Expr, schema: pa.Schema) -> pc.Expression:
    kind, left, right = type(node), unwrapped(node.this), unwrapped(node.expression)
    if not isinstance(left, exp.Column):
        kind, left, right = _FLIPPED.get(kind, kind), right, left
    if not isinstance(left, exp.Column):
        raise _refusal(f"{node.sql()} compares no column")
    name, data_type = _column(left, schema)
    if isinstance(right, exp.Column):
        other, other_type = _column(right, schema)
        if other_type != data_type and not (_is_number(data_type) and _is_number(other_type)):
            raise _refusal(f"{node.sql()} compares {data_type} with {other_type}")
        return _COMPARISONS[kind](pc.field(name), pc.field(other))
    return _COMPARISONS[kind](pc.field(name), _literal(right, name, data_type))


def _is(node: exp.Is, schema: pa.Schema) -> pc.Expression:
    name, data_type = _column(node.this, schema)
    match node.expression:
        case exp.Null():
            return pc.field(name).is_null()
        case exp.Boolean() as boolean if pa.types.is_boolean(data_type):
            matches = pc.equal(pc.field(name), pc.scalar(bool(boolean.this)))
            return pc.if_else(pc.field(name).is_null(), pc.scalar(False), matches)  # noqa: FBT003 - a scalar, not a flag
    raise _refusal(f"{node.sql()} is not understood")


def _in(node: exp.In, schema: pa.Schema) -> pc.Expression:
    name, data_type = _column(node.this, schema)
    if node.args.get("query") is not None or not node.expressions:
        raise _refusal(f"{node.sql()}: IN needs a list of literals")
    values = pa.array([literal_value(item, name, data_type) for item in node.expressions], data_type)
    return pc.if_else(pc.field(name).is_null(), pc.scalar(pa.scalar(None, pa.bool_())), pc.field(name).isin(values))


def _like(node: exp.Like, schema: pa.Schema) -> pc.Expression:
    name, data_type = _column(node.this, schema)
    pattern = node.expression
    if not pa.types.is_string(data_type) or not (isinstance(pattern, exp.Literal) and pattern.is_string):
        raise _refusal(f"{node.sql()}: LIKE needs a string column and a pattern")
    text = pattern.this
    if text.endswith("%") and not set(text[:-1]) & {"%", "_", "\\"}:
        return pc.starts_with(pc.field(name), text[:-1])
    return pc.match_like(pc.field(name), text)


def _is_number(data_type: pa.DataType) -> bool:
    return pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_decimal(data_type)


def unwrapped(node: Expr) -> Expr:
    """The expression inside its parentheses."""
    return unwrapped(node.this) if isinstance(node, exp.Paren) else node


def _column(node: Expr, schema: pa.Schema) -> tuple[str, pa.DataType]:
    node = unwrapped(node)
    if not isinstance(node, exp.Column):
        raise _refusal(f"{node.sql()} is not a column")
    if node.name not in schema.names:
        known = ", ".join(schema.names)
        raise StatementRefused(f"unknown column {node.name}", where="where", next_step=f"Columns are: {known}.")
    return node.name, schema.field(node.name).type


def _literal(node: Expr, name: str, data_type: pa.DataType) -> pc.Expression:
    return pc.scalar(pa.scalar(literal_value(node, name, data_type), data_type))


def literal_value(node: Expr, name: str, data_type: pa.DataType) -> object:
    """A literal as a Python value of the column's type."""
    plain = unwrapped(node)
    if isinstance(plain, exp.Cast) and isinstance(plain.this, exp.Literal):  # DATE '2017-01-31' is read as a cast
        plain = plain.this
    sign = ""
    if isinstance(plain, exp.Neg):
        sign, plain = "-", unwrapped(plain.this)
    if isinstance(plain, exp.Null):
        raise StatementRefused(f"{name} compared with NULL is never true", where="where", next_step=f"Write {name} IS NULL.")
    if isinstance(plain, exp.Boolean) and pa.types.is_boolean(data_type):
        return bool(plain.this)
    if isinstance(plain, exp.Literal):
        try:
            return _typed(sign + plain.this, data_type, is_text=plain.is_string)
        except (ValueError, InvalidOperation, OverflowError, pa.ArrowInvalid):
            pass
    elif not isinstance(plain, exp.Boolean):
        raise _refusal(f"{node.sql()} is not a literal")
    raise StatementRefused(
        f"{node.sql()} is not a value of {name} ({data_type})", where="where", next_step="Write a literal of the column's type."
    )


def _typed(text: str, data_type: pa.DataType, *, is_text: bool) -> object:
    """The value of a literal's text; ValueError when it is not one of the type."""
    t = pa.types
    if is_text == _is_number(data_type):
        raise ValueError(text)
    if t.is_integer(data_type):
        value: object = _integer(Decimal(text))
    elif t.is_floating(data_type):
        value = float(text)
    elif t.is_decimal(data_type):
        value = Decimal(text)
    elif t.is_string(data_type):
        value = text
    elif t.is_binary(data_type):
        value = text.encode()
    elif t.is_date(data_type):
        value = dt.date.fromisoformat(text)
    elif t.is_time(data_type):
        value = dt.time.fromisoformat(text)
    elif t.is_timestamp(data_type):
        moment = dt.datetime.fromisoformat(text)
        if _finer_than(text, data_type.unit):
            raise ValueError(text)
        if data_type.tz is not None and moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        if data_type.tz is None and moment.tzinfo is not None:
            raise ValueError(text)
        value = moment
    else:
        raise ValueError(text)
    pa.scalar(value, data_type)
    return value


def _finer_than(text: str, unit: str) -> bool:
    """Whether a time has digits that a column of this unit does not hold: cut off, the literal would be another one."""
    fraction = _FRACTION.search(text)
    return fraction is not None and len(fraction.group(1).rstrip("0")) > _DIGITS[unit]


def _integer(number: Decimal) -> int:
    """A whole number; ValueError for any other. The exponent is looked at first: 1e99999999 written out would take minutes."""
    if not number.is_finite() or number.adjusted() >= _INTEGER_DIGITS_MAX or number != int(number):
        raise ValueError(number)
    return int(number)


def _named_partitions(node: Expr, column: str, data_type: pa.DataType) -> set[str] | None:
    if node.args.get("negate"):
        return None
    match node:
        case exp.Paren():
            return _named_partitions(node.this, column, data_type)
        case exp.And():
            left, right = (_named_partitions(side, column, data_type) for side in (node.this, node.expression))
            return right if left is None else left if right is None else left & right
        case exp.Or():
            left, right = (_named_partitions(side, column, data_type) for side in (node.this, node.expression))
            return None if left is None or right is None else left | right
        case exp.EQ():
            left, right = unwrapped(node.this), unwrapped(node.expression)
            if not isinstance(left, exp.Column):
                left, right = right, left
            return _literal_names([right], column, data_type) if isinstance(left, exp.Column) and left.name == column else None
        case exp.In() if isinstance(unwrapped(node.this), exp.Column) and unwrapped(node.this).name == column and node.expressions:
            return _literal_names(node.expressions, column, data_type)
        case _:
            return None


def _literal_names(nodes: Sequence[Expr], column: str, data_type: pa.DataType) -> set[str] | None:
    """Literals as partition names, by their values: a DATE has several texts, a name is one. None when one is no literal of the type."""
    try:
        values = [literal_value(node, column, data_type) for node in nodes]
    except StatementRefused:
        return None  # parse_predicate() says what is wrong with it
    return set(partition_texts(pa.array(values, data_type)).to_pylist())


def _relaxed(node: Expr, column: str) -> Expr | None:
    """The condition with every part that reads other columns taken as true; None: always true."""
    match node:
        case exp.Paren():
            return _relaxed(node.this, column)
        case exp.And():
            left, right = _relaxed(node.this, column), _relaxed(node.expression, column)
            return right if left is None else left if right is None else exp.And(this=left.copy(), expression=right.copy())
        case exp.Or():
            left, right = _relaxed(node.this, column), _relaxed(node.expression, column)
            return None if left is None or right is None else exp.Or(this=left.copy(), expression=right.copy())
    return node if {found.name for found in node.find_all(exp.Column)} == {column} else None


__all__ = [
    "literal_value", "matching_partitions", "parse_predicate", "parsed", "partition_texts", "partition_values",
    "predicate_columns", "shallow", "unwrapped",
]  # fmt: skip
