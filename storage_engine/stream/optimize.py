"""Optimize: rewrites that change what is read, never what is meant.

filters     conditions on the stream move below lookup joins: fewer keys are looked up
pruning     each operator keeps the fields that are used; a scan reads only those columns
lookups     an outer lookup by the whole key, none of whose columns is used, goes away (unless it inserts missing keys)
"""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from storage_engine.stream.plan import (
    Aggregate,
    Calc,
    DeltaJoin,
    Expand,
    LookupJoin,
    Node,
    Rank,
    Scan,
    Side,
    StoredSide,
    Union,
    Windows,
    columns_of,
)
from storage_engine.stream.render import column, paren

_NARROW = ("BOOLEAN", "TINYINT", "SMALLINT", "INT", "BIGINT", "DATE", "TIMESTAMP")


def optimize(root: Node) -> Node:
    """The same relation, read with less."""
    return prune(_push_filters(root), {item.name for item in root.fields})


def prune(node: Node, needed: set[str]) -> Node:
    """The node with only the needed fields (an aggregate keeps its keys)."""
    if isinstance(node, Scan):
        return _prune_scan(node, needed)
    if isinstance(node, Calc):
        kept = tuple(pair for pair in node.projections if pair[0].name in needed) or node.projections[:1]  # rows are counted
        below = set().union(*(columns_of(tree) for _, tree in kept), columns_of(node.condition))
        return replace(node, input=prune(node.input, below), projections=kept)
    if isinstance(node, LookupJoin):
        return _prune_lookup(node, needed)
    if isinstance(node, DeltaJoin):
        used = needed | columns_of(node.residual)
        return replace(node, left=_prune_side(node.left, used), right=_prune_side(node.right, used))
    if isinstance(node, Rank):
        used = needed | {name for name, _, _ in node.order}
        number = node.number if node.number is not None and node.number.name in needed else None
        return replace(node, side=_prune_side(node.side, used), number=number)
    if isinstance(node, Union):
        kept_fields = tuple(item for item in node.fields if item.name in needed) or node.fields[:1]
        names = {item.name for item in kept_fields}
        return Union(tuple(prune(branch, names) for branch in node.branches), kept_fields)
    if isinstance(node, Windows):
        return replace(node, input=prune(node.input, ({item.name for item in node.input.fields} & needed) | {node.time}))
    if isinstance(node, Expand):
        below = {item.name for item in node.input.fields} & needed
        return replace(node, input=prune(node.input, below.union(*(columns_of(tree) for _, tree in node.keys))))
    below = set().union(*(columns_of(tree) for _, tree in node.keys))
    for item in node.accumulators:
        below |= columns_of(item.argument) | columns_of(item.condition)
    return replace(node, input=prune(node.input, below))


def _prune_side(side: Side, used: set[str]) -> Side:
    """A side with the fields used, those it is asked by, and its unique key: rows are told apart by it."""
    key = set(side.node.unique_key or ())
    pruned = prune(side.node, ({item.name for item in side.node.fields} & used) | set(side.on) | key)
    if not isinstance(side, StoredSide):
        return replace(side, node=pruned)
    scan = pruned
    while isinstance(scan, Calc):
        scan = scan.input
    assert isinstance(scan, Scan), "a stored side is a table with projections and filters"
    return replace(side, node=pruned, scan=scan)


def _prune_scan(node: Scan, needed: set[str]) -> Scan:
    kept = [i for i, item in enumerate(node.fields) if item.name in needed]
    if not kept:  # COUNT(*) counts rows: read the narrowest column
        narrow = [i for i, item in enumerate(node.fields) if item.type.name in _NARROW]
        kept = [(narrow or [0])[0]]
    return replace(node, columns=tuple(node.columns[i] for i in kept), fields=tuple(node.fields[i] for i in kept))


def _prune_lookup(node: LookupJoin, needed: set[str]) -> Node:
    used = needed | columns_of(node.residual)
    kept = [i for i, item in enumerate(node.looked_up) if item.name in used]
    is_unused = not any(item.name in needed for item in node.looked_up)
    if is_unused and node.is_outer and not node.is_prefix and not node.inserts_missing:
        return prune(node.input, needed)
    below = {item.name for item in node.input.fields} & used
    for _, tree in node.keys:
        below |= columns_of(tree)
    return replace(
        node, input=prune(node.input, below), columns=tuple(node.columns[i] for i in kept), looked_up=tuple(node.looked_up[i] for i in kept)
    )


def _push_filters(node: Node) -> Node:
    if isinstance(node, Scan):
        return node
    if isinstance(node, Union):
        return replace(node, branches=tuple(_push_filters(branch) for branch in node.branches))
    if isinstance(node, DeltaJoin):
        return replace(node, left=_pushed(node.left), right=_pushed(node.right))
    if isinstance(node, Rank):
        return replace(node, side=_pushed(node.side))
    if isinstance(node, Calc) and node.condition is not None and isinstance(node.input, LookupJoin):
        join = node.input
        available = {item.name for item in join.input.fields}
        parts = _conjuncts(node.condition)
        movable = [part for part in parts if columns_of(part) <= available and _is_identity(node)]
        if movable:
            staying = [part for part in parts if part not in movable]
            below = Calc(join.input, tuple((item, column(item.name)) for item in join.input.fields), _conjunction(movable))
            return _push_filters(Calc(replace(join, input=below), node.projections, _conjunction(staying)))
    return replace(node, input=_push_filters(node.input))


def _pushed(side: Side) -> Side:
    return side if isinstance(side, StoredSide) else replace(side, node=_push_filters(side.node))


def _is_identity(node: Calc) -> bool:
    return all(isinstance(tree, exp.Column) and tree.name == item.name for item, tree in node.projections)


def _conjuncts(tree: exp.Expr) -> list[exp.Expr]:
    if isinstance(tree, exp.Paren):
        return _conjuncts(tree.this)
    if isinstance(tree, exp.And):
        return _conjuncts(tree.this) + _conjuncts(tree.expression)
    return [tree]


def _conjunction(parts: list[exp.Expr]) -> exp.Expr | None:
    result: exp.Expr | None = None
    for part in parts:
        result = part if result is None else exp.And(this=paren(result), expression=paren(part))
    return result


def is_append_only(node: Node) -> bool:
    """True when rows only come: nothing below takes a row back."""
    return not isinstance(node, Aggregate) and not node.is_retracting
