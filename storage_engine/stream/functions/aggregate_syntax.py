"""Aggregate syntax: what stands between the parentheses of an aggregate call; one reading for jobs and queries.

    COUNT(*)   SUM(x)   COUNT(DISTINCT x)   LISTAGG(x, ',')
Never: binds the argument, or knows what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.syntax import text_of

JOINED = ("LISTAGG", "STRING_AGG")
"""Aggregates that join texts, with a separator as second argument."""


@dataclass(frozen=True)
class AggregateSyntax:
    """argument: None is the star of COUNT(*)."""

    name: str
    argument: exp.Expr | None
    distinct: bool
    separator: str


def call_name(node: exp.Expr) -> str:
    """The name of a call in capitals; "" for anything else."""
    return str(node.this).upper() if isinstance(node, exp.Anonymous) else ""


def read_call(call: exp.Expr, where: str) -> AggregateSyntax:
    """The parts of an aggregate call. Errors: StatementRefused for one argument too many or too few."""
    name, arguments, separator = call_name(call), list(call.expressions), ","
    distinct = len(arguments) == 1 and isinstance(arguments[0], exp.Distinct)
    if distinct:
        arguments = arguments[0].expressions
    if name in JOINED and len(arguments) == 2:
        if not (isinstance(arguments[1], exp.Literal) and arguments[1].is_string):
            raise StatementRefused(f"{text_of(call)}: the separator is no literal", where=where, next_step=f"Write {name}(x, ',').")
        separator, arguments = arguments[1].name, arguments[:1]
    if len(arguments) != 1:
        raise StatementRefused(f"{text_of(call)} takes one argument", where=where, next_step="Aggregates here have one argument.")
    ordered = next((item for item in arguments if isinstance(item, exp.Order)), None)
    if ordered is not None:
        raise StatementRefused(f"{text_of(call)}: ORDER BY has no meaning in {name}", where=where, next_step="Leave it out.")
    return AggregateSyntax(name, None if isinstance(arguments[0], exp.Star) else arguments[0], distinct, separator)
