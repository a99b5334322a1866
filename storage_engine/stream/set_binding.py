"""Set binding: UNION ALL and UNION of queries into a Union; INTERSECT and EXCEPT are refused with the reason.

Columns meet by position, as in SQL: the first branch names them, their types are widened to a common one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect import text_of
from storage_engine.stream.plan import Calc, Field, Node, Union
from storage_engine.stream.render import cast, column
from storage_engine.stream.sqltypes import NULL, SqlType, common_type

if TYPE_CHECKING:
    from storage_engine.stream.bind import Binder


def bind_set(binder: Binder, tree: exp.SetOperation, prefix: str) -> tuple[Node, tuple[str, ...]]:
    """The rows of all branches. Errors: StatementRefused for other set operations, and branches that do not fit."""
    if not isinstance(tree, exp.Union):
        raise binder.refuse(
            f"{tree.key.upper()} counts how often a row is in both inputs, which is not kept",
            "Use UNION ALL and GROUP BY, or a lookup join.",
        )
    for clause in ("order", "limit", "offset"):
        if tree.args.get(clause):
            raise binder.refuse(f"{clause.upper()} over a UNION: a stream has no end", "Order and limit when you query the table.")
    branches = [binder.query(branch, prefix) for branch in _branches(tree)]
    names = branches[0][1]
    for _, others in branches[1:]:
        if len(others) != len(names):
            raise binder.refuse(
                f"the branches of {text_of(tree)[:80]} have {len(names)} and {len(others)} columns", "Select as many in each branch."
            )
    fields = tuple(
        Field(branches[0][0].fields[i].name, _common(binder, [node.fields[i] for node, _ in branches], name), _nullable(branches, i))
        for i, name in enumerate(names)
    )
    made: Node = Union(tuple(_aligned(node, fields) for node, _ in branches), fields)
    return (binder.distinct(made) if tree.args.get("distinct") else made), names


def _branches(tree: exp.Expr) -> list[exp.Expr]:
    """The branches of UNIONs of the same kind, in order; one of another kind is a branch of its own."""
    found: list[exp.Expr] = []
    for side in (tree.args["this"], tree.args["expression"]):
        inner = side.this if isinstance(side, exp.Subquery) and not side.alias else side
        is_alike = isinstance(inner, exp.Union) and bool(inner.args.get("distinct")) == bool(tree.args.get("distinct"))
        has_own_clauses = any(inner.args.get(key) for key in ("order", "limit", "offset", "with_"))
        found.extend(_branches(inner) if is_alike and not has_own_clauses else [side])
    return found


def _common(binder: Binder, fields: list[Field], name: str) -> SqlType:
    types = [item.type for item in fields if item.type != NULL]
    common = common_type(types) if types else NULL
    if not common.is_known and types:
        raise binder.refuse(f"column {name} of the UNION is {' and '.join(str(item) for item in types)}", "CAST the branches to one type.")
    return common


def _nullable(branches: list[tuple[Node, tuple[str, ...]]], i: int) -> bool:
    return any(node.fields[i].nullable for node, _ in branches)


def _aligned(node: Node, fields: tuple[Field, ...]) -> Calc:
    """A branch with the union's field names and types."""
    pairs = []
    for mine, wanted in zip(node.fields, fields, strict=True):
        tree = column(mine.name)
        pairs.append((wanted, tree if mine.type == wanted.type else cast(tree, wanted.type.duckdb)))
    return Calc(node, tuple(pairs))
