"""Whole: joins whose sides come whole: both of windows that the same watermark sends, joined by the window.

All rows of a window come in one micro-batch, on both sides, and never again: nothing has to be kept to join them.
"""

from __future__ import annotations

from dataclasses import replace

from storage_engine.stream.plan.share import with_inputs
from storage_engine.stream.plan.tree import DeltaJoin, KeptSide, Node
from storage_engine.stream.planning.bind_emission import emitted_at


def whole_joins(node: Node) -> Node:
    """The plan with such joins marked."""
    made = with_inputs(node, whole_joins)
    if isinstance(made, DeltaJoin) and made.kind in ("INNER", "SEMI") and _come_at_once(made):
        return replace(made, is_whole=True)
    return made


def _come_at_once(join: DeltaJoin) -> bool:
    if not isinstance(join.left, KeptSide) or not isinstance(join.right, KeptSide):
        return False
    for mine, other in zip(join.left.on, join.right.on, strict=True):
        left, right = emitted_at(join.left.node, mine), emitted_at(join.right.node, other)
        if left is not None and right is not None and (left.shift_ms, left.by_commit) == (right.shift_ms, right.by_commit):
            return {scan.table.name for scan in left.scans} == {scan.table.name for scan in right.scans}
    return False
