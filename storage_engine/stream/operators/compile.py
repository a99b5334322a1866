"""Compile: plan trees into DuckDB SQL over named relations of Arrow data.

    stream   changes in, changes out: retracting relations carry __w (weight) and, up to a first aggregate, __seq (order of changes)
    batch    the whole input at once: no weights, aggregates over everything (what the proof recomputes)

Relations by name: src_ID (a scan's rows), lk_ID (rows looked up), agg_ID (an aggregate's changes), dj_ID and rank_ID (those of a
delta join and of a rank, which compile_keyed.py makes).
Never: runs anything.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.dialect.render import cast, column, sql
from storage_engine.stream.functions.aggregates import WEIGHT, Accumulator
from storage_engine.stream.functions.unnesting import selected
from storage_engine.stream.operators import compile_panes, compile_time
from storage_engine.stream.operators.compile_time import SOURCE, WATERMARK
from storage_engine.stream.plan.placement import as_key
from storage_engine.stream.plan.tree import (
    PROCESSING_TIME,
    Aggregate,
    Calc,
    DeltaJoin,
    Expand,
    Field,
    InTime,
    LookupJoin,
    Node,
    Over,
    Rank,
    Scan,
    Session,
    Union,
    Unnest,
    Windows,
    is_positioned,
)

SEQUENCE = "__seq"
POSITION = ("__time", "__partition", "__bucket", "__offset")
"""Where a row stands in its log: columns that orders and identifies the rows of one source."""
ORDER = "__order"
"""The order in which rows that meet in one row of the sink arrived: by commit time, then source, bucket and place in the log; those that
UNNEST makes of one row by their places in its array."""
CLOCK = (POSITION[0], POSITION[2])
"""Those that event time goes by: when a row was committed, and its bucket."""


def quoted(name: str) -> str:
    """A name as DuckDB's identifier."""
    return '"' + name.replace('"', '""') + '"'


def key_of(item: Field, alias: str, name: str = "") -> str:
    """A field of a relation (there called `name`) where keys are compared: DuckDB hands a join's keys on to the reader of a relation, and
    that compares bytes.
    """
    return sql(as_key(exp.column(exp.to_identifier(name or item.name, quoted=True), table=alias), item.type))


def source_name(node: Scan) -> str:
    """The relation that holds a source's new rows."""
    return f"src_{node.id}"


def lookup_name(node: LookupJoin) -> str:
    """The relation that holds the rows a lookup join has found."""
    return f"lk_{node.id}"


def aggregate_name(node: Aggregate) -> str:
    """The relation that holds an aggregate's groups of this micro-batch."""
    return f"agg_{node.id}"


def keyed_name(node: DeltaJoin | Rank | Session | Over) -> str:
    """The relation that holds what an operator with kept rows sends."""
    return f"{'dj' if isinstance(node, DeltaJoin) else type(node).__name__.lower()}_{node.id}"


def has_sequence(node: Node) -> bool:
    """True when the relation still knows the order of changes: one source, nothing below that changes several rows at once."""
    if isinstance(node, Scan):
        return node.is_retracting
    return not isinstance(node, Aggregate | Union | DeltaJoin | Rank | Session | Over) and has_sequence(node.input)


def hidden_columns(node: Node) -> tuple[str, ...]:
    """The columns that a stream relation carries beside its fields."""
    if not node.is_retracting:
        return ()
    return (WEIGHT, SEQUENCE) if has_sequence(node) else (WEIGHT,)


def relation(node: Node, *, batch: bool = False, carried: tuple[str, ...] = ()) -> str:
    """A SELECT for the node's rows (batch) or changes (stream). `carried`: further columns of the source to pass through."""
    hidden = [quoted(name) for name in (*(() if batch else hidden_columns(node)), *carried)]
    if isinstance(node, Scan):
        listed = [f"{_stored(name)} AS {quoted(item.name)}" for name, item in zip(node.columns, node.fields, strict=True)]
        order = f"struct_pack(t := {POSITION[0]}, s := {node.id}, b := {POSITION[2]}, o := {POSITION[3]}, e := CAST([] AS INT[]))"
        made = {quoted(SOURCE): f"'{node.table.name}'", quoted(ORDER): order}
        hidden = [f"{made[name]} AS {name}" if name in made else name for name in hidden]
        return f"SELECT {', '.join(listed + hidden)} FROM {source_name(node)}"
    if isinstance(node, Calc):
        listed = [f"{sql(tree)} AS {quoted(item.name)}" for item, tree in node.projections]
        condition = f" WHERE {sql(node.condition)}" if node.condition is not None else ""
        return f"SELECT {', '.join(listed + hidden)} FROM ({relation(node.input, batch=batch, carried=carried)}){condition}"
    if isinstance(node, InTime):
        rows = relation(node.input, batch=batch, carried=(*carried, WATERMARK))
        listed = [quoted(item.name) for item in node.fields] + hidden
        return f"SELECT {', '.join(listed)} FROM ({compile_time.in_time(rows, compile_time.row_last_ms(node))})"
    if isinstance(node, LookupJoin):
        return _join(node, hidden, batch=batch, carried=carried)
    if isinstance(node, DeltaJoin | Rank | Session | Over):
        if batch:
            return _batch_keyed(node)
        return f"SELECT {', '.join([quoted(item.name) for item in node.fields] + hidden)} FROM {keyed_name(node)}"
    if isinstance(node, Union):
        return _union(node, hidden, batch=batch, carried=carried)
    if isinstance(node, Windows):
        return _windows(node, hidden, batch=batch, carried=carried)
    if isinstance(node, Unnest):
        return _unnest(node, hidden, batch=batch, carried=carried)
    if isinstance(node, Expand):
        return _expand(node, hidden, batch=batch, carried=carried)
    if batch:
        found = total(node, aggregate_input(node, batch=True))
        return found if node.emission is None or node.emission.is_whole else compile_time.emitted_groups(node, found)
    return f"SELECT {', '.join([quoted(item.name) for item in node.fields] + hidden)} FROM {aggregate_name(node)}"


def _stored(name: str) -> str:
    """A column of a scan's rows; the processing time is when their commit was done."""
    return f"CAST(make_timestamp_ms({POSITION[0]}) AS TIMESTAMP_MS)" if name == PROCESSING_TIME else quoted(name)


def _union(node: Union, hidden: list[str], *, batch: bool, carried: tuple[str, ...]) -> str:
    fields = [quoted(item.name) for item in node.fields]
    parts = []
    for branch in node.branches:
        own = hidden
        if node.is_retracting and not batch and not branch.is_retracting:
            own = [name if name in map(quoted, carried) else f"CAST(1 AS TINYINT) AS {name}" for name in hidden]
        parts.append(f"SELECT {', '.join(fields + own)} FROM ({relation(branch, batch=batch, carried=carried)})")
    return " UNION ALL ".join(parts)


def _expand(node: Expand, hidden: list[str], *, batch: bool, carried: tuple[str, ...]) -> str:
    """One pass over the input: a cross join with the marks, and a key is null where the mark's bit is set."""
    marks = ", ".join(f"({node.mark_of(grouped)})" for grouped in node.sets)
    mark = quoted(node.mark.name)
    listed = [quoted(item.name) for item in node.input.fields]
    for i, (item, tree) in enumerate(node.keys):
        bit = 1 << (len(node.keys) - 1 - i)
        listed.append(f"CASE WHEN {mark} & {bit} = 0 THEN {sql(tree)} END AS {quoted(item.name)}")
    listed.append(f"CAST({mark} AS BIGINT) AS {mark}")
    body = relation(node.input, batch=batch, carried=carried)
    return f"SELECT {', '.join(listed + hidden)} FROM ({body}) CROSS JOIN (VALUES {marks}) AS __sets({mark})"


def _windows(node: Windows, hidden: list[str], *, batch: bool, carried: tuple[str, ...]) -> str:
    """Window starts and ends as milliseconds; `__first` is the start of the step that the row's time lies in."""
    listed = [quoted(item.name) for item in node.input.fields]
    size, step, offset = node.size_ms, node.step_ms, node.offset_ms
    body = compile_panes.with_ms(node, relation(node.input, batch=batch, carried=carried))
    body = f"SELECT *, {compile_panes.floor('__ms', step, offset)} AS __first FROM ({body})"
    if node.kind == "CUMULATE":
        start = compile_panes.floor("__ms", size, offset)
        body = f"SELECT *, {start} AS __start, unnest(range(__first + {step}, {start} + {size} + 1, {step})) AS __end FROM ({body})"
    else:
        starts = "__first" if size == step else f"unnest(range(__first, __first - {size}, -{step}))"
        body = f"SELECT *, {starts} AS __start FROM ({body})"
        body = f"SELECT *, __start + {size} AS __end FROM ({body})"
    for item, value in zip(node.window, ("__start", "__end", "__end - 1"), strict=True):
        listed.append(f"CAST(make_timestamp_ms({value}) AS TIMESTAMP_MS) AS {quoted(item.name)}")
    return f"SELECT {', '.join(listed + hidden)} FROM ({body})"


def _unnest(node: Unnest, hidden: list[str], *, batch: bool, carried: tuple[str, ...]) -> str:
    """Nothing is carried from row to row: DuckDB's unnest() repeats a row's columns beside the elements of its list."""
    rows = [quoted(item.name) for item in node.input.fields] + hidden
    body = f"SELECT *, {sql(node.elements)} AS __elements FROM ({relation(node.input, batch=batch, carried=carried)})"
    parts = [(quoted(item.name), part) for item, part in node.parts]
    ordinal = quoted(node.ordinal.name) if node.ordinal is not None else "__place" if ORDER in carried else None
    made = selected("__elements", parts, rows, body, ordinal=ordinal, is_outer=node.is_outer)
    if ORDER not in carried:
        return f"SELECT {', '.join([*(quoted(item.name) for item in node.fields), *hidden])} FROM ({made})"
    of_row = ", ".join(f"{name} := {ORDER}.{name}" for name in "tsbo")
    order = f"struct_pack({of_row}, e := list_append({ORDER}.e, COALESCE({ordinal}, 0))) AS {ORDER}"
    listed = [quoted(item.name) for item in node.fields] + [order if name == quoted(ORDER) else name for name in hidden]
    return f"SELECT {', '.join(listed)} FROM ({made})"


def _join(node: LookupJoin, hidden: list[str], *, batch: bool, carried: tuple[str, ...]) -> str:
    body = relation(node.input, batch=batch, carried=carried)
    if keeps_missing_keys(node) and not batch:
        return _join_all_keys(node, hidden, body)
    conditions = [f"{sql(tree)} = {quoted(f'__k{i}')}" for i, (_, tree) in enumerate(node.keys)]
    conditions += [sql(node.residual)] if node.residual is not None else []
    listed = [quoted(item.name) for item in node.fields] + hidden
    kind = "LEFT JOIN" if node.is_outer else "JOIN"
    return f"SELECT {', '.join(listed)} FROM ({body}) {kind} {lookup_name(node)} ON {' AND '.join(conditions)}"


def keeps_missing_keys(node: LookupJoin) -> bool:
    """True when lk_ID has one row for each key of the micro-batch, found or not: an outer join by the whole key."""
    return node.is_outer and not node.is_prefix


def _join_all_keys(node: LookupJoin, hidden: list[str], body: str) -> str:
    """An outer join as an inner one over all keys: DuckDB's LEFT JOIN emits the unmatched rows of a block last, this keeps their order."""
    conditions = [f"{sql(tree)} IS NOT DISTINCT FROM {quoted(f'__k{i}')}" for i, (_, tree) in enumerate(node.keys)]
    listed = [quoted(item.name) for item in node.input.fields]
    for item in node.looked_up:
        name = quoted(item.name)
        listed.append(name if node.residual is None else f"CASE WHEN {sql(node.residual)} THEN {name} END AS {name}")
    return f"SELECT {', '.join(listed + hidden)} FROM ({body}) JOIN {lookup_name(node)} ON {' AND '.join(conditions)}"


def lookup_keys(node: LookupJoin, input_relation: str) -> str:
    """The distinct keys to look up, in columns named like the table's; with null keys only where they are kept (they match nothing)."""
    listed = ", ".join(f"{sql(tree)} AS {quoted(name)}" for name, tree in node.keys)
    present = " AND ".join(f"{quoted(name)} IS NOT NULL" for name, _ in node.keys)
    condition = "" if keeps_missing_keys(node) else f" WHERE {present}"
    return f"SELECT DISTINCT * FROM (SELECT {listed} FROM ({input_relation})){condition}"


# joins and ranks


def _batch_keyed(node: DeltaJoin | Rank | Session | Over) -> str:
    if isinstance(node, DeltaJoin):
        return joined(node, relation(node.left.node, batch=True), relation(node.right.node, batch=True))
    if isinstance(node, Session) and node.emission is not None:
        rows = relation(node.side.node, batch=True, carried=(WATERMARK,))
        rows = compile_time.in_time(rows, compile_time.row_last_ms(node))
        return compile_time.emitted_sessions(node, compile_time.with_sessions(node, rows))
    positioned = is_positioned(node.side.node)
    return one_sided(node, relation(node.side.node, batch=True, carried=POSITION if positioned else ()), positioned=positioned)


def one_sided(node: Rank | Session | Over, rows: str, *, positioned: bool) -> str:
    """A rank, sessions or OVER aggregates over whole partitions; rows of a log come with POSITION."""
    if isinstance(node, Rank):
        return ranked(node, rows, positioned=positioned)
    if isinstance(node, Session):
        return compile_time.with_sessions(node, rows)
    return compile_time.with_calls(node, rows, POSITION if positioned else [item.name for item in node.side.node.fields])


def joined(node: DeltaJoin, left: str, right: str, further: str = "") -> str:
    """The join of two relations with the sides' fields, l and r. `further`: what else to select, not for FULL."""
    of = {item.name: item for item in node.left.node.fields + node.right.node.fields}
    on = [f"{key_of(of[mine], 'l')} = {key_of(of[other], 'r')}" for mine, other in zip(node.left.on, node.right.on, strict=True)]
    on += [sql(node.residual)] if node.residual is not None else []
    listed = ", ".join(quoted(item.name) for item in node.fields) + further
    if node.kind == "FULL":  # DuckDB's own takes no further condition; a log is a reader, which can be read once
        lacking = [f"NULL AS {quoted(item.name)}" for item in node.left.node.fields]
        alone = ", ".join(lacking + [quoted(item.name) for item in node.right.node.fields])
        both = f"SELECT {listed} FROM __left AS l LEFT JOIN __right AS r ON {' AND '.join(on)}"
        unmatched = f"SELECT {alone} FROM __right AS r WHERE NOT EXISTS (SELECT 1 FROM __left AS l WHERE {' AND '.join(on)})"
        return f"WITH __left AS MATERIALIZED ({left}), __right AS MATERIALIZED ({right}) {both} UNION ALL {unmatched}"
    if node.is_filter:
        word = "EXISTS" if node.kind == "SEMI" else "NOT EXISTS"
        return f"SELECT {listed} FROM ({left}) AS l WHERE {word} (SELECT 1 FROM ({right}) AS r WHERE {' AND '.join(on)})"
    return f"SELECT {listed} FROM ({left}) AS l {'LEFT JOIN' if node.is_outer else 'JOIN'} ({right}) AS r ON {' AND '.join(on)}"


def ranked(node: Rank, rows: str, *, positioned: bool) -> str:
    """The first rows of each partition. Equal rows: by their place in the log, else by their columns, so that the answer is one."""
    order = [f"{quoted(f)} {'DESC' if down else 'ASC'} NULLS {'FIRST' if first else 'LAST'}" for f, down, first in node.order]
    order += [quoted(name) for name in (POSITION if positioned else [item.name for item in node.side.node.fields])]
    by = f"PARTITION BY {', '.join(quoted(name) for name in node.side.on)} " if node.side.on else ""
    listed = ", ".join([*(quoted(item.name) for item in node.fields), *(POSITION if positioned else ())])
    number = quoted(node.number.name if node.number is not None else "__rank")
    numbered = f"SELECT *, row_number() OVER ({by}ORDER BY {', '.join(order)}) AS {number} FROM ({rows})"
    return f"SELECT {listed} FROM ({numbered}) WHERE {number} <= {node.limit}"


# aggregates


def _group(node: Aggregate) -> tuple[list[str], str]:
    keys = [f"{sql(tree)} AS {quoted(item.name)}" for item, tree in node.keys]
    by = f" GROUP BY {', '.join(str(i + 1) for i in range(len(keys)))}" if keys else ""
    return keys, by


def aggregate_input(node: Aggregate, *, batch: bool = False) -> str:
    """The rows that an aggregate counts: all, or those that are in time for their window."""
    if node.emission is None or node.emission.is_whole or node.emission.by_commit:
        return relation(node.input, batch=batch, carried=POSITION if batch and node.is_ordered else ())
    return compile_time.in_time(relation(node.input, batch=batch, carried=(WATERMARK,)), compile_time.group_last_ms(node))


def late_positions(node: Aggregate | Session | InTime) -> str:
    """The places in the log of the rows that came too late for a window of theirs."""
    body = node.side.node if isinstance(node, Session) else node.input
    last = compile_time.group_last_ms(node) if isinstance(node, Aggregate) else compile_time.row_last_ms(node)
    listed = ", ".join([SOURCE, *POSITION[1:]])
    rows = relation(body, carried=(SOURCE, *POSITION, WATERMARK))
    return f"SELECT DISTINCT {listed} FROM ({rows}) WHERE {compile_time.is_late(last)}"


def total(node: Aggregate, rows: str, *, weighted: bool = False) -> str:
    """The aggregate over whole groups. `weighted`: each row counts WEIGHT times, all of them positive."""
    keys, by = _group(node)
    values = [
        f"{sql(item.delta(retracting=True) if weighted and not item.distinct else item.total())} AS {quoted(item.name)}"
        for item in node.accumulators
    ]
    inner = f"SELECT {', '.join(keys + values)} FROM ({rows}){by}"
    if not keys:  # a stream sends no row for an empty input, so neither does the recomputation
        inner = f"SELECT {', '.join([*values, 'count(*) AS __n'])} FROM ({rows}) HAVING count(*) > 0"
    return f"SELECT {', '.join(finished(node))} FROM ({inner})"


def finished(node: Aggregate) -> list[str]:
    """The aggregate's fields from its accumulators' columns."""
    listed = [quoted(item.name) for item, _ in node.keys]
    return listed + [
        f"{sql(cast(call.finish, item.type.duckdb) if item.type.is_known else call.finish)} AS {quoted(item.name)}"
        for item, call in node.calls
    ]


def partial(node: Aggregate) -> str:
    """One row per group of a micro-batch: keys, the deltas of all accumulators but the distinct ones."""
    keys, by = _group(node)
    retracting = node.input.is_retracting
    if node.by_pane:
        return compile_panes.partial(node, relation(node.input.inputs[0]), retracting=retracting)
    values = [f"{sql(item.delta(retracting=retracting))} AS {quoted(item.name)}" for item in node.accumulators if not item.distinct]
    listed = keys + values or ["1 AS __one"]
    guard = "" if keys else " HAVING count(*) > 0"
    return f"SELECT {', '.join(listed)} FROM ({aggregate_input(node)}){by}{guard}"


def distinct_partial(node: Aggregate, members: tuple[str, ...]) -> str:
    """One row per group and value of a micro-batch: keys, `__value`, and `__d`, how many rows more (or fewer) have it."""
    first = next(item for item in node.accumulators if item.name == members[0])
    assert first.argument is not None
    keys, _ = _group(node)
    count = f"CAST(sum({quoted(WEIGHT)}) AS BIGINT)" if node.input.is_retracting else "count(*)"
    by = ", ".join(str(i + 1) for i in range(len(keys) + 1))
    conditions = [f"{sql(first.argument)} IS NOT NULL"] + ([sql(first.condition)] if first.condition is not None else [])
    listed = [*keys, f"{sql(first.argument)} AS __value", f"{count} AS __d"]
    return f"SELECT {', '.join(listed)} FROM ({aggregate_input(node)}) WHERE {' AND '.join(f'({c})' for c in conditions)} GROUP BY {by}"


def distinct_state_keys(keys: tuple[tuple[str, exp.Expr], ...], relation_name: str) -> str:
    """The query of the state keys (names and expressions) of a relation's rows."""
    return f"SELECT {', '.join(f'{sql(tree)} AS {quoted(name)}' for name, tree in keys)} FROM {relation_name}"


def distinct_deltas(node: Aggregate, members: tuple[str, ...], relation_name: str) -> str:
    """Per group: the change of each distinct accumulator, from the values that appeared (+1) or disappeared (-1)."""
    step = (
        "(CASE WHEN COALESCE(__old, 0) <= 0 AND COALESCE(__old, 0) + __d > 0 THEN 1 WHEN __old > 0 AND __old + __d <= 0 THEN -1 ELSE 0 END)"
    )
    accumulators = {item.name: item for item in node.accumulators}
    listed = [quoted(item.name) for item, _ in node.keys]
    for name in members:
        item = accumulators[name]
        body = f"sum({step})" if item.kind == "count" else f"sum(__value * {step})"
        listed.append(f"CAST({body} AS {item.type.duckdb}) AS {quoted(name)}")
    by = ", ".join(str(i + 1) for i in range(len(node.keys)))
    return f"SELECT {', '.join(listed)} FROM {relation_name}" + (f" GROUP BY {by}" if by else " HAVING count(*) > 0")


def with_distinct(node: Aggregate, partial_name: str, distinct_names: list[tuple[str, tuple[str, ...]]]) -> str:
    """The micro-batch's groups with their distinct deltas joined on."""
    listed = [f"p.{quoted(item.name)}" for item, _ in node.keys]
    listed += [f"p.{quoted(item.name)}" for item in node.accumulators if not item.distinct]
    joins = []
    for i, (name, members) in enumerate(distinct_names):
        on = " AND ".join(f"{key_of(item, 'p')} IS NOT DISTINCT FROM {key_of(item, f'd{i}')}" for item, _ in node.keys) or "TRUE"
        joins.append(f" LEFT JOIN {name} AS d{i} ON {on}")
        listed += [f"d{i}.{quoted(member)}" for member in members]
    return f"SELECT {', '.join(listed)} FROM {partial_name} AS p{''.join(joins)}"


def old_name(accumulator: str) -> str:
    """The column that holds an accumulator's stored value beside its delta."""
    return f"old.{accumulator}"


def merged_value(item: Accumulator) -> str:
    """An accumulator's new value from its delta and the stored value beside it."""
    return sql(item.merge(column(old_name(item.name)), column(item.name)))


def merged(node: Aggregate, relation_name: str) -> str:
    """Keys, new accumulators, old accumulators and `__found`, from deltas and old state side by side."""
    listed = [quoted(item.name) for item, _ in node.keys]
    for item in node.accumulators:
        old = column(old_name(item.name))
        listed.append(f"{merged_value(item)} AS {quoted(item.name)}")
        listed.append(f"{sql(old)} AS {quoted(old_name(item.name))}")
    return f"SELECT {', '.join([*listed, '__found'])} FROM {relation_name}"


def rows_accumulator(node: Aggregate) -> str | None:
    """The accumulator that counts a group's rows; None when groups only grow."""
    if not node.input.is_retracting:
        return None
    return next(item.name for item in node.accumulators if item.kind == "rows")


def aggregate_changes(node: Aggregate, merged_name: str, *, with_old: bool) -> str:
    """What the aggregate sends on: its new rows with weight 1, and (with_old) the rows they replace with weight -1."""
    rows = rows_accumulator(node)
    exists = f" WHERE {quoted(rows)} > 0" if rows else ""
    new = f"SELECT {', '.join(finished(node))}, 1 AS {quoted(WEIGHT)} FROM {merged_name}{exists}"
    if not with_old:
        return new
    keys = [quoted(item.name) for item, _ in node.keys]
    olds = [f"{quoted(old_name(item.name))} AS {quoted(item.name)}" for item in node.accumulators]
    existed = f" AND {quoted(old_name(rows))} > 0" if rows else ""
    before = f"SELECT {', '.join(keys + olds) or '1'} FROM {merged_name} WHERE __found{existed}"
    return f"{new} UNION ALL SELECT {', '.join(finished(node))}, -1 AS {quoted(WEIGHT)} FROM ({before})"
