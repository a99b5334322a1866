"""Relations: what a name in FROM stands for, and how its rows get into DuckDB.

    db.t             the current rows of a primary-key table, all rows of a log: from the store, or lake and log as one (tiered)
    db.t$changelog   the log or changelog with _change_type, _log_offset, _commit_timestamp
    db.t$binlog      the changelog of a primary-key table, one row per change: _change_type, before, after, _log_offset, _commit_timestamp
    db.t$lake        the lake's side only
    a view           its query
    a lake-only table, a Delta table under the lake's root that the store does not know
Never: parses expressions.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from sqlglot import exp

from storage_engine import Store, Table, TableDescriptor
from storage_engine.errors import StatementRefused, UnknownTable
from storage_engine.lake import find_snapshot, open_union, table_path
from storage_engine.stream.dialect.sqltypes import BIGINT, STRING, UNKNOWN, SqlType, parse_type
from storage_engine.stream.plan.tree import MARK, ViewDefinition
from storage_engine.stream.planning.catalog import view_from_json
from storage_engine.stream.planning.computed_columns import stored_select

CHANGELOG, BINLOG, LAKE = "$changelog", "$binlog", "$lake"
_DUCKDB_TYPES = {
    "BOOLEAN": "BOOLEAN", "TINYINT": "TINYINT", "SMALLINT": "SMALLINT", "INTEGER": "INT", "BIGINT": "BIGINT", "FLOAT": "FLOAT",
    "DOUBLE": "DOUBLE", "VARCHAR": "STRING", "BLOB": "BYTES", "DATE": "DATE", "TIMESTAMP": "TIMESTAMP(6)",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP_LTZ(6)",
}  # fmt: skip
_METADATA = {"_change_type": STRING, "_log_offset": BIGINT, "_commit_timestamp": parse_type("TIMESTAMP_LTZ(3)")}


@dataclass(frozen=True)
class Needs:
    """What a query needs of a relation: columns (None: all), and a condition that all its rows meet and the store can check."""

    columns: tuple[str, ...] | None
    where: str | None


class Relations:
    """Resolves the names of one query against one store and one lake: what is called how is asked of the store once."""

    def __init__(self, store: Store, lake_root: Path) -> None:
        self._store = store
        self._lake_root = lake_root

    def view(self, name: str) -> ViewDefinition | None:
        """A view of the store, None if there is none of that name."""
        found = self._views.get(name)
        return None if found is None else view_from_json(found)

    def stored_select(self, name: str) -> exp.Select | None:
        """What stands for a table that has computed columns; None for any other relation."""
        descriptor = self._descriptor(name)
        if descriptor is None or not descriptor.computed:
            return None
        made = stored_select(descriptor, "query")
        made.set("expressions", [item for item in made.expressions if not item.alias.startswith(MARK)])
        return made

    def columns(self, name: str) -> dict[str, SqlType] | None:
        """Column types of a table of the store; None for a lake-only table, whose types DuckDB knows.

        Errors: UnknownTable.
        """
        base, suffix = split_suffix(name)
        descriptor = self._descriptor(base)
        if descriptor is None:
            if table_path(self._lake_root, base).joinpath("_delta_log").is_dir():
                return None
            names = [*self._tables, *self._views, *self._lake_names()]
            alike = difflib.get_close_matches(name, dict.fromkeys(names), n=3)
            hint = f"Did you mean {' or '.join(alike)}?" if alike else "SHOW TABLES lists the tables; names are database.table."
            raise UnknownTable(f"there is no table or view {name}", where="query", next_step=hint)
        typed = {column.name: parse_type(column.type) for column in descriptor.columns}
        if suffix == BINLOG:
            nested = {f"{side}.{column}": kind for side in ("before", "after") for column, kind in typed.items()}
            return {**_METADATA, "before": UNKNOWN, "after": UNKNOWN, **nested}
        return {**_METADATA, **typed} if suffix == CHANGELOG else typed

    def n_rows(self, name: str) -> int | None:
        """Rows of a table from its metadata; None where that cannot be told: virtual, tiered and lake-only tables, views."""
        base, suffix = split_suffix(name)
        descriptor = self._descriptor(base)
        if descriptor is None or suffix or descriptor.is_tiered:
            return None
        return Table(self._store.backend, descriptor).count()

    def store_schema(self, name: str) -> pa.Schema | None:
        """The columns that the store can check conditions on; None for a relation that is not the store's."""
        base, suffix = split_suffix(name)
        descriptor = self._descriptor(base)
        return None if descriptor is None or suffix in (LAKE, BINLOG) else descriptor.arrow_schema

    def register(self, con: duckdb.DuckDBPyConnection, view: str, name: str, needs: Needs, at: int | None) -> None:
        """Make the relation a temporary view of `con`. `at`: a version of the store, None: now."""
        base, suffix = split_suffix(name)
        descriptor = self._descriptor(base)
        if descriptor is None:
            self._delta(con, view, table_path(self._lake_root, base))
            return
        columns = self._known(descriptor, needs.columns)
        table = Table(self._store.backend, descriptor)
        if suffix == LAKE:
            snapshot = find_snapshot(self._store, self._lake_root, descriptor, at)
            if snapshot is None:
                raise StatementRefused(f"{base} has nothing in the lake yet", where=name, next_step="Tier it: 'table.datalake.enabled'.")
            con.execute(f'CREATE OR REPLACE TEMPORARY VIEW "{view}" AS {snapshot.select_sql(descriptor)}')
        elif suffix == BINLOG:
            _rows(con, view, table.binlog(columns, stop=table.offsets(at_version=at)).read_all())
        elif suffix == CHANGELOG:
            stop = table.offsets(at_version=at)
            rows = table.scan(columns, needs.where, stop=stop, metadata=True).read_all()
            _rows(con, view, rows.drop_columns(["_partition", "_bucket"]))
        elif descriptor.is_tiered:
            open_union(self._store, self._lake_root, base, columns, where=needs.where, at=at).register(con, view)
        elif descriptor.has_primary_key:
            _rows(con, view, table.read(columns, needs.where, at=at))
        else:
            _rows(con, view, table.scan(columns, needs.where, stop=table.offsets(at_version=at)).read_all())

    @staticmethod
    def _delta(con: duckdb.DuckDBPyConnection, view: str, path: Path) -> None:
        quoted = str(path).replace("'", "''")
        con.execute(f"CREATE OR REPLACE TEMPORARY VIEW \"{view}\" AS SELECT * FROM delta_scan('{quoted}')")

    @staticmethod
    def _known(descriptor: TableDescriptor, columns: Sequence[str] | None) -> list[str] | None:
        if columns is None:
            return None
        chosen = [name for name in descriptor.column_names if name in columns]
        return chosen or [descriptor.column_names[0]]

    def _descriptor(self, name: str) -> TableDescriptor | None:
        return self._tables.get(name)

    @cached_property
    def _tables(self) -> dict[str, TableDescriptor]:
        return {descriptor.name: descriptor for descriptor in self._store.backend.tables()}

    @cached_property
    def _views(self) -> dict[str, dict[str, Any]]:
        return self._store.objects("view")

    def _lake_names(self) -> list[str]:
        return [f"{log.parent.parent.name}.{log.parent.name}" for log in self._lake_root.glob("*/*/_delta_log")]


def lake_columns(con: duckdb.DuckDBPyConnection, view: str) -> dict[str, SqlType]:
    """Column types of a lake-only table as DuckDB reads it; types that the dialect does not have are left out as unknown."""
    found = {}
    for name, kind, *_ in con.execute(f'DESCRIBE "{view}"').fetchall():
        written = _DUCKDB_TYPES.get(kind, kind if kind.startswith("DECIMAL") else None)
        found[name] = parse_type(written) if written else UNKNOWN
    return found


def keep_floats_from_joins(con: duckdb.DuckDBPyConnection, view: str, columns: Mapping[str, SqlType], needs: Needs) -> str:
    """A view over the view whose FLOAT and DOUBLE columns DuckDB does not follow to the scan; the view itself when it has none.

    A join pushes the range of one side's keys into the scan of the other (join_filter_pushdown). An Arrow or Parquet scan takes -0.0 for
    less than 0.0 and NaN for less or greater than nothing, so that rows which the join would match are not read.
    """
    floats = [name for name, kind in columns.items() if kind.is_approximate and "." not in name]
    shown = [name for name in floats if needs.columns is None or name in needs.columns]
    if not shown:
        return view
    listed = ", ".join(f'(CASE WHEN "{name}" IS NOT NULL THEN "{name}" END) AS "{name}"' for name in shown)
    con.execute(f'CREATE OR REPLACE TEMPORARY VIEW "{view}$kept" AS SELECT * REPLACE ({listed}) FROM "{view}"')
    return f"{view}$kept"


def _rows(con: duckdb.DuckDBPyConnection, view: str, rows: pa.Table) -> None:
    """A view over Arrow rows. A registered table named directly fails inside DuckDB 1.5.5 in a correlated EXISTS with a filter."""
    con.register(f"{view}$rows", rows)
    con.execute(f'CREATE OR REPLACE TEMPORARY VIEW "{view}" AS SELECT * FROM "{view}$rows"')


def split_suffix(name: str) -> tuple[str, str]:
    """A name and its virtual-table suffix, "" for a plain table."""
    for suffix in (CHANGELOG, BINLOG, LAKE):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""
