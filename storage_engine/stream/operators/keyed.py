"""Keyed: runs a join, a rank, sessions, OVER aggregates, or an aggregate that keeps its rows, over one micro-batch.

For the keys that changes touch, the sides' rows before and after the micro-batch are put side by side; the operator's changes are the
difference. Rows of a stored side come from its table; those of a kept side from the job's state table, which is advanced here.
Holds: what is kept commits with the output and the input offsets, like all state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators import compile_keyed as keyed_sql
from storage_engine.stream.operators.arrangement import COUNT, Arrangement
from storage_engine.stream.operators.compile import aggregate_name, key_of, keyed_name, quoted
from storage_engine.stream.operators.micro_batch import Outcome, Reader, Registry, append_op
from storage_engine.stream.plan.tree import Aggregate, KeptSide, Sided, StoredSide
from storage_engine.stream.plan.tree_time import Expiry

FORGET_MS_MIN = 1000


class Keyed:
    """One operator. Registers its changes under the name that the operators above read."""

    def __init__(self, node: Sided, arrangements: Mapping[int, Arrangement]) -> None:
        self._name = aggregate_name(node) if isinstance(node, Aggregate) else keyed_name(node)
        self._delta_sql = keyed_sql.delta(node)
        self._sides = [
            _Kept(node, side, arrangements[side.id]) if isinstance(side, KeptSide) else _Stored(node, side) for side in node.sides
        ]

    def run(self, _plan: object, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        """Put the operator's changes into `tables`, and what is kept into `outcome`."""
        stored = [side for side in self._sides if isinstance(side, _Stored)]
        for side, found in zip(stored, reader.rows_around([side.asked(tables) for side in stored]), strict=True):
            side.put(tables, found)
        for side in self._sides:
            if isinstance(side, _Kept):
                side.run(tables, reader, outcome)
        tables.put(self._name, tables.query(self._delta_sql))


class _Stored:
    def __init__(self, node: Sided, side: StoredSide) -> None:
        self._side = side
        self._touched_sql = keyed_sql.touched(node, side)

    def asked(self, tables: Registry) -> tuple[StoredSide, pa.Table]:
        """The side, and the keys whose rows the micro-batch needs."""
        side = self._side
        touched = tables.query(self._touched_sql)
        names = [f"__j{side.columns.index(name)}" for name in side.keys]
        keys = touched.select(names).rename_columns(list(side.keys))
        if len(names) < touched.num_columns:
            keys = keys.group_by(list(side.keys), use_threads=False).aggregate([])
        return side, keys

    def put(self, tables: Registry, found: tuple[pa.Table, pa.Table]) -> None:
        for moment, rows in zip(keyed_sql.MOMENTS, found, strict=True):
            tables.put(keyed_sql.moment_name(self._side, moment), rows)


class _Kept:
    """Advances the state table of a kept side.

    A row's multiplicity is in WEIGHT: 1, or the count where equal rows are one. Ranks and joins read rows as often as they count.
    """

    def __init__(self, node: Sided, side: KeptSide, arrangement: Arrangement) -> None:
        self._arrangement = arrangement
        self._side = side
        self._changes = keyed_sql.changes_name(side)
        self._is_weighted = isinstance(node, Aggregate)
        self._changes_sql = arrangement.changes()
        self._state_sql = arrangement.state_rows(self._changes)
        self._touched_name = f"{self._changes}_touched"
        self._touched_sql = keyed_sql.touched(node, side)
        self._asked_sql = arrangement.asked(self._touched_name, tuple(f"__j{i}" for i in range(len(side.on))))
        fields = ", ".join(quoted(name) for name in arrangement.names)
        weight = quoted(WEIGHT)
        of = {item.name: item for item in side.node.fields}
        pairs = [f"{key_of(of[name], 'c')} IS NOT DISTINCT FROM {key_of(of[name], 't', f'__j{i}')}" for i, name in enumerate(side.on)]
        on = " AND ".join(pairs) or "TRUE"
        changed = f"SELECT * FROM {self._changes} AS c WHERE EXISTS (SELECT 1 FROM {self._touched_name} AS t WHERE {on})"
        both = " UNION ALL ".join(f"SELECT {fields}, {weight} FROM {rows}" for rows in (f"{self._changes}_before", f"({changed})"))
        net = f"SELECT {fields}, CAST(sum({weight}) AS BIGINT) AS {weight} FROM ({both}) GROUP BY {fields} HAVING sum({weight}) > 0"
        self._after_sql = both if arrangement.kind == "position" else net  # rows of a log only come

    def run(self, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        tables.put(self._changes, tables.query(self._changes_sql))
        tables.put(self._touched_name, tables.query(self._touched_sql))
        before = self._kept(reader, tables.query(self._asked_sql))
        tables.put(f"{self._changes}_before", before)
        after = tables.query(self._after_sql)
        for moment, rows in zip(keyed_sql.MOMENTS, (before, after), strict=True):
            tables.put(keyed_sql.moment_name(self._side, moment), rows if self._is_weighted else _repeated(rows))
        self._write(tables.query(self._state_sql), reader, outcome)
        if self._side.expiry is not None:
            self._forget(self._side.expiry, tables, reader, outcome)

    def _forget(self, expiry: Expiry, tables: Registry, reader: Reader, outcome: Outcome) -> None:
        """Delete rows that nothing in time can match: not at once, because finding them reads all that is kept."""
        table, event_time = self._arrangement.table, tables.event_time
        watermark_ms, span = event_time.watermark_ms(expiry.emission), event_time.open_ms.get(self._changes)
        added_ms = tables.query(f"SELECT min(epoch_ms({quoted(expiry.time)})) AS ms FROM {self._changes}")["ms"][0].as_py()
        bounds = [*(span or ())[:1], *([] if added_ms is None else [added_ms + expiry.after_ms])]
        if span is not None and watermark_ms is not None and watermark_ms - span[0] > max(abs(expiry.after_ms), FORGET_MS_MIN) // 2:
            kept = reader.all_rows(table.name)
            column = next(name for name, field in self._arrangement.columns if field == expiry.time)
            until = pc.add(kept[column].cast(pa.timestamp("ms")).cast(pa.int64()), expiry.after_ms)
            gone = pc.less(until, watermark_ms)
            append_op(outcome, WriteOp(table.name, "delete", kept.filter(gone).select(list(table.primary_key)), None))
            bounds[0] = pc.min(until.filter(pc.invert(gone))).as_py()
        event_time.keep_open(self._changes, bounds)

    def _kept(self, reader: Reader, keys: pa.Table) -> pa.Table:
        """The rows under these keys, with their multiplicities, before the micro-batch."""
        arrangement = self._arrangement
        counted = arrangement.kind == "digest"
        columns = [name for name, _ in arrangement.columns] + ([COUNT] if counted else [])
        if arrangement.is_prefix:
            found = reader.prefix_lookup(arrangement.table.name, keys, columns)
        else:
            looked_up = reader.lookup(arrangement.table.name, keys, columns)
            found = looked_up.filter(looked_up["_found"]).select(columns)
        weights = found[COUNT] if counted else pa.repeat(pa.scalar(1, pa.int64()), found.num_rows)
        fields = found.select([name for name, _ in arrangement.columns]).rename_columns(arrangement.names)
        return fields.append_column(WEIGHT, weights)

    def _write(self, rows: pa.Table, reader: Reader, outcome: Outcome) -> None:
        """The changed rows in the state table's columns: upserted where they are there afterwards, else deleted."""
        table = self._arrangement.table
        key = list(table.primary_key)
        if self._arrangement.kind == "digest":
            stored = reader.lookup(table.name, rows.select(key), [COUNT])
            counts = pc.add(pc.fill_null(stored[COUNT], 0), rows[WEIGHT])
            assert rows.num_rows == 0 or pc.min(counts).as_py() >= 0, f"a row is taken back that {table.name} does not have"
            rows = rows.append_column(COUNT, counts)
            stays = pc.greater(counts, 0)
        else:
            stays = pc.greater(rows[WEIGHT], 0)
        append_op(outcome, WriteOp(table.name, "delete", rows.filter(pc.invert(stays)).select(key), None))
        append_op(outcome, WriteOp(table.name, "upsert", rows.filter(stays).select(list(table.column_names)), None))


def _repeated(rows: pa.Table) -> pa.Table:
    """Each row as often as it counts."""
    weights = rows[WEIGHT].to_numpy()
    if (weights == 1).all():
        return rows
    return rows.take(pa.array(np.repeat(np.arange(len(weights)), weights)))
