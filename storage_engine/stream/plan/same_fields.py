"""Same fields: fields of a relation of which one says the others, so that a key that holds one of them needs no other.

The start, end and last millisecond of a window of fixed length say each other; of a cumulating window its end and last millisecond; so do
the two fields that an inner join's equality compares.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, Node, Unnest, Windows

Classes = list[frozenset[str]]


def same_fields(node: Node) -> Classes:
    """Sets of field names that say each other in every row of the relation."""
    if isinstance(node, Windows):
        names = [item.name for item in node.window]
        return [frozenset(names if node.kind == "HOP" else names[1:])]
    if isinstance(node, Unnest):
        return same_fields(node.input)
    if isinstance(node, Calc):
        return _renamed(node.input, [(tree, item.name) for item, tree in node.projections])
    if isinstance(node, Aggregate):
        return _renamed(node.input, [(tree, item.name) for item, tree in node.keys])
    if isinstance(node, DeltaJoin):
        of_sides = same_fields(node.left.node) + ([] if node.is_filter else same_fields(node.right.node))
        return _joined(of_sides + [frozenset(pair) for pair in node.twins])
    return []


def _renamed(node: Node, projections: list[tuple[exp.Expr, str]]) -> Classes:
    named = [(tree.name, name) for tree, name in projections if isinstance(tree, exp.Column)]
    found = [frozenset(new for old, new in named if old in names) for names in same_fields(node)]
    return [names for names in found if len(names) > 1]


def _joined(classes: Classes) -> Classes:
    """Sets with a common field become one."""
    made: Classes = []
    for names in classes:
        touching = [other for other in made if other & names]
        made = [other for other in made if not other & names] + [names.union(*touching)]
    return made
