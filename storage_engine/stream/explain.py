"""Explain: a job's plan in words: the operators, what is kept where, what a change costs, what is not reproducible.

One line per fact, so that it reads in a table: Sink, the tree of operators (the sink's side first), State, Cost, Function, Reproducible,
Notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.aggregates import Accumulator
from storage_engine.stream.arrangement import Arrangement
from storage_engine.stream.plan import (
    Aggregate,
    Calc,
    DeltaJoin,
    KeptSide,
    LookupJoin,
    Node,
    Over,
    Rank,
    Session,
    Side,
    Sided,
    describe,
    lookups,
    walk,
)
from storage_engine.stream.render import sql

if TYPE_CHECKING:
    from storage_engine.stream.aggregates import Accumulator
    from storage_engine.stream.placement import Placement
    from storage_engine.stream.planner import JobPlan

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
        *(f"Late rows: written to {name}" for name in plan.late_tables),
        *(f"Notice: {notice}" for notice in plan.notices),
    ]


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


def _is_inexact(needs: tuple[Accumulator, ...]) -> bool:
    return any(item.kind == "sum" and item.type.is_approximate for item in needs)
