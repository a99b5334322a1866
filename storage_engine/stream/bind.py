"""Bind: a parsed SELECT against a catalog into a typed tree of operators (plan.py).

Resolves tables, views, aliases and columns; splits GROUP BY into keys and calls; turns FOR SYSTEM_TIME AS OF PROCTIME() into
lookup joins. What cannot be kept incrementally is refused here, with the clause and the reason.
Never: decides where state is kept, reads data, or executes anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlglot import exp

from storage_engine.errors import StatementRefused, UnknownTable
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream import aggregates, lookup_binding
from storage_engine.stream.aggregates import Call, CallBuilder
from storage_engine.stream.builtins import Value
from storage_engine.stream.dialect import alias_of, parse_select, query_hints, table_hints, table_name, text_of
from storage_engine.stream.expressions import ExpressionBinder
from storage_engine.stream.plan import Aggregate, Calc, Field, Node, Query, Scan
from storage_engine.stream.render import column, sql
from storage_engine.stream.sqltypes import NULL, UNKNOWN, parse_type

INERT_QUERY_HINTS = frozenset({"REPLICATED_SHUFFLE_HASH", "BROADCAST", "SHUFFLE_HASH", "SHUFFLE_MERGE", "NEST_LOOP", "LOOKUP", "STATE_TTL"})
INERT_TABLE_HINTS = frozenset(
    {
        "lookup.cache",
        "lookup.partial-cache.max-rows",
        "lookup.partial-cache.expire-after-write",
        "lookup.partial-cache.expire-after-access",
        "lookup.partial-cache.cache-missing-key",
        "lookup.async",
        "client.lookup.batch-timeout",
        "scan.partition.discovery.interval",
        "client.writer.enable-idempotence",
    }
)


@dataclass(frozen=True)
class ViewDefinition:
    """A view: its SELECT, the database its unqualified names belong to, and the names it gives its columns (None: the SELECT's)."""

    sql: str
    database: str = ""
    columns: tuple[str, ...] | None = None


class Catalog(Protocol):
    """What binding asks of a store."""

    def table(self, name: str) -> TableDescriptor | None: ...
    def view(self, name: str) -> ViewDefinition | None: ...

    def names(self) -> list[str]: ...


@dataclass
class Scope:
    """The columns that a SELECT's expressions can name: (alias, column) -> field."""

    where: str
    columns: list[tuple[str, str, Field]] = field(default_factory=list)
    time_attributes: set[tuple[str, str]] = field(default_factory=set)

    def add(self, alias: str, names: Sequence[str], fields: Sequence[Field]) -> None:
        if any(alias == known for known, _, _ in self.columns):
            raise StatementRefused(f"alias {alias} is used twice in FROM", where=self.where, next_step="Give each table its own alias.")
        self.columns.extend((alias, name, item) for name, item in zip(names, fields, strict=True))

    def resolve(self, node: exp.Column) -> Value:
        if (node.table, node.name) in self.time_attributes:
            raise StatementRefused(
                f"{text_of(node)} is the processing time; it can only stand in FOR SYSTEM_TIME AS OF",
                where=self.where,
                next_step="Take the time from a column of the event.",
            )
        found = [item for alias, name, item in self.columns if name == node.name and node.table in ("", alias)]
        if len(found) == 1:
            return Value(column(found[0].name), found[0].type, found[0].nullable)
        if found:
            owners = ", ".join(alias for alias, name, _ in self.columns if name == node.name)
            raise StatementRefused(f"column {node.name} is ambiguous: {owners} have it", where=self.where, next_step="Write alias.column.")
        aliases = {alias for alias, _, _ in self.columns}
        if node.table and node.table not in aliases:
            raise StatementRefused(
                f"{text_of(node)}: no table in FROM is called {node.table}",
                where=self.where,
                next_step=f"Known are {', '.join(sorted(aliases))}.",
            )
        names = [name for alias, name, _ in self.columns if node.table in ("", alias)]
        alike = difflib.get_close_matches(node.name, names, n=2)
        hint = f"Did you mean {' or '.join(alike)}?" if alike else f"Known are {', '.join(dict.fromkeys(names))}."
        raise StatementRefused(f"column {text_of(node)} is not known", where=self.where, next_step=hint)


class Binder:
    """Binds one statement. `where` names the statement in errors."""

    def __init__(
        self, catalog: Catalog, *, default_database: str = "", where: str = "statement", settings: Mapping[str, str] | None = None
    ) -> None:
        self.catalog = catalog
        self.default_database = default_database
        self.where = where
        self.settings = dict(settings or {})
        self.notices: list[str] = []
        self.used_views: dict[str, ViewDefinition] = {}
        self._views: list[str] = []
        self._n_ids = 0

    def next_id(self) -> int:
        """A number for an operator, unique in the statement; it survives rewriting of the tree."""
        self._n_ids += 1
        return self._n_ids

    def bind(self, select_sql: str, *, first_line: int = 1) -> Query:
        """The plan of a SELECT. Errors: StatementRefused, UnknownTable."""
        tree = parse_select(select_sql, where=self.where, first_line=first_line)
        root, names = self._query(tree, prefix="")
        return Query(root, names, tuple(dict.fromkeys(self.notices)))

    # queries

    def _query(self, tree: exp.Expr, prefix: str) -> tuple[Node, tuple[str, ...]]:
        if isinstance(tree, exp.Subquery):
            return self._query(tree.this, prefix)
        if isinstance(tree, exp.SetOperation):
            raise self._refuse(
                f"{tree.key.upper()} is not kept incrementally yet", "Write one INSERT INTO per branch; a table takes several."
            )
        if not isinstance(tree, exp.Select):
            raise self._refuse(f"{text_of(tree)} is not a SELECT over tables", "Write SELECT ... FROM table.")
        return self._select(tree, prefix)

    def _select(self, select: exp.Select, prefix: str) -> tuple[Node, tuple[str, ...]]:
        self._refuse_clauses(select)
        self._notice_hints(select)
        scope = Scope(self.where)
        node = self._from(select, scope)
        where = select.args.get("where")
        items = self._expand_stars(select, scope)
        if where is not None:
            node = self._filter(node, where.this, scope)
        group = select.args.get("group")
        having = select.args.get("having")
        distinct = select.args.get("distinct")
        if group is not None or having is not None or any(_calls(item) for item in items):
            node, values, condition = self._aggregate(node, scope, items, group, having)
            if distinct is not None:
                raise self._refuse(
                    "SELECT DISTINCT over GROUP BY is not kept incrementally",
                    "Leave DISTINCT out: groups are distinct when their keys are selected.",
                )
        else:
            binder = self._expressions(scope)
            values = [binder.bind(_unaliased(item)) for item in items]
            condition = None
        names = tuple(_name_of(item, i) for i, item in enumerate(items))
        fields = _unique_fields(prefix, names, values)
        made: Node = Calc(node, tuple(zip(fields, (value.ast for value in values), strict=True)), condition)
        if distinct is not None:
            made = self._distinct(made)
        return made, names

    def _distinct(self, node: Node) -> Node:
        calls = CallBuilder(retracting=node.is_retracting, where=self.where)
        accumulators = (calls.rows(),) if node.is_retracting else ()
        return Aggregate(node, tuple((item, column(item.name)) for item in node.fields), accumulators, (), self.next_id())

    def _refuse_clauses(self, select: exp.Select) -> None:
        reasons = {
            "order": ("ORDER BY", "a stream has no end, so no order of all rows", "Leave it out; order when you query the table."),
            "limit": ("LIMIT", "which rows are first changes as rows arrive", "Leave it out; limit when you query the table."),
            "offset": ("OFFSET", "which rows are first changes as rows arrive", "Leave it out."),
            "qualify": ("QUALIFY", "window functions are not kept incrementally", "Use GROUP BY, or a primary-key table to deduplicate."),
            "windows": ("WINDOW", "window functions are not kept incrementally", "Use GROUP BY."),
            "with_": ("WITH", "is not supported in a continuous statement yet", "Write the subquery in FROM, or CREATE VIEW."),
            "laterals": ("LATERAL", "is not supported", "Use a lookup join."),
        }
        for key, (clause, reason, remedy) in reasons.items():
            if select.args.get(key):
                raise self._refuse(f"{clause}: {reason}", remedy)

    def _notice_hints(self, select: exp.Select) -> None:
        for name in query_hints(select):
            if name not in INERT_QUERY_HINTS:
                raise self._refuse(
                    f"the hint {name} is not known", f"Known, without effect here, are {', '.join(sorted(INERT_QUERY_HINTS))}."
                )
            self.notices.append(f"hint {name} has no effect here")

    # FROM

    def _from(self, select: exp.Select, scope: Scope) -> Node:
        source = select.args.get("from_")
        if source is None:
            raise self._refuse("SELECT without FROM has nothing to follow", "Read from a table, or use INSERT INTO ... VALUES.")
        node = self._source(source.this, scope)
        for join in select.args.get("joins") or ():
            node = lookup_binding.bind_lookup(self, join, node, scope)
        return node

    def _source(self, item: exp.Expr, scope: Scope) -> Node:
        if isinstance(item, exp.Subquery):
            alias = item.alias
            return self._derived(item.this, alias or "$subquery", scope)
        if not isinstance(item, exp.Table) or not isinstance(item.this, exp.Identifier):
            raise self._refuse(f"{text_of(item)} cannot be read", "Read from a table, a view or a subquery.")
        if item.args.get("version") is not None:
            raise self._refuse(
                f"FOR SYSTEM_TIME AS OF on {item.name}: the first table of FROM is the stream itself", "Put it on the joined table."
            )
        name = table_name(item, self.default_database)
        view = self.catalog.view(name)
        if view is not None:
            return self._view(name, view, alias_of(item), scope)
        table = self.describe(name)
        self.check_table_hints(item, scan=True)
        return self._scan(table, alias_of(item), scope)

    def _scan(self, table: TableDescriptor, alias: str, scope: Scope) -> Scan:
        fields = table_fields(table, alias)
        scope.add(alias, table.column_names, fields)
        return Scan(table, alias, table.column_names, fields, self.next_id())

    def _view(self, name: str, view: ViewDefinition, alias: str, scope: Scope) -> Node:
        if name in self._views:
            raise self._refuse(f"view {name} reads itself", "Define it over tables.")
        self._views.append(name)
        self.used_views[name] = view
        database, self.default_database = self.default_database, view.database
        try:
            return self._derived(parse_select(view.sql, where=f"view {name}"), alias, scope, view.columns)
        finally:
            self._views.pop()
            self.default_database = database

    def _derived(self, tree: exp.Expr, alias: str, scope: Scope, renamed: tuple[str, ...] | None = None) -> Node:
        times = [item.alias for item in tree.expressions if _is_proctime(_unaliased(item))] if isinstance(tree, exp.Select) else []
        if times:
            tree = tree.copy()
            tree.set("expressions", [item for item in tree.expressions if not _is_proctime(_unaliased(item))])
            scope.time_attributes.update((name, time) for time in times for name in (alias, ""))
        node, names = self._query(tree, prefix=f"{alias}.")
        if renamed is not None and len(renamed) != len(names):
            raise self._refuse(f"view {alias} names {len(renamed)} columns, its SELECT has {len(names)}", "Name as many.")
        scope.add(alias, renamed or names, node.fields)
        return node

    def describe(self, name: str) -> TableDescriptor:
        table = self.catalog.table(name)
        if table is None:
            alike = difflib.get_close_matches(name, self.catalog.names(), n=3)
            hint = f"Did you mean {' or '.join(alike)}?" if alike else "SHOW TABLES lists the tables; names are database.table."
            raise UnknownTable(f"there is no table {name}", where=self.where, next_step=hint)
        return table

    def check_table_hints(self, item: exp.Table, *, scan: bool) -> dict[str, str]:
        """The hints behind a table's name. Errors: StatementRefused for one that is not known."""
        hints = table_hints(item, self.where)
        for key in hints:
            if key in INERT_TABLE_HINTS:
                self.notices.append(f"hint '{key}' has no effect here")
            elif scan or key != "lookup.insert-if-not-exists":
                raise self._refuse(f"the hint '{key}' on {item.name} is not known", "Leave it out; docs/sql.md lists the hints.")
        return hints

    # expressions

    def _expressions(self, scope: Scope) -> ExpressionBinder:
        return ExpressionBinder(scope.resolve, where=self.where)

    def _filter(self, node: Node, condition: exp.Expr, scope: Scope) -> Node:
        if _calls(condition):
            raise self._refuse(f"WHERE {text_of(condition)} uses an aggregate", "Use HAVING.")
        bound = self._expressions(scope).condition(condition)
        return Calc(node, tuple((item, column(item.name)) for item in node.fields), bound)

    def _expand_stars(self, select: exp.Select, scope: Scope) -> list[exp.Expr]:
        items: list[exp.Expr] = []
        for item in select.expressions:
            star_of = (
                ""
                if isinstance(item, exp.Star)
                else item.table
                if isinstance(item, exp.Column) and isinstance(item.this, exp.Star)
                else None
            )
            if star_of is None:
                items.append(item)
                continue
            owned = [(alias, name) for alias, name, _ in scope.columns if star_of in ("", alias)]
            if not owned:
                raise self._refuse(f"{star_of}.*: no table in FROM is called {star_of}", "Use an alias of FROM.")
            items.extend(
                exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(alias, quoted=True)) for alias, name in owned
            )
        return items

    # GROUP BY

    def _aggregate(
        self, node: Node, scope: Scope, items: list[exp.Expr], group: exp.Group | None, having: exp.Having | None
    ) -> tuple[Node, list[Value], exp.Expr | None]:
        if group is not None and any(group.args.get(key) for key in ("grouping_sets", "cube", "rollup", "totals")):
            raise self._refuse(f"{text_of(group)}: grouping sets are not kept incrementally yet", "Write one INSERT INTO per set of keys.")
        plain = self._expressions(scope)
        keys: list[tuple[Field, exp.Expr]] = []
        by_text: dict[str, Field] = {}
        for written in group.expressions if group is not None else ():
            value = plain.bind(self._group_key(written, items, scope))
            if sql(value.ast) not in by_text:
                item = Field(value.ast.name if isinstance(value.ast, exp.Column) else f"k{len(keys)}", value.type, value.nullable)
                keys.append((item, value.ast))
                by_text[sql(value.ast)] = item
        calls = _CallCollector(plain, CallBuilder(retracting=node.is_retracting, where=self.where), by_text, self.where)
        binder = ExpressionBinder(scope.resolve, where=self.where, intercept=calls.intercept)
        values = [binder.bind(_unaliased(item)) for item in items]
        condition = binder.condition(having.this) if having is not None else None
        if node.is_retracting:
            calls.builder.rows()
        made = Aggregate(node, tuple(keys), tuple(calls.builder.accumulators), tuple(calls.found), self.next_id())
        return made, values, condition

    def _group_key(self, written: exp.Expr, items: list[exp.Expr], scope: Scope) -> exp.Expr:
        """A key as written, by position (GROUP BY 1), or by the alias of a selected expression."""
        if isinstance(written, exp.Literal) and not written.is_string:
            position = int(written.name)
            if not 1 <= position <= len(items):
                raise self._refuse(f"GROUP BY {position}: there are {len(items)} columns", "Use a position from 1.")
            return _unaliased(items[position - 1])
        if isinstance(written, exp.Column) and not written.table and all(name != written.name for _, name, _ in scope.columns):
            for item in items:
                if item.alias == written.name:
                    return _unaliased(item)
        return written

    def _refuse(self, what: str, next_step: str) -> StatementRefused:
        return StatementRefused(what, where=self.where, next_step=next_step)


class _CallCollector:
    """Binds what stands above a GROUP BY: group keys and aggregate calls become fields of the Aggregate."""

    def __init__(self, plain: ExpressionBinder, builder: CallBuilder, keys: Mapping[str, Field], where: str) -> None:
        self.builder = builder
        self.found: list[tuple[Field, Call]] = []
        self._plain = plain
        self._keys = keys
        self._where = where

    def intercept(self, node: exp.Expr) -> Value | None:
        if isinstance(node, exp.Literal | exp.Boolean | exp.Null | exp.Interval):
            return None
        filtered = node.this if isinstance(node, exp.Filter) else node
        name = _call_name(filtered)
        if name in aggregates.NOT_MAINTAINED:
            raise StatementRefused(
                f"{text_of(node)}: {aggregates.NOT_MAINTAINED[name]}",
                where=self._where,
                next_step="Use SUM, COUNT, MIN, MAX, AVG or bitmaps.",
            )
        if name in aggregates.NAMES:
            return self._call(name, node, filtered)
        if not _calls(node):
            bound = self._plain.bind(node)
            item = self._keys.get(sql(bound.ast))
            if item is not None:
                return Value(column(item.name), item.type, item.nullable)
            if isinstance(node, exp.Column):
                raise StatementRefused(
                    f"column {text_of(node)} is neither in GROUP BY nor inside an aggregate",
                    where=self._where,
                    next_step="Add it to GROUP BY.",
                )
        return None

    def _call(self, name: str, node: exp.Expr, call: exp.Expr) -> Value:
        arguments = call.expressions
        distinct = len(arguments) == 1 and isinstance(arguments[0], exp.Distinct)
        if distinct:
            arguments = arguments[0].expressions
        if len(arguments) != 1:
            raise StatementRefused(f"{text_of(call)} takes one argument", where=self._where, next_step="Aggregates here have one argument.")
        argument = None if isinstance(arguments[0], exp.Star) else self._plain.bind(arguments[0])
        condition = self._plain.condition(node.expression.this) if isinstance(node, exp.Filter) else None
        made = self.builder.call(name, argument, distinct=distinct, condition=condition, text=text_of(node))
        for item, known in self.found:
            if sql(known.finish) == sql(made.finish):
                return Value(column(item.name), item.type, item.nullable)
        item = Field(f"c{len(self.found)}", made.type, made.nullable)
        self.found.append((item, made))
        return Value(column(item.name), item.type, item.nullable)


def table_fields(table: TableDescriptor, alias: str, *, nullable: bool = False) -> tuple[Field, ...]:
    """The columns of a table as fields "alias.column"; `nullable`: all of them, as behind an outer join."""
    return tuple(
        Field(f"{alias}.{item.name}", parse_type(item.type), nullable or (item.nullable and item.name not in table.primary_key))
        for item in table.columns
    )


def _call_name(node: exp.Expr) -> str:
    return str(node.this).upper() if isinstance(node, exp.Anonymous) else ""


def _calls(node: exp.Expr) -> bool:
    """True when an aggregate stands in the expression."""
    return any(
        _call_name(item) in aggregates.NAMES or _call_name(item) in aggregates.NOT_MAINTAINED for item in node.find_all(exp.Anonymous)
    )


def _unaliased(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Alias) else item


def _is_proctime(node: exp.Expr) -> bool:
    return isinstance(node, exp.Anonymous) and str(node.this).upper() == "PROCTIME"


def _name_of(item: exp.Expr, position: int) -> str:
    return item.alias or (item.name if isinstance(item, exp.Column) else "") or f"EXPR${position}"


def _unique_fields(prefix: str, names: Sequence[str], values: Sequence[Value]) -> tuple[Field, ...]:
    fields: list[Field] = []
    taken: set[str] = set()
    for name, value in zip(names, values, strict=True):
        unique, n = f"{prefix}{name}", 1
        while unique in taken:
            n += 1
            unique = f"{prefix}{name}${n}"
        taken.add(unique)
        fields.append(
            Field(
                unique,
                value.type if value.type not in (NULL, UNKNOWN) else parse_type("STRING") if value.type == NULL else value.type,
                value.nullable,
            )
        )
    return tuple(fields)
