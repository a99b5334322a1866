"""StoreCatalog: what the planner knows of a store, read once: tables, stored views, and the views a session or job brings along."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from storage_engine.client.store import Store
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.functions.python_functions import KIND, FunctionDefinition
from storage_engine.stream.plan.tree import ViewDefinition


class StoreCatalog:
    """A snapshot: made for one planning, then thrown away. Views of the session or job come before those of the store.

    known    table -> the columns it had when a job was submitted: those added since are not there for the job, also not for its `*`
    altered    a table as it would be after an ALTER TABLE
    functions  those of the session or job
    """

    def __init__(
        self,
        store: Store,
        views: Mapping[str, ViewDefinition] | None = None,
        known: Mapping[str, Collection[str]] | None = None,
        altered: TableDescriptor | None = None,
        functions: Mapping[str, FunctionDefinition] | None = None,
    ) -> None:
        self._tables = {descriptor.name: descriptor for descriptor in store.backend.tables()}
        if altered is not None:
            self._tables[altered.name] = altered
        for name, columns in (known or {}).items():
            if name in self._tables:
                self._tables[name] = _restricted(self._tables[name], columns)
        self._views = {name: view_from_json(value) for name, value in store.objects("view").items()}
        self._views.update(views or {})
        self._functions = {**stored_functions(store), **(functions or {})}

    def table(self, name: str) -> TableDescriptor | None:
        return self._tables.get(name)

    def view(self, name: str) -> ViewDefinition | None:
        return self._views.get(name)

    def function(self, name: str) -> FunctionDefinition | None:
        return self._functions.get(name)

    def names(self) -> list[str]:
        return [*self._tables, *self._views]


def _restricted(table: TableDescriptor, columns: Collection[str]) -> TableDescriptor:
    kept = tuple(column for column in table.columns if column.name in columns or column.name in (*table.primary_key, *table.partition_keys))
    return table if len(kept) == len(table.columns) or not kept else replace(table, columns=kept)


def view_to_json(view: ViewDefinition) -> dict[str, object]:
    return {"sql": view.sql, "database": view.database, "columns": None if view.columns is None else list(view.columns)}


def view_from_json(value: Mapping[str, object]) -> ViewDefinition:
    columns = value.get("columns")
    return ViewDefinition(str(value["sql"]), str(value.get("database") or ""), tuple(columns) if isinstance(columns, list) else None)


def stored_functions(store: Store) -> dict[str, FunctionDefinition]:
    """The functions that the store keeps, by name."""
    return {name: FunctionDefinition.from_json(value) for name, value in store.objects(KIND).items()}
