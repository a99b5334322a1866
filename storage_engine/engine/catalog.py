"""Catalog: what a new or altered descriptor becomes. Pure; the state is changed by commit records only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from storage_engine.errors import AlreadyExists, TableAltered
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.evolve import check_evolution
from storage_engine.schema.options import check_effective
from storage_engine.schema.validate import validate

VIEW, MATERIALIZED_VIEW = "view", "materialized_view"


def require_free(name: str, tables: Iterable[str], objects: Mapping[str, Iterable[str]]) -> None:
    """Errors: AlreadyExists for the name of a new table that is, up to case, one of a table or a view: a query would read the other."""
    for kind, names in (("table", tables), ("view", objects.get(VIEW, ()))):
        _require_unlike(name, kind, names)


def require_no_relation(kind: str, name: str, tables: Iterable[str], objects: Mapping[str, Iterable[str]]) -> None:
    """Errors: AlreadyExists for the name of a view that is, up to case, one of a table, or of another view in another case."""
    if kind == VIEW:
        _require_unlike(name, "table", tables)
        _require_unlike(name, "view", (other for other in objects.get(VIEW, ()) if other != name))
    elif kind == MATERIALIZED_VIEW:  # its rows are in the table of its name
        _require_unlike(name, "view", objects.get(VIEW, ()))


def _require_unlike(name: str, kind: str, names: Iterable[str]) -> None:
    folded = name.lower()
    for other in names:
        if other.lower() != folded:
            continue
        if other == name:
            raise AlreadyExists(
                f"there is a {kind} {name}", where="catalog", next_step=f"Choose another name, or DROP {kind.upper()} first."
            )
        raise AlreadyExists(
            f"{name} differs from {kind} {other} only in case",
            where="catalog",
            next_step="Choose another name: Delta and DuckDB compare names without case.",
        )


def created(descriptor: TableDescriptor, table_id: int) -> TableDescriptor:
    """A checked descriptor with its table id and the field ids of its columns."""
    checked = validate(descriptor)
    check_effective(checked.options, where=f"table {checked.name}")
    columns = tuple(replace(column, field_id=i) for i, column in enumerate(checked.columns))
    return replace(checked, columns=columns, table_id=table_id, schema_id=0)


def altered(current: TableDescriptor, wanted: TableDescriptor, next_field_id: int) -> TableDescriptor:
    """The descriptor after ALTER TABLE: columns added at the end, renamed, dropped or widened; options and number of buckets changed.

    wanted         made from `current` by schema/evolve.py; columns are told by their field ids
    next_field_id  an id that no column of the table has ever had
    Errors: TableAltered when `wanted` was made from older columns; StatementRefused, InvalidOption for any other difference.
    """
    if wanted.schema_id != current.schema_id or wanted.table_id != current.table_id:
        raise TableAltered(
            f"{current.name} was altered by somebody else at the same time", where="ALTER TABLE", next_step="Read its descriptor again."
        )
    checked = validate(wanted)
    changed = {name: value for name, value in checked.options.items() if current.options.get(name) != value}
    check_effective(changed, where=f"ALTER TABLE {current.name}", among=checked.options)
    check_evolution(current, checked)
    n_kept = sum(column.field_id >= 0 for column in checked.columns)
    added = tuple(replace(column, field_id=next_field_id + i) for i, column in enumerate(checked.columns[n_kept:]))
    columns = checked.columns[:n_kept] + added
    return replace(checked, columns=columns, schema_id=current.schema_id + (columns != current.columns))
