"""Comparing: what a sink holds, what a query over plain tables says, both as sorted lists of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from storage_engine import Store
from storage_engine.stream import batch_select, load_jobs, open_connection

Rows = list[tuple[Any, ...]]


def rows_of(table: pa.Table) -> Rows:
    return sorted((tuple(row.values()) for row in table.to_pylist()), key=repr)


def sink_rows(store: Store, name: str, columns: Iterable[str] | None = None) -> Rows:
    table = store.table(name)
    listed = list(columns) if columns is not None else list(table.descriptor.column_names)
    return rows_of(table.read(listed) if table.descriptor.has_primary_key else table.scan(listed).read_all())


def query_rows(sql: str, **tables: pa.Table | list[Mapping[str, Any]]) -> Rows:
    """The answer of plain DuckDB over Arrow tables: the independent computation."""
    con = open_connection()
    for name, rows in tables.items():
        con.register(name, rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows)))
    return rows_of(con.execute(sql).to_arrow_table())


def differing_jobs(store: Store) -> list[str]:
    """Jobs whose sink is not what the batch recomputation over their recorded offsets says."""
    wrong = []
    for name, job in load_jobs(store).items():
        expected = batch_select(store, job)
        sink = store.describe(job.sink)
        values = [column for column in expected.column_names if column not in sink.primary_key]
        is_partial = sink.has_primary_key and set(expected.column_names) != set(sink.column_names)
        got = sink_rows(store, job.sink, expected.column_names)
        if is_partial and values:  # a row of another job, in which this one has written nothing
            at = [expected.column_names.index(column) for column in values]
            got = [row for row in got if any(row[i] is not None for i in at)]
        if got != rows_of(expected):
            wrong.append(name)
    return wrong
