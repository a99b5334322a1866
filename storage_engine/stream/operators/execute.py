"""Execute: one micro-batch of a JobPlan: rows in, write operations out.

All SQL is made once, when the executor is built; a micro-batch registers Arrow data under fixed names and runs it.
Holds: the outcome depends only on the input rows, the stored state and the rows looked up; nothing is kept between micro-batches.
Never: commits. The caller commits the operations together with the input offsets.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from storage_engine.api import WriteOp
from storage_engine.errors import SchemaMismatch
from storage_engine.stream.dialect.render import sql
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators import compile as sql_of
from storage_engine.stream.operators.checked_key import CheckedKey, is_checked, sink_cast
from storage_engine.stream.operators.emission import (
    LateRows,
    Sessions,
    WholeGroups,
    WholeJoin,
    WholePartitions,
    WindowGroups,
    first_seen,
    write_late,
)
from storage_engine.stream.operators.event_time import EventTime
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.operators.keyed import Keyed
from storage_engine.stream.operators.micro_batch import Outcome, Reader, Registry, append_op
from storage_engine.stream.operators.pane_groups import PaneGroups
from storage_engine.stream.plan.optimize import prune
from storage_engine.stream.plan.placement import DistinctState, Placement, top_aggregate
from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, InTime, LookupJoin, Node, Over, Rank, Session, columns_of, walk


class _Step(Protocol):
    """What runs one operator: it puts the operator's changes into the tables, and what is to be written into the outcome."""

    def run(self, plan: JobPlan, tables: Registry, reader: Reader, outcome: Outcome, /) -> None: ...


class Executor:
    """Runs the micro-batches of one job on one DuckDB connection."""

    def __init__(self, plan: JobPlan, con: duckdb.DuckDBPyConnection) -> None:
        self._plan = plan
        self._con = con
        self._root = plan.root
        top = top_aggregate(plan.root)
        direct = top is not None and plan.placements[top[0].id].mode != "table"
        self._direct: tuple[Aggregate, Calc] | None = top if direct else None
        self._steps: list[_Step] = []
        for node in reversed(list(walk(plan.root))):
            if isinstance(node, LookupJoin):
                self._steps.append(_Lookup(node))
            elif isinstance(node, InTime):
                self._steps.append(LateRows(node))
            elif isinstance(node, Session) and node.emission is not None:
                self._steps.append(Sessions(node, plan.arrangements))
            elif isinstance(node, DeltaJoin) and node.is_whole:
                self._steps.append(WholeJoin(node))
            elif isinstance(node, Rank) and node.is_whole:
                self._steps.append(WholePartitions(node))
            elif isinstance(node, Aggregate) and node.emission is not None:
                if node.emission.is_whole:
                    self._steps.append(WholeGroups(node))
                else:
                    kind = PaneGroups if node.by_pane else WindowGroups
                    self._steps.append(kind(node, plan.placements[node.id]))
            elif isinstance(node, DeltaJoin | Rank | Session | Over) or (isinstance(node, Aggregate) and node.keeps_rows):
                self._steps.append(Keyed(node, plan.arrangements))
            elif isinstance(node, Aggregate):
                self._steps.append(
                    _Aggregation(node, plan.placements[node.id], plan.root, is_direct=direct and top is not None and node is top[0])
                )
        self._final = self._final_sql()
        self._checked = CheckedKey(plan) if is_checked(plan.root) else None

    def run(self, inputs: Mapping[str, pa.Table], reader: Reader, event_time: EventTime) -> Outcome:
        """One micro-batch. `inputs`: relation name of each scan (compile.source_name) -> its rows with hidden columns."""
        outcome = Outcome()
        registered: dict[str, None] = {}
        tables = Registry(self._con, registered, event_time)
        try:
            for name, rows in inputs.items():
                tables.put(name, rows)
            for step in self._steps:
                step.run(self._plan, tables, reader, outcome)
            if self._checked is not None:
                self._checked.run(tables, reader)
            if self._direct is None:
                self._write_rows(tables.query(self._final), outcome)
            write_late(outcome, reader)
        finally:
            for name in registered:
                self._con.unregister(name)
        return outcome

    def _final_sql(self) -> str:
        plan = self._plan
        listed = [sink_cast(plan, name) + f" AS {sql_of.quoted(name)}" for name in plan.targets]
        body = sql_of.relation(self._root)
        if plan.is_ordered_union:
            return f"SELECT {', '.join(listed)} FROM ({sql_of.relation(self._root, carried=(sql_of.ORDER,))}) ORDER BY {sql_of.ORDER}"
        if not self._root.is_retracting:
            return f"SELECT {', '.join(listed)} FROM ({body})"
        # one change per key of the sink: the last one, or of an aggregate's pair (old row, new row) the new one
        order = sql_of.SEQUENCE if sql_of.has_sequence(self._root) else WEIGHT
        keys = ", ".join(sql_of.quoted(name) for name in plan.sink.primary_key)
        picked = f"SELECT * FROM ({body}) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {sql_of.quoted(order)} DESC) = 1"
        return f"SELECT {', '.join(listed)}, {sql_of.quoted(WEIGHT)} FROM ({picked})"

    def _write_rows(self, rows: pa.Table, outcome: Outcome) -> None:
        plan = self._plan
        rows = enforce_not_null(plan, rows, outcome)
        if not plan.sink.has_primary_key:
            append_op(outcome, WriteOp(plan.sink.name, "append", rows, None))
            outcome.n_rows_out += rows.num_rows
            return
        if WEIGHT in rows.column_names:
            gone = pc.less(rows[WEIGHT], 0)
            write_deletes(plan, rows.filter(gone), outcome)
            rows = rows.filter(pc.invert(gone)).drop_columns([WEIGHT])
        write_upserts(plan, rows, outcome)


def enforce_not_null(plan: JobPlan, rows: pa.Table, outcome: Outcome) -> pa.Table:
    """Rows with a null in the key or in a NOT NULL column are an error, or dropped and counted, as the job says."""
    bad: pa.ChunkedArray | None = None
    for name in plan.not_null_columns:
        if name not in rows.column_names or rows[name].null_count == 0:
            continue
        if not plan.drops_nulls:
            raise SchemaMismatch(
                f"column {name} of {plan.sink.name} is NOT NULL and {rows[name].null_count} row(s) of the result have a null in it",
                where="sink",
                next_step="Filter or COALESCE it, or SET 'table.exec.sink.not-null-enforcer' = 'DROP' and start the job again.",
            )
        nulls = pc.is_null(rows[name])
        bad = nulls if bad is None else pc.or_(bad, nulls)
    if bad is None:
        return rows
    dropped = rows.filter(bad)
    taken_back = pc.sum(pc.less(dropped[WEIGHT], 0)).as_py() if WEIGHT in rows.column_names else 0
    outcome.n_dropped_nulls += dropped.num_rows - (taken_back or 0)
    return rows.filter(pc.invert(bad))


def write_upserts(plan: JobPlan, rows: pa.Table, outcome: Outcome) -> None:
    """Add rows in the job's target columns to what the micro-batch commits, and count them."""
    append_op(outcome, WriteOp(plan.sink.name, "upsert", rows, plan.targets))
    outcome.n_rows_out += rows.num_rows


def write_deletes(plan: JobPlan, rows: pa.Table, outcome: Outcome) -> None:
    """Take rows away; a job that writes some of the columns takes away only those."""
    keys = rows.select(list(plan.sink.primary_key))
    append_op(outcome, WriteOp(plan.sink.name, "delete", keys, plan.value_columns if plan.is_partial else None))
    outcome.n_rows_out += rows.num_rows


class _Lookup:
    """Looks up the distinct keys of one micro-batch."""

    def __init__(self, node: LookupJoin) -> None:
        self._node = node
        self._name = sql_of.lookup_name(node)
        needed: set[str] = set().union(*(columns_of(tree) for _, tree in node.keys))
        self._keys_sql = sql_of.lookup_keys(node, sql_of.relation(prune(node.input, needed)))
        self._key_names = [name for name, _ in node.keys]
        self._columns = list(node.columns)

    def run(self, _plan: JobPlan, tables: Registry, reader: Reader, _outcome: Outcome) -> None:
        keys = tables.query(self._keys_sql)
        node = self._node
        if node.is_prefix:
            wanted = list(dict.fromkeys([*self._key_names, *self._columns]))
            found = reader.prefix_lookup(node.table.name, keys, wanted)
            keys = found.select(self._key_names)
        else:
            keys, found = self._by_whole_key(keys, reader)
        arrays = [keys[name] for name in self._key_names] + [found[name] for name in self._columns]
        names = [f"__k{i}" for i in range(len(self._key_names))] + [item.name for item in node.looked_up]
        tables.put(self._name, pa.Table.from_arrays(arrays, names=names))

    def _by_whole_key(self, keys: pa.Table, reader: Reader) -> tuple[pa.Table, pa.Table]:
        """Keys and the rows beside them: those found, or (where missing keys are kept) all, with nulls."""
        node = self._node
        wanted = self._columns or self._key_names[:1]
        if node.newest_of is not None:
            newest = reader.newest_partition(node.table.name)
            partition = pa.repeat(pa.scalar(newest or None, pa.string()), keys.num_rows)  # without any, no key finds a row
            keys = keys.append_column(node.newest_of, partition).select(list(node.table.primary_key))
        complete = [pc.is_valid(keys[name]) for name in keys.column_names if keys[name].null_count]
        if not complete:
            found = reader.lookup(node.table.name, keys, wanted, insert_if_not_exists=node.inserts_missing)
            if sql_of.keeps_missing_keys(node):
                return keys, found
            return keys.filter(found["_found"]), found.filter(found["_found"])
        mask = functools.reduce(pc.and_, complete).combine_chunks()
        found = reader.lookup(node.table.name, keys.filter(mask), wanted, insert_if_not_exists=node.inserts_missing)
        position = pc.subtract(pc.cumulative_sum(mask.cast(pa.int64())), 1)
        return keys, found.take(pc.if_else(mask, position, None))


class _Aggregation:
    """Advances one aggregate by a micro-batch; a direct one writes to the sink, any other registers its changes."""

    def __init__(self, node: Aggregate, placement: Placement, root: Node, *, is_direct: bool) -> None:
        self._node = node
        self._placement = placement
        self._is_direct = is_direct
        self._name = sql_of.aggregate_name(node)
        self._partial_sql = sql_of.partial(node)
        self._distinct = [_Distinct(node, state, f"{self._name}_d{i}") for i, state in enumerate(placement.distinct)]
        members = [(step.name, step.members) for step in self._distinct]
        self._joined_sql = sql_of.with_distinct(node, f"{self._name}_p", members) if members else None
        self._keys_sql = sql_of.distinct_state_keys(placement.keys, f"{self._name}_p") if placement.keys else ""
        self._merged_sql = sql_of.merged(node, f"{self._name}_m")
        self._rows = sql_of.rows_accumulator(node)
        is_simple = not node.input.is_retracting and isinstance(root, Calc) and root.input is node and root.condition is None
        self._changes_sql = sql_of.aggregate_changes(node, f"{self._name}_n", with_old=not is_simple)
        self._key_names = _names_of(placement.keys)
        self._removes = self._rows is not None and placement.mode != "merge"  # an aggregation table removes empty groups itself
        if is_direct:
            source = f"{self._name}_n" if self._removes else f"({self._merged_sql})"
            self._output = _output_sql(root, node, dict(placement.keys), source)

    def run(self, plan: JobPlan, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        deltas = tables.query(self._partial_sql)
        if self._joined_sql is not None:
            tables.put(f"{self._name}_p", deltas)
            for step in self._distinct:
                step.run(tables, reader, outcome)
            deltas = tables.query(self._joined_sql)
        if self._is_direct:
            self._write_direct(plan, deltas, tables, reader, outcome)
        else:
            self._advance_table(deltas, tables, reader, outcome)

    # state in the sink, or merged by it

    def _write_direct(self, plan: JobPlan, deltas: pa.Table, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        placement = self._placement
        keys = self._keys_of(deltas, tables)
        if any(keys[name].null_count for name in keys.column_names):
            has_nulls = enforce_not_null(plan, keys.append_column("__i", pa.array(np.arange(keys.num_rows))), outcome)
            kept = has_nulls["__i"]
            keys, deltas = keys.take(kept), deltas.take(kept)
        if placement.mode == "merge" or not placement.columns:
            empty = {sql_of.old_name(item.name): pa.nulls(deltas.num_rows, deltas[item.name].type) for item in self._node.accumulators}
            found: pa.Array | pa.ChunkedArray = pa.repeat(pa.scalar(value=False), deltas.num_rows)
        else:
            stored = reader.lookup(placement.table.name, keys, [name for _, name in placement.columns])
            empty = {sql_of.old_name(item): stored[name] for item, name in placement.columns}
            found = stored["_found"]
        tables.put(f"{self._name}_m", _beside(deltas, empty, found))
        if not self._removes:
            rows = tables.query(self._output)
        else:
            advanced = tables.query(self._merged_sql)
            tables.put(f"{self._name}_n", advanced)
            rows = tables.query(self._output)
            assert self._rows is not None, "who removes groups counts their rows"
            gone = pc.less_equal(advanced[self._rows], 0)
            write_deletes(plan, rows.filter(pc.and_(gone, pc.fill_null(advanced["__found"], fill_value=False))), outcome)
            rows = rows.filter(pc.invert(gone))
        write_upserts(plan, enforce_not_null(plan, rows, outcome), outcome)

    def _keys_of(self, deltas: pa.Table, tables: Registry) -> pa.Table:
        """The state's key of each group: columns of the deltas by their names there, or a query where they are computed."""
        if self._key_names is not None:
            return deltas.select(list(self._key_names.values())).rename_columns(list(self._key_names))
        tables.put(f"{self._name}_p", deltas)
        return tables.query(self._keys_sql)

    # state in a table of the job

    def _advance_table(self, deltas: pa.Table, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        placement, node = self._placement, self._node
        table = placement.table
        keys = self._keys_of(deltas, tables)
        columns = [name for _, name in placement.columns] or [table.primary_key[0]]
        stored = reader.lookup(table.name, keys, columns)
        olds = {sql_of.old_name(item): stored[name] for item, name in placement.columns}
        tables.put(f"{self._name}_m", _beside(deltas, olds, stored["_found"]))
        advanced = tables.query(self._merged_sql)
        tables.put(f"{self._name}_n", advanced)
        tables.put(self._name, tables.query(self._changes_sql))
        state = pa.Table.from_arrays(
            [*keys.columns, *(advanced[item.name] for item in node.accumulators)],
            names=[*keys.column_names, *(item.name for item in node.accumulators)],
        )
        if self._rows is not None:
            gone = pc.less_equal(advanced[self._rows], 0)
            append_op(outcome, WriteOp(table.name, "delete", keys.filter(pc.and_(gone, stored["_found"])), None))
            state = state.filter(pc.invert(gone))
        append_op(outcome, WriteOp(table.name, "upsert", state, None))


class _Distinct:
    """Advances the seen values of a DISTINCT aggregate and turns them into changes of its accumulators."""

    def __init__(self, node: Aggregate, state: DistinctState, name: str) -> None:
        self.name = name
        self.members = state.accumulators
        self._table = state.table
        self._only_grows = not node.input.is_retracting
        self._partial_sql = sql_of.distinct_partial(node, state.accumulators)
        self._keys_sql = sql_of.distinct_state_keys(state.keys, f"{name}_v")
        self._deltas_sql = sql_of.distinct_deltas(node, state.accumulators, f"{name}_m")

    def run(self, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        values = tables.query(self._partial_sql)
        tables.put(f"{self.name}_v", values)
        keys = tables.query(self._keys_sql)
        stored = reader.lookup(self._table.name, keys, ["n"])
        tables.put(f"{self.name}_m", values.append_column("__old", stored["n"]))
        tables.put(self.name, tables.query(self._deltas_sql))
        if self._only_grows:
            append_op(outcome, WriteOp(self._table.name, "upsert", first_seen(keys, stored["_found"], values["__d"]), None))
            return
        counts = pc.add(pc.fill_null(stored["n"], 0), values["__d"])
        gone = pc.less_equal(counts, 0)
        state = keys.append_column("n", counts)
        append_op(outcome, WriteOp(self._table.name, "upsert", state.filter(pc.invert(gone)), None))
        append_op(outcome, WriteOp(self._table.name, "delete", keys.filter(pc.and_(gone, stored["_found"])), None))


def _names_of(keys: tuple[tuple[str, exp.Expr], ...]) -> dict[str, str] | None:
    """Of each key the column that it is; None when one is computed."""
    columns = {name: tree.name for name, tree in keys if isinstance(tree, exp.Column)}
    return columns if len(columns) == len(keys) else None


def _beside(deltas: pa.Table, olds: Mapping[str, pa.Array | pa.ChunkedArray], found: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Deltas and the stored values of the same groups, row by row."""
    arrays = [*deltas.columns, *olds.values(), found]
    return pa.Table.from_arrays(arrays, names=[*deltas.column_names, *olds, "__found"])


def _output_sql(root: Node, node: Aggregate, keys: Mapping[str, exp.Expr], relation_name: str) -> str:
    """What goes to the sink. `keys`: its key columns, as groups are found there."""
    assert isinstance(root, Calc), "the root of a job is a projection onto the sink's columns"
    finished = f"SELECT {', '.join(sql_of.finished(node))} FROM {relation_name}"
    listed = [f"{sql(keys.get(item.name, tree))} AS {sql_of.quoted(item.name)}" for item, tree in root.projections]
    return f"SELECT {', '.join(listed)} FROM ({finished})"
