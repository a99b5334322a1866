"""Hints: those of a query.

A query reads all there is, at once: what says how a job reads is refused, what has no effect on a job passes.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.syntax import query_hints, table_hints
from storage_engine.stream.plan.startup import MODE
from storage_engine.stream.planning.bind import INERT_QUERY_HINTS, INERT_TABLE_HINTS


def refuse_hints(node: exp.Table) -> None:
    """Errors: StatementRefused for an option behind a table's name that a query does not follow."""
    for key, value in table_hints(node, "query").items():
        what = f"'{key}' = '{value}' on {node.name} in a query"
        if key == MODE and value.strip().lower() not in ("full", "earliest"):
            next_step = "Filter $changelog by _commit_timestamp or _log_offset, or use Table.scan(start=...)."
            raise StatementRefused(what, where="query", next_step=next_step)
        if key != MODE and key not in INERT_TABLE_HINTS:
            raise StatementRefused(what, where="query", next_step="Leave it out; an older version is read FOR VERSION AS OF.")


def refuse_query_hints(select: exp.Select) -> None:
    """Errors: StatementRefused for a hint behind SELECT that is not known."""
    for name in query_hints(select):
        if name not in INERT_QUERY_HINTS:
            known = f"Known, without effect here, are {', '.join(sorted(INERT_QUERY_HINTS))}."
            raise StatementRefused(f"the hint {name} is not known", where="query", next_step=known)
