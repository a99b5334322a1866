"""By partition: which sources a result's partitions follow: a result row of partition P then comes from source rows of partition P only.

So a day can be computed again although other days of its sources are gone. What is not known to follow does not: the answer may be
too small, never too large. Pure.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, Expand, LookupJoin, Node, Rank, Scan, Union
from storage_engine.stream.plan.tree_time import Over, Windows
from storage_engine.stream.plan.tree_unnest import Unnest


def following(node: Node, name: str) -> frozenset[int]:
    """Ids of the scans below `node` whose partition column is its field `name`, unchanged, for all rows that make a row of the node."""
    match node:
        case Scan():
            columns = dict(zip((item.name for item in node.fields), node.columns, strict=True))
            return frozenset({node.id} if (columns.get(name),) == node.table.partition_keys else ())
        case Calc():
            return _through(node.input, next((tree for item, tree in node.projections if item.name == name), None))
        case Aggregate():
            return _through(node.input, next((tree for item, tree in node.keys if item.name == name), None))
        case Expand():
            tree = next((tree for item, tree in node.keys if item.name == name), None)
            return _through(node.input, tree) if tree is not None else _of_input(node.input, name)
        case LookupJoin() | Windows() | Unnest():
            return _of_input(node.input, name)
        case Rank() | Over():
            return following(node.side.node, name) if name in node.side.on else frozenset()
        case Union():
            return frozenset().union(*(following(branch, name) for branch in node.branches))
        case DeltaJoin():
            return _of_join(node, name)
        case _:
            return frozenset()


def _through(node: Node, tree: exp.Expr | None) -> frozenset[int]:
    return following(node, tree.name) if isinstance(tree, exp.Column) else frozenset()


def _of_input(node: Node, name: str) -> frozenset[int]:
    return following(node, name) if any(item.name == name for item in node.fields) else frozenset()


def _of_join(node: DeltaJoin, name: str) -> frozenset[int]:
    """Of the side that has the field; and of the other one, where the join makes them equal."""
    left, right = node.left, node.right
    if node.kind == "FULL":
        return frozenset()
    if any(item.name == name for item in left.node.fields):
        twin = dict(zip(left.on, right.on, strict=True)).get(name)
        return following(left.node, name) | (frozenset() if twin is None else following(right.node, twin))
    if node.kind != "INNER":
        return frozenset()
    twin = dict(zip(right.on, left.on, strict=True)).get(name)
    return following(right.node, name) | (frozenset() if twin is None else following(left.node, twin))
