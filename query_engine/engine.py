"""Engine: answers queries over store, lake and both as one, in DuckDB.

Owner of one DuckDB database in memory; every query runs on a cursor of its own with its own temporary views.
Holds: a relation named twice in a query is read once, so the query sees one state of it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlglot import exp

from query_engine.hints import refuse_hints, refuse_query_hints
from query_engine.relations import BINLOG, Needs, Relations, keep_floats_from_joins, lake_columns
from query_engine.time_travel import take_version, without_processing_times
from query_engine.translate import Columns, translate
from query_engine.windows import WindowedRows, is_windowed
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.lake import load_delta
from storage_engine.schema.pushdown import pushable
from storage_engine.stream.dialect.syntax import parse_select, table_name, text_of
from storage_engine.stream.functions.bitmaps import open_connection
from storage_engine.stream.functions.function_calls import is_known_name, mark_calls
from storage_engine.stream.functions.python_functions import FunctionDefinition, function_failure, register
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.session.function_statements import stored_functions

_VIEWS_DEEP_MAX = 16
_BINLOG_ROWS = ("before", "after")
_COUNT_ONLY = frozenset({"expressions", "from_", "from", "kind", "hint"})
_COUNTED_AS = frozenset({"this", "db", "catalog", "alias"})
"""The parts of a table's node with which it has all of its rows."""

_Names = dict[tuple[str, int | None], list[exp.Table]]
"""Name and version (None: now) of each relation of a query -> where it is named."""


class QueryEngine:
    """SQL over one store and its lake.

    spill_dir  where DuckDB puts what does not fit `memory_limit`
    """

    def __init__(
        self,
        store: Store,
        lake_root: str | Path,
        spill_dir: str | Path | None = None,
        *,
        n_threads: int = 2,
        memory_limit: str = "2GB",
    ) -> None:
        self.store = store
        self.lake_root = Path(lake_root).absolute()
        self._con = open_connection(n_threads=n_threads, memory_limit=memory_limit, spill_dir=str(spill_dir) if spill_dir else None)
        self._con.execute("RESET disabled_optimizers")
        self._registering = threading.Lock()
        load_delta(self._con)

    def query(
        self,
        sql: str,
        *,
        at: int | None = None,
        default_database: str = "default",
        views: Mapping[str, ViewDefinition] | None = None,
        functions: Mapping[str, FunctionDefinition] | None = None,
    ) -> pa.Table:
        """The rows of a SELECT in Flink's dialect. `at`: answer as of a version of the store (tables of the store only).

        default_database  where names without a database are looked for
        views, functions  those of a session, before those of the store

        Errors: StatementRefused, UnknownTable; what DuckDB refuses is said in its words with the statement named.
        """
        relations = Relations(self.store, self.lake_root)
        windows = WindowedRows(self.store, self.lake_root, views or {}, functions or {}, at)
        tree = _with_views(parse_select(sql, where="query"), default_database, relations, views or {}, windows, 0)
        used = self._functions_of(tree, functions or {})
        for select in tree.find_all(exp.Select):
            refuse_query_hints(select)
        asked = {id(node): take_version(self.store, self._con, node) for node in _tables(tree)}
        without_processing_times(tree)
        names = _relation_names(tree, default_database, {key: at if own is None else own for key, own in asked.items()})
        counted = _counted(tree, names, relations)
        if counted is not None:
            return counted
        con = self._con.cursor()
        try:
            tables: dict[str, Columns] = {**windows.register(con, tree)}
            for index, ((name, version), nodes) in enumerate(names.items()):
                view = f"r{index}"
                for node in nodes:
                    refuse_hints(node)
                columns = relations.columns(name)
                if columns is None and any(asked[id(node)] is not None for node in nodes):
                    raise StatementRefused(f"{name} is a table of the lake alone: it has no versions of the store", where="query",
                                           next_step="Leave FOR ... AS OF out.")  # fmt: skip
                needs = _needs(tree, nodes, name, columns, relations)
                relations.register(con, view, name, needs, version)
                columns = columns if columns is not None else lake_columns(con, view)
                if _may_join(tree):
                    view = keep_floats_from_joins(con, view, columns, needs)
                tables[view] = columns
                for node in nodes:
                    if not node.alias:
                        node.set("alias", exp.TableAlias(this=exp.to_identifier(node.name, quoted=True)))
                    node.set("this", exp.to_identifier(view, quoted=True))
                    node.set("db", None)
                    node.set("catalog", None)
            with self._registering:  # on the connection that stays: DuckDB keeps a function's Python object with its connection
                register(self._con, used, "query")
            translated = translate(tree, tables)
            try:
                return con.execute(translated).to_arrow_table()
            except duckdb.Error as error:
                if (failure := function_failure(error, "query")) is not None:
                    raise failure from error
                raise StatementRefused(_one_line(str(error)), where="query", next_step="Correct the statement.") from error
        finally:
            con.close()

    def _functions_of(self, tree: exp.Query, temporary: Mapping[str, FunctionDefinition]) -> dict[str, FunctionDefinition]:
        """The users' functions that a query calls, marked in its tree; the store is asked only where a call is no function of SQL."""
        if all(is_known_name(str(call.this)) for call in tree.find_all(exp.Anonymous)):
            return {}
        known = {**stored_functions(self.store), **temporary}
        return mark_calls(tree, known.get)

    def close(self) -> None:
        self._con.close()


def _counted(tree: exp.Query, names: _Names, relations: Relations) -> pa.Table | None:
    """The answer to SELECT COUNT(*) FROM a table of the store, from the table's indexes; None for any other query."""
    if not isinstance(tree, exp.Select) or len(names) != 1 or len(tree.expressions) != 1:
        return None
    if any(value for key, value in tree.args.items() if key not in _COUNT_ONLY):
        return None
    item = tree.expressions[0]
    call = item.this if isinstance(item, exp.Alias) else item
    is_count = isinstance(call, exp.Anonymous) and str(call.this).upper() == "COUNT" and len(call.expressions) == 1
    (((name, version), (node, *others)),) = names.items()
    source = tree.args.get("from_") or tree.args.get("from")
    if not is_count or not isinstance(call.expressions[0], exp.Star) or others or source is None or source.this is not node:
        return None
    if version is not None or not set(name for name, value in node.args.items() if value) <= _COUNTED_AS:
        return None
    refuse_hints(node)
    n_rows = relations.n_rows(name)
    return None if n_rows is None else pa.table({item.alias or "EXPR$0": pa.array([n_rows], pa.int64())})


def _with_views(
    tree: exp.Query,
    default_database: str,
    relations: Relations,
    views: Mapping[str, ViewDefinition],
    windows: WindowedRows,
    depth: int,
) -> exp.Query:
    """The query with every view, and every table with computed columns, replaced by its own query; all others with their database."""
    if depth > _VIEWS_DEEP_MAX:
        raise StatementRefused("views are nested too deeply", where="query", next_step="Does a view read itself?")
    tree = windows.take(tree, default_database)
    for node in _tables(tree):
        name = table_name(node, default_database)
        view = views.get(name) or relations.view(name)
        columns: tuple[str, ...] = ()
        if view is not None:
            inner: exp.Query = parse_select(view.sql, where=f"view {name}")
            inner = _with_views(inner, view.database or default_database, relations, views, windows, depth + 1)
            columns = view.columns or ()
        elif (stored := relations.stored_select(name)) is not None:
            refuse_hints(node)
            inner = stored
        else:
            if not node.db:
                node.set("db", exp.to_identifier(default_database, quoted=True))
            continue
        if (asked := node.args.get("version")) is not None:
            for table in _tables(inner):
                if table.args.get("version") is None:
                    table.set("version", asked.copy())
        names = node.alias_column_names or columns
        alias = exp.TableAlias(
            this=exp.to_identifier(node.alias or node.name, quoted=True),
            columns=[exp.to_identifier(item, quoted=True) for item in names],
        )
        kept = {part: value for part, value in node.args.items() if part in ("sample", "pivots", "joins") and value}
        node.replace(exp.Subquery(this=inner, alias=alias, **kept))
    return tree


def _needs(tree: exp.Query, nodes: list[exp.Table], name: str, columns: Columns | None, relations: Relations) -> Needs:
    if columns is None:
        return Needs(None, None)
    found = list(tree.find_all(exp.Column))
    joins = list(tree.find_all(exp.Join))
    used = {column.name for column in found} | {item.name for join in joins for item in join.args.get("using") or ()}
    if name.endswith(BINLOG):  # what is used are fields of before and after
        columns = relations.columns(name.removesuffix(BINLOG)) or {}
        if any(column.name in _BINLOG_ROWS for column in found):
            used = set(columns)
    stars = any(not isinstance(star.parent, exp.Anonymous | exp.Count) for star in tree.find_all(exp.Star))
    stars |= any(node.alias_column_names for node in nodes)  # names that are given by position
    stars |= any(join.args.get("method") for join in joins)  # NATURAL: all columns are compared by name
    wanted = None if stars else tuple(column for column in columns if column in used)
    return Needs(wanted, _pushed_condition(nodes, name, relations))


def _pushed_condition(nodes: list[exp.Table], name: str, relations: Relations) -> str | None:
    """The part of WHERE that the store can check and every use of the relation implies; None when there is none."""
    schema = relations.store_schema(name)
    if schema is None or len(nodes) != 1 or nodes[0].alias_column_names or nodes[0].args.get("sample"):
        return None
    select = nodes[0].find_ancestor(exp.Select)
    where = select.args.get("where") if select is not None else None
    if select is None or where is None or select.args.get("joins") or select.args.get("laterals"):
        return None
    owner = nodes[0].alias or nodes[0].name
    conjuncts = where.this.flatten() if isinstance(where.this, exp.And) else [where.this]
    parts = [pushed for part in conjuncts if (pushed := pushable(_unqualified(part, owner), schema)) is not None]
    return " AND ".join(parts) or None


def _unqualified(node: exp.Expr, owner: str) -> str:
    """A condition as text, the columns of `owner` without its name."""
    tree = node.copy()
    for column in tree.find_all(exp.Column):
        if column.table == owner and not column.db:
            column.set("table", None)
    return text_of(tree)


def _may_join(tree: exp.Query) -> bool:
    """Whether DuckDB may compare columns of two relations: a join, or what it makes one of (IN, EXISTS, INTERSECT ...)."""
    return tree.find(exp.Join) is not None or len(list(tree.find_all(exp.Select))) > 1


def _tables(tree: exp.Query) -> list[exp.Table]:
    """The tables that FROM and JOIN name, common table expressions left out."""
    ctes = {cte.alias for cte in tree.find_all(exp.CTE)}
    return [node for node in tree.find_all(exp.Table) if not is_windowed(node) and (node.db or node.name not in ctes)]


def _relation_names(tree: exp.Query, default_database: str, versions: Mapping[int, int | None]) -> _Names:
    found: _Names = {}
    for node in _tables(tree):
        found.setdefault((table_name(node, default_database), versions[id(node)]), []).append(node)
    return found


def _one_line(message: str) -> str:
    return " ".join(message.split("\n\nLINE")[0].split())
