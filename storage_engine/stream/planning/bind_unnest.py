"""Unnest binding: CROSS JOIN UNNEST(array), `, UNNEST(array)`, JOIN and LEFT JOIN UNNEST(array) ON TRUE into an Unnest.

The array is an expression over what FROM has so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import column
from storage_engine.stream.functions.unnesting import ORDINALITY, elements_of, named, written
from storage_engine.stream.plan.tree import Calc, Field, Node, Unnest

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope


def bind_unnest(binder: Binder, join: exp.Join, node: Node, scope: Scope) -> Node:
    """The rows that FROM has so far, each once per element. Adds the element's columns to the scope. Errors: StatementRefused."""
    unnest = join.this
    of = written(unnest, binder.where)
    kind, side = str(join.kind or "").upper(), str(join.side or "").upper()
    on = join.args.get("on")
    is_true = isinstance(on, exp.Boolean) and bool(on.this)
    if join.args.get("using") or join.args.get("method"):
        raise binder.refuse(f"{of.what} has no columns in common with what is before it", "Leave USING or NATURAL out.")
    if kind not in ("", "INNER", "CROSS", "OUTER") or side not in ("", "LEFT"):
        raise binder.refuse(f"{side or kind} JOIN with {of.what}: elements belong to a row", "Use CROSS JOIN, or LEFT JOIN ... ON TRUE.")
    if (side == "LEFT" or kind == "INNER") and on is None:
        raise binder.refuse(f"{side or kind} JOIN with {of.what} has no ON", "Write ON TRUE.")
    if side == "LEFT" and not is_true:
        raise binder.refuse(f"LEFT JOIN with {of.what} takes ON TRUE only", "Filter the array, or the elements in a query around it.")
    value = binder.expressions(scope).bind(of.argument)
    elements = elements_of(value, of, binder.where)
    alias = of.alias or f"$unnest{binder.next_id()}"
    names, fields, parts, ordinal, key = [], [], [], None, None
    for name, part, of_type in named(elements, of, binder.where):
        is_number = part == ORDINALITY
        made = Field(f"{alias}.{name}", of_type, nullable=side == "LEFT" or not (is_number or part == elements.key))
        names.append(name)
        fields.append(made)
        if is_number:
            ordinal = made
        else:
            parts.append((made, part))
            key = made.name if part == elements.key else key
    if len(set(names)) < len(names):
        raise binder.refuse(f"{of.what}: two columns are called {next(n for n in names if names.count(n) > 1)}", "Name them apart.")
    scope.add(alias, names, fields)
    unnested = Unnest(node, elements.array, tuple(parts), ordinal, side == "LEFT", key)
    if on is None or is_true:
        return unnested
    return Calc(unnested, tuple((item, column(item.name)) for item in unnested.fields), binder.expressions(scope).condition(on))
