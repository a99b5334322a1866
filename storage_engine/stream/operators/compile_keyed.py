"""Compile keyed operators: joins, ranks and groups computed anew, as SQL over the rows of touched keys before and after a micro-batch.

A touched key is one that occurs in a change. Rows of a side at a moment ("start", "stop" of the micro-batch) are relations of their own:
src_ID_MOMENT for a stored side (its table's rows, over which its projections and filters run), kept_ID_MOMENT for a kept one.
Never: runs anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators.compile import POSITION, joined, one_sided, quoted, relation, total
from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, KeptSide, Node, Scan, Side, Sided, StoredSide, is_positioned

Moment = Literal["start", "stop"]
MOMENTS: tuple[Moment, Moment] = ("start", "stop")
_IDS: dict[Moment, int] = {"start": 1_000_000, "stop": 2_000_000}
"""What is added to a scan's id to name its rows at a moment: a plan has fewer operators."""


def moment_name(side: Side, moment: Moment) -> str:
    """The relation of a side's rows at a moment."""
    return f"src_{side.scan.id + _IDS[moment]}" if isinstance(side, StoredSide) else f"kept_{side.id}_{moment}"


def changes_name(side: KeptSide) -> str:
    """The relation that holds the changes of a kept side's rows."""
    return f"kept_{side.id}_changes"


def rows_at(side: Side, moment: Moment, *, further: tuple[str, ...] = ()) -> str:
    """The side's rows at a moment, as a SELECT. `further`: columns of a kept side beside its fields."""
    if isinstance(side, StoredSide):
        return relation(_at_moment(side.node, moment), batch=True)
    listed = ", ".join(quoted(name) for name in (*(item.name for item in side.node.fields), *further))
    return f"SELECT {listed} FROM {moment_name(side, moment)}"


def touched(node: Sided, side: Side) -> str:
    """The distinct keys (__j0, __j1, ...) under which rows of `side` are needed.

    A join follows its left rows one by one (all kinds but FULL), so those that stay are needed for the other side's changes only; a
    right row is needed for all changes, by an inner join for the left's only. Everything else needs rows for all changes.
    """
    sources: tuple[Side, ...] = node.sides
    if isinstance(node, DeltaJoin) and node.kind != "FULL" and (side is node.left or node.kind == "INNER"):
        sources = tuple(other for other in node.sides if other is not side)
    is_costly = isinstance(node, DeltaJoin) and node.kind != "INNER"
    parts = []
    for source in sources:
        listed = ", ".join(f"{quoted(name)} AS __j{i}" for i, name in enumerate(source.on)) or "1 AS __one"
        where = ""
        if isinstance(node, DeltaJoin):  # a null joins nothing
            where = " WHERE " + " AND ".join(f"{quoted(source.on[i])} IS NOT NULL" for i in _asked_by(node, side))
        # a row that is taken back and comes again touches nothing: an aggregate sends such pairs, and a join may have much to read for them
        body = _changes(source.node) if is_costly and source.node.is_retracting else relation(source.node)
        parts.append(f"SELECT {listed} FROM ({body}){where}")
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)})"


def _asked_by(node: DeltaJoin, side: Side) -> list[int]:
    """Which of the fields in `on` a row must have to be asked for: all; of a stored side of an outer join those it is looked up by.

    A left row with a null beside its key matches nothing and is in the result: it has to be read like any other.
    """
    if node.is_outer and isinstance(side, StoredSide):
        return [i for i, column in enumerate(side.columns) if column in side.keys]
    return list(range(len(side.on)))


def delta(node: Sided) -> str:
    """The operator's changes: its fields, and WEIGHT where they can be taken back."""
    fields = ", ".join(quoted(item.name) for item in node.fields)
    weight = quoted(WEIGHT)
    if isinstance(node, DeltaJoin) and node.kind != "FULL":
        left = joined(node, _changes(node.left.node), rows_at(node.right, "stop"), f", l.{weight} AS {weight}")
        if node.kind == "INNER":
            parts = [left, joined(node, rows_at(node.left, "start"), _changes(node.right.node), f", r.{weight} AS {weight}")]
        elif not node.is_retracting:  # SEMI, and matches only come: rows that were there and have their first match now
            matched = joined(node, rows_at(node.left, "start"), rows_at(node.right, "stop"))
            first = joined(replace(node, kind="ANTI"), matched, rows_at(node.right, "start"))
            parts = [left, f"SELECT {fields}, 1 AS {weight} FROM ({first})"]
        else:
            parts = [left, *_stayed(node, fields)]
        if not node.is_retracting:
            return f"SELECT {fields} FROM ({' UNION ALL '.join(parts)})"
    else:
        signs = zip(MOMENTS, (-1, 1), strict=True)
        parts = [f"SELECT {fields}, {sign} AS {weight} FROM ({body(node, moment)})" for moment, sign in signs]
        if isinstance(node, DeltaJoin):
            parts += [_unmatchable(node, side) for side in node.sides]
    net = f"sum({weight})"
    return f"SELECT {fields}, CAST({net} AS INT) AS {weight} FROM ({' UNION ALL '.join(parts)}) GROUP BY {fields} HAVING {net} <> 0"


def body(node: Sided, moment: Moment) -> str:
    """The operator over the touched keys' rows at a moment."""
    if isinstance(node, DeltaJoin):
        return joined(node, *(_findable(side, rows_at(side, moment)) for side in node.sides))
    if isinstance(node, Aggregate):
        return total(node, rows_at(node.sides[0], moment, further=(WEIGHT, *(POSITION if node.is_ordered else ()))), weighted=True)
    positioned = is_positioned(node.side.node)
    return one_sided(node, rows_at(node.side, moment, further=POSITION if positioned else ()), positioned=positioned)


def _changes(node: Node) -> str:
    """A side's net changes with WEIGHT."""
    fields = ", ".join(quoted(item.name) for item in node.fields)
    weight = quoted(WEIGHT)
    if not node.is_retracting:
        return f"SELECT {fields}, 1 AS {weight} FROM ({relation(node)})"
    return f"SELECT {fields}, sum({weight}) AS {weight} FROM ({relation(node)}) GROUP BY {fields} HAVING sum({weight}) <> 0"


def _stayed(node: DeltaJoin, fields: str) -> list[str]:
    """What the right's changes do to the left rows that were there before: taken back as they were, and come as they are now."""
    weight = quoted(WEIGHT)
    kept = rows_at(node.left, "start")
    signs = zip(MOMENTS, (-1, 1), strict=True)
    return [f"SELECT {fields}, {sign} AS {weight} FROM ({joined(node, kept, rows_at(node.right, at))})" for at, sign in signs]


def _findable(side: Side, rows: str) -> str:
    return f"SELECT * FROM ({rows}) WHERE {' AND '.join(f'{quoted(name)} IS NOT NULL' for name in side.on)}"


def _unmatchable(node: DeltaJoin, side: Side) -> str:
    """Rows of a FULL join that no key can find: those with a null in it."""
    listed = [quoted(item.name) if of is side else f"NULL AS {quoted(item.name)}" for of in node.sides for item in of.node.fields]
    nulls = " OR ".join(f"{quoted(name)} IS NULL" for name in side.on)
    return f"SELECT {', '.join(listed)}, {quoted(WEIGHT)} FROM ({_changes(side.node)}) WHERE {nulls}"


def _at_moment(node: Node, moment: Moment) -> Node:
    if isinstance(node, Calc):
        return replace(node, input=_at_moment(node.input, moment))
    assert isinstance(node, Scan), "a stored side is a table with projections and filters"
    return replace(node, id=node.id + _IDS[moment])
