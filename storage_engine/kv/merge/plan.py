"""Plan: what a batch of upserts or deletes changes in a bucket. Decides only: no index, no log, no clock.

Each incoming key occurs once (kv/batch.py sees to that), and `current` holds the rows stored under the keys that are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from storage_engine.errors import SchemaMismatch, StatementRefused
from storage_engine.kv.columns import aligned, columns_differ, contiguous, take
from storage_engine.kv.key_index import Bools, Int64s
from storage_engine.kv.merge.aggregation import first_column, merge_column
from storage_engine.kv.merge.changelog import ChangePlan, change_rows, nothing, overwrites, removal_rows, without_old_rows
from storage_engine.kv.merge.first_row import first_row_wins
from storage_engine.kv.merge.retraction import is_zero, taken_back
from storage_engine.kv.merge.versioned import newer_wins
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import delete_behavior
from storage_engine.schema.rows import check_deleted_columns
from storage_engine.schema.validate import WHOLE_ROW_ENGINES


def overwrites_blindly(descriptor: TableDescriptor, targets: Sequence[str] | None = None) -> bool:
    """True when a write needs nothing of the stored rows: image WAL, the last row wins, whole rows, no ids to keep."""
    return (
        descriptor.is_wal
        and descriptor.merge_engine == "last_row"
        and descriptor.auto_increment_column is None
        and (targets is None or set(targets) == set(descriptor.column_names))
    )


def plan_overwrite(descriptor: TableDescriptor, incoming: pa.Table, inserts: Bools) -> ChangePlan:
    """Write n incoming rows, whatever is stored: +U, or +I where the caller needs the key's beginning marked.

    Shapes: incoming (n,) whole rows, each key once; inserts (n,).
    """
    return overwrites(descriptor.arrow_schema, incoming, inserts)


def plan_upsert(
    descriptor: TableDescriptor,
    incoming: pa.Table,
    current: pa.Table,
    found: Bools,
    targets: Sequence[str] | None = None,
    new_ids: pa.Array | None = None,
    *,
    takes_back: bool = False,
) -> ChangePlan:
    """Merge n incoming rows with the rows stored under their keys; a row that does not change is not written.

    Shapes: incoming (n,), each key once; found (n,); current (m,) full rows of the found keys, in order.
    Meaning: `targets` None writes every column; else only these (key columns may be among them), the others keep their values
             and are null in a new row. `new_ids` (n - m,) go into the auto-increment column of the new rows.
             takes_back: the incoming values are taken out of sums and counts (targets: retraction.retracted_columns).
             A row in which the column of 'table.delete.on-zero' comes to 0 is removed, or not made.
    Errors: SchemaMismatch when a sum, count or product leaves its type or a value is no bitmap.
    """
    schema = descriptor.arrow_schema
    if len(found) == 0:
        return nothing(schema)
    keys = set(descriptor.primary_key)
    written = set(descriptor.column_names if targets is None else targets) - keys
    serial = descriptor.auto_increment_column
    written.discard(serial or "")
    is_aggregation = descriptor.merge_engine == "aggregation"
    found_at = np.flatnonzero(found)
    changed = np.zeros(len(found_at), np.bool_)
    stored_columns: list[pa.Array] = []
    final_columns: list[pa.Array] = []
    for field in schema:
        name = field.name
        stored = contiguous(current, name)
        if name in keys:
            final = contiguous(incoming, name)
        elif name == serial and new_ids is not None:
            final = _with_ids(stored, found, new_ids)
        elif name not in written:
            final = aligned(stored, found)
        else:
            final = contiguous(incoming, name)
            if takes_back:
                final = taken_back(aligned(stored, found), final, f"table {descriptor.name}, column {name}")
            elif is_aggregation:
                final = _aggregated(descriptor, field, stored, final, found)
            if len(found_at) and not changed.all():
                after = final if len(found_at) == len(found) else take(final, found_at)
                changed |= columns_differ(stored, after)
        stored_columns.append(stored)
        final_columns.append(final)
    changed &= _wins(descriptor, current, incoming, found_at)
    zero = descriptor.zero_column
    gone = None if zero is None else is_zero(final_columns[schema.get_field_index(zero)])
    plan = change_rows(schema, stored_columns, final_columns, found, changed, gone)
    return without_old_rows(plan) if descriptor.is_wal else plan


def plan_delete(descriptor: TableDescriptor, current: pa.Table, found: Bools, targets: Sequence[str] | None = None) -> ChangePlan:
    """Remove the found rows, or with `targets` null these columns and remove the rows that hold nothing else.

    Shapes: as in plan_upsert; keys that are not there change nothing.
    Meaning: 'table.delete.behavior' = ignore changes nothing: the default of every merge engine but the last row's.
    Errors: StatementRefused where deletes are disabled; SchemaMismatch when a target is NOT NULL, or filled by the store.
    """
    schema = descriptor.arrow_schema
    where = f"table {descriptor.name}"
    behavior = delete_behavior(descriptor.options)
    if behavior == "disable":
        remedy = "'ignore': the engine keeps its rows" if descriptor.merge_engine in WHOLE_ROW_ENGINES else "'allow'"
        raise StatementRefused("deletes are disabled", where=where, next_step=f"Create the table with 'table.delete.behavior' = {remedy}.")
    check_deleted_columns(descriptor, targets)
    source = np.flatnonzero(found)
    if behavior == "ignore" or len(source) == 0:
        return nothing(schema)
    current_columns = [contiguous(current, name) for name in schema.names]
    m = len(source)
    keys = set(descriptor.primary_key)
    cleared = set(descriptor.column_names if targets is None else targets) - keys
    if targets is None:
        return removal_rows(schema, current_columns, current_columns, source, np.ones(m, np.bool_), np.zeros(m, np.bool_))
    removed, changed = np.ones(m, np.bool_), np.zeros(m, np.bool_)
    final_columns: list[pa.Array] = []
    for field, column in zip(schema, current_columns, strict=True):
        final = column
        if field.name in cleared:
            if not field.nullable:
                raise SchemaMismatch(
                    f"column {field.name} is NOT NULL", where=where, next_step="Delete whole rows, or leave the column out."
                )
            changed |= column.is_valid().to_numpy(zero_copy_only=False)
            final = pa.nulls(m, field.type)
        elif field.name not in keys:
            removed &= column.is_null().to_numpy(zero_copy_only=False)
        final_columns.append(final)
    plan = removal_rows(schema, current_columns, final_columns, source, removed, changed)
    return without_old_rows(plan) if descriptor.is_wal else plan


def _wins(descriptor: TableDescriptor, current: pa.Table, incoming: pa.Table, found_at: Int64s) -> Bools:
    """Of the keys that have a row (m,), those whose incoming row may replace it."""
    match descriptor.merge_engine:
        case "first_row":
            return first_row_wins(len(found_at))
        case "versioned":
            assert descriptor.version_column is not None
            name = descriptor.version_column
            return newer_wins(contiguous(current, name), take(contiguous(incoming, name), found_at))
        case _:
            return np.ones(len(found_at), np.bool_)


def _aggregated(descriptor: TableDescriptor, field: pa.Field, stored: pa.Array, incoming: pa.Array, found: Bools) -> pa.Array:
    function = descriptor.aggregate_function(field.name)
    where = f"table {descriptor.name}, column {field.name}"
    if len(stored):
        delimiter = descriptor.aggregate_parameter(field.name, "delimiter", ",")
        return merge_column(function, aligned(stored, found), incoming, where, delimiter)
    return first_column(function, incoming, field.type, where)


def _with_ids(stored: pa.Array, found: Bools, new_ids: pa.Array) -> pa.Array:
    """Stored ids where found, new ones elsewhere, in order."""
    position = np.where(found, np.cumsum(found) - 1, len(stored) + np.cumsum(~found) - 1)
    return take(pa.concat_arrays([stored, new_ids.cast(stored.type)]), position)
