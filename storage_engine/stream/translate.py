"""Translate: any Flink SELECT into DuckDB's dialect, for ad-hoc queries: windows, joins, CTEs, ORDER BY and all.

Columns are typed where the schema is known, so integer division, AVG and casts mean what they mean in a stream job; what is not
known goes through unchanged. Needs a connection prepared with functions.register_functions.
Never: refuses a clause that only a stream could not run.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlglot import exp

from storage_engine.stream import aggregates
from storage_engine.stream import sqltypes as types
from storage_engine.stream.builtins import Value
from storage_engine.stream.dialect import alias_of, parse_select, table_name
from storage_engine.stream.expressions import ExpressionBinder
from storage_engine.stream.render import cast, render
from storage_engine.stream.sqltypes import SqlType, parse_type

TableSchema = Mapping[str, str]
"""Column name -> SQL type."""


def translate(
    select_sql: str | exp.Query, schema: Mapping[str, TableSchema] | None = None, *, default_database: str = ""
) -> exp.Expression:
    """A SELECT in Flink's dialect as a DuckDB syntax tree; table names stay as written (without a catalog).

    schema  "database.table" -> columns and types, for the tables whose types are known

    >>> translate("SELECT DATE_FORMAT(ts, 'HH'), COUNT(*) FROM t GROUP BY DATE_FORMAT(ts, 'HH')").sql("duckdb")
    "SELECT STRFTIME(ts, '%H'), COUNT(*) FROM t GROUP BY STRFTIME(ts, '%H')"
    """
    tree = parse_select(select_sql) if isinstance(select_sql, str) else select_sql.copy()
    _Translation(schema or {}, default_database).query(tree, {})
    return tree


class _Translation:
    def __init__(self, schema: Mapping[str, TableSchema], default_database: str) -> None:
        self._schema = schema
        self._database = default_database

    def query(self, tree: exp.Expression, ctes: Mapping[str, dict[str, SqlType]]) -> dict[str, SqlType]:
        """Rewrite a query in place; the types of its columns by name."""
        known = dict(ctes)
        for cte in tree.args["with_"].expressions if tree.args.get("with_") else ():
            known[cte.alias] = self.query(cte.this, known)
        if isinstance(tree, exp.SetOperation):
            types_left = self.query(tree.left, known)
            self.query(tree.right, known)
            return types_left
        if isinstance(tree, exp.Subquery):
            return self.query(tree.this, known)
        if isinstance(tree, exp.Select):
            return self._select(tree, known)
        return {}

    def _select(self, select: exp.Select, ctes: Mapping[str, dict[str, SqlType]]) -> dict[str, SqlType]:
        select.set("hint", None)
        columns: dict[tuple[str, str], SqlType] = {}
        for source in _sources(select):
            for name, kind in self._source(source, ctes).items():
                columns[(alias_of(source), name)] = kind
        binder = self._binder(columns, ctes)
        output: dict[str, SqlType] = {}
        items = []
        for item in select.expressions:
            if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
                items.append(item)
                output.update(
                    {name: kind for (alias, name), kind in columns.items() if not isinstance(item, exp.Column) or item.table == alias}
                )
                continue
            value = binder.bind(item.this if isinstance(item, exp.Alias) else item)
            name = item.alias or item.name
            output[name] = value.type
            items.append(exp.alias_(value.ast, item.args["alias"]) if isinstance(item, exp.Alias) else value.ast)
        select.set("expressions", items)
        self._clauses(select, binder)
        return output

    def _clauses(self, select: exp.Select, binder: ExpressionBinder) -> None:
        for key in ("where", "having", "qualify"):
            clause = select.args.get(key)
            if clause is not None:
                clause.set("this", binder.bind(clause.this).ast)
        group = select.args.get("group")
        if group is not None:
            group.set("expressions", [binder.bind(item).ast for item in group.expressions])
        order = select.args.get("order")
        for ordered in order.expressions if order is not None else ():
            ordered.set("this", binder.bind(ordered.this).ast)
        for join in select.args.get("joins") or ():
            if join.args.get("on") is not None:
                join.set("on", binder.bind(join.args["on"]).ast)

    def _source(self, source: exp.Expression, ctes: Mapping[str, dict[str, SqlType]]) -> dict[str, SqlType]:
        if isinstance(source, exp.Subquery):
            return self.query(source.this, ctes)
        if not isinstance(source, exp.Table) or not isinstance(source.this, exp.Identifier):
            return {}
        source.set("version", None)
        if not source.db and source.name in ctes:
            return ctes[source.name]
        source.set("catalog", None)
        declared = self._schema.get(table_name(source, self._database), {})
        return {name: parse_type(text) for name, text in declared.items()}

    def _binder(self, columns: Mapping[tuple[str, str], SqlType], ctes: Mapping[str, dict[str, SqlType]]) -> ExpressionBinder:
        def resolve(node: exp.Column) -> Value:
            found = {kind for (alias, name), kind in columns.items() if name == node.name and node.table in ("", alias)}
            return Value(node.copy(), found.pop() if len(found) == 1 else types.UNKNOWN)

        def intercept(node: exp.Expression) -> Value | None:
            if isinstance(node, exp.Query | exp.Exists):
                self.query(node.this if isinstance(node, exp.Exists) else node, ctes)
                return Value(node, types.UNKNOWN)
            if isinstance(node, exp.Star):
                return Value(node, types.UNKNOWN)
            if isinstance(node, exp.In) and node.args.get("query") is not None:
                self.query(node.args["query"], ctes)
                node.set("this", binder.bind(node.this).ast)
                return Value(node, types.BOOLEAN)
            if isinstance(node, exp.Anonymous) and str(node.this).upper() in aggregates.NAMES:
                return _aggregate(node, binder)
            return None

        binder = ExpressionBinder(resolve, where="query", intercept=intercept, strict=False)
        return binder


def _sources(select: exp.Select) -> list[exp.Expression]:
    first = select.args.get("from_")
    return ([first.this] if first is not None else []) + [join.this for join in select.args.get("joins") or ()]


def _aggregate(node: exp.Anonymous, binder: ExpressionBinder) -> Value:
    """An aggregate call with Flink's result type."""
    name = str(node.this).upper()
    arguments = node.expressions
    distinct = len(arguments) == 1 and isinstance(arguments[0], exp.Distinct)
    inner = arguments[0].expressions if distinct else arguments
    values = [Value(item, types.UNKNOWN) if isinstance(item, exp.Star) else binder.bind(item) for item in inner]
    of = values[0].type if values else types.UNKNOWN
    word = "DISTINCT " if distinct else ""
    if name in ("COUNT", "APPROX_COUNT_DISTINCT"):
        if name == "COUNT" and values and isinstance(values[0].ast, exp.Star):
            return Value(render("count(*)"), types.BIGINT, nullable=False)
        word = "DISTINCT " if name != "COUNT" else word
        return Value(render(f"count({word}_0)", values[0].ast), types.BIGINT, nullable=False)
    if name in ("SUM", "SUM0"):
        result = types.decimal(38, of.scale or 0) if of.name == "DECIMAL" else of
        made = render(f"sum({word}_0)", values[0].ast)
        return Value(cast(made, result.duckdb) if result.is_known else made, result)
    if name == "AVG":
        result = types.arithmetic("/", types.decimal(38, of.scale or 0), types.BIGINT) if of.name == "DECIMAL" else of
        if of.is_integer:
            return Value(cast(render(f"trunc(sum({word}_0) / CAST(count({word}_0) AS DOUBLE))", values[0].ast), of.duckdb), of)
        made = render(f"avg({word}_0)", values[0].ast)
        return Value(cast(made, result.duckdb) if result.is_known else made, result)
    if name in ("MIN", "MAX"):
        return Value(render(f"{name.lower()}(_0)", values[0].ast), of)
    builds = "BUILD" in name
    bitmap = render("rb_build(list(CAST(_0 AS UINTEGER)))" if builds else "rb_or_all(list(_0))", values[0].ast)
    if "CARDINALITY" in name or name == "BITMAP_UNION_COUNT":
        return Value(render("COALESCE(rb_cardinality(_0), 0)", bitmap), types.BIGINT, nullable=False)
    return Value(bitmap, types.BYTES)
