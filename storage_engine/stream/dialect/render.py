"""Render: pieces of DuckDB's syntax tree from templates, so that a rule reads like the SQL it makes.

Holds: an operand put into a template keeps its meaning (it is wrapped in parentheses where precedence could change it).
"""

from __future__ import annotations

from functools import lru_cache

from sqlglot import exp, parse_one

_NEEDS_PAREN = (exp.Binary, exp.Unary, exp.Between, exp.In, exp.Interval)
_SAFE = (exp.Paren, exp.Column, exp.Dot)


@lru_cache(maxsize=1024)
def _template(text: str) -> exp.Expr:
    return parse_one(text, dialect="duckdb")


def render(template: str, *operands: exp.Expr) -> exp.Expr:
    """A template with operands _0, _1, ... put in.

    >>> render("_0 // _1", parse_one("a + b"), parse_one("2")).sql("duckdb")
    '(a + b) // 2'
    """
    tree = _template(template).copy()
    if isinstance(tree, exp.Column) and tree.name.startswith("_"):
        return operands[int(tree.name[1:])].copy()
    for column in list(tree.find_all(exp.Column)):
        name = column.name
        if not column.table and name[:1] == "_" and name[1:].isdigit():
            column.replace(paren(operands[int(name[1:])].copy()))
    return tree


def paren(node: exp.Expr) -> exp.Expr:
    """The node, in parentheses when it is an operation."""
    if isinstance(node, _NEEDS_PAREN) and not isinstance(node, _SAFE):
        return exp.Paren(this=node)
    return node


def column(name: str) -> exp.Column:
    """A reference to a field of the input, quoted."""
    return exp.column(exp.to_identifier(name, quoted=True))


def cast(node: exp.Expr, duckdb_type: str) -> exp.Expr:
    return render(f"CAST(_0 AS {duckdb_type})", node)


def string(text: str) -> exp.Expr:
    return exp.Literal.string(text)


def sql(node: exp.Expr) -> str:
    """DuckDB text of a tree."""
    return node.sql(dialect="duckdb", identify=True)
