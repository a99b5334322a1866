"""Deploy: the .sql definitions of a project into a store: tables, stream jobs, materialized views, in the order of what reads what.

Repeating it is harmless: what is there with the same definition stays; another definition under the same name is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from storage_engine import Store
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.statements import CreateTable


def deploy(store: Store, folder: Path, *, only: Sequence[str] | None = None, on_table: Callable[[str], None] = lambda _: None) -> list[str]:
    """Execute the definitions under `folder` (LAYER/NAME.sql); the names, in order.

    only  the tables wanted, sources without jobs; a table that has no file is left to the caller; None: all, with their jobs
    Errors: StatementRefused with file and line; AlreadyExists when the store has another definition.
    """
    if only is not None:
        return [name for name in only if _create(store, folder / f"{name.replace('.', '/')}.sql")]
    from flashlake.orchestration.tables import read_project

    names = []
    for definition in read_project(folder):
        store.execute(definition.statements)
        names.append(definition.name)
        on_table(definition.name)
    return names


def _create(store: Store, path: Path) -> bool:
    """Create the table that a file defines, without its jobs; False when there is no such file."""
    if not path.exists():
        return False
    for statement in parse_statements(path.read_text(encoding="utf-8"), default_database=path.parent.name):
        if isinstance(statement, CreateTable):
            store.create_table(statement.descriptor, if_not_exists=True)
    return True
