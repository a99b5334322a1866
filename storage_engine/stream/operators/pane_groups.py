"""Pane groups: runs an aggregate over windows of several steps that are sent once: it keeps the counts of single steps.

A window is put together when the watermark passes it, from the panes that it covers; a pane goes when its last window is sent. A row that
is late for some of its windows counts in the others: OPENS, the end of the first one, is part of the key that its count is kept by.
Holds: a window is sent by the one micro-batch whose watermark passes it: its end lies between the watermarks before and after.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.stream.operators import compile as sql_of
from storage_engine.stream.operators import compile_panes as panes_sql
from storage_engine.stream.operators.compile_time import WATERMARK
from storage_engine.stream.operators.emission import decoded, looked_up, note_late
from storage_engine.stream.operators.event_time import EventTime
from storage_engine.stream.operators.micro_batch import Outcome, Reader, Registry, append_op
from storage_engine.stream.plan.placement import Placement
from storage_engine.stream.plan.tree import OPENS, PANE, Aggregate, Windows

_BEFORE_ALL = -(1 << 61)


class PaneGroups:
    """One aggregate."""

    def __init__(self, node: Aggregate, placement: Placement) -> None:
        assert node.emission is not None, "what is sent once has an end"
        assert isinstance(node.input, Windows), "panes are of windows"
        self._emission, self._windows, self._placement = node.emission, node.input, placement
        self._name = name = sql_of.aggregate_name(node)
        self._late_sql = sql_of.late_positions(node)
        below = node.input.input
        self._counted_sql = {
            is_timed: panes_sql.counted(node, sql_of.relation(below, carried=(WATERMARK,) if is_timed else ()), is_timed=is_timed)
            for is_timed in (False, True)
        }
        self._keys_sql = sql_of.distinct_state_keys(placement.keys, f"{name}_p")
        fields = ", ".join(sql_of.quoted(item.name) for item in node.state_fields)
        self._values = [item.name for item in node.accumulators]
        merged = [f"{sql_of.merged_value(item)} AS {sql_of.quoted(item.name)}" for item in node.accumulators]
        self._merged_sql = f"SELECT {', '.join([fields, *merged])} FROM {name}_m"
        listed = ", ".join([fields, *(sql_of.quoted(item) for item in self._values)])
        panes = f"SELECT {listed} FROM {name}_n UNION ALL SELECT {listed} FROM ({decoded(node, placement, f'{name}_s')})"
        results = ", ".join(sql_of.finished(node))
        self._sent_sql = f"SELECT {results} FROM ({panes_sql.sent(node, panes, f'{name}_b')}) ORDER BY ALL"
        self._ends_sql = panes_sql.ends(node, f"{name}_e")
        on = " AND ".join(f"s.{item} = k.{item}" for item in placement.table.primary_key)
        self._untouched_sql = f"SELECT s.* FROM {name}_c AS s ANTI JOIN {name}_k AS k ON {on}"
        self._columns = [f"g{[item.name for item in node.state_fields].index(field)}" for field in (PANE, OPENS)]

    def run(self, _plan: object, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        event_time, name, table = tables.event_time, self._name, self._placement.table
        note_late(self._emission, self._late_sql, tables, outcome)
        watermark_ms, before_ms = event_time.watermark_ms(self._emission), event_time.watermark_before_ms(self._emission)
        span, is_due = event_time.open_ms.get(name), event_time.is_due(name, self._emission)
        deltas = tables.query(self._counted_sql[event_time.has_late_rows and not self._emission.by_commit])
        tables.put(f"{name}_p", deltas)
        keys = tables.query(self._keys_sql)
        last_ms = self._last_ms(keys, tables)
        columns = [column for _, column in self._placement.columns] or [table.primary_key[0]]
        stored = looked_up(reader, table, keys, columns, pa.chunked_array([pa.array(_within(last_ms, span))]))
        olds = {sql_of.old_name(item): stored[column] for item, column in self._placement.columns}
        tables.put(f"{name}_m", pa.table({**{item: deltas[item] for item in deltas.column_names}, **olds}))
        advanced = tables.query(self._merged_sql)
        kept = self._untouched(reader.all_rows(table.name), keys, tables) if is_due else table.arrow_schema.empty_table()
        tables.put(f"{name}_n", advanced)
        tables.put(f"{name}_s", kept)
        tables.put(f"{name}_b", self._bounds(before_ms, watermark_ms))
        tables.put(name, tables.query(self._sent_sql))
        kept_ms = self._last_ms(kept, tables)
        self._write(keys, advanced, _passed(last_ms, watermark_ms), stored["_found"], outcome)
        gone = kept.filter(pa.array(_passed(kept_ms, watermark_ms)))
        append_op(outcome, WriteOp(table.name, "delete", gone.select(list(table.primary_key)), None))
        opens = np.concatenate([_integers(rows[self._columns[1]]) for rows in (keys, kept)])
        self._note_open(event_time, np.concatenate([last_ms, kept_ms]), opens, watermark_ms, None if is_due else span)

    def _untouched(self, kept: pa.Table, keys: pa.Table, tables: Registry) -> pa.Table:
        tables.put(f"{self._name}_c", kept)
        tables.put(f"{self._name}_k", keys)
        return tables.query(self._untouched_sql)

    def _last_ms(self, rows: pa.Table, tables: Registry) -> np.ndarray:
        """The last millisecond of the last window of each row, which has the state table's key columns."""
        tables.put(f"{self._name}_e", pa.table({PANE: rows[self._columns[0]]}))
        return _integers(tables.query(self._ends_sql)["__last"]) - 1

    def _next_end(self, ms: int) -> int:
        """The end of the first window that the watermark `ms` has not passed."""
        step = self._windows.step_ms
        return ms + 1 - (ms + 1 - self._windows.offset_ms) % step + step

    def _bounds(self, before_ms: int | None, watermark_ms: int | None) -> pa.Table:
        low = _BEFORE_ALL if before_ms is None else self._next_end(before_ms)
        high = _BEFORE_ALL if watermark_ms is None else self._next_end(watermark_ms) - self._windows.step_ms
        return pa.table({"__low": pa.array([low], pa.int64()), "__high": pa.array([high], pa.int64())})

    def _write(self, keys: pa.Table, advanced: pa.Table, passed: np.ndarray, found: pa.ChunkedArray, outcome: Outcome) -> None:
        table = self._placement.table
        is_final = pa.chunked_array([pa.array(passed)])
        names = [*keys.column_names, *self._values]
        state = pa.Table.from_arrays([*keys.columns, *(advanced[item] for item in self._values)], names=names)
        append_op(outcome, WriteOp(table.name, "delete", keys.filter(pc.and_(is_final, found)), None))
        append_op(outcome, WriteOp(table.name, "upsert", state.filter(pc.invert(is_final)), None))

    def _note_open(
        self, event_time: EventTime, last_ms: np.ndarray, opens: np.ndarray, watermark_ms: int | None, span: tuple[int, int] | None
    ) -> None:
        """From which watermark on a window of what is kept is due, and which one is the last. `span`: of what was not read."""
        stays = ~_passed(last_ms, watermark_ms)
        due = opens[stays] if watermark_ms is None else np.maximum(opens[stays], self._next_end(watermark_ms))
        bounds = [] if not len(due) else [int(due.min()) - 1, int(last_ms[stays].max())]
        event_time.keep_open(self._name, [*bounds, *(span or ())])


def _within(last_ms: np.ndarray, span: tuple[int, int] | None) -> np.ndarray:
    """Which panes may be kept: only those have to be looked up."""
    return np.zeros(len(last_ms), bool) if span is None else (last_ms >= span[0]) & (last_ms <= span[1])


def _passed(last_ms: np.ndarray, watermark_ms: int | None) -> np.ndarray:
    return np.zeros(len(last_ms), bool) if watermark_ms is None else last_ms <= watermark_ms


def _integers(values: pa.ChunkedArray) -> np.ndarray:
    return values.to_numpy().astype(np.int64, copy=False)
