"""Placement: where an aggregate keeps its state. Decides; execute.py does.

    merge   the sink is an aggregation table whose functions are the aggregates': deltas are written, the table adds them up; over an
            input whose rows can be taken back deltas may be negative, and a group goes when its COUNT(*) comes to 0
    sink    the result columns are the accumulators: they are read from the sink, advanced and written back
    table   a state table of the job holds the accumulators, keyed by the group

All three live in the store and commit together with the output and the input offsets: there is no other state.
Holds: a group is never read from, or written to, two places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.stream.dialect.render import cast, column, render, string
from storage_engine.stream.dialect.sqltypes import SqlType, parse_type
from storage_engine.stream.functions.aggregates import Accumulator, Call
from storage_engine.stream.plan.tree import Aggregate, Calc, Field, Node, columns_of

NULL_MASK = "g_nulls"
_DEFAULTS = {
    "STRING": "",
    "BYTES": "",
    "BOOLEAN": "false",
    "DATE": "1970-01-01",
    "TIME": "00:00:00",
    "TIMESTAMP": "1970-01-01",
    "TIMESTAMP_LTZ": "1970-01-01",
}


@dataclass(frozen=True)
class DistinctState:
    """Which values a DISTINCT aggregate has seen: (group, value) -> how many rows have it."""

    accumulators: tuple[str, ...]
    table: TableDescriptor
    keys: tuple[tuple[str, exp.Expr], ...]


@dataclass(frozen=True)
class Placement:
    """Where one aggregate's accumulators are.

    keys     column of the holding table -> expression over the aggregate's key fields
    columns  accumulator -> column of the holding table
    """

    mode: Literal["merge", "sink", "table"]
    table: TableDescriptor
    keys: tuple[tuple[str, exp.Expr], ...]
    columns: tuple[tuple[str, str], ...]
    distinct: tuple[DistinctState, ...] = ()
    reason: str = ""


def place(
    node: Aggregate,
    outputs: tuple[tuple[str, exp.Expr], ...] | None,
    condition: exp.Expr | None,
    sink: TableDescriptor,
    job: str,
) -> Placement:
    """Where `node` keeps its state.

    outputs   (sink column, expression over the aggregate's fields), when the aggregate's rows go straight to the sink
    Errors: StatementRefused when an aggregation table's functions do not fit the query.
    """
    prefix = f"{sink.name}__state_{job}" + ("" if outputs is not None else f"_{node.id}")
    distinct = _distinct_states(node, prefix, sink)
    if outputs is not None and sink.merge_engine == "aggregation":
        return _merge(node, outputs, condition, sink, distinct)
    reason = "the aggregate feeds another operator" if outputs is None else _why_not_in_sink(node, outputs, condition, sink)
    reason = "until the window is sent" if node.emission is not None else reason
    if reason is None and outputs is not None:
        return _in_sink(node, outputs, sink, distinct)
    keys = key_columns(node.state_fields)
    columns = tuple((item.name, item.name) for item in node.accumulators)
    table = _state_table(prefix, keys, node.state_fields, [Column(item.name, str(item.type)) for item in node.accumulators], sink)
    return Placement("table", table, keys, columns, distinct, reason or "")


def _merge(
    node: Aggregate,
    outputs: tuple[tuple[str, exp.Expr], ...],
    condition: exp.Expr | None,
    sink: TableDescriptor,
    distinct: tuple[DistinctState, ...],
) -> Placement:
    where = f"INSERT INTO {sink.name}"
    if condition is not None:
        raise StatementRefused(
            "HAVING into an aggregation table: a group is written before its total is known",
            where=where,
            next_step="Filter when you query the table.",
        )
    _check_sink_key(node, outputs, sink, where)
    calls = {item.name: call for item, call in node.calls}
    _check_zero(node, dict(outputs), sink, calls, where)
    for name, tree in outputs:
        if name in sink.primary_key:
            continue
        function = sink.aggregate_function(name)
        call = calls.get(tree.name) if isinstance(tree, exp.Column) else None
        if call is not None and call.stored is not None and call.stored.sink_function == function:
            continue
        if not _uses_calls(tree, calls) and function.startswith("last_value"):
            continue
        if node.input.is_retracting and call is not None and call.stored is None:
            raise StatementRefused(
                f"{call.text} over an input whose rows can be taken back is null again when its last value goes, which {name} cannot say",
                where=where,
                next_step="Aggregate a column that is NOT NULL, for example COALESCE(x, 0), or write to a table without a merge engine.",
            )
        wanted = (
            f"'fields.{name}.agg' = '{call.stored.sink_function}'"
            if call is not None and call.stored is not None
            else "another column or query"
        )
        raise StatementRefused(
            f"column {name} of {sink.name} merges with {function}, the query gives it {_printed(tree, calls)}",
            where=where,
            next_step=f"It needs {wanted}.",
        )
    keys = _sink_keys(outputs, sink)
    return Placement("merge", sink, keys, (), distinct, "the table merges what the job adds and takes back")


def _check_zero(node: Aggregate, outputs: Mapping[str, exp.Expr], sink: TableDescriptor, calls: Mapping[str, Call], where: str) -> None:
    """A group that loses its last row has to go: the table needs a column that says so, and the query has to fill it with COUNT(*)."""
    zero = sink.zero_column
    if zero is None:
        if node.input.is_retracting:
            raise StatementRefused(
                f"{sink.name} is an aggregation table and the input's rows can be taken back: nothing says when a group is empty",
                where=where,
                next_step="Give COUNT(*) a column with function sum, and name it in the table's 'table.delete.on-zero'.",
            )
        return
    tree = outputs.get(zero)
    call = calls.get(tree.name) if isinstance(tree, exp.Column) else None
    if call is None or call.stored is None or call.stored.kind != "rows":
        raise StatementRefused(
            f"column {zero} of {sink.name} decides when a row goes ('table.delete.on-zero') and the query does not count its rows in it",
            where=where,
            next_step=f"Give {zero} the value COUNT(*).",
        )


def _why_not_in_sink(
    node: Aggregate, outputs: tuple[tuple[str, exp.Expr], ...], condition: exp.Expr | None, sink: TableDescriptor
) -> str | None:
    """None when the sink's columns can be the state."""
    if condition is not None:
        return "HAVING hides groups from the sink"
    by_column = dict(outputs)
    stored = _stored_columns(node, outputs)
    missing = [item for item in node.accumulators if item.name not in stored]
    if missing:
        return "the result columns do not hold " + ", ".join(f"{item.kind} of the group" for item in missing)
    for item in node.accumulators:
        declared = parse_type(sink.column(stored[item.name]).type)
        if not _holds(item, declared):
            return f"column {stored[item.name]} ({declared}) would round {item.type}"
    calls = {item.name for item, _ in node.calls}
    if any(columns_of(by_column[name]) & calls for name in sink.primary_key):
        return "the primary key is an aggregate"
    return None


def _holds(item: Accumulator, declared: SqlType) -> bool:
    if item.kind in ("min", "max", "bitmap_build", "bitmap_or"):
        return item.type == declared
    if item.type.name == "DECIMAL":
        return declared.name == "DECIMAL" and declared.scale == item.type.scale
    return item.type == declared or (item.type.is_integer and declared.is_integer)


def _stored_columns(node: Aggregate, outputs: tuple[tuple[str, exp.Expr], ...]) -> dict[str, str]:
    """Accumulator -> sink column that shows it unchanged."""
    calls = {item.name: call for item, call in node.calls}
    stored: dict[str, str] = {}
    for name, tree in outputs:
        call = calls.get(tree.name) if isinstance(tree, exp.Column) else None
        if call is not None and call.stored is not None:
            stored.setdefault(call.stored.name, name)
    return stored


def _in_sink(
    node: Aggregate, outputs: tuple[tuple[str, exp.Expr], ...], sink: TableDescriptor, distinct: tuple[DistinctState, ...]
) -> Placement:
    keys = _sink_keys(outputs, sink)
    return Placement("sink", sink, keys, tuple(_stored_columns(node, outputs).items()), distinct, "the result columns are the state")


def _sink_keys(outputs: tuple[tuple[str, exp.Expr], ...], sink: TableDescriptor) -> tuple[tuple[str, exp.Expr], ...]:
    return tuple((name, as_key(tree, parse_type(sink.column(name).type))) for name, tree in outputs if name in sink.primary_key)


def _check_sink_key(node: Aggregate, outputs: tuple[tuple[str, exp.Expr], ...], sink: TableDescriptor, where: str) -> None:
    calls = {item.name for item, _ in node.calls}
    for name, tree in outputs:
        if name in sink.primary_key and columns_of(tree) & calls:
            raise StatementRefused(
                f"key column {name} of {sink.name} is an aggregate: it would move the row as it changes",
                where=where,
                next_step="Key the table by the columns of GROUP BY.",
            )


def _uses_calls(tree: exp.Expr, calls: Mapping[str, Call]) -> bool:
    return bool(columns_of(tree) & set(calls))


def _printed(tree: exp.Expr, calls: Mapping[str, Call]) -> str:
    call = calls.get(tree.name) if isinstance(tree, exp.Column) else None
    return call.text if call is not None else "an expression"


# state tables


def key_columns(fields: tuple[Field, ...]) -> tuple[tuple[str, exp.Expr], ...]:
    """How a group is written as a primary key: a null becomes a default, and its bit in the mask says so."""
    keys = []
    mask: exp.Expr | None = None
    for i, item in enumerate(fields):
        tree: exp.Expr = column(item.name)
        if item.nullable:
            bit = render(f"CASE WHEN _0 IS NULL THEN {1 << i} ELSE 0 END", tree)
            mask = bit if mask is None else render("_0 + _1", mask, bit)
            tree = render("COALESCE(_0, _1)", tree, cast(string(_DEFAULTS.get(item.type.name, "0")), item.type.duckdb))
        keys.append((f"g{i}", as_key(tree, item.type)))
    if mask is not None:
        keys.append((NULL_MASK, cast(mask, "INT")))
    if not keys:
        keys.append(("g_all", cast(exp.Literal.number(0), "INT")))
    return tuple(keys)


def as_key(tree: exp.Expr, of: SqlType) -> exp.Expr:
    """A value as part of a key. Keys are compared by their bytes, values by what they say: 0 and -0 are one, and so is every NaN."""
    if not of.is_approximate:
        return tree
    zero, nan = (cast(string(text), of.duckdb) for text in ("0", "nan"))
    return render("CASE WHEN _0 = 0 THEN _1 WHEN isnan(_0) THEN _2 ELSE _0 END", tree, zero, nan)


def _state_table(
    name: str, keys: tuple[tuple[str, exp.Expr], ...], fields: tuple[Field, ...], values: list[Column], sink: TableDescriptor
) -> TableDescriptor:
    declared = {f"g{i}": str(item.type) for i, item in enumerate(fields)}
    key_names = tuple(item for item, _ in keys)
    columns = tuple(Column(item, declared.get(item, "INT"), nullable=False) for item in key_names) + tuple(values)
    return TableDescriptor(
        name, columns, key_names, (), key_names, sink.n_buckets, {}, comment="State of a stream job; written by the job only"
    )


def _distinct_states(node: Aggregate, prefix: str, sink: TableDescriptor) -> tuple[DistinctState, ...]:
    groups: dict[tuple[str, str], list[Accumulator]] = {}
    for item in node.accumulators:
        if item.distinct:
            assert item.argument is not None
            groups.setdefault((item.argument.sql(), item.condition.sql() if item.condition is not None else ""), []).append(item)
    states = []
    for i, members in enumerate(groups.values()):
        first = members[0]
        assert first.argument is not None
        fields = tuple(item for item, _ in node.keys)
        keys = (*(pair for pair in key_columns(fields) if pair[0] != "g_all"), ("v", as_key(column("__value"), first.argument_type)))
        declared = (*fields, Field("v", first.argument_type, nullable=False))
        table = _state_table(f"{prefix}_d{i}", keys, declared, [Column("n", "BIGINT")], sink)
        value = Column("v", str(first.argument_type), nullable=False)
        columns = tuple(value if item.name == "v" else item for item in table.columns)
        states.append(
            DistinctState(
                tuple(item.name for item in members),
                TableDescriptor(table.name, columns, table.primary_key, (), table.bucket_keys, table.n_buckets, {}, comment=table.comment),
                keys,
            )
        )
    return tuple(states)


def top_aggregate(root: Node) -> tuple[Aggregate, Calc] | None:
    """The aggregate right below the root's projection, if there is one that holds accumulators."""
    if isinstance(root, Calc) and isinstance(root.input, Aggregate) and not root.input.keeps_rows and root.input.emission is None:
        return root.input, root
    return None
