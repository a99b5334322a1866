"""Catalog: what a new or altered descriptor becomes. Pure; the state is changed by commit records only."""

from __future__ import annotations

from dataclasses import replace

from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import check_effective
from storage_engine.schema.validate import validate


def created(descriptor: TableDescriptor, table_id: int) -> TableDescriptor:
    """A checked descriptor with its table id and the field ids of its columns."""
    checked = validate(descriptor)
    check_effective(checked.options, where=f"table {checked.name}")
    columns = tuple(replace(column, field_id=i) for i, column in enumerate(checked.columns))
    return replace(checked, columns=columns, table_id=table_id, schema_id=0)


def altered(current: TableDescriptor, wanted: TableDescriptor) -> TableDescriptor:
    """The descriptor after ALTER TABLE: columns may be added at the end, and must be nullable; options may change.

    Errors: StatementRefused for any other difference.
    """
    checked = validate(wanted)
    changed = {name: value for name, value in checked.options.items() if current.options.get(name) != value}
    check_effective(changed, where=f"ALTER TABLE {current.name}")
    n = len(current.columns)
    kept = [(c.name, c.type) for c in checked.columns[:n]]
    if kept != [(c.name, c.type) for c in current.columns]:
        what = f"ALTER TABLE {current.name} would drop, rename or retype a column"
        raise StatementRefused(what, where="ALTER TABLE", next_step="Only add columns at the end.")
    for column in checked.columns[n:]:
        if not column.nullable:
            raise StatementRefused(
                f"new column {column.name} is NOT NULL",
                where=f"ALTER TABLE {current.name}",
                next_step="Rows that exist have no value for it: make it nullable.",
            )
    fixed = ("primary_key", "partition_keys", "bucket_keys", "n_buckets")
    for name in fixed:
        if getattr(checked, name) != getattr(current, name):
            raise StatementRefused(f"{name} of {current.name} cannot change", where="ALTER TABLE", next_step="Create a new table and copy.")
    next_id = max(column.field_id for column in current.columns) + 1
    added = tuple(replace(column, field_id=next_id + i) for i, column in enumerate(checked.columns[n:]))
    return replace(
        checked,
        columns=current.columns + added,
        table_id=current.table_id,
        schema_id=current.schema_id + (1 if added else 0),
    )
