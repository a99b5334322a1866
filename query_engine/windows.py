"""Windows: TUMBLE, HOP, CUMULATE and SESSION in a query, so that a job over windows can be looked at before it is submitted.

The planner of jobs binds the table function, and its batch computation over what the tables hold now gives the rows with their
windows; the query reads them like those of a table. The log ends there: every window is final, and no row is late.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
from sqlglot import exp

from query_engine.hints import refuse_hints
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.lake.history import LakeHistory
from storage_engine.stream.dialect.render import column
from storage_engine.stream.dialect.sqltypes import SqlType, parse_type
from storage_engine.stream.dialect.syntax import alias_of, text_of
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.bind import Binder
from storage_engine.stream.planning.bind_window import window_call
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.legacy_windows import with_window_table
from storage_engine.stream.planning.planner import plan_select
from storage_engine.stream.run.batch import batch_select

_NUMBER: Final = "number of the windowed rows"


class WindowedRows:
    """The table functions of one query, each with its rows.

    at  a version of the store, None: now
    """

    def __init__(
        self,
        store: Store,
        lake_root: Path,
        views: Mapping[str, ViewDefinition],
        functions: Mapping[str, FunctionDefinition],
        at: int | None,
    ) -> None:
        self._store = store
        self._lake = LakeHistory(store, lake_root)
        self._views = views
        self._functions = functions
        self._at = at
        self._found: list[tuple[JobPlan, pa.Table]] = []

    def take(self, tree: exp.Query, default_database: str) -> exp.Query:
        """The query with every table function, also GROUP BY TUMBLE(...), as a table of its rows.

        Errors: StatementRefused for what a job refuses in such a function.
        """
        if not any(str(call.this).upper() in _NAMES for call in tree.find_all(exp.Anonymous)):
            return tree
        binder = Binder(StoreCatalog(self._store, self._views, functions=self._functions), default_database=default_database, where="query")
        for select in list(tree.find_all(exp.Select)):
            made = with_window_table(binder, select)
            if made is select:
                continue
            if select is tree:
                tree = made
            else:
                select.replace(made)
        for node in [node for node in tree.find_all(exp.Table) if window_call(node) is not None]:
            self._take_one(node, tree, default_database)
        return tree

    def register(self, con: duckdb.DuckDBPyConnection, tree: exp.Query) -> dict[str, dict[str, SqlType]]:
        """Make the rows relations of a connection, under the names by which the query now reads them; their columns' types."""
        columns: dict[str, dict[str, SqlType]] = {}
        for node in tree.find_all(exp.Table):
            if is_windowed(node):
                plan, rows = self._found[node.meta[_NUMBER]]
                con.register(f"{node.name}$rows", rows)
                con.execute(f'CREATE OR REPLACE TEMPORARY VIEW "{node.name}" AS SELECT * FROM "{node.name}$rows"')
                columns[node.name] = {item.name: parse_type(item.type) for item in plan.sink.columns}
        return columns

    def _take_one(self, node: exp.Table, tree: exp.Query, default_database: str) -> None:
        call = window_call(node)
        assert call is not None, "asked of table functions only"
        named = node.alias_column_names
        bare = node.copy()
        if node.args.get("sample"):
            bare.set("sample", None)
        if named:
            bare.set("alias", exp.TableAlias(this=exp.to_identifier(node.alias, quoted=True)))
        plan = self._planned([exp.Star()], bare, node, default_database)
        names = [item.name for item in plan.sink.columns]
        stars = any(not isinstance(star.parent, exp.Anonymous | exp.Count) for star in tree.find_all(exp.Star))
        used = {item.name for item in tree.find_all(exp.Column)}
        wanted = names if stars or named else [name for name in names if name in used] or names[-1:]
        if wanted != names:
            plan = self._planned([column(name) for name in wanted], bare, node, default_database)
        alias = node.alias or alias_of(_data(call))
        node.set("this", exp.to_identifier(f"windowed{len(self._found)}", quoted=True))
        if alias:
            columns = [exp.to_identifier(name, quoted=True) for name in named]
            node.set("alias", exp.TableAlias(this=exp.to_identifier(alias, quoted=True), columns=columns))
        node.meta[_NUMBER] = len(self._found)
        version = self._store.version() if self._at is None else self._at
        rows = batch_select(self._store, plan, at_version=version, is_bounded=True, lake=self._lake)
        self._found.append((plan, rows))

    def _planned(self, items: list[exp.Expr], bare: exp.Table, node: exp.Table, default_database: str) -> JobPlan:
        select = exp.Select(expressions=items).from_(bare.copy())
        ctes = [cte.copy() for cte in _visible(node)]
        if ctes:
            select.set("with_", exp.With(expressions=ctes))
        for table in select.find_all(exp.Table):
            refuse_hints(table)
        catalog = StoreCatalog(self._store, self._views, functions=self._functions)
        plan = plan_select(catalog, select, default_database=default_database)
        if any(startup is not None for _, startup in plan.startups):
            raise StatementRefused(f"{text_of(bare)}: a view begins in the middle of a log", where="query", next_step="A query reads all.")
        return plan


_NAMES: Final = ("TUMBLE", "HOP", "CUMULATE", "SESSION")


def is_windowed(node: exp.Table) -> bool:
    """Whether a table of a query stands for the rows of a table function."""
    return _NUMBER in node.meta


def _data(call: exp.Anonymous) -> exp.Expr:
    """The function's table."""
    data = next((item for item in call.expressions if item.meta.get("label") == "DATA"), call.expressions[0])
    return exp.to_table(data.sql()) if isinstance(data, exp.Column) else data


def _visible(node: exp.Expr) -> list[exp.CTE]:
    """The queries of the WITH clauses around a node, the outermost first."""
    found: list[exp.CTE] = []
    parent = node.parent
    while parent is not None:
        clause = parent.args.get("with_")
        if clause is not None:
            before = []
            for cte in clause.expressions:
                if any(item is node for item in cte.walk()):
                    break
                before.append(cte)
            found = before + found
        parent = parent.parent
    return found
