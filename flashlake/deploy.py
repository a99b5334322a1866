"""Deploy: the .sql definitions of a project into a store: tables, stream jobs, materialized views, in the order of what reads what.

Repeating it is harmless: what is there with the same definition stays; new columns at a table's end and changed options are taken
over; any other difference is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from storage_engine import Store, TableDescriptor
from storage_engine.errors import AlreadyExists
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.evolve import add_columns, set_options
from storage_engine.schema.statements import CreateTable, Statement
from storage_engine.schema.validate import validate
from storage_engine.stream import computed_types

FIXED = ("primary_key", "partition_keys", "bucket_keys", "n_buckets", "computed")


def deploy(store: Store, folder: Path, *, only: Sequence[str] | None = None, on_table: Callable[[str], None] = lambda _: None) -> list[str]:
    """Execute the definitions under `folder` (LAYER/NAME.sql); the names, in order.

    only  tables to make, without their jobs; one that has no file is left out. None: all definitions, with their jobs
    Errors: StatementRefused with file and line; AlreadyExists, InvalidOption when the store has another definition.
    """
    if only is not None:
        files = [(name, folder / f"{name.replace('.', '/')}.sql") for name in only]
        return [name for name, path in files if path.exists() and make_tables(store, statements_of(path)) is not None]
    from flashlake.orchestration.tables import read_project

    names = []
    for definition in read_project(folder):
        others = make_tables(store, statements_of(definition.path))
        if others:
            store.execute(";\n".join(statement.text for statement in others))
        names.append(definition.name)
        on_table(definition.name)
    return names


def statements_of(path: Path) -> list[Statement]:
    """The statements of a definition; names without a database are of the folder's. Errors: StatementRefused."""
    return parse_statements(path.read_text(encoding="utf-8"), default_database=path.parent.name)


def make_tables(store: Store, statements: Sequence[Statement]) -> list[Statement]:
    """Make, or bring up to date, the tables that the statements create; the other statements."""
    for statement in statements:
        if isinstance(statement, CreateTable):
            wanted = validate(statement.descriptor, line=statement.line)
            computed_types(store, wanted)
            current = store.create_table(statement.descriptor, if_not_exists=True).descriptor
            changed = brought_up_to_date(current, wanted)
            if changed != current:
                store.backend.alter_table(changed)
    return [statement for statement in statements if not isinstance(statement, CreateTable)]


def brought_up_to_date(current: TableDescriptor, wanted: TableDescriptor) -> TableDescriptor:
    """The current descriptor with what `wanted` adds: columns at the end, options.

    Errors: AlreadyExists when columns or keys differ otherwise; InvalidOption for an option that is fixed at creation.
    """
    n = len(current.columns)
    held = [(column.name, column.type, column.nullable) for column in current.columns]
    differing = [name for name in FIXED if getattr(current, name) != getattr(wanted, name)]
    if held != [(column.name, column.type, column.nullable) for column in wanted.columns[:n]]:
        differing.insert(0, "columns")
    if differing:
        raise AlreadyExists(
            f"the store has {current.name} with other {', '.join(differing)} than its definition",
            where=current.name,
            next_step="A definition adds columns at the end only; do the rest with ALTER TABLE, then write the same here.",
        )
    changed = add_columns(current, wanted.columns[n:]) if wanted.columns[n:] else current
    options = {key: value for key, value in wanted.options.items() if current.options.get(key) != value}
    return set_options(changed, options) if options else changed
