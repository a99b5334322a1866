"""NaN: it is neither less nor greater than any number, as in Flink, wherever a comparison is computed.

DuckDB puts NaN above all numbers, but a comparison that it hands to an Arrow or Parquet scan knows no order for it: without this an
answer would depend on where the rows lie. Equality, groups and joins know one NaN, which equals itself.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.dialect.render import render
from storage_engine.stream.functions.builtins import Value


def not_nan(comparison: exp.Expr, greater: Value, *others: Value) -> exp.Expr:
    """The comparison, false where one of its sides is NaN. greater: the side that would be above; DuckDB is right about the others
    unless they are columns, whose comparison it may turn round under NOT and hand to a scan.
    """
    checked = [greater] if _may_be_nan(greater) else []
    checked += [other for other in others if isinstance(other.ast, exp.Column) and _may_be_nan(other)]
    if not checked:
        return comparison
    tests = " AND ".join(f"NOT isnan(_{i + 1})" for i in range(len(checked)))
    return exp.Paren(this=render(f"(_0) AND {tests}", comparison, *(value.ast for value in checked)))


def _may_be_nan(value: Value) -> bool:
    """Whether a value of this expression may be one; a number as written is none."""
    tree = value.ast
    while isinstance(tree, exp.Paren | exp.Neg | exp.Cast):
        tree = tree.this
    return value.type.is_approximate and not (isinstance(tree, exp.Literal) and not tree.is_string)
