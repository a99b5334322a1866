"""Compile: plan trees into DuckDB SQL over named relations of Arrow data.

    stream   changes in, changes out: retracting relations carry __w (weight) and, up to a first aggregate, __seq (order of changes)
    batch    the whole input at once: no weights, aggregates over everything (what the proof recomputes)

Relations by name: src_ID (a scan's rows), lk_ID (rows looked up), agg_ID (an aggregate's changes), dj_ID and rank_ID (those of a
delta join and of a rank, which compile_keyed.py makes).
Never: runs anything.
"""

from __future__ import annotations

from sqlglot import exp

from storage_engine.stream.aggregates import WEIGHT
from storage_engine.stream.plan import Aggregate, Calc, DeltaJoin, Expand, LookupJoin, Node, Rank, Scan, Union, Windows, is_positioned
from storage_engine.stream.render import cast, column, sql

SEQUENCE = "__seq"
POSITION = ("__time", "__partition", "__bucket", "__offset")
"""Where a row stands in its log: columns that orders and identifies the rows of one source."""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def source_name(node: Scan) -> str:
    return f"src_{node.id}"


def lookup_name(node: LookupJoin) -> str:
    return f"lk_{node.id}"


def aggregate_name(node: Aggregate) -> str:
    return f"agg_{node.id}"


def keyed_name(node: DeltaJoin | Rank) -> str:
    return f"{'dj' if isinstance(node, DeltaJoin) else 'rank'}_{node.id}"


def has_sequence(node: Node) -> bool:
    """True when the relation still knows the order of changes: one source, nothing below that changes several rows at once."""
    if isinstance(node, Scan):
        return node.is_retracting
    return not isinstance(node, Aggregate | Union | DeltaJoin | Rank) and has_sequence(node.input)


def hidden_columns(node: Node) -> tuple[str, ...]:
    """The columns that a stream relation carries beside its fields."""
    if not node.is_retracting:
        return ()
    return (WEIGHT, SEQUENCE) if has_sequence(node) else (WEIGHT,)


def relation(node: Node, *, batch: bool = False, carried: tuple[str, ...] = ()) -> str:
    """A SELECT for the node's rows (batch) or changes (stream). `carried`: further columns of the source to pass through."""
    hidden = [quoted(name) for name in (*(() if batch else hidden_columns(node)), *carried)]
    if isinstance(node, Scan):
        listed = [f"{quoted(name)} AS {quoted(item.name)}" for name, item in zip(node.columns, node.fields, strict=True)]
        return f"SELECT {', '.join(listed + hidden)} FROM {source_name(node)}"
    if isinstance(node, Calc):
        listed = [f"{sql(tree)} AS {quoted(item.name)}" for item, tree in node.projections]
        condition = f" WHERE {sql(node.condition)}" if node.condition is not None else ""
        return f"SELECT {', '.join(listed + hidden)} FROM ({relation(node.input, batch=batch, carried=carried)}){condition}"
    if isinstance(node, LookupJoin):
        return _join(node, hidden, batch=batch, carried=carried)
    if isinstance(node, DeltaJoin | Rank):
        if batch:
            return _batch_keyed(node)
        return f"SELECT {', '.join([quoted(item.name) for item in node.fields] + hidden)} FROM {keyed_name(node)}"
    if isinstance(node, Union):
        return _union(node, hidden, batch=batch, carried=carried)
    if isinstance(node, Windows):
        return _windows(node, hidden, batch=batch, carried=carried)
    if isinstance(node, Expand):
        return _expand(node, hidden, batch=batch, carried=carried)
    if batch:
        return total(node, relation(node.input, batch=True, carried=POSITION if node.is_ordered else ()))
    return f"SELECT {', '.join([quoted(item.name) for item in node.fields] + hidden)} FROM {aggregate_name(node)}"


def _union(node: Union, hidden: list[str], *, batch: bool, carried: tuple[str, ...]) -> str:
    fields = [quoted(item.name) for item in node.fields]
    parts = []
    for branch in node.branches:
        own = hidden if batch or branch.is_retracting else [f"CAST(1 AS TINYINT) AS {name}" for name in hidden]
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
    time = f"epoch_ms({quoted(node.time)})"
    checked = (
        f"CASE WHEN {quoted(node.time)} IS NULL THEN error('a row without a time lies in no window: {node.time} is null') ELSE {time} END"
    )
    body = f"SELECT *, CAST({checked} AS BIGINT) AS __ms FROM ({relation(node.input, batch=batch, carried=carried)})"
    body = f"SELECT *, __ms - (((__ms - {offset}) % {step}) + {step}) % {step} AS __first FROM ({body})"
    if node.kind == "CUMULATE":
        start = f"(__ms - (((__ms - {offset}) % {size}) + {size}) % {size})"
        body = f"SELECT *, {start} AS __start, unnest(range(__first + {step}, {start} + {size} + 1, {step})) AS __end FROM ({body})"
    else:
        body = f"SELECT *, unnest(range(__first, __first - {size}, -{step})) AS __start FROM ({body})"
        body = f"SELECT *, __start + {size} AS __end FROM ({body})"
    for item, value in zip(node.window, ("__start", "__end", "__end - 1"), strict=True):
        listed.append(f"CAST(make_timestamp_ms({value}) AS TIMESTAMP_MS) AS {quoted(item.name)}")
    return f"SELECT {', '.join(listed + hidden)} FROM ({body})"


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


def _batch_keyed(node: DeltaJoin | Rank) -> str:
    if isinstance(node, DeltaJoin):
        return joined(node, relation(node.left.node, batch=True), relation(node.right.node, batch=True))
    positioned = is_positioned(node.side.node)
    return ranked(node, relation(node.side.node, batch=True, carried=POSITION if positioned else ()), positioned=positioned)


def joined(node: DeltaJoin, left: str, right: str, further: str = "") -> str:
    """The join of two relations with the sides' fields, l and r. `further`: what else to select, not for FULL."""
    on = [f"l.{quoted(mine)} = r.{quoted(other)}" for mine, other in zip(node.left.on, node.right.on, strict=True)]
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
    values = [f"{sql(item.delta(retracting=retracting))} AS {quoted(item.name)}" for item in node.accumulators if not item.distinct]
    listed = keys + values or ["1 AS __one"]
    guard = "" if keys else " HAVING count(*) > 0"
    return f"SELECT {', '.join(listed)} FROM ({relation(node.input)}){by}{guard}"


def distinct_partial(node: Aggregate, members: tuple[str, ...]) -> str:
    """One row per group and value of a micro-batch: keys, `__value`, and `__d`, how many rows more (or fewer) have it."""
    first = next(item for item in node.accumulators if item.name == members[0])
    assert first.argument is not None
    keys, _ = _group(node)
    count = f"CAST(sum({quoted(WEIGHT)}) AS BIGINT)" if node.input.is_retracting else "count(*)"
    by = ", ".join(str(i + 1) for i in range(len(keys) + 1))
    conditions = [f"{sql(first.argument)} IS NOT NULL"] + ([sql(first.condition)] if first.condition is not None else [])
    listed = [*keys, f"{sql(first.argument)} AS __value", f"{count} AS __d"]
    return f"SELECT {', '.join(listed)} FROM ({relation(node.input)}) WHERE {' AND '.join(f'({c})' for c in conditions)} GROUP BY {by}"


def distinct_state_keys(keys: tuple[tuple[str, exp.Expr], ...], relation_name: str) -> str:
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
        on = " AND ".join(f"p.{quoted(item.name)} IS NOT DISTINCT FROM d{i}.{quoted(item.name)}" for item, _ in node.keys) or "TRUE"
        joins.append(f" LEFT JOIN {name} AS d{i} ON {on}")
        listed += [f"d{i}.{quoted(member)}" for member in members]
    return f"SELECT {', '.join(listed)} FROM {partial_name} AS p{''.join(joins)}"


def old_name(accumulator: str) -> str:
    """The column that holds an accumulator's stored value beside its delta."""
    return f"old.{accumulator}"


def merged(node: Aggregate, relation_name: str) -> str:
    """Keys, new accumulators, old accumulators and `__found`, from deltas and old state side by side."""
    listed = [quoted(item.name) for item, _ in node.keys]
    for item in node.accumulators:
        old = column(old_name(item.name))
        listed.append(f"{sql(item.merge(old, column(item.name)))} AS {quoted(item.name)}")
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
