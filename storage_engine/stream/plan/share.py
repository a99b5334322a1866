"""Share: equal parts of a plan become one: computed once per micro-batch, with one state.

Two operators that keep something are equal when they do the same to equal inputs: the names of fields, the order of keys and the number of
the operator aside. The second one becomes a projection of the first, so that the plan is a graph in which one operator has several readers.
Holds: the recomputation (batch.py) runs the plan as it was before, so the proof does not rest on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from sqlglot import exp

from storage_engine.stream.dialect.render import column, sql
from storage_engine.stream.plan.tree import (
    Aggregate,
    Calc,
    DeltaJoin,
    Expand,
    KeptSide,
    Node,
    Over,
    Rank,
    Scan,
    Session,
    Side,
    Union,
    Unnest,
    Windows,
)
from storage_engine.stream.plan.tree_time import Emission

Names = Mapping[str, str]
"""Field of the other relation -> the field of the one that always has its value."""
_SHARED: Final = Aggregate | DeltaJoin | Rank
"""Operators whose changes stand under a name of their own, so that several may read them."""


def share(root: Node) -> Node:
    """The plan with each of its equal operators once."""
    known: list[tuple[Node, Node]] = []  # as it was, and with what it reads shared

    def shared(node: Node) -> Node:
        if isinstance(node, _SHARED):
            for original, made in known:
                names = same(original, node)
                if names is not None:
                    return Calc(made, tuple((item, column(names[item.name])) for item in node.fields))
        made = with_inputs(node, shared)
        if isinstance(node, _SHARED):
            known.append((node, made))
        return made

    return shared(root)


def with_inputs(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node over changed inputs; rows that are in a table already are not touched."""

    def side(of: Side) -> Side:
        return replace(of, node=change(of.node)) if isinstance(of, KeptSide) else of

    if isinstance(node, Scan):
        return node
    if isinstance(node, Union):
        return replace(node, branches=tuple(map(change, node.branches)))
    if isinstance(node, DeltaJoin):
        return replace(node, left=side(node.left), right=side(node.right))
    if isinstance(node, Rank | Session | Over):
        return replace(node, side=side(node.side))
    return replace(node, input=change(node.input))


def same(one: Node, other: Node) -> Names | None:
    """How the other's fields are called in the one; None when they are not known to be equal."""
    if isinstance(one, Scan) and isinstance(other, Scan):
        return _same_scan(one, other)
    if isinstance(one, Calc) and isinstance(other, Calc):
        return _same_calc(one, other)
    if isinstance(one, Windows) and isinstance(other, Windows):
        return _same_windows(one, other)
    if isinstance(one, Unnest) and isinstance(other, Unnest):
        return _same_unnest(one, other)
    if isinstance(one, Expand) and isinstance(other, Expand):
        return _same_expand(one, other)
    if isinstance(one, Aggregate) and isinstance(other, Aggregate):
        return _same_aggregate(one, other)
    if isinstance(one, DeltaJoin) and isinstance(other, DeltaJoin):
        left, right = _same_side(one.left, other.left), _same_side(one.right, other.right)
        if left is None or right is None or one.kind != other.kind:
            return None
        names = {**left, **right}
        return names if _text(other.residual, names) == _text(one.residual, {}) else None
    if isinstance(one, Rank) and isinstance(other, Rank):
        return _same_rank(one, other)
    return None  # of lookups, sessions and OVER each computes its own


def _same_scan(one: Scan, other: Scan) -> Names | None:
    if one.table.name != other.table.name or one.startup != other.startup or set(one.columns) != set(other.columns):
        return None
    by_column = dict(zip(one.columns, (item.name for item in one.fields), strict=True))
    return {item.name: by_column[name] for name, item in zip(other.columns, other.fields, strict=True)}


def _same_calc(one: Calc, other: Calc) -> Names | None:
    names = same(one.input, other.input)
    if names is None or _text(one.condition, {}) != _text(other.condition, names):
        return None
    known = {_text(tree, {}): item for item, tree in one.projections}
    found = [(item, known.get(_text(tree, names))) for item, tree in other.projections]
    return _named((item.name, match.name if match is not None and match.type == item.type else None) for item, match in found)


def _same_windows(one: Windows, other: Windows) -> Names | None:
    names = same(one.input, other.input)
    lengths = [(node.kind, node.size_ms, node.step_ms, node.offset_ms) for node in (one, other)]
    if names is None or lengths[0] != lengths[1] or names.get(other.time) != one.time:
        return None
    return {**names, **{theirs.name: mine.name for theirs, mine in zip(other.window, one.window, strict=True)}}


def _same_expand(one: Expand, other: Expand) -> Names | None:
    names = same(one.input, other.input)
    if names is None or one.sets != other.sets:
        return None
    if [_text(tree, {}) for _, tree in one.keys] != [_text(tree, names) for _, tree in other.keys]:
        return None
    own = {theirs.name: mine.name for (theirs, _), (mine, _) in zip(other.keys, one.keys, strict=True)}
    return {**names, **own, other.mark.name: one.mark.name}


def _same_unnest(one: Unnest, other: Unnest) -> Names | None:
    names = same(one.input, other.input)
    if names is None or one.is_outer != other.is_outer or _text(one.elements, {}) != _text(other.elements, names):
        return None
    known = {part: item.name for item, part in one.parts}
    pairs = [(item.name, known.get(part)) for item, part in other.parts]
    if other.ordinal is not None:
        pairs.append((other.ordinal.name, one.ordinal.name if one.ordinal is not None else None))
    made = _named(pairs)
    return None if made is None else {**names, **made}


def _same_aggregate(one: Aggregate, other: Aggregate) -> Names | None:
    names = same(one.input, other.input)
    if names is None or one.keeps_rows != other.keeps_rows or not _same_emission(one.emission, other.emission, names):
        return None
    keys = {_text(tree, {}): item.name for item, tree in one.keys}
    if len(one.keys) != len(other.keys):
        return None
    held = {item.identity: item.name for item in one.accumulators}
    values = {}
    for item in other.accumulators:
        argument = _renamed(item.argument, names) if item.argument is not None else None
        condition = _renamed(item.condition, names) if item.condition is not None else None
        match = held.get(replace(item, argument=argument, condition=condition).identity)
        if match is None:
            return None
        values[item.name] = match
    results = {(_text(call.finish, {}), str(call.type)): item.name for item, call in one.calls}
    return _named(
        [(item.name, keys.get(_text(tree, names))) for item, tree in other.keys]
        + [(item.name, results.get((_text(call.finish, values), str(call.type)))) for item, call in other.calls]
    )


def _same_rank(one: Rank, other: Rank) -> Names | None:
    names = _same_side(one.side, other.side)
    if names is None or (one.limit, one.is_whole) != (other.limit, other.is_whole):
        return None
    if [(names[name], *how) for name, *how in other.order] != [(name, *how) for name, *how in one.order]:
        return None
    if other.number is None:
        return names
    return {**names, other.number.name: one.number.name} if one.number is not None else None


def _same_side(one: Side, other: Side) -> Names | None:
    names = same(one.node, other.node)
    if names is None or type(one) is not type(other) or tuple(names[name] for name in other.on) != one.on:
        return None
    if isinstance(one, KeptSide) and isinstance(other, KeptSide):
        if one.keeps_nulls != other.keeps_nulls or (one.expiry is None) != (other.expiry is None):
            return None
        if one.expiry is not None and other.expiry is not None:
            mine, theirs = one.expiry, other.expiry
            if (mine.time, mine.after_ms) != (names[theirs.time], theirs.after_ms):
                return None
            return names if _logs(mine.emission) == _logs(theirs.emission) else None
    return names


def _same_emission(one: Emission | None, other: Emission | None, names: Names) -> bool:
    if one is None or other is None:
        return one is other
    field = names.get(other.field) if other.field is not None else None
    how = [(item.shift_ms, item.by_commit, item.late_tables, _logs(item)) for item in (one, other)]
    return one.field == field and how[0] == how[1]


def _logs(emission: Emission) -> list[str]:
    return [scan.table.name for scan in emission.scans]


def _named(pairs: Iterable[tuple[str, str | None]]) -> Names | None:
    found = {name: match for name, match in pairs}
    known = {name: match for name, match in found.items() if match is not None}
    return known if len(known) == len(found) else None


def _renamed(tree: exp.Expr, names: Names) -> exp.Expr:
    return tree.copy().transform(lambda item: column(names.get(item.name, item.name)) if isinstance(item, exp.Column) else item)


def _text(tree: exp.Expr | None, names: Names) -> str:
    return "" if tree is None else sql(_renamed(tree, names))
