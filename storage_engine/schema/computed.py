"""Computed columns: name AS expression in CREATE TABLE: columns that are not stored; each reader computes them from the row.

They stand in the descriptor beside the columns, so that whatever writes, stores and ships rows knows nothing of them. What an expression
means, the planner and the query engine say (stream/planning/computed_columns.py).
Source: Flink 2.2, CREATE TABLE: physical columns alone in the expression, no subquery; INSERT INTO does not take a computed column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from storage_engine.errors import FlashlakeError, StatementRefused
from storage_engine.schema.descriptor import Computed, TableDescriptor
from storage_engine.schema.scanner import scan


def uses(expression: str, name: str) -> bool:
    """True when the expression may name the column: a word of it reads so."""
    return any(token.kind in ("word", "quoted") and token.value == name for token in scan(expression))


def check_computed(descriptor: TableDescriptor, where: str) -> None:
    """Errors: StatementRefused for a name that is taken, an expression that is none, and roles that only a stored column can have."""
    taken = set(descriptor.column_names)
    for item in descriptor.computed:
        if item.name in taken or not item.name or item.name != item.name.strip() or item.name.startswith("__"):
            raise StatementRefused(
                f"column {item.name} is declared twice, or its name is reserved", where=where, next_step="Give it another name."
            )
        alike = next((name for name in taken if name.lower() == item.name.lower()), None)
        if alike is not None:
            raise StatementRefused(
                f"column {item.name} differs from column {alike} only in case",
                where=where,
                next_step="Choose another name: Delta and DuckDB compare names without case.",
            )
        taken.add(item.name)
        try:
            empty = not scan(item.expression)
        except FlashlakeError as error:
            raise StatementRefused(f"column {item.name}: {error.what}", where=where, next_step=error.next_step) from error
        if empty or not 0 <= item.place <= len(descriptor.columns):
            raise StatementRefused(f"column {item.name} has no expression, or no place", where=where, next_step="Write name AS expression.")
        roles = (
            ("PRIMARY KEY", descriptor.primary_key),
            ("PARTITIONED BY", descriptor.partition_keys),
            ("bucket.key", descriptor.bucket_keys),
        )
        for role, names in roles:
            if item.name in names:
                raise StatementRefused(f"{role} names {item.name}, which is computed and not stored", where=where, next_step="Store it.")


def check_kept(current: TableDescriptor, wanted: TableDescriptor, changed: Iterable[str], where: str) -> None:
    """Errors: StatementRefused where computed columns would change, or a column that one of them names is renamed, dropped or retyped."""
    if [replace(item, place=0) for item in current.computed] != [replace(item, place=0) for item in wanted.computed]:
        raise StatementRefused(
            f"the computed columns of {current.name} cannot change", where=where, next_step="Create a view, or a new table."
        )
    for name in changed:
        user = next((item for item in current.computed if uses(item.expression, name)), None)
        if user is not None:
            raise StatementRefused(
                f"column {name} is named by the computed column {user.name} AS {user.expression}",
                where=where,
                next_step="Add another column instead, or create a new table.",
            )


def without_columns(computed: tuple[Computed, ...], names: list[str], dropped: Iterable[str]) -> tuple[Computed, ...]:
    """The computed columns at their places among columns of which some are gone. `names`: all columns before."""
    gone = set(dropped)
    return tuple(replace(item, place=sum(name not in gone for name in names[: item.place])) for item in computed)


def why_not_written(descriptor: TableDescriptor, name: str) -> str | None:
    """What to say of a column that a writer names and that is computed; None for any other."""
    found = next((item for item in descriptor.computed if item.name == name), None)
    return None if found is None else f"column {name} of {descriptor.name} is computed ({found.expression}): it is not written"
