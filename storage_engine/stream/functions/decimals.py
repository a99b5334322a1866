"""Decimals: division of exact numbers, rounded half up, as Flink computes it. DuckDB would go through DOUBLE.

The quotient is computed on integers: a * 10^(S+t) over b * 10^t, for a result scale S and a divisor scale t.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.dialect.render import cast, render
from storage_engine.stream.dialect.sqltypes import SqlType

_FRACTION_DIGITS_MAX = 15
"""A fraction of so many digits goes through DOUBLE without loss."""


def divide(dividend: exp.Expr, of: SqlType, divisor: exp.Expr, by: SqlType, result: SqlType) -> exp.Expr:
    """Divide: dividend / divisor as `result`, a DECIMAL. Both are exact numbers; the divisor is not zero."""
    scale = result.scale or 0
    s, t = of.scale or 0, by.scale or 0
    if scale > _FRACTION_DIGITS_MAX or scale + t < s:
        return cast(render("_0 / _1", dividend, divisor), result.duckdb)
    shift = scale + t
    fraction = f" + CAST((_0 % 1) * {10**s} AS HUGEINT) * {10 ** (shift - s)}" if s else ""
    numerator = render(f"CAST(trunc(_0) AS HUGEINT) * {10**shift}{fraction}", dividend)
    denominator = render(f"CAST(_0 * {10**t} AS HUGEINT)" if t else "CAST(_0 AS HUGEINT)", divisor)
    quotient = render("((abs(_0) * 2 + abs(_1)) // (2 * abs(_1))) * sign(_0) * sign(_1)", numerator, denominator)
    whole = cast(render(f"_0 // {10**scale}", quotient), result.duckdb)
    rest = cast(render(f"CAST(_0 % {10**scale} AS DOUBLE) / {10**scale}", quotient), result.duckdb)
    return cast(render("_0 + _1", whole, rest), result.duckdb)
