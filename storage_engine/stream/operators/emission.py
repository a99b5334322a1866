"""Emission: runs the operators whose results are sent once: groups of windows, and sessions, over a log with a WATERMARK.

What is not final yet is kept in a state table: the accumulators of a group, the rows of a session. When the watermark passes a window its
result is sent and its state deleted, in the commit that carries the offsets. Rows that come too late for a window are counted, and
their places in the log noted, so that they can be written to a side table.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators import compile as sql_of
from storage_engine.stream.operators import compile_time as time_sql
from storage_engine.stream.operators.arrangement import Arrangement
from storage_engine.stream.operators.compile_time import SOURCE, WATERMARK
from storage_engine.stream.operators.event_time import EventTime
from storage_engine.stream.operators.micro_batch import Outcome, Reader, Registry, append_op
from storage_engine.stream.plan.placement import NULL_MASK, Placement
from storage_engine.stream.plan.tree import Aggregate, DeltaJoin, Rank, Session
from storage_engine.stream.plan.tree_time import Emission, InTime

POSITIONS = sql_of.POSITION[1:]


class WholeGroups:
    """An aggregate over rows of windows that are final: each group comes whole, so there is no state."""

    def __init__(self, node: Aggregate) -> None:
        self._name = sql_of.aggregate_name(node)
        self._sql = sql_of.total(node, sql_of.relation(node.input))

    def run(self, _plan: object, tables: Registry, _reader: Reader, _outcome: Outcome) -> None:
        tables.put(self._name, tables.query(self._sql))


class WholePartitions:
    """A rank over partitions that come whole."""

    def __init__(self, node: Rank) -> None:
        self._name = sql_of.keyed_name(node)
        self._sql = sql_of.ranked(node, sql_of.relation(node.side.node), positioned=False)

    def run(self, _plan: object, tables: Registry, _reader: Reader, _outcome: Outcome) -> None:
        tables.put(self._name, tables.query(self._sql))


class WholeJoin:
    """A join of windows that come whole on both sides."""

    def __init__(self, node: DeltaJoin) -> None:
        self._name = sql_of.keyed_name(node)
        self._sql = sql_of.joined(node, sql_of.relation(node.left.node), sql_of.relation(node.right.node))

    def run(self, _plan: object, tables: Registry, _reader: Reader, _outcome: Outcome) -> None:
        tables.put(self._name, tables.query(self._sql))


class WindowGroups:
    """An aggregate over windows: groups whose window is passed are sent and forgotten, the others are kept."""

    def __init__(self, node: Aggregate, placement: Placement) -> None:
        assert node.emission is not None, "a window's group has an end"
        self._node = node
        self._emission = node.emission
        self._placement = placement
        self._name = name = sql_of.aggregate_name(node)
        number = time_sql.window_key(node)
        self._end_field, self._end_column = node.keys[number][0].name, f"g{number}"
        self._late_sql = sql_of.late_positions(node)
        self._partial_sql = sql_of.partial(node)
        self._distinct = [_DistinctValues(self, state.table.name, i) for i, state in enumerate(placement.distinct)]
        members = [(step.name, state.accumulators) for step, state in zip(self._distinct, placement.distinct, strict=True)]
        self._joined_sql = sql_of.with_distinct(node, f"{name}_p", members) if members else None
        self._keys_sql = sql_of.distinct_state_keys(placement.keys, f"{name}_p")
        self._merged_sql = sql_of.merged(node, f"{name}_m")
        columns = ", ".join(sql_of.quoted(item) for item in [*(f.name for f, _ in node.keys), *(a.name for a in node.accumulators)])
        self._sent_sql = (
            f"SELECT {', '.join(sql_of.finished(node))} FROM (SELECT {columns} FROM {name}_n UNION ALL "
            f"SELECT {columns} FROM ({decoded(node, placement, f'{name}_s')})) ORDER BY ALL"
        )

    @property
    def node(self) -> Aggregate:
        return self._node

    @property
    def placement(self) -> Placement:
        return self._placement

    def run(self, _plan: object, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        note_late(self._emission, self._late_sql, tables, outcome)
        watermark_ms = tables.event_time.watermark_ms(self._emission)
        span, is_due = tables.event_time.open_ms.get(self._name), tables.event_time.is_due(self._name, self._emission)
        deltas = tables.query(self._partial_sql)
        if self._joined_sql is not None:
            tables.put(f"{self._name}_p", deltas)
            for step in self._distinct:
                step.run(tables, reader, outcome, watermark_ms, span, is_due=is_due)
            deltas = tables.query(self._joined_sql)
        tables.put(f"{self._name}_p", deltas)
        keys = tables.query(self._keys_sql)
        columns = [name for _, name in self._placement.columns] or [self._placement.table.primary_key[0]]
        stored = looked_up(reader, self._placement.table, keys, columns, self.may_be_kept(keys, span))
        arrays = {name: deltas[name] for name in deltas.column_names}
        arrays |= {sql_of.old_name(item): stored[name] for item, name in self._placement.columns}
        tables.put(f"{self._name}_m", pa.table({**arrays, "__found": stored["_found"]}))
        advanced = tables.query(self._merged_sql)
        is_final = self._is_passed(advanced[self._end_field], watermark_ms)
        kept = reader.all_rows(self._placement.table.name) if is_due else None
        due = self._due(kept, keys, watermark_ms, tables)
        tables.put(f"{self._name}_n", advanced.filter(is_final))
        tables.put(f"{self._name}_s", due)
        tables.put(self._name, tables.query(self._sent_sql))
        self._write(keys, advanced, is_final, stored["_found"], due, outcome)
        self._note_open(tables.event_time, advanced.filter(pc.invert(is_final))[self._end_field], watermark_ms)

    def last_ms(self, ends: pa.ChunkedArray) -> pa.ChunkedArray:
        """The last millisecond of the windows that values of the end's column say."""
        moments = ends.cast(pa.timestamp("ms")).cast(pa.int64())
        return pc.add(moments, self._emission.shift_ms - 1)

    def _is_passed(self, ends: pa.ChunkedArray, watermark_ms: int | None) -> pa.ChunkedArray:
        if watermark_ms is None:
            return pa.chunked_array([pa.repeat(pa.scalar(value=False), len(ends))])
        return pc.less_equal(self.last_ms(ends), watermark_ms)

    def is_passed(self, state: pa.Table, watermark_ms: int | None) -> pa.ChunkedArray:
        """Which rows of a state table belong to windows that the watermark has passed."""
        return self._is_passed(state[self._end_column], watermark_ms)

    def may_be_kept(self, keys: pa.Table, span: tuple[int, int] | None) -> pa.ChunkedArray:
        """Which groups lie in windows of which something is kept: only those have to be looked up."""
        if span is None:
            return pa.chunked_array([pa.repeat(pa.scalar(value=False), keys.num_rows)])
        last = self.last_ms(keys[self._end_column])
        return pc.and_(pc.greater_equal(last, span[0]), pc.less_equal(last, span[1]))

    def _due(self, kept: pa.Table | None, keys: pa.Table, watermark_ms: int | None, tables: Registry) -> pa.Table:
        """Kept groups that are final and have no new rows: those with new rows are advanced from what is kept."""
        if kept is None:
            return self._placement.table.arrow_schema.empty_table()
        passed = kept.filter(self.is_passed(kept, watermark_ms))
        tables.put(f"{self._name}_k", keys)
        tables.put(f"{self._name}_c", passed)
        on = " AND ".join(f"s.{name} = k.{name}" for name in self._placement.table.primary_key)
        return tables.query(f"SELECT s.* FROM {self._name}_c AS s ANTI JOIN {self._name}_k AS k ON {on}")

    def _write(
        self, keys: pa.Table, advanced: pa.Table, is_final: pa.ChunkedArray, found: pa.ChunkedArray, due: pa.Table, outcome: Outcome
    ) -> None:
        table = self._placement.table
        names = [item.name for item in self._node.accumulators]
        state = pa.Table.from_arrays([*keys.columns, *(advanced[name] for name in names)], names=[*keys.column_names, *names])
        append_op(outcome, WriteOp(table.name, "delete", keys.filter(pc.and_(is_final, found)), None))
        append_op(outcome, WriteOp(table.name, "delete", due.select(list(table.primary_key)), None))
        append_op(outcome, WriteOp(table.name, "upsert", state.filter(pc.invert(is_final)), None))

    def _note_open(self, event_time: EventTime, added: pa.ChunkedArray, watermark_ms: int | None) -> None:
        """Between which last milliseconds the windows lie that are kept from now on."""
        low, high = event_time.open_ms.get(self._name, (None, None))
        if low is not None and high is not None and watermark_ms is not None:
            low, high = (None, None) if high <= watermark_ms else (max(low, watermark_ms + 1), high)
        last = self.last_ms(added)
        event_time.keep_open(self._name, [low, high, pc.min(last).as_py(), pc.max(last).as_py()])


class _DistinctValues:
    """The values that DISTINCT aggregates have seen in windows that are not passed yet."""

    def __init__(self, groups: WindowGroups, table: str, number: int) -> None:
        node, state = groups.node, groups.placement.distinct[number]
        self.name = f"{sql_of.aggregate_name(node)}_d{number}"
        self._groups = groups
        self._table = table
        self._state = state.table
        self._partial_sql = sql_of.distinct_partial(node, state.accumulators)
        self._keys_sql = sql_of.distinct_state_keys(state.keys, f"{self.name}_v")
        self._deltas_sql = sql_of.distinct_deltas(node, state.accumulators, f"{self.name}_m")

    def run(
        self, tables: Registry, reader: Reader, outcome: Outcome, watermark_ms: int | None, span: tuple[int, int] | None, *, is_due: bool
    ) -> None:
        values = tables.query(self._partial_sql)
        tables.put(f"{self.name}_v", values)
        keys = tables.query(self._keys_sql)
        stored = looked_up(reader, self._state, keys, ["n"], self._groups.may_be_kept(keys, span))
        tables.put(f"{self.name}_m", values.append_column("__old", stored["n"]))
        tables.put(self.name, tables.query(self._deltas_sql))
        state = first_seen(keys, stored["_found"], values["__d"])
        append_op(outcome, WriteOp(self._table, "upsert", state.filter(pc.invert(self._groups.is_passed(state, watermark_ms))), None))
        if is_due:
            kept = reader.all_rows(self._table)
            append_op(
                outcome,
                WriteOp(
                    self._table,
                    "delete",
                    kept.filter(self._groups.is_passed(kept, watermark_ms)).select(list(self._state.primary_key)),
                    None,
                ),
            )


class Sessions:
    """Sessions that are sent once: rows are kept by partition until no row in time can join their session."""

    def __init__(self, node: Session, arrangements: Mapping[int, Arrangement]) -> None:
        assert node.emission is not None, "a session without a watermark is a keyed operator"
        self._emission = node.emission
        self._name = name = sql_of.keyed_name(node)
        self._arrangement = arrangement = arrangements[node.kept.id]
        self._late_sql = sql_of.late_positions(node)
        names = ", ".join(sql_of.quoted(item) for item in arrangement.names)
        rows = sql_of.relation(node.side.node, carried=(*sql_of.POSITION, WATERMARK))
        self._new_sql = f"SELECT {names}, CAST(1 AS BIGINT) AS {WEIGHT} FROM ({time_sql.in_time(rows, time_sql.row_last_ms(node))})"
        listed = ", ".join(f"{sql_of.quoted(column)} AS {sql_of.quoted(item)}" for column, item in arrangement.columns)
        everything = f"SELECT {names}, FALSE AS __kept FROM {name}_new UNION ALL SELECT {listed}, TRUE AS __kept FROM {name}_kept"
        sessions = time_sql.with_sessions(node, everything, (*sql_of.POSITION, "__kept"))
        self._sessions_sql = f"SELECT *, {time_sql.final_ms(node)} AS __final_ms FROM ({sessions}) ORDER BY __final_ms"
        fields = ", ".join(sql_of.quoted(item.name) for item in node.fields)
        self._sent_sql = f"SELECT {fields} FROM {name}_final"
        self._gone_sql = arrangement.state_rows(f"(SELECT {names}, CAST(-1 AS BIGINT) AS {WEIGHT} FROM {name}_final WHERE __kept)")
        self._added_sql = arrangement.state_rows(f"(SELECT {names}, CAST(1 AS BIGINT) AS {WEIGHT} FROM {name}_open WHERE NOT __kept)")

    def run(self, _plan: object, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        note_late(self._emission, self._late_sql, tables, outcome)
        event_time, table = tables.event_time, self._arrangement.table
        watermark_ms = event_time.watermark_ms(self._emission)
        open_ms = event_time.open_ms.get(self._name, (None, None))[0]
        tables.put(f"{self._name}_new", tables.query(self._new_sql))
        tables.put(f"{self._name}_kept", table.arrow_schema.empty_table())
        found = tables.query(self._sessions_sql)
        bound_ms = min((ms for ms in (open_ms, pc.min(found["__final_ms"]).as_py()) if ms is not None), default=None)
        is_due = bound_ms is not None and watermark_ms is not None and bound_ms <= watermark_ms
        if is_due and open_ms is not None:  # a session of new rows may be a part of a kept one
            tables.put(f"{self._name}_kept", reader.all_rows(table.name))
            found = tables.query(self._sessions_sql)
        is_final = pc.less_equal(found["__final_ms"], watermark_ms) if is_due else pa.repeat(pa.scalar(value=False), found.num_rows)
        tables.put(f"{self._name}_final", found.filter(is_final))
        tables.put(f"{self._name}_open", found.filter(pc.invert(is_final)))
        tables.put(self._name, tables.query(self._sent_sql))
        append_op(outcome, WriteOp(table.name, "delete", tables.query(self._gone_sql).select(list(table.primary_key)), None))
        append_op(outcome, WriteOp(table.name, "upsert", tables.query(self._added_sql).select(list(table.column_names)), None))
        least = pc.min(found.filter(pc.invert(is_final))["__final_ms"]).as_py()
        event_time.keep_open(self._name, [least] if is_due else [least, open_ms])


class LateRows:
    """Notes the rows that are late for an interval join."""

    def __init__(self, node: InTime) -> None:
        self._emission = node.emission
        self._late_sql = sql_of.late_positions(node)

    def run(self, _plan: object, tables: Registry, _reader: Reader, outcome: Outcome) -> None:
        note_late(self._emission, self._late_sql, tables, outcome)


def note_late(emission: Emission, late_sql: str, tables: Registry, outcome: Outcome) -> None:
    """Add the places of late rows to the outcome; nothing is asked when no row is behind its watermark."""
    if tables.event_time.has_late_rows and not emission.by_commit:
        found = tables.query(late_sql)
        if found.num_rows:
            outcome.late.append((emission, found))


def write_late(outcome: Outcome, reader: Reader) -> None:
    """Count the late rows of a micro-batch, each once, and write them where their table's option says."""
    sides = {scan.table.name: side for emission, _ in outcome.late for scan, side in zip(emission.scans, emission.late_tables, strict=True)}
    if not sides:
        return
    places = pa.concat_tables([rows for _, rows in outcome.late]).group_by([SOURCE, *POSITIONS], use_threads=False).aggregate([])
    outcome.n_late_rows += places.num_rows
    for name, side in sides.items():
        of_table = places.filter(pc.equal(places[SOURCE], name)).select(list(POSITIONS))
        if side is not None and of_table.num_rows:
            append_op(outcome, WriteOp(side, "append", reader.rows_of_input(name, of_table, side), None))


def first_seen(keys: pa.Table, found: pa.ChunkedArray, counts: pa.ChunkedArray) -> pa.Table:
    """State rows of values that were not seen before: where no row is ever taken back, how often they come later does not matter."""
    return keys.append_column("n", counts).filter(pc.invert(found))


def looked_up(reader: Reader, table: TableDescriptor, keys: pa.Table, columns: list[str], asked: pa.ChunkedArray) -> pa.Table:
    """One row per key, looked up where it is asked for; null and not found elsewhere."""
    n_asked = pc.sum(asked).as_py() or 0
    if n_asked == keys.num_rows:
        return reader.lookup(table.name, keys, columns)
    if n_asked == 0:
        empty = {name: pa.nulls(keys.num_rows, table.arrow_schema.field(name).type) for name in columns}
        return pa.table({**empty, "_found": pa.repeat(pa.scalar(value=False), keys.num_rows)})
    found = reader.lookup(table.name, keys.filter(asked), columns)
    mask = asked.combine_chunks()
    position = pc.subtract(pc.cumulative_sum(mask.cast(pa.int64())), 1)
    taken = found.take(pc.if_else(mask, position, None))
    return taken.set_column(taken.num_columns - 1, "_found", pc.fill_null(taken["_found"], fill_value=False))


def decoded(node: Aggregate, placement: Placement, relation: str) -> str:
    """Rows of the state table as what they are kept by and accumulators: placement.key_columns the other way round."""
    listed = []
    for i, item in enumerate(node.state_fields):
        name = f"g{i}"
        value = f"CASE WHEN ({NULL_MASK} & {1 << i}) = 0 THEN {name} END" if item.nullable else name
        listed.append(f"{value} AS {sql_of.quoted(item.name)}")
    listed += [f"{sql_of.quoted(column)} AS {sql_of.quoted(name)}" for name, column in placement.columns]
    return f"SELECT {', '.join(listed)} FROM {relation}"
