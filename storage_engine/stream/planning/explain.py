"""Explain: a job's plan in words: the operators, what is kept where, what a change costs, what is not reproducible.

One line per fact, so that it reads in a table: Sink, the tree of operators (the sink's side first), State, Cost, Function, Reproducible,
Notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import sql
from storage_engine.stream.functions.aggregates import Accumulator
from storage_engine.stream.operators.arrangement import Arrangement
from storage_engine.stream.plan.tree import (
    PROCESSING_TIME,
    Aggregate,
    Calc,
    DeltaJoin,
    Expand,
    InTime,
    KeptSide,
    LookupJoin,
    Node,
    Over,
    Rank,
    Scan,
    Session,
    Side,
    Sided,
    Union,
    Unnest,
    Windows,
    lookups,
    walk,
)

if TYPE_CHECKING:
    from storage_engine.stream.functions.aggregates import Accumulator
    from storage_engine.stream.operators.job_plan import JobPlan
    from storage_engine.stream.plan.placement import Placement

_TOLD_APART = {
    "key": "one row per key of the input",
    "position": "one row per row of the log",
    "digest": "equal rows once, with their number",
}


def explain(plan: JobPlan) -> list[str]:
    """The plan as text."""
    kind = "upsert into" if plan.sink.has_primary_key else "append to"
    key = f", key ({', '.join(plan.sink.primary_key)})" if plan.sink.has_primary_key else ""
    nodes = list(walk(plan.root))
    return [
        f"Sink: {kind} {plan.sink.name} ({', '.join(plan.targets)}){key}",
        *(f"  {line}" for line in describe(plan.root)),
        *(line for node in nodes for line in _state(plan, node)),
        *(f"Cost: {line}" for node in nodes for line in _cost(plan, node)),
        *(_function_line(plan, name) for name in sorted(plan.functions)),
        *_reproducible(plan, nodes),
        *_processing_times(nodes),
        *(f"Late rows: written to {name}" for name in plan.late_tables),
        *(f"Notice: {notice}" for notice in plan.notices),
    ]


# the operators


def describe(node: Node, depth: int = 0, told: set[int] | None = None) -> list[str]:
    """The tree as text, one operator per line, the sink's side first; what was told before with its first line only."""
    pad = "  " * depth
    told = set() if told is None else told
    mode = "retracting" if node.is_retracting else "append-only"
    if isinstance(node, Scan):
        kind = "changelog" if node.is_retracting else "log"
        line = f"Scan {kind} of {node.table.name} as {node.alias}: {', '.join(node.columns)}"
    elif isinstance(node, Calc):
        line = "Calc " + ", ".join(f"{item.name} = {sql(tree)}" for item, tree in node.projections)
        line += f" where {sql(node.condition)}" if node.condition is not None else ""
    elif isinstance(node, LookupJoin):
        keys = " and ".join(f"{name} = {sql(tree)}" for name, tree in node.keys)
        line = f"LookupJoin {'left' if node.is_outer else 'inner'} {node.table.name} as {node.alias} on {keys}: "
        line += ", ".join(node.columns) or "no columns"
        line += " (inserts missing keys)" if node.inserts_missing else ""
        line += f" (newest partition of {node.newest_of})" if node.newest_of else ""
    elif isinstance(node, DeltaJoin):
        on = " and ".join(f"{mine} = {other}" for mine, other in zip(node.left.on, node.right.on, strict=True))
        on += f" and {sql(node.residual)}" if node.residual is not None else ""
        line = f"DeltaJoin {node.kind.lower()} on {on}: " + (
            "a window comes whole" if node.is_whole else "a change looks up " + " and ".join(map(_found, node.sides))
        )
    elif isinstance(node, Rank):
        order = ", ".join(f"{name}{' desc' if descending else ''}" for name, descending, _ in node.order)
        line = f"Rank first {node.limit} by {', '.join(node.side.on) or 'nothing'} in order of {order}: " + (
            "a partition comes whole" if node.is_whole else f"a change looks up {_found(node.side)}"
        )
    elif isinstance(node, Session | Over | InTime | Windows | Unnest):
        line = node.line()
    elif isinstance(node, Union):
        line = f"Union of {len(node.branches)}"
    elif isinstance(node, Expand):
        sets = ", ".join(f"({', '.join(sql(node.keys[i][1]) for i in grouped)})" for grouped in node.sets)
        line = f"Expand to grouping sets {sets}"
    else:
        by = ", ".join(sql(tree) for _, tree in node.keys) or "nothing"
        line = f"Aggregate by {by}: {', '.join(call.text for _, call in node.calls) or 'distinct'}"
        line += ", a touched group is computed anew from its kept rows" if node.keeps_rows else ""
        line += ", counted by pane, panes put together to windows" if node.by_pane else ""
        line += f", sent once when {node.emission.when}" if node.emission else ""
    if id(node) in told:
        return [f"{pad}{line} [shared: computed once, told above]"]
    told.add(id(node))
    out = [f"{pad}{line} [{mode}]"]
    for child in node.inputs:
        out.extend(describe(child, depth + 1, told))
    return out


def _found(side: Side) -> str:
    if isinstance(side, KeptSide):
        until = f" until the watermark of {side.expiry.emission.of} passes them" if side.expiry is not None else ""
        return f"rows kept by ({', '.join(side.on)}){until}"
    return f"{side.scan.table.name} by {'prefix ' if side.is_prefix else ''}({', '.join(side.keys)})"


# what is kept where


def _state(plan: JobPlan, node: Node) -> list[str]:
    lines = []
    if isinstance(node, Aggregate) and node.id in plan.placements:
        lines += _of_placement(node, plan.placements[node.id])
    sides = node.sides if isinstance(node, Sided) else ()
    lines += [f"State: {_of_arrangement(plan.arrangements[side.id])}" for side in sides if isinstance(side, KeptSide)]
    return lines


def _of_placement(node: Aggregate, placement: Placement) -> list[str]:
    what = f"{_by(node)} in {placement.table.name}"
    reason = f" ({placement.reason})" if placement.reason else ""
    key = f"key ({', '.join(name for name, _ in placement.keys)})"
    unit = "group and pane" if node.by_pane and node.emission is not None else "group"
    text = {
        "merge": f"no state: {placement.table.name} adds up what the job writes, {key}",
        "sink": f"{what}: the result columns are the state, {key}",
        "table": f"{what}: one row per {unit}, {key}, {len(placement.columns)} values{reason}",
    }[placement.mode]
    distinct = [f"State: distinct values in {item.table.name}: one row per group and value" for item in placement.distinct]
    return [f"State: {text}", *distinct]


def _of_arrangement(arrangement: Arrangement) -> str:
    by = ", ".join(arrangement.side.on) or "nothing: all are one partition"
    return f"rows kept in {arrangement.table.name} by ({by}): {_TOLD_APART[arrangement.kind]}, {len(arrangement.columns)} columns"


# what a change costs


def _cost(plan: JobPlan, node: Node) -> list[str]:
    match node:
        case LookupJoin():
            how = "a prefix read" if node.is_prefix else "a point read"
            return [f"{how} of {node.table.name} per distinct key of a micro-batch"]
        case DeltaJoin():
            return _cost_of_join(node)
        case Rank():
            rows = f"the partition of a change ({', '.join(node.side.on)})" if node.side.on else "the one partition: all rows, each time"
            return [f"reads every row of {rows}, and ranks them before and after"]
        case Session() | Over():
            rows = f"the partition of a change ({', '.join(node.side.on)})" if node.side.on else "the one partition: all rows, each time"
            return [f"reads every row of {rows}, and computes it before and after"]
        case Aggregate():
            return [_cost_of_aggregate(plan, node)]
        case _:
            return []


def _cost_of_join(node: DeltaJoin) -> list[str]:
    if node.is_whole:
        return ["nothing is read: a window comes whole, on both sides"]
    left, right = (_rows_of(side) for side in (node.left, node.right))
    if node.kind == "INNER":
        return [f"a change of the left reads {right} with its key, one of the right reads {left}"]
    if node.kind == "FULL":
        return [f"a change of either side reads {left} and {right} with its key, before and after"]
    if _is_constant(node.left.node, node.left.on):
        return [f"a change of the left reads one row; when the subquery's answer changes, all of {left} are read and decided anew"]
    return [f"a change of the left reads {right} with its key; one of the right reads {left} too, and decides them before and after"]


def _rows_of(side: Side) -> str:
    if isinstance(side, KeptSide):
        return f"the kept rows of ({', '.join(side.on)})"
    return f"{side.scan.table.name} by {'prefix ' if side.is_prefix else ''}({', '.join(side.keys)})"


def _is_constant(node: Node, names: tuple[str, ...]) -> bool:
    if not isinstance(node, Calc):
        return False
    trees = {item.name: tree for item, tree in node.projections}
    return all(not trees[name].find(exp.Column) for name in names)


def _cost_of_aggregate(plan: JobPlan, node: Aggregate) -> str:
    if node.keeps_rows:
        return f"{_by(node)}: every row of a touched group is read, and the group computed anew"
    if node.emission is not None and node.emission.is_whole:
        return f"{_by(node)}: nothing is read: a group comes whole"
    placement = plan.placements[node.id]
    more = ", and one per touched value for DISTINCT" if placement.distinct else ""
    if placement.mode == "merge":
        return f"{_by(node)}: nothing is read{more.replace(', and one', ' but one point read')}"
    return f"{_by(node)}: one point read per touched group of a micro-batch{more}"


def _by(node: Aggregate) -> str:
    return f"groups by ({', '.join(sql(tree) for _, tree in node.keys)})" if node.keys else "the one group"


# what can be recomputed


def _function_line(plan: JobPlan, name: str) -> str:
    item = plan.functions[name]
    how = "per batch, on Arrow arrays" if item.vectorised else "per row"
    return f"Function: {item.signature} = {item.target}, called {how}; by contract it gives equal results for equal arguments"


def _reproducible(plan: JobPlan, nodes: list[Node]) -> list[str]:
    lines = [
        f"Reproducible: only while looked-up rows stay: {name} is read as it is when a row is processed, and again when recomputed"
        for name in dict.fromkeys(join.table.name for join in lookups(plan.root))
    ]
    inexact = [call.text for node in nodes if isinstance(node, Aggregate) for _, call in node.calls if _is_inexact(call.needs)]
    if inexact:
        lines.append(f"Reproducible: up to the order of additions: {', '.join(inexact)} adds up FLOAT or DOUBLE")
    return lines or ["Reproducible: yes: the batch over the recorded offsets gives the same rows"]


def _processing_times(nodes: list[Node]) -> list[str]:
    names = dict.fromkeys(node.table.name for node in nodes if isinstance(node, Scan) and PROCESSING_TIME in node.columns)
    return [
        f"Processing time: PROCTIME() of a row of {name} is when its commit was done, as the log says ({PROCESSING_TIME}): it depends on "
        "when a row was written, never on when it is read"
        for name in names
    ]


def _is_inexact(needs: tuple[Accumulator, ...]) -> bool:
    return any(item.kind == "sum" and item.type.is_approximate for item in needs)
