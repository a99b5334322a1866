"""Optimize: rewrites that change what is read, never what is meant.

filters     conditions on the stream move below lookup joins: fewer keys are looked up; those on one side of a join move to that side:
            fewer rows are kept and joined; those below windows and UNNEST: a row is tested once
pruning     each operator keeps the fields that are used; a scan reads only those columns
lookups     an outer lookup by the whole key, none of whose columns is used, goes away (unless it inserts missing keys)
"""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from storage_engine.stream.dialect.render import column, paren
from storage_engine.stream.plan.tree import (
    MARK,
    Aggregate,
    Calc,
    DeltaJoin,
    Expand,
    InTime,
    LookupJoin,
    Node,
    Over,
    Rank,
    Scan,
    Session,
    Side,
    StoredSide,
    Union,
    Unnest,
    Windows,
    columns_of,
    is_hidden,
)

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
        key = node.key if node.key is not None and set(node.key) <= {item.name for item, _ in kept} else None
        return replace(node, input=prune(node.input, below), projections=kept, key=key)
    if isinstance(node, LookupJoin):
        return _prune_lookup(node, needed)
    if isinstance(node, DeltaJoin):
        used = needed | columns_of(node.residual)
        return replace(node, left=_prune_side(node.left, used), right=_prune_side(node.right, used))
    if isinstance(node, Rank):
        used = needed | {name for name, _, _ in node.order}
        number = node.number if node.number is not None and node.number.name in needed else None
        return replace(node, side=_prune_side(node.side, used), number=number)
    if isinstance(node, Session):
        return replace(node, side=_prune_side(node.side, needed | {node.time}))
    if isinstance(node, Over):
        return _prune_over(node, needed)
    if isinstance(node, InTime):
        return replace(node, input=prune(node.input, needed | {node.time}))
    if isinstance(node, Union):
        kept_fields = tuple(item for item in node.fields if item.name in needed) or node.fields[:1]
        names = {item.name for item in kept_fields}
        return Union(tuple(prune(branch, names) for branch in node.branches), kept_fields)
    if isinstance(node, Windows):
        return replace(node, input=prune(node.input, ({item.name for item in node.input.fields} & needed) | {node.time}))
    if isinstance(node, Unnest):
        return _prune_unnest(node, needed)
    if isinstance(node, Expand):
        below = {item.name for item in node.input.fields} & needed
        return replace(node, input=prune(node.input, below.union(*(columns_of(tree) for _, tree in node.keys))))
    below = set().union(*(columns_of(tree) for _, tree in node.keys))
    for item in node.accumulators:
        below |= columns_of(item.argument) | columns_of(item.condition)
    return replace(node, input=prune(node.input, below))


def _prune_unnest(node: Unnest, needed: set[str]) -> Unnest:
    parts = tuple(pair for pair in node.parts if pair[0].name in needed)
    ordinal = node.ordinal if node.ordinal is not None and node.ordinal.name in needed else None
    below = ({item.name for item in node.input.fields} & needed) | columns_of(node.elements)
    return replace(node, input=prune(node.input, below), parts=parts, ordinal=ordinal)


def _prune_over(node: Over, needed: set[str]) -> Over:
    values = tuple(pair for pair in node.values if pair[0].name in needed)
    read = set().union(*(columns_of(tree) for _, tree in values))
    calls = tuple(call for call in node.calls if call.field.name in read)
    used = (needed | {name for name, _, _ in node.order}).union(*(columns_of(call.function) for call in calls))
    return replace(node, side=_prune_side(node.side, used), values=values, calls=calls)


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
    marks = [node.columns[i].removeprefix(MARK) for i in kept if node.columns[i].startswith(MARK)]
    if marks and marks[0] not in (node.columns[i] for i in kept):  # a watermark is made of times
        kept = sorted([*kept, node.columns.index(marks[0])])
    if all(is_hidden(node.columns[i]) for i in kept):  # COUNT(*) counts rows: read the narrowest column
        narrow = [i for i, item in enumerate(node.fields) if item.type.name in _NARROW and not is_hidden(node.columns[i])]
        kept = sorted([(narrow or [0])[0], *kept])
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
    if isinstance(node, Rank | Session | Over):
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
    if isinstance(node, Calc) and node.condition is not None and isinstance(node.input, Windows | Unnest):
        return _below_repeated(node, node.input, node.condition)
    if isinstance(node, Calc) and node.condition is not None and isinstance(node.input, DeltaJoin):
        return _below_join(node, node.input, node.condition)
    return replace(node, input=_push_filters(node.input))


def _below_repeated(node: Calc, repeated: Windows | Unnest, condition: exp.Expr) -> Node:
    """The filter with its parts that do not speak of the window or element below: a row is tested once, not once per window or element."""
    fields = {item.name for item in repeated.input.fields}
    parts = _conjuncts(condition)
    moving = [part for part in parts if columns_of(part) <= fields]
    below = repeated.input
    if moving:
        below = Calc(below, tuple((item, column(item.name)) for item in below.fields), _conjunction(moving))
    staying = _conjunction([part for part in parts if part not in moving])
    return replace(node, input=replace(repeated, input=_push_filters(below)), condition=staying)


def _below_join(node: Calc, join: DeltaJoin, condition: exp.Expr) -> Node:
    """The filter with those of its parts on the sides that speak of one side's fields only, where that side's rows come out as they are."""
    staying = _conjuncts(condition)
    sides = [join.left, join.right]
    for i in {"INNER": (0, 1), "FULL": ()}.get(join.kind, (0,)):
        fields = {item.name for item in sides[i].node.fields}
        moving = [part for part in staying if columns_of(part) and columns_of(part) <= fields]
        if moving:
            staying = [part for part in staying if part not in moving]
            below = sides[i].node
            filtered = Calc(below, tuple((item, column(item.name)) for item in below.fields), _conjunction(moving))
            sides[i] = replace(sides[i], node=filtered)
    left, right = map(_pushed, sides)
    return replace(node, input=replace(join, left=left, right=right), condition=_conjunction(staying))


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
