"""Skipping: whether any row of a frame can meet a condition, told from the least and greatest value and the nulls of its columns.

Each part of a condition is mapped to the set of outcomes it may have on the frame's rows: true, false, null. NOT, AND and OR work on
sets of outcomes, so that NOT IN, nulls and NaN need no rule of their own. A frame is skipped only where "true" is not in the set.
Holds: never skips a row that schema/predicate.py keeps; what is not understood here may have any outcome.
Never: reads a frame or a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa
from sqlglot import exp
from sqlglot.expressions.core import Expr

from storage_engine.errors import StatementRefused
from storage_engine.schema.predicate import literal_value, parsed, predicate_columns, shallow, unwrapped

TRUE, FALSE, NULL = 1, 2, 4
ANY: Final = TRUE | FALSE | NULL
Family = Literal["number", "text", "time", "none"]
_UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


@dataclass(frozen=True)
class ColumnRange:
    """What is known of a column of a frame: every value but null and NaN lies in low..high; family "none": no value but null.

    low, high  numbers, UTF-8 bytes ("text"), or nanoseconds ("time"); low > high: all values are NaN
    """

    n_rows: int
    n_nulls: int
    family: Family
    low: Any
    high: Any
    has_nan: bool = False


Ranges = Mapping[str, ColumnRange]
Outcomes = Callable[[Ranges], int]


class FrameFilter:
    """A condition over columns of `schema`. `columns` are those it reads."""

    def __init__(self, where: str, schema: pa.Schema) -> None:
        tree = parsed(where)
        self.columns = tuple(predicate_columns(tree))
        with shallow():
            self._outcomes = _compile(tree, schema)

    def may_match(self, ranges: Ranges) -> bool:
        """False when no row of a frame with these ranges can meet the condition. A column that is missing may hold anything."""
        with shallow():
            return bool(self._outcomes(ranges) & TRUE)


def unit_digits(data_type: pa.DataType) -> int:
    """Decimal digits of a second's fraction in a time or timestamp type."""
    return _UNITS[data_type.unit]


def _compile(node: Expr, schema: pa.Schema) -> Outcomes:
    plain = _compile_plain(node, schema)
    return (lambda ranges: _inverted(plain(ranges))) if node.args.get("negate") else plain


def _compile_plain(node: Expr, schema: pa.Schema) -> Outcomes:
    match node:
        case exp.Paren():
            return _compile(node.this, schema)
        case exp.And():
            left, right = _compile(node.this, schema), _compile(node.expression, schema)
            return lambda ranges: _both(left(ranges), right(ranges))
        case exp.Or():
            left, right = _compile(node.this, schema), _compile(node.expression, schema)
            return lambda ranges: _inverted(_both(_inverted(left(ranges)), _inverted(right(ranges))))
        case exp.Not():
            inner = _compile(node.this, schema)
            return lambda ranges: _inverted(inner(ranges))
        case exp.Boolean():
            constant = TRUE if node.this else FALSE
            return lambda _: constant
    try:
        return _leaf(node, schema)
    except StatementRefused:
        return lambda _: ANY


def _leaf(node: Expr, schema: pa.Schema) -> Outcomes:
    match node:
        case exp.Column():
            return _on_values(node.name, "number", lambda r: _compared(exp.EQ, r, 1))
        case exp.Is():
            return _is(node)
        case exp.In() if not node.args.get("query"):
            name, values = _literals(node.this, node.expressions, schema)
            return _on_values(name, _family(schema.field(name).type), lambda r: _among(r, values))
        case exp.Between():
            name, (low, high) = _literals(node.this, [node.args["low"], node.args["high"]], schema)
            return _on_values(
                name, _family(schema.field(name).type), lambda r: _both(_compared(exp.GTE, r, low), _compared(exp.LTE, r, high))
            )
        case exp.Like():
            return _like(node)
        case exp.EQ() | exp.NEQ() | exp.LT() | exp.LTE() | exp.GT() | exp.GTE():
            kind, left, right = type(node), unwrapped(node.this), unwrapped(node.expression)
            if not isinstance(left, exp.Column):
                kind, left, right = _FLIPPED.get(kind, kind), right, left
            if isinstance(right, exp.Column):
                return lambda _: ANY
            name, (value,) = _literals(left, [right], schema)
            return _on_values(name, _family(schema.field(name).type), lambda r: _compared(kind, r, value))
    return lambda _: ANY


def _on_values(name: str, family: Family, outcomes: Callable[[ColumnRange], int]) -> Outcomes:
    """Outcomes of a comparison that is null where the column is; `outcomes` speaks of the values that are there."""

    def of(ranges: Ranges) -> int:
        known = ranges.get(name)
        if known is None:
            return ANY
        if known.n_nulls == known.n_rows:
            return NULL
        if known.family != family:
            return ANY
        return outcomes(known) | (NULL if known.n_nulls else 0)

    return of


def _compared(kind: type[Expr], of: ColumnRange, value: Any) -> int:
    """What `column <kind> value` may be. NaN differs from every value and is neither less nor greater."""
    low, high = of.low, of.high
    of_nan = 0 if not of.has_nan else TRUE if kind is exp.NEQ else FALSE
    if low > high:
        return of_nan
    match kind:
        case exp.EQ | exp.NEQ:
            may_be, may_not = low <= value <= high, not (low == value == high)
            if kind is exp.NEQ:
                may_be, may_not = may_not, may_be
        case exp.LT:
            may_be, may_not = low < value, high >= value
        case exp.LTE:
            may_be, may_not = low <= value, high > value
        case exp.GT:
            may_be, may_not = high > value, low <= value
        case _:
            may_be, may_not = high >= value, low < value
    return (TRUE if may_be else 0) | (FALSE if may_not else 0) | of_nan


def _among(of: ColumnRange, values: list[Any]) -> int:
    """What `column IN (values)` may be. -0.0 and 0.0 are one value in a comparison and two in a list: a zero may be either."""
    outcomes = FALSE
    for value in values:
        one = _compared(exp.EQ, of, value)
        if not one & FALSE and not (value == 0 and isinstance(of.low, float)):
            return TRUE
        outcomes |= one & TRUE
    return outcomes


def _like(node: exp.Like) -> Outcomes:
    column, pattern = unwrapped(node.this), node.expression
    if not isinstance(column, exp.Column) or not (isinstance(pattern, exp.Literal) and pattern.is_string):
        return lambda _: ANY
    text = str(pattern.this)
    n = next((i for i, character in enumerate(text) if character in "%_\\"), len(text))
    prefix, is_prefix_only = text[:n].encode(), text[n:] == "%"

    def outcomes(of: ColumnRange) -> int:
        may_be = of.low[: len(prefix)] <= prefix <= of.high[: len(prefix)]
        must_be = is_prefix_only and of.low.startswith(prefix) and of.high.startswith(prefix)
        return (TRUE if may_be else 0) | (0 if must_be else FALSE)

    return _on_values(column.name, "text", outcomes)


def _is(node: exp.Is) -> Outcomes:
    column = unwrapped(node.this)
    if not isinstance(column, exp.Column):
        return lambda _: ANY
    name = column.name
    if isinstance(node.expression, exp.Null):

        def of_null(ranges: Ranges) -> int:
            known = ranges.get(name)
            if known is None:
                return TRUE | FALSE
            return (TRUE if known.n_nulls else 0) | (FALSE if known.n_nulls < known.n_rows else 0)

        return of_null
    wanted = int(bool(node.expression.this)) if isinstance(node.expression, exp.Boolean) else None
    if wanted is None:
        return lambda _: ANY
    equal = _on_values(name, "number", lambda r: _compared(exp.EQ, r, wanted))

    def of_boolean(ranges: Ranges) -> int:
        found = equal(ranges)
        return (found & TRUE) | (FALSE if found & (FALSE | NULL) else 0)  # IS TRUE of a null is false

    return of_boolean


def _literals(column: Expr, nodes: list[Expr], schema: pa.Schema) -> tuple[str, list[Any]]:
    """A column's name and literals as values that compare with its ranges."""
    column = unwrapped(column)
    if not isinstance(column, exp.Column) or column.name not in schema.names:
        raise StatementRefused("no column to skip by", where="where", next_step="The condition is checked row by row.")
    data_type = schema.field(column.name).type
    return column.name, [_comparable(literal_value(node, column.name, data_type), data_type) for node in nodes]


def _comparable(value: Any, data_type: pa.DataType) -> Any:
    t = pa.types
    if t.is_timestamp(data_type) or t.is_time(data_type):
        return pa.scalar(value, data_type).value * 10 ** (9 - unit_digits(data_type))
    if t.is_date32(data_type):
        return pa.scalar(value, data_type).value
    if t.is_float32(data_type):
        return pa.scalar(value, data_type).as_py()  # what the value is once it has the column's precision
    if isinstance(value, str):
        return value.encode()
    return int(value) if isinstance(value, bool) else value


def _family(data_type: pa.DataType) -> Family:
    t = pa.types
    if t.is_string(data_type):
        return "text"
    if t.is_timestamp(data_type) or t.is_time(data_type):
        return "time"
    return "none" if t.is_binary(data_type) or t.is_nested(data_type) else "number"


def _inverted(outcomes: int) -> int:
    return (outcomes & NULL) | (TRUE if outcomes & FALSE else 0) | (FALSE if outcomes & TRUE else 0)


def _both(left: int, right: int) -> int:
    """AND of two sets of outcomes: false beats null beats true."""
    outcomes = 0
    for one in (TRUE, FALSE, NULL):
        for other in (TRUE, FALSE, NULL):
            if left & one and right & other:
                outcomes |= FALSE if FALSE in (one, other) else NULL if NULL in (one, other) else TRUE
    return outcomes


_FLIPPED: dict[type[Expr], type[Expr]] = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE}
