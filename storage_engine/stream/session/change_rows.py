"""Change rows: UPDATE and DELETE FROM: the rows a condition holds for, read at one version and changed in one commit.

Holds: all rows that are meant change, or none. A statement sees the table at the version it began with; of a row that another writer
       changes before its commit, only the columns it sets (and those that may not be null) are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.client.store import Store
from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import delete_behavior
from storage_engine.schema.statements import Delete, Update
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import plan_insert
from storage_engine.stream.run.history import Lake
from storage_engine.stream.session.once import select_once


def update_rows(
    store: Store,
    statement: Update,
    views: Mapping[str, ViewDefinition],
    functions: Mapping[str, FunctionDefinition],
    lake: Lake | None = None,
) -> str:
    """Run UPDATE; the message. Errors: StatementRefused for a log, a column of the key, a merge engine that does not replace values."""
    table = _keyed(store, statement.table, statement.line, "UPDATE")
    where = f"UPDATE, line {statement.line}"
    if table.merge_engine != "last_row":
        raise StatementRefused(
            f"{table.name} merges the rows it is given ({table.merge_engine} engine), so no value can be set",
            where=where,
            next_step="INSERT INTO it what is to be merged.",
        )
    fixed = next((name for name in statement.assignments if name in table.primary_key or name == table.auto_increment_column), None)
    if fixed is not None:
        is_key = fixed in table.primary_key
        raise StatementRefused(
            f"{fixed} is {'part of the primary key' if is_key else 'assigned by the table'} of {table.name}",
            where=where,
            next_step="DELETE the row and INSERT the new one." if is_key else "Leave it out.",
        )
    kept = [item.name for item in table.columns if not item.nullable and item.name not in statement.assignments]
    names = list(dict.fromkeys([*table.primary_key, *(name for name in kept if name != table.auto_increment_column)]))
    values = {**{name: f"`{name}`" for name in names}, **{name: f"({text})" for name, text in statement.assignments.items()}}
    rows = _meant(store, table, values, statement, views, functions, lake)
    if rows.num_rows:
        store.commit([WriteOp(table.name, "upsert", rows, tuple(rows.column_names))])
    return f"updated {rows.num_rows} rows of {table.name}"


def delete_rows(
    store: Store,
    statement: Delete,
    views: Mapping[str, ViewDefinition],
    functions: Mapping[str, FunctionDefinition],
    lake: Lake | None = None,
) -> str:
    """Run DELETE FROM; the message. Errors: StatementRefused for a log and for a table that ignores or refuses deletes."""
    table = _keyed(store, statement.table, statement.line, "DELETE")
    behavior = delete_behavior(table.options)
    if behavior != "allow":
        raise StatementRefused(
            f"{table.name} {'ignores' if behavior == 'ignore' else 'refuses'} deletes ('table.delete.behavior' = '{behavior}')",
            where=f"DELETE, line {statement.line}",
            next_step="A table's behavior is fixed when it is made: keep a column that says whether a row counts.",
        )
    keys = replace(table, columns=tuple(table.column(name) for name in table.primary_key), options={})
    rows = _meant(store, keys, {name: f"`{name}`" for name in table.primary_key}, statement, views, functions, lake)
    if rows.num_rows:
        store.commit([WriteOp(table.name, "delete", rows)])
    return f"deleted {rows.num_rows} rows of {table.name}"


def _keyed(store: Store, name: str, line: int, what: str) -> TableDescriptor:
    table = store.describe(name)
    if not table.has_primary_key:
        raise StatementRefused(
            f"{name} is a log: its rows are not changed",
            where=f"{what}, line {line}",
            next_step="Give the table a PRIMARY KEY, or append what corrects it.",
        )
    return table


def _meant(
    store: Store,
    table: TableDescriptor,
    values: Mapping[str, str],
    statement: Update | Delete,
    views: Mapping[str, ViewDefinition],
    functions: Mapping[str, FunctionDefinition],
    lake: Lake | None,
) -> pa.Table:
    """Key and values of the rows that the condition holds for, at the newest version, in the types of `table`'s columns.

    Errors: StatementRefused when SELECT shows one of them, and only the lake holds it.
    """
    condition = "" if statement.condition is None else f" WHERE ({statement.condition})"  # one expression, no further clause
    plan = plan_insert(
        StoreCatalog(store, views, functions=functions),
        table,
        tuple(values),
        f"SELECT {', '.join(values.values())} FROM {_quoted(statement.table)}{condition}",
        job="batch",
        default_database=statement.database,
        first_line=statement.line,
        runs_once=True,
    )
    rows, version = select_once(store, plan, f"line {statement.line}", lake)
    if lake is not None and rows.num_rows and store.describe(table.name).is_tiered:
        _check_in_store(store, table, rows.select(list(table.primary_key)), version, statement)
    return rows


def _check_in_store(store: Store, table: TableDescriptor, keys: pa.Table, version: int, statement: Update | Delete) -> None:
    handle = store.table(table.name)
    found = handle.lookup(keys, list(table.primary_key), missing="null")["_found"]
    if pc.all(found).as_py():
        return
    held = handle.read(list(table.primary_key), at=version)  # a row that was deleted meanwhile was there
    n_rows = keys.join(held, list(table.primary_key), join_type="left anti").num_rows
    if n_rows:
        raise StatementRefused(
            f"{n_rows} of the rows that are meant are in the lake only: their partitions of {table.name} were dropped in the store",
            where=f"{'UPDATE' if isinstance(statement, Update) else 'DELETE'}, line {statement.line}",
            next_step="Leave them out with WHERE, or INSERT the whole rows to have them in the store again.",
        )


def _quoted(name: str) -> str:
    return ".".join(f"`{part}`" for part in name.split(".", 1))
