"""Processing time: PROCTIME() as a column of a subquery or a view.

A row's processing time is when the commit that brought it into its log was done: a column that every scan of a log has, and that is not
stored (PROCESSING_TIME). So the windows over it are a fact of the log, as event time is, and a recomputation finds the same.
Such a column goes from a SELECT to the one around it, by name or by *. It is the time of a window (bind_window.py) or of a lookup join; as
a value it is refused (Scope.resolve), and the statement's own SELECT leaves it out of a *.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sqlglot import exp

from storage_engine.stream.dialect.render import cast, column
from storage_engine.stream.dialect.sqltypes import PROCTIME, TIMESTAMP3
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.plan.tree import PROCESSING_TIME, Field

if TYPE_CHECKING:
    from storage_engine.stream.planning.scope import Scope

_IS_RELATION: Final = "is_relation"


def is_proctime(tree: exp.Expr) -> bool:
    return isinstance(tree, exp.Anonymous) and str(tree.this).upper() == "PROCTIME"


def as_relation(tree: exp.Expr) -> exp.Expr:
    """The query, marked as one that another reads: its columns of processing time are seen there."""
    inner = tree
    while isinstance(inner, exp.Subquery):
        inner = inner.this
    if isinstance(inner, exp.Select):
        inner.meta[_IS_RELATION] = True
    return tree


def is_relation(select: exp.Select) -> bool:
    return bool(select.meta.get(_IS_RELATION))


def time_columns(scope: Scope, trees: Sequence[exp.Expr], *, grouped: bool) -> dict[int, Value]:
    """Which of the selected expressions are processing times. `grouped`: of a group, which has none of its own; PROCTIME() is let through
    for the lookup joins around it.
    """
    found: dict[int, Value] = {}
    for i, tree in enumerate(trees):
        if is_proctime(tree):
            passed = None if grouped else passed_through(scope)
            found[i] = Value(column(passed.name), PROCTIME, nullable=False) if passed is not None else _unknown()
        elif isinstance(tree, exp.Column) and not grouped and (item := scope.time(tree)) is not None:
            found[i] = Value(column(item.name), PROCTIME, item.nullable)
    return found


def passed_through(scope: Scope) -> Field | None:
    """The processing time of the rows of FROM; None where they are not those of one log."""
    found = [item for _, name, item in scope.columns if name == PROCESSING_TIME]
    return found[0] if len(found) == 1 else None


def _unknown() -> Value:
    return Value(cast(exp.Null(), TIMESTAMP3.duckdb), PROCTIME, nullable=True)
