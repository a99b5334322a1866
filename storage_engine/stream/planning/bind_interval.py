"""Interval binding: joins that let rows go which can match nothing any more: of two logs with WATERMARKs whose times are held together, and
of windows.

    ON a.k = b.k AND b.ts BETWEEN a.ts - INTERVAL '1' MINUTE AND a.ts + INTERVAL '5' MINUTE

A join of two relations of windows that are sent once, by the window, forgets a window when the other side has sent it as well.
With b.ts - a.ts in [low, high] and width = high - low: a row is late when its time and the width lie before its own watermark. A left
row is kept until no right row in time can match it: those have times from (watermark of the right - width) on. Right rows likewise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sqlglot import exp

from storage_engine.stream.plan.tree import DeltaJoin, KeptSide, is_positioned
from storage_engine.stream.plan.tree_time import Expiry, InTime
from storage_engine.stream.planning.bind_emission import emission_of, emitted_at

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder

_UNIT_MS: Final = {"MILLISECOND": 1, "SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000, "WEEK": 604_800_000}


def with_expiry(binder: Binder, join: DeltaJoin) -> DeltaJoin:
    """The join with sides that forget: by windows, or where its condition bounds how far two event times are apart, without late rows."""
    left, right = join.sides
    if isinstance(left, KeptSide) and isinstance(right, KeptSide):
        for mine, other in zip(left.on, right.on, strict=True):
            of_left, of_right = emitted_at(left.node, mine), emitted_at(right.node, other)
            if of_left is not None and of_right is not None:
                kept = replace(left, expiry=Expiry(mine, of_right.shift_ms - 2, of_right))
                return replace(join, left=kept, right=replace(right, expiry=Expiry(other, of_left.shift_ms - 2, of_left)))
    if join.kind != "INNER" or not (isinstance(left, KeptSide) and isinstance(right, KeptSide)):
        return join
    if not (is_positioned(left.node) and is_positioned(right.node)):
        return join
    names = [{item.name for item in side.node.fields} for side in (left, right)]
    for (mine, other), (low, high) in _distances(join.residual, names[0], names[1]).items():
        of_left, of_right = emission_of(binder, left.node, mine), emission_of(binder, right.node, other)
        if low is None or high is None or high < low or of_left is None or of_right is None:
            continue
        width = high - low
        return replace(
            join,
            left=replace(left, node=InTime(left.node, mine, width, of_left), expiry=Expiry(mine, high + width, of_right)),
            right=replace(right, node=InTime(right.node, other, width, of_right), expiry=Expiry(other, width - low, of_left)),
        )
    return join


_Bounds = tuple[int | None, int | None]


def _distances(condition: exp.Expr | None, left: set[str], right: set[str]) -> dict[tuple[str, str], _Bounds]:
    """(left field, right field) -> bounds of right - left in milliseconds, from the parts that must all be true."""
    found: dict[tuple[str, str], _Bounds] = {}
    for small, large, strict in _inequalities(condition):
        lower, upper = _moved(small), _moved(large)
        if lower is None or upper is None:
            continue
        (small_name, small_ms), (large_name, large_ms) = lower, upper  # small + small_ms <= large + large_ms
        distance = small_ms - large_ms + (1 if strict else 0)
        if small_name in left and large_name in right:
            low, high = found.get((small_name, large_name), (None, None))
            found[small_name, large_name] = (distance if low is None else max(low, distance), high)
        elif small_name in right and large_name in left:
            low, high = found.get((large_name, small_name), (None, None))
            found[large_name, small_name] = (low, -distance if high is None else min(high, -distance))
    return found


def _inequalities(tree: exp.Expr | None) -> list[tuple[exp.Expr, exp.Expr, bool]]:
    """(smaller, larger, are never equal) of comparisons in a conjunction."""
    if isinstance(tree, exp.Paren):
        return _inequalities(tree.this)
    if isinstance(tree, exp.And):
        return _inequalities(tree.this) + _inequalities(tree.expression)
    if isinstance(tree, exp.Between):
        return [(tree.args["low"], tree.this, False), (tree.this, tree.args["high"], False)]
    if isinstance(tree, exp.LTE | exp.LT):
        return [(tree.this, tree.expression, isinstance(tree, exp.LT))]
    if isinstance(tree, exp.GTE | exp.GT):
        return [(tree.expression, tree.this, isinstance(tree, exp.GT))]
    return [(tree.this, tree.expression, False), (tree.expression, tree.this, False)] if isinstance(tree, exp.EQ) else []


def _moved(tree: exp.Expr) -> tuple[str, int] | None:
    """A field and the milliseconds that are added to it; None for any other expression."""
    if isinstance(tree, exp.Column):
        return tree.name, 0
    if isinstance(tree, exp.Paren | exp.Cast):
        return _moved(tree.this)
    if isinstance(tree, exp.Add | exp.Sub):
        moved, by = _moved(tree.this), _length_ms(tree.expression)
        if moved is not None and by is not None:
            return moved[0], moved[1] + (by if isinstance(tree, exp.Add) else -by)
    return None


def _length_ms(tree: exp.Expr) -> int | None:
    while isinstance(tree, exp.Paren):
        tree = tree.this
    unit = str(tree.args.get("unit") or "").upper().removesuffix("S") if isinstance(tree, exp.Interval) else ""
    return int(tree.this.name) * _UNIT_MS[unit] if unit in _UNIT_MS else None
