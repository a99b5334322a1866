"""Emission binding: which windows are emitted once: those over a log with a WATERMARK, by its column, when late rows do not update.

The time has to be the declared column itself, unchanged, on its way from the log to the window; the group has to name the window's end
(or what says it). Everything else stays as it was without a watermark: results change while rows come, and nothing is late.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.schema.options import option_value
from storage_engine.schema.watermark import LATE_ROWS
from storage_engine.stream.plan.tree import (
    PROCESSING_TIME,
    Aggregate,
    Calc,
    Expand,
    LookupJoin,
    Node,
    Rank,
    Scan,
    Session,
    Union,
    Unnest,
    Windows,
)
from storage_engine.stream.plan.tree_time import Emission

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder


def emitted_once(binder: Binder, node: Aggregate) -> Aggregate:
    """The aggregate with its emission, where its groups become final. Errors: StatementRefused for a side table that does not fit."""
    if node.input.is_retracting or node.keeps_rows:
        return node
    for _, tree in node.keys:
        found = origin_of(node.input, tree.name) if isinstance(tree, exp.Column) else None
        if found is None:
            continue
        window, name = found
        whole = emitted_at(node.input, tree.name)
        if whole is not None:
            return replace(node, emission=replace(whole, field=None))
        if isinstance(window, Windows):
            shift_ms = _shift_to_end(window, name)
            emission = emission_of(binder, window.input, window.time) if shift_ms is not None else None
            if emission is not None:
                return replace(node, emission=replace(emission, field=tree.name, shift_ms=shift_ms or 0))
    return node


def emitted_at(node: Node, name: str) -> Emission | None:
    """When all rows with one value of the field come, at once: those of a window that was sent. `shift_ms`: they come with the watermark
    that reaches the value and the shift, less a millisecond. None: they may come at different times.
    """
    found = origin_of(node, name)
    if found is None:
        return None
    source, field = found
    if isinstance(source, Session) and source.emission is not None:
        shifts = {source.window[1].name: source.gap_ms, source.window[2].name: source.gap_ms + 1}
        return replace(source.emission, shift_ms=shifts[field]) if field in shifts else None
    if isinstance(source, Aggregate) and source.emission is not None:
        tree = next(tree for item, tree in source.keys if item.name == field)
        if not isinstance(tree, exp.Column):
            return None
        if source.emission.is_whole:
            return emitted_at(source.input, tree.name)
        window = origin_of(source.input, tree.name)
        shift_ms = _shift_to_end(window[0], window[1]) if window is not None and isinstance(window[0], Windows) else None
        return replace(source.emission, shift_ms=shift_ms) if shift_ms is not None else None
    return None


def _shift_to_end(window: Windows, name: str) -> int | None:
    """What is added to a field of the window for its end; None when it does not say the end."""
    start, end, last = (item.name for item in window.window)
    if name == end:
        return 0
    if name == last:
        return 1
    return window.size_ms if name == start and window.kind == "HOP" else None


def emission_of(binder: Binder, node: Node, time: str) -> Emission | None:
    """How rows of the node become final; None when their time is not the event time of a log with a WATERMARK, or late rows update; by
    processing time, when the sink can take a row once only.
    """
    found = _scans_of(node, time)
    if found and all(name == f"{scan.alias}.{PROCESSING_TIME}" for scan, name in found):
        scans = tuple(scan for scan, _ in found)
        return Emission(scans, None, 0, (None,) * len(scans), by_commit=True) if binder.waits_for_commits else None
    sides: list[str | None] = []
    for scan, name in found or ():
        declared = scan.table.watermark
        late = str(option_value(scan.table.options, LATE_ROWS))
        if declared is None or name != f"{scan.alias}.{declared.column}" or late == "update":
            return None
        sides.append(late.removeprefix("table:") if late != "drop" else None)
    if not found:
        return None
    for (scan, _), side in zip(found, sides, strict=True):
        if side is not None:
            _check_late_table(binder, scan.table.name, side)
    return Emission(tuple(scan for scan, _ in found), None, 0, tuple(sides))


def _scans_of(node: Node, name: str) -> list[tuple[Scan, str]] | None:
    """The logs that a field comes from unchanged; None when it does not in one branch of a union."""
    found = origin_of(node, name)
    if found is None:
        return None
    source, field = found
    if isinstance(source, Scan):
        return [(source, field)]
    branches = [_scans_of(branch, field) for branch in source.branches] if isinstance(source, Union) else []
    return [item for branch in branches for item in branch or ()] if branches and None not in branches else None


def _check_late_table(binder: Binder, source: str, name: str) -> None:
    """The side table is a log that takes a late row: columns of the source by their names, others nullable."""
    table, target = binder.describe(source), binder.describe(name)
    types = {item.name: item.type for item in table.columns}
    shared = [item.name for item in target.columns if types.get(item.name) == item.type]
    wrong = next((item.name for item in target.columns if item.name not in shared and (item.name in types or not item.nullable)), None)
    if target.has_primary_key or wrong is not None or not shared or name == source:
        why = f"column {wrong} does not fit" if wrong is not None else "it is no other log table with columns of the source"
        raise binder.refuse(
            f"late rows of {source} go to {name} ('{LATE_ROWS}'), which does not take them: {why}",
            f"Create it as a log table with columns of {source}, all or some, by their names and types.",
        )


def origin_of(node: Node, name: str) -> tuple[Node, str] | None:
    """The window, log or sent group that a field comes from unchanged, with its name there; None when it is computed, or of joined rows."""
    while True:
        if isinstance(node, Scan | Union):
            return node, name
        if isinstance(node, Windows | Session):
            if any(item.name == name for item in node.window):
                return node, name
            if isinstance(node, Session):
                return None
        elif isinstance(node, Aggregate):
            return (node, name) if node.emission is not None and any(item.name == name for item, _ in node.keys) else None
        elif isinstance(node, Rank):
            if not node.is_whole or all(item.name != name for item in node.side.node.fields):
                return None
            node = node.side.node
            continue
        elif isinstance(node, Calc):
            tree = next((tree for item, tree in node.projections if item.name == name), None)
            if not isinstance(tree, exp.Column):
                return None
            name = tree.name
        elif isinstance(node, Expand):
            number = next((i for i, (item, _) in enumerate(node.keys) if item.name == name), None)
            if number is not None:
                tree = node.keys[number][1]
                if not isinstance(tree, exp.Column) or not all(number in grouped for grouped in node.sets):
                    return None
                name = tree.name
        elif not isinstance(node, LookupJoin | Unnest) or all(item.name != name for item in node.input.fields):
            return None
        node = node.input
