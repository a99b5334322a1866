"""Translate: a query in Flink's dialect into DuckDB's, with Flink's meaning.

The expression binder of the stream planner does the work, lenient here: what it does not know goes through unchanged.
Types of columns come from the tables, so that integer division, SUM and AVG mean the same in a query, a stream and its proof.
Never: runs anything, or knows where a table's rows are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from sqlglot import exp

from query_engine.calls import bind_aggregate, bind_window, window_frame
from query_engine.merged_columns import expanded
from query_engine.unnest import unnested
from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.sqltypes import SqlType, common_type
from storage_engine.stream.dialect.syntax import alias_of, text_of
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder

Columns = Mapping[str, SqlType]
"""Column name -> type of one relation, "struct.field" for a field; a column that is not in it has an unknown type."""


def translate(query: exp.Query, tables: Mapping[str, Columns]) -> str:
    """DuckDB SQL for a parsed query. `tables` are the columns of each relation by the name that FROM uses.

    Errors: StatementRefused naming what has no meaning here.
    """
    tree, _ = _query(query.copy(), dict(tables), None)
    return tree.sql(dialect="duckdb")


class _Scope:
    """The relations that a SELECT can name, and the scope around it."""

    def __init__(self, outer: _Scope | None, aliases: set[str]) -> None:
        self.sources: dict[str, Columns] = {}
        self.outer = outer
        self._aliases = aliases

    def resolve(self, node: exp.Column) -> Value:
        made = node.copy()
        made.set("db", None)
        made.set("catalog", None)
        scope: _Scope | None = self
        while scope is not None:
            for alias, columns in scope.sources.items():
                if (not node.table or node.table == alias) and node.name in columns:
                    return Value(made, columns[node.name])
                field = f"{node.table}.{node.name}"  # of a struct, as before and after of $binlog
                is_unknown = columns.get(node.table) is types.UNKNOWN and not any(name.startswith(f"{node.table}.") for name in columns)
                if node.table and (field in columns or is_unknown) and node.db in ("", alias):
                    made.set("db", node.args.get("db"))
                    return Value(made, columns.get(field, types.UNKNOWN))
            scope = scope.outer
        self._require_possible(node)
        return Value(made, types.UNKNOWN)

    def _require_possible(self, node: exp.Column) -> None:
        """Refuse a column that no relation has, where the columns of all of them are known."""
        scope: _Scope | None = self
        names: list[str] = []
        while scope is not None:
            if node.name in scope._aliases or not all(scope.sources.values()):
                return
            names += [name for columns in scope.sources.values() for name in columns]
            scope = scope.outer
        alike = difflib.get_close_matches(node.name, names, n=3)
        hint = f"Did you mean {' or '.join(alike)}?" if alike else f"The columns are {', '.join(dict.fromkeys(names))}."
        raise StatementRefused(f"there is no column {text_of(node)}", where="query", next_step=hint)


def _query(query: exp.Expr, tables: dict[str, Columns], outer: _Scope | None) -> tuple[exp.Expr, dict[str, SqlType]]:
    known = dict(tables)
    with_ = query.args.get("with_") or query.args.get("with")
    if with_ is not None:
        for cte in with_.expressions:
            made, columns = _query(cte.this, known, outer)
            cte.set("this", made)
            names = cte.alias_column_names
            known[cte.alias] = dict(zip(names, columns.values(), strict=True)) if names else columns
    if isinstance(query, exp.SetOperation):
        left, columns = _query(query.this, known, outer)
        right, others = _query(query.expression, known, outer)
        query.set("this", left)
        query.set("expression", right)
        return query, {name: common_type([kind, other]) for (name, kind), other in zip(columns.items(), others.values(), strict=False)}
    if isinstance(query, exp.Subquery):
        inner, columns = _query(query.this, known, outer)
        query.set("this", inner)
        return query, columns
    if not isinstance(query, exp.Select):
        return query, {}
    return _select(query, known, outer)


def _select(select: exp.Select, tables: dict[str, Columns], outer: _Scope | None) -> tuple[exp.Expr, dict[str, SqlType]]:
    scope = _Scope(outer, {item.alias for item in select.expressions if item.alias})
    from_ = select.args.get("from_") or select.args.get("from")
    joins = select.args.get("joins") or []
    select.set("hint", None)
    binder = _Binder(scope, tables)
    for source in ([from_.this] if from_ is not None else []) + [join.this for join in joins]:
        _add_source(source, tables, scope, binder)
    for join in joins:
        if join.args.get("on") is not None:
            join.set("on", binder.rows(join.args["on"]))
    where = select.args.get("where")
    if where is not None:
        where.set("this", binder.rows(where.this))
    outputs: dict[str, SqlType] = {}
    projections: list[exp.Expr] = []
    for index, item in enumerate(expanded(select.expressions, joins, list(scope.sources.items()))):
        if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
            projections.append(item)
            for alias, columns in scope.sources.items():
                if isinstance(item, exp.Star) or item.table == alias:
                    outputs.update(columns)
            continue
        inner = item.this if isinstance(item, exp.Alias) else item
        name = item.alias if isinstance(item, exp.Alias) else inner.name if isinstance(inner, exp.Column) else f"EXPR${index}"
        value = binder.value(inner)
        projections.append(exp.alias_(value.ast, name, quoted=True))
        outputs[name] = value.type
    select.set("expressions", projections)
    group = select.args.get("group")
    if group is not None:
        group.set("expressions", [item if _is_position(item) else binder.rows(item) for item in group.expressions])
    for clause in ("having", "qualify"):
        node = select.args.get(clause)
        if node is not None:
            node.set("this", binder.value(node.this).ast)
    select.set("windows", [binder.window(item) for item in select.args.get("windows") or []])
    order = select.args.get("order")
    if order is not None:
        for ordered in order.expressions:
            if not _is_position(ordered.this):
                ordered.set("this", binder.value(ordered.this).ast)
    return select, outputs


def _is_position(node: exp.Expr) -> bool:
    return isinstance(node, exp.Literal) and not node.is_string


def _add_source(source: exp.Expr, tables: dict[str, Columns], scope: _Scope, binder: _Binder) -> None:
    if isinstance(source, exp.Unnest):
        made, alias, columns = unnested(source, binder.row)
        source.replace(made)
        scope.sources[alias] = columns
    elif isinstance(source, exp.Table):
        scope.sources[alias_of(source)] = _renamed(tables.get(source.name, {}), source)
    elif isinstance(source, exp.Subquery):
        _, columns = _query(source, tables, scope.outer)
        scope.sources[source.alias] = _renamed(columns, source)
    elif isinstance(source, exp.Values):
        scope.sources[source.alias] = _renamed(_values(source, binder), source)
    elif isinstance(source, exp.Lateral) and isinstance(source.this, exp.Subquery):
        _, columns = _query(source.this, tables, scope)
        scope.sources[source.alias] = _renamed(columns, source)
    else:
        scope.sources[alias_of(source)] = {}


def _renamed(columns: Columns, source: exp.Expr) -> Columns:
    """The columns under the names that an alias gives them: AS t(a, b)."""
    names = source.alias_column_names
    if not names or not columns:
        return columns
    kinds = list(columns.values())
    return dict(zip([*names, *list(columns)[len(names) :]], kinds, strict=False))


def _values(source: exp.Values, binder: _Binder) -> Columns:
    """VALUES with its expressions bound, and the types of its columns."""
    lists = [item.expressions if isinstance(item, exp.Tuple) else [item] for item in source.expressions]
    bound = [[binder.row(item) for item in listed] for listed in lists]
    source.set("expressions", [exp.Tuple(expressions=[value.ast for value in listed]) for listed in bound])
    width = min((len(listed) for listed in bound), default=0)
    return {f"EXPR${i}": common_type([listed[i].type for listed in bound]) for i in range(width)}


class _Binder:
    """Binds expressions of one SELECT: rows (no aggregates) or values (aggregates become DuckDB's)."""

    def __init__(self, scope: _Scope, tables: dict[str, Columns]) -> None:
        self._scope = scope
        self._tables = tables
        self._rows = ExpressionBinder(scope.resolve, where="query", intercept=self._nested, strict=False)
        self._values = ExpressionBinder(scope.resolve, where="query", intercept=self._aggregate, strict=False)

    def row(self, node: exp.Expr) -> Value:
        return self._rows.bind(node)

    def rows(self, node: exp.Expr) -> exp.Expr:
        return self._rows.bind(node).ast

    def value(self, node: exp.Expr) -> Value:
        return self._values.bind(node)

    def _nested(self, node: exp.Expr) -> Value | None:
        """A query inside an expression: EXISTS, IN (SELECT ...), or a scalar subquery."""
        if isinstance(node, exp.Subquery) or (isinstance(node, exp.Exists) and isinstance(node.this, exp.Query)):
            made = node.copy()
            inner, columns = _query(made.this, self._tables, self._scope)
            made.set("this", inner)
            return Value(made, next(iter(columns.values()), types.UNKNOWN) if isinstance(node, exp.Subquery) else types.BOOLEAN)
        if isinstance(node, exp.In) and node.args.get("query") is not None:
            made = node.copy()
            made.set("this", self.value(node.this).ast)
            inner, _ = _query(made.args["query"], self._tables, self._scope)
            made.set("query", inner)
            return Value(made, types.BOOLEAN)
        return None

    def _aggregate(self, node: exp.Expr) -> Value | None:
        nested = self._nested(node)
        if nested is not None:
            return nested
        if isinstance(node, exp.Window):
            return bind_window(node, self.value)
        return bind_aggregate(node, self._rows.bind)

    def window(self, node: exp.Window) -> exp.Expr:
        """A definition of the WINDOW clause."""
        return window_frame(node, self.value)
