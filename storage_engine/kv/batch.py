"""Batch: make each key occur once in a batch, so that the store is asked and changed once per key.

Holds: writing the combined batch leaves the rows that writing its rows one after the other would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.kv.columns import contiguous, take
from storage_engine.kv.distinct import all_distinct
from storage_engine.kv.key_index import Bools, Hashes, Int64s
from storage_engine.kv.merge.bitmaps import WIDTHS, unite_groups
from storage_engine.kv.merge.first_row import first_rows
from storage_engine.kv.merge.listagg import joined_groups
from storage_engine.kv.merge.product import multiplied_groups
from storage_engine.kv.merge.versioned import newest_rows
from storage_engine.schema.descriptor import TableDescriptor


@dataclass(frozen=True)
class Groups:
    """Rows by key: `group` (n,) numbers the keys 0..n_groups in order of first appearance; first and last (n_groups,) row of each."""

    group: Int64s
    first: Int64s
    last: Int64s

    @property
    def n_groups(self) -> int:
        return len(self.first)


def group_keys(keys: pa.Array, hashes: Hashes | None = None) -> Groups | None:
    """Group rows by their encoded key; None when no key repeats.

    Cost: one dictionary pass, about 10 M keys/s; where `hashes` (n,) of the keys are given and all differ, a tenth of it.
    """
    if hashes is not None and all_distinct(hashes):
        return None
    encoded = pc.dictionary_encode(keys)
    n_groups = len(encoded.dictionary)
    if n_groups == len(keys):
        return None
    group = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    first, last = np.empty(n_groups, np.int64), np.empty(n_groups, np.int64)
    rows = np.arange(len(keys))
    last[group] = rows  # of repeated positions numpy keeps the last one
    first[group[::-1]] = rows[::-1]
    return Groups(group, first, last)


def combine(
    descriptor: TableDescriptor, rows: pa.Table, targets: Sequence[str] | None = None, *, groups: Groups | None
) -> tuple[pa.Table, Int64s | None]:
    """One row per key: the last one, under first_row the first, under versioned the newest, under aggregation the merge of all.

    Shapes: rows (n,), their groups by key -> rows (k,) in order of first appearance, and the position (k,) in `rows` of a row that
            has each key; None: nothing repeats, and the rows are returned as they are.
    Types:  a column with function sum comes out wider (int64, decimal128(38, s), float64): a part of a sum may leave the column's
            type though the whole does not. So does one with count (int64: values that are not null, also where nothing repeats),
            and a product (int64, float64, lists of decimals). plan_upsert narrows them.
    Errors: SchemaMismatch naming the first row whose rbm32 or rbm64 value is no bitmap, or a product beyond 64 bits.
    """
    if descriptor.merge_engine != "aggregation":
        if groups is None:
            return rows, None
        chosen = _chosen(descriptor, rows, groups)
        return rows.take(pa.array(chosen)), chosen
    rows = _counted(descriptor, rows, targets)
    if groups is None:
        return rows, None
    written = set(rows.column_names if targets is None else targets) - set(descriptor.primary_key)
    columns = {}
    for name in rows.column_names:
        column = contiguous(rows, name)
        if name in written:
            columns[name] = _reduce(descriptor, name, column, groups)
        else:
            columns[name] = take(column, groups.last)
    return pa.table(columns), groups.last


def _chosen(descriptor: TableDescriptor, rows: pa.Table, groups: Groups) -> Int64s:
    """The row of each key that stays, under an engine that keeps whole rows."""
    match descriptor.merge_engine:
        case "first_row":
            return first_rows(groups.first)
        case "versioned":
            assert descriptor.version_column is not None
            return newest_rows(contiguous(rows, descriptor.version_column), groups.group, groups.first)
        case _:
            return groups.last


def _counted(descriptor: TableDescriptor, rows: pa.Table, targets: Sequence[str] | None) -> pa.Table:
    """Columns with function count: 1 for each value, null for none."""
    for at, name in enumerate(rows.column_names):
        is_written = (targets is None or name in targets) and name not in descriptor.primary_key
        if is_written and descriptor.aggregate_function(name) == "count":
            column = contiguous(rows, name)
            ones = np.ones(len(column), np.int64)
            rows = rows.set_column(at, name, pa.array(ones, mask=column.is_null().to_numpy(zero_copy_only=False)))
    return rows


def _reduce(descriptor: TableDescriptor, name: str, column: pa.Array, groups: Groups) -> pa.Array:
    function, where = descriptor.aggregate_function(name), f"table {descriptor.name}, column {name}"
    match function:
        case "last_value":
            return take(column, groups.last)
        case "last_value_ignore_nulls":
            return _edge_value(column, groups, is_last=True)
        case "first_value" | "first_value_ignore_nulls":
            return _edge_value(column, groups, is_last=False)
        case "rbm32" | "rbm64":
            return unite_groups(column, groups.group, groups.n_groups, where, WIDTHS[function])
        case "sum" | "count":
            return _group_sum(column, groups)
        case "product":
            return multiplied_groups(column, groups.group, groups.n_groups, where)
        case "listagg":
            return joined_groups(column, groups.group, groups.n_groups, descriptor.aggregate_parameter(name, "delimiter", ","))
        case "bool_and":
            return _group_by(column, groups, "all")
        case "bool_or":
            return _group_by(column, groups, "any")
        case _:
            return _group_by(column, groups, function)


def _edge_value(column: pa.Array, groups: Groups, *, is_last: bool) -> pa.Array:
    """The last, or first, value of each group that is not null."""
    if column.null_count == 0:
        return take(column, groups.last if is_last else groups.first)
    valid = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    if not is_last:
        valid = valid[::-1]
    position = np.full(groups.n_groups, -1, np.int64)
    position[groups.group[valid]] = valid
    absent: Bools = position < 0
    return column.take(pa.array(position, mask=absent))


def _group_sum(column: pa.Array, groups: Groups) -> pa.Array:
    if pa.types.is_int64(column.type) and len(column):
        # an int64 total could wrap around without a word; far from its ends it cannot
        extremes = pc.min_max(column)
        largest = max(abs(extremes["min"].as_py() or 0), abs(extremes["max"].as_py() or 0))
        if largest * len(column) >= 2**63:
            column = column.cast(pa.decimal128(19, 0)).cast(pa.decimal128(38, 0))
    elif pa.types.is_decimal(column.type) and column.type.precision + len(str(len(column))) > 38:
        column = column.cast(pa.decimal256(column.type.precision, column.type.scale))
    return _group_by(column, groups, "sum")


def _group_by(column: pa.Array, groups: Groups, function: str) -> pa.Array:
    """Reduce each group by an Arrow aggregate that skips nulls; groups come out in the order of their numbers."""
    table = pa.table({"group": groups.group, "value": column})
    reduced = table.group_by("group", use_threads=False).aggregate([("value", function)])
    return contiguous(reduced, f"value_{function}")
