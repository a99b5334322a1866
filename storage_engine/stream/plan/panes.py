"""Panes: which aggregates count by pane: windows of several steps (HOP, CUMULATE) are put together from the counts of single steps.

A pane is one step of time. A row lies in one pane and in size / step windows; so each row is counted once, and a state that is kept
until windows are sent has one row per group and pane, not one per group and window. Holds for values that add up exactly: COUNT, MIN, MAX,
sums of exact numbers and what is made of them (AVG), bitmaps. DISTINCT and FLOAT or DOUBLE sums go window by window.
Decides only: compile_panes.py writes the SQL, pane_groups.py runs those that are sent once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sqlglot import exp

from storage_engine.stream.functions.aggregates import Accumulator
from storage_engine.stream.plan.share import with_inputs
from storage_engine.stream.plan.tree import Aggregate, Calc, Node, Windows, columns_of

_ADDS_UP: Final = ("rows", "count", "sum", "min", "max", "bitmap_build", "bitmap_or")


def by_pane(node: Node) -> Node:
    """The plan with the aggregates counted by pane that can be."""
    if isinstance(node, Aggregate):
        below = node.input
        if isinstance(below, Calc) and below.condition is None and all(_is_itself(item.name, tree) for item, tree in below.projections):
            below = below.input
        if isinstance(below, Windows) and _adds_up(node, below):
            return replace(node, input=with_inputs(below, by_pane), by_pane=True)
    return with_inputs(node, by_pane)


def _adds_up(node: Aggregate, windows: Windows) -> bool:
    if windows.size_ms == windows.step_ms or node.keeps_rows or not all(map(_is_exact, node.accumulators)):
        return False
    names = {item.name for item in windows.window}
    read = set().union(*(columns_of(item.argument) | columns_of(item.condition) for item in node.accumulators))
    computed = set().union(*(columns_of(tree) for _, tree in node.keys if not isinstance(tree, exp.Column)))
    return not names & (read | computed)


def _is_exact(item: Accumulator) -> bool:
    return item.kind in _ADDS_UP and not item.distinct and not (item.kind == "sum" and item.type.is_approximate)


def _is_itself(name: str, tree: exp.Expr) -> bool:
    return isinstance(tree, exp.Column) and tree.name == name
