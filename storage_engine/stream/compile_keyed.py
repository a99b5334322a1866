"""Compile keyed operators: joins, ranks and groups computed anew, as SQL over the rows of touched keys before and after a micro-batch.

A touched key is one that occurs in a change. Rows of a side at a moment ("start", "stop" of the micro-batch) are relations of their own:
src_ID_MOMENT for a stored side (its table's rows, over which its projections and filters run), kept_ID_MOMENT for a kept one.
Never: runs anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from storage_engine.stream.aggregates import WEIGHT
from storage_engine.stream.compile import POSITION, joined, quoted, ranked, relation, total
from storage_engine.stream.plan import Aggregate, Calc, DeltaJoin, KeptSide, Node, Rank, Scan, Side, StoredSide, is_positioned

Moment = Literal["start", "stop"]
MOMENTS: tuple[Moment, Moment] = ("start", "stop")
_IDS: dict[Moment, int] = {"start": 1_000_000, "stop": 2_000_000}
"""What is added to a scan's id to name its rows at a moment: a plan has fewer operators."""


def moment_name(side: Side, moment: Moment) -> str:
    """The relation of a side's rows at a moment."""
    return f"src_{side.scan.id + _IDS[moment]}" if isinstance(side, StoredSide) else f"kept_{side.id}_{moment}"


def changes_name(side: KeptSide) -> str:
    return f"kept_{side.id}_changes"


def rows_at(side: Side, moment: Moment, *, further: tuple[str, ...] = ()) -> str:
    """The side's rows at a moment, as a SELECT. `further`: columns of a kept side beside its fields."""
    if isinstance(side, StoredSide):
        return relation(_at_moment(side.node, moment), batch=True)
    listed = ", ".join(quoted(name) for name in (*(item.name for item in side.node.fields), *further))
    return f"SELECT {listed} FROM {moment_name(side, moment)}"


def touched(node: DeltaJoin | Rank | Aggregate, side: Side) -> str:
    """The distinct keys (__j0, __j1, ...) under which rows of `side` are needed.

    An inner join needs a side's rows for the other side's changes only; everything else for all changes.
    """
    sources = [other for other in node.sides if other is not side] if isinstance(node, DeltaJoin) and not node.is_outer else node.sides
    parts = []
    for source in sources:
        listed = ", ".join(f"{quoted(name)} AS __j{i}" for i, name in enumerate(source.on)) or "1 AS __one"
        where = ""
        if isinstance(node, DeltaJoin):  # a null joins nothing
            where = " WHERE " + " AND ".join(f"{quoted(source.on[i])} IS NOT NULL" for i in _asked_by(node, side))
        parts.append(f"SELECT {listed} FROM ({relation(source.node)}){where}")
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)})"


def _asked_by(node: DeltaJoin, side: Side) -> list[int]:
    """Which of the fields in `on` a row must have to be asked for: all; of a stored side of an outer join those it is looked up by.

    A left row with a null beside its key matches nothing and is in the result: it has to be read like any other.
    """
    if node.is_outer and isinstance(side, StoredSide):
        return [i for i, column in enumerate(side.columns) if column in side.keys]
    return list(range(len(side.on)))


def delta(node: DeltaJoin | Rank | Aggregate) -> str:
    """The operator's changes: its fields, and WEIGHT where they can be taken back."""
    fields = ", ".join(quoted(item.name) for item in node.fields)
    weight = quoted(WEIGHT)
    if isinstance(node, DeltaJoin) and not node.is_outer:
        left = joined(node, _changes(node.left.node), rows_at(node.right, "stop"), f", l.{weight} AS {weight}")
        right = joined(node, rows_at(node.left, "start"), _changes(node.right.node), f", r.{weight} AS {weight}")
        parts = [left, right]
        if not node.is_retracting:
            return f"SELECT {fields} FROM ({left} UNION ALL {right})"
    else:
        signs = zip(MOMENTS, (-1, 1), strict=True)
        parts = [f"SELECT {fields}, {sign} AS {weight} FROM ({body(node, moment)})" for moment, sign in signs]
        if isinstance(node, DeltaJoin) and isinstance(node.left, KeptSide):
            parts.append(_unmatchable(node))
    net = f"sum({weight})"
    return f"SELECT {fields}, CAST({net} AS INT) AS {weight} FROM ({' UNION ALL '.join(parts)}) GROUP BY {fields} HAVING {net} <> 0"


def body(node: DeltaJoin | Rank | Aggregate, moment: Moment) -> str:
    """The operator over the touched keys' rows at a moment."""
    if isinstance(node, DeltaJoin):
        return joined(node, rows_at(node.left, moment), rows_at(node.right, moment))
    if isinstance(node, Rank):
        positioned = is_positioned(node.side.node)
        return ranked(node, rows_at(node.side, moment, further=POSITION if positioned else ()), positioned=positioned)
    return total(node, rows_at(node.sides[0], moment, further=(WEIGHT,)), weighted=True)


def _changes(node: Node) -> str:
    """A side's net changes with WEIGHT."""
    fields = ", ".join(quoted(item.name) for item in node.fields)
    weight = quoted(WEIGHT)
    if not node.is_retracting:
        return f"SELECT {fields}, 1 AS {weight} FROM ({relation(node)})"
    return f"SELECT {fields}, sum({weight}) AS {weight} FROM ({relation(node)}) GROUP BY {fields} HAVING sum({weight}) <> 0"


def _unmatchable(node: DeltaJoin) -> str:
    """Left rows of an outer join that no key can find: those with a null in it."""
    listed = [quoted(item.name) for item in node.left.node.fields] + [f"NULL AS {quoted(item.name)}" for item in node.right.node.fields]
    nulls = " OR ".join(f"{quoted(name)} IS NULL" for name in node.left.on)
    return f"SELECT {', '.join(listed)}, {quoted(WEIGHT)} FROM ({_changes(node.left.node)}) WHERE {nulls}"


def _at_moment(node: Node, moment: Moment) -> Node:
    if isinstance(node, Calc):
        return replace(node, input=_at_moment(node.input, moment))
    assert isinstance(node, Scan), "a stored side is a table with projections and filters"
    return replace(node, id=node.id + _IDS[moment])
