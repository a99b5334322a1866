"""Retraction: take rows back out of an aggregation. Sum and count can be undone; what a maximum or a last value forgot cannot.

Holds: taking back is the inverse of merging for values: merge(x) then take_back(x) adds 0 to a sum and to a count. A sum from which
       every value was taken is 0, not null: the table does not count the values of a column that is a sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch, UserError
from storage_engine.kv.key_index import Bools
from storage_engine.kv.merge.aggregation import narrowed, overflow, wider
from storage_engine.schema.descriptor import TableDescriptor

RETRACTABLE = ("sum", "count")


def retracted_columns(descriptor: TableDescriptor, rows: pa.Table, columns: Sequence[str] | None) -> list[str]:
    """The key and the columns from which rows are taken back: those with function sum or count.

    Errors: UserError for a table that does not aggregate; SchemaMismatch naming a column with another function that has a value.
    """
    where = f"table {descriptor.name}"
    if descriptor.merge_engine != "aggregation":
        raise UserError(
            f"{descriptor.name} is no aggregation table: there is nothing to take a row out of",
            where=where,
            next_step="Use delete, or create the table with 'table.merge-engine' = 'aggregation'.",
        )
    targets = list(descriptor.primary_key)
    for name in descriptor.column_names if columns is None else columns:
        if name in descriptor.primary_key:
            continue
        function = descriptor.aggregate_function(name)
        if function in RETRACTABLE:
            targets.append(name)
        elif rows[name].null_count < rows.num_rows:
            raise SchemaMismatch(
                f"column {name} merges with {function}, from which a value cannot be taken back",
                where=where,
                next_step=f"Leave {name} null or out of the columns; sum and count can be taken back.",
            )
    return targets


def taken_back(stored: pa.Array, incoming: pa.Array, where: str) -> pa.Array:
    """The stored sum or count less the incoming one, in the type of `stored`; null counts as nothing. Shapes: (n,), (n,) -> (n,).

    Errors: SchemaMismatch when the result leaves the column's type.
    """
    data_type = stored.type
    wide = wider(data_type, incoming.type)
    right = incoming.cast(wide)
    left = pc.fill_null(stored.cast(wide), pa.scalar(0, wide))
    try:
        rest = pc.subtract_checked(left, right)
    except pa.ArrowInvalid as error:
        raise overflow(data_type, where) from error
    return pc.coalesce(narrowed(rest, data_type, where), stored)


def is_zero(column: pa.Array) -> Bools:
    """Where a count is 0: null is not. Shapes: (n,) -> (n,)."""
    return pc.fill_null(pc.equal(column, pa.scalar(0, column.type)), fill_value=False).to_numpy(zero_copy_only=False)
