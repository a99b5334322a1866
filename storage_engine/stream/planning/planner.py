"""Planner: a bound SELECT and a sink into a JobPlan, or a refusal with clause and reason.

Checks columns, types, keys and what the sink can take; places the state of each aggregate. The SELECT's text and descriptors
are all it needs: planning the same job twice gives the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.schema.computed import why_not_written
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.stream.dialect.render import column
from storage_engine.stream.dialect.sqltypes import is_storable_as, parse_type
from storage_engine.stream.functions.casts import as_precise, is_cut
from storage_engine.stream.operators.arrangement import Arrangement, arrange
from storage_engine.stream.operators.checked_key import is_checked
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.optimize import optimize
from storage_engine.stream.plan.panes import by_pane
from storage_engine.stream.plan.placement import Placement, place, top_aggregate
from storage_engine.stream.plan.result_key import with_result_key
from storage_engine.stream.plan.share import share
from storage_engine.stream.plan.tree import (
    Aggregate,
    Calc,
    Field,
    KeptSide,
    LookupJoin,
    Node,
    Query,
    Sided,
    Unnest,
    scans,
    walk,
)
from storage_engine.stream.planning.bind import Binder, Catalog
from storage_engine.stream.planning.whole import whole_joins

ENFORCER_OPTION = "table.exec.sink.not-null-enforcer"
LAYOUT: Final = 2
"""How plans lay out their state. A job keeps the layout it was submitted under: 0 shares nothing and keeps every window of its own;
1 keeps the sum of an AVG in the type of its values, which a sum soon leaves."""


def plan_insert(
    catalog: Catalog,
    sink: TableDescriptor,
    columns: Sequence[str] | None,
    select_sql: str,
    *,
    job: str,
    default_database: str = "",
    settings: Mapping[str, str] | None = None,
    first_line: int = 1,
    runs_once: bool = False,
    layout: int = LAYOUT,
) -> JobPlan:
    """Plan INSERT INTO sink (columns) SELECT. `job` names the state tables, `first_line` is where the SELECT begins in the user's text.

    runs_once   the statement ends with what is there now, so that it may read the table it writes
    layout      how its state is laid out

    Errors: StatementRefused, UnknownTable.
    """
    where = f"job {job}"
    binder = Binder(
        catalog, default_database=default_database, where=where, settings=settings,
        waits_for_commits=not sink.has_primary_key, adds_wide=layout >= 2,
    )  # fmt: skip
    query = binder.bind(select_sql, first_line=first_line)
    targets = _targets(sink, columns, query, where)
    meant = optimize(with_result_key(_to_sink(query, sink, targets, where), sink))
    root = _as_run(meant) if layout else meant
    if not runs_once and any(scan.table.name == sink.name for scan in scans(root)):
        raise StatementRefused(
            f"{sink.name} is read and written: the job would feed itself", where=where, next_step="Write to another table."
        )
    drops = _enforcer(settings or {}, where)
    placements = _placements(root, sink, job)
    _check_sink(root, sink, placements, where)
    notices = (*query.notices, *_order_notices(root, sink))
    arrangements = _arrangements(root, sink, job)
    return JobPlan(
        root, sink, targets, placements, drops, notices, binder.used_views, arrangements, binder.used_functions, meant=meant
    )  # fmt: skip


def plan_select(
    catalog: Catalog, select_sql: str | exp.Query, *, default_database: str = "", settings: Mapping[str, str] | None = None
) -> JobPlan:
    """The plan of a SELECT on its own, as if a table took just its rows: what EXPLAIN shows. Errors: StatementRefused, UnknownTable."""
    where = "query"
    binder = Binder(catalog, default_database=default_database, where=where, settings=settings)
    query = binder.bind(select_sql)
    root = query.root if isinstance(query.root, Calc) else identity(query.root)
    key = root.unique_key if root.is_retracting else None
    columns = tuple(Column(item.name, str(item.type) if item.type.is_known else "STRING") for item in root.fields)
    sink = TableDescriptor("result", columns, key or (), (), key or (), 1, {})
    meant = optimize(root)
    root = _as_run(meant)
    notices = list(query.notices)
    if root.is_retracting and key is None:
        notices.append("the columns that identify a row of the result are not selected: no table could hold it")
    targets = tuple(item.name for item in root.fields)
    return JobPlan(
        root, sink, targets, _placements(root, sink, "query"), notices=tuple(notices), views=binder.used_views,
        arrangements=_arrangements(root, sink, "query"), functions=binder.used_functions, meant=meant,
    )  # fmt: skip


def _as_run(meant: Node) -> Node:
    """How a stream computes the relation."""
    return share(by_pane(whole_joins(meant)))


def identity(node: Node) -> Calc:
    return Calc(node, tuple((item, column(item.name)) for item in node.fields))


def _targets(sink: TableDescriptor, columns: Sequence[str] | None, query: Query, where: str) -> tuple[str, ...]:
    targets = tuple(columns) if columns is not None else sink.column_names
    for name in targets:
        if name not in sink.column_names:
            what = why_not_written(sink, name) or f"{sink.name} has no column {name}"
            raise StatementRefused(what, where=where, next_step=f"Its columns are {', '.join(sink.column_names)}.")
    if len(set(targets)) != len(targets):
        raise StatementRefused("a column is named twice in the column list", where=where, next_step="Name each column once.")
    if len(targets) != len(query.column_names):
        raise StatementRefused(
            f"{sink.name} takes {len(targets)} columns ({', '.join(targets)}), "
            f"the query has {len(query.column_names)} ({', '.join(query.column_names)})",
            where=where,
            next_step="INSERT maps by position: name the columns after the table, or select as many.",
        )
    left_out = [name for name in sink.column_names if name not in targets]
    if left_out and sink.merge_engine in ("first_row", "versioned"):
        raise StatementRefused(
            f"{sink.name} takes whole rows ({sink.merge_engine} engine) and the statement does not give {left_out[0]}",
            where=where,
            next_step="Name every column.",
        )
    if sink.auto_increment_column in targets:
        raise StatementRefused(
            f"column {sink.auto_increment_column} is assigned by the table",
            where=where,
            next_step="Name the other columns after the table.",
        )
    for item in sink.columns:
        if item.name not in targets and (item.name in sink.primary_key or not item.nullable) and item.name != sink.auto_increment_column:
            what = "the primary key" if item.name in sink.primary_key else "NOT NULL"
            raise StatementRefused(
                f"column {item.name} of {sink.name} is {what} and the statement does not give it",
                where=where,
                next_step="Add it to the column list.",
            )
    return targets


def _to_sink(query: Query, sink: TableDescriptor, targets: tuple[str, ...], where: str) -> Calc:
    """The query with its fields renamed to the sink's columns, and their types checked."""
    root = query.root if isinstance(query.root, Calc) else identity(query.root)
    projections = []
    for name, (item, tree) in zip(targets, root.projections, strict=True):
        wanted = parse_type(sink.column(name).type)
        if not is_storable_as(item.type, wanted):
            raise StatementRefused(
                f"column {name} of {sink.name} is {wanted}, the query gives it {item.type}",
                where=where,
                next_step=f"CAST it AS {sink.column(name).type}.",
            )
        if is_cut(item.type, wanted):
            projections.append((type(item)(name, wanted, item.nullable), as_precise(tree, wanted)))
        else:
            projections.append((type(item)(name, item.type, item.nullable), tree))
    renamed = dict(zip((item.name for item in root.fields), targets, strict=True))
    return Calc(root.input, tuple(projections), root.condition, root.key and tuple(renamed[name] for name in root.key))


def _enforcer(settings: Mapping[str, str], where: str) -> bool:
    value = settings.get(ENFORCER_OPTION, "ERROR").upper()
    if value not in ("ERROR", "DROP"):
        raise StatementRefused(f"'{ENFORCER_OPTION}' = '{value}'", where=where, next_step="Use ERROR or DROP.")
    return value == "DROP"


def _placements(root: Node, sink: TableDescriptor, job: str) -> dict[int, Placement]:
    placements: dict[int, Placement] = {}
    top = top_aggregate(root)
    for node in walk(root):
        if not isinstance(node, Aggregate) or node.keeps_rows or (node.emission is not None and node.emission.is_whole):
            continue
        _check_keepable(node.state_fields, f"job {job}")
        if top is not None and node is top[0]:
            outputs = tuple((item.name, tree) for item, tree in top[1].projections)
            placements[node.id] = place(node, outputs, top[1].condition, sink, job)
        else:
            placements[node.id] = place(node, None, None, sink, job)
    return placements


def _arrangements(root: Node, sink: TableDescriptor, job: str) -> dict[int, Arrangement]:
    kept = [side for node in walk(root) if isinstance(node, Sided) for side in node.sides if isinstance(side, KeptSide)]
    _check_keepable((item for side in kept for item in side.node.fields), f"job {job}")
    return {side.id: arrange(side, f"{sink.name}__rows_{job}_{side.id}", sink.n_buckets) for side in kept}


def _check_keepable(fields: Iterable[Field], where: str) -> None:
    """What is kept is kept in tables, and a table holds no array, map or row."""
    nested = next((item for item in fields if item.type.parts), None)
    if nested is not None:
        raise StatementRefused(
            f"rows with {nested.name}, which is {nested.type}, would have to be kept, and no table holds one",
            where=where,
            next_step="Take it apart with UNNEST before, or keep what it is made of and compute it behind.",
        )


def _check_sink(root: Node, sink: TableDescriptor, placements: Mapping[int, Placement], where: str) -> None:
    """What the sink must be for the rows it gets."""
    for scan in scans(root):
        if scan.table.is_wal:
            raise StatementRefused(
                f"the changelog of {scan.table.name} does not say what a row was before: 'table.changelog.image' = 'wal'",
                where=where,
                next_step="Read a table whose changelog has full images.",
            )
    if not root.is_retracting:
        # rows of these operators do not come in the order of a log: only a key tells which of them meet
        is_unordered = any(isinstance(node, Sided) for node in walk(root))
        if is_unordered and sink.has_primary_key and sink.merge_engine != "aggregation":
            _check_key(root, sink, where)
        return
    if sink.merge_engine in ("first_row", "versioned"):
        raise StatementRefused(
            f"{sink.name} keeps whole rows by the {sink.merge_engine} engine and the query's result changes: it cannot take back rows",
            where=where,
            next_step="Read a log table without aggregates, or write to a table without 'table.merge-engine'.",
        )
    if not sink.has_primary_key:
        raise StatementRefused(
            f"{sink.name} is a log table: it cannot take back rows, and the query's result changes",
            where=where,
            next_step="Write to a primary-key table.",
        )
    if sink.merge_engine == "aggregation" and all(placement.mode != "merge" for placement in placements.values()):
        raise StatementRefused(
            f"{sink.name} is an aggregation table and the query's rows can be taken back: a merged value cannot be un-merged",
            where=where,
            next_step="Aggregate in the query (GROUP BY with COUNT(*) and SUM), or write to a table without a merge engine.",
        )
    _check_key(root, sink, where)


def _check_key(root: Node, sink: TableDescriptor, where: str) -> None:
    """A row of the result is a row of the table: the primary key tells the result's rows apart."""
    key = root.unique_key
    if is_checked(root):
        return
    if key is None or not set(key) <= set(sink.primary_key):
        of_query = f"({', '.join(key)})" if key is not None else _key_of_query(root)
        raise StatementRefused(
            f"the primary key of {sink.name} ({', '.join(sink.primary_key)}) does not contain the query's key {of_query}: "
            "two rows of the result could meet in one row of the table",
            where=where,
            next_step="Key the table by what identifies a row of the query: its GROUP BY columns, or the source's primary key.",
        )


def _order_notices(root: Node, sink: TableDescriptor) -> list[str]:
    """Rows that overwrite each other by key have an order inside a bucket of the source only: say so when a key may come from several."""
    if (
        root.is_retracting
        or not sink.has_primary_key
        or sink.merge_engine != "last_row"
        or set(sink.primary_key) == {f.name for f in root.fields}
    ):
        return []
    assert isinstance(root, Calc), "the root of a job is a projection onto the sink's columns"
    key_inputs = {tree.name for item, tree in root.projections if item.name in sink.primary_key and isinstance(tree, exp.Column)}
    notices = []
    for scan in scans(root):
        source = scan.table
        routing = {f"{scan.alias}.{name}" for name in (*source.bucket_keys, *source.partition_keys)}
        is_one_bucket = source.n_buckets == 1 and not source.partition_keys
        is_routed = bool(source.bucket_keys or source.n_buckets == 1) and routing <= key_inputs
        if not (is_one_bucket or is_routed):
            notices.append(
                f"rows of one key of {sink.name} may come from several buckets of {source.name}: which of them is last is not defined"
            )
    return notices


def _key_of_query(root: Node) -> str:
    for node in walk(root):
        if isinstance(node, LookupJoin) and node.is_prefix:
            return f"(the prefix lookup of {node.table.name} gives several rows)"
        if isinstance(node, Unnest) and node.unique_key is None and node.input.unique_key is not None:
            return "(UNNEST makes several rows of one: WITH ORDINALITY tells them apart, and SELECT DISTINCT makes equal ones one)"
        if node.unique_key is not None:
            return f"({', '.join(node.unique_key)}), which is not selected whole"
    return "(none)"
