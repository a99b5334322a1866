"""Never null: whether a field of a plan can be NULL, by what is declared and by the conditions that its rows have passed.

Decides only. A field for which nothing is found may be NULL.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, Node, Scan, Sided, Union


def is_never_null(node: Node, name: str) -> bool:
    """True when no row of `node` has a NULL in the field `name`."""
    item = next((item for item in node.fields if item.name == name), None)
    if item is None:
        return False
    if not item.nullable:
        return True
    if isinstance(node, Calc):
        tree = next(tree for item, tree in node.projections if item.name == name)
        return isinstance(tree, exp.Column) and (tree.name in _required(node.condition) or is_never_null(node.input, tree.name))
    if isinstance(node, Aggregate):
        tree = next((tree for item, tree in node.keys if item.name == name), None)
        return isinstance(tree, exp.Column) and is_never_null(node.input, tree.name)
    if isinstance(node, DeltaJoin):
        sides = node.sides if node.kind == "INNER" else () if node.kind in ("FULL", "RIGHT") else (node.left,)
        return any((node.kind == "INNER" and name in side.on) or is_never_null(side.node, name) for side in sides)
    if isinstance(node, Union):
        return all(is_never_null(branch, name) for branch in node.branches)
    if isinstance(node, Scan):
        return False
    return any(is_never_null(side.node, name) for side in node.sides) if isinstance(node, Sided) else is_never_null(node.input, name)


def _required(condition: exp.Expr | None) -> set[str]:
    """The fields that a row which passes has: those of IS NOT NULL and of comparisons, in parts that must all be true."""
    if isinstance(condition, exp.Paren):
        return _required(condition.this)
    if isinstance(condition, exp.And):
        return _required(condition.this) | _required(condition.expression)
    if isinstance(condition, exp.Not):
        inner = condition.this.unnest()
        is_null = isinstance(inner, exp.Is) and isinstance(inner.expression, exp.Null) and isinstance(inner.this, exp.Column)
        return {inner.this.name} if is_null else set()
    if isinstance(condition, exp.EQ | exp.NEQ | exp.LT | exp.LTE | exp.GT | exp.GTE):
        return {side.name for side in (condition.this, condition.expression) if isinstance(side, exp.Column)}
    return set()
