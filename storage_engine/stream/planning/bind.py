"""Bind: a parsed SELECT against a catalog into a typed tree of operators (plan.tree).

Resolves tables, views, aliases and columns; splits GROUP BY into keys and calls; turns FOR SYSTEM_TIME AS OF PROCTIME() into
lookup joins. What cannot be kept incrementally is refused here, with the clause and the reason.
Never: decides where state is kept, reads data, or executes anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlglot import exp

from storage_engine.errors import StatementRefused, UnknownTable
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.dialect.parts import refuse_unread
from storage_engine.stream.dialect.render import column
from storage_engine.stream.dialect.sqltypes import NULL, PROCTIME, TIMESTAMP3, UNKNOWN, parse_type
from storage_engine.stream.dialect.syntax import alias_of, parse_select, query_hints, table_hints, table_name, text_of
from storage_engine.stream.functions.aggregates import CallBuilder
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.functions.function_calls import mark_calls
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.plan.startup import STARTUP_HINTS, Startup, parse_startup
from storage_engine.stream.plan.tree import MARK, PROCESSING_TIME, Aggregate, Calc, Field, Node, Query, Scan, ViewDefinition
from storage_engine.stream.planning.bind_delta import bind_delta, conjuncts
from storage_engine.stream.planning.bind_emission import emitted_once
from storage_engine.stream.planning.bind_group import bind_groups, has_calls, unaliased
from storage_engine.stream.planning.bind_limit import bind_limit, ordered_items
from storage_engine.stream.planning.bind_lookup import LOOKUP_HINTS, bind_lookup
from storage_engine.stream.planning.bind_rank import bind_rank, bound_ranks, windows_of
from storage_engine.stream.planning.bind_set import bind_set
from storage_engine.stream.planning.bind_subquery import Subqueries, has_subquery
from storage_engine.stream.planning.bind_unnest import bind_unnest
from storage_engine.stream.planning.bind_window import bind_windows, window_call
from storage_engine.stream.planning.computed_columns import STORED, stored_select
from storage_engine.stream.planning.legacy_windows import with_marks, with_window_table
from storage_engine.stream.planning.processing_time import as_relation, is_relation, passed_through, time_columns
from storage_engine.stream.planning.scope import Scope

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
class _NamedQuery:
    """A query of a WITH clause: the names it gives its columns (None: its own), and the named queries that it sees."""

    tree: exp.Expr
    columns: tuple[str, ...] | None
    visible: Mapping[str, _NamedQuery]


class Catalog(Protocol):
    """What binding asks of a store."""

    def table(self, name: str) -> TableDescriptor | None: ...
    def view(self, name: str) -> ViewDefinition | None: ...

    def function(self, name: str) -> FunctionDefinition | None: ...

    def names(self) -> list[str]: ...


class Binder:
    """Binds one statement. `where` names the statement in errors; `waits_for_commits`: windows of processing time are sent once;
    `adds_wide`: the state of an AVG is wider than its values (planner.LAYOUT).
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        default_database: str = "",
        where: str = "statement",
        settings: Mapping[str, str] | None = None,
        waits_for_commits: bool = False,
        adds_wide: bool = True,
    ) -> None:
        self.catalog = catalog
        self.default_database = default_database
        self.where = where
        self.settings = dict(settings or {})
        self.waits_for_commits = waits_for_commits
        self.adds_wide = adds_wide
        self.notices: list[str] = []
        self.used_views: dict[str, ViewDefinition] = {}
        self.used_functions: dict[str, FunctionDefinition] = {}
        self._views: list[str] = []
        self._named: Mapping[str, _NamedQuery] = {}
        self._n_ids = 0

    def next_id(self) -> int:
        """A number for an operator, unique in the statement; it survives rewriting of the tree."""
        self._n_ids += 1
        return self._n_ids

    def bind(self, select_sql: str | exp.Query, *, first_line: int = 1) -> Query:
        """The plan of a SELECT, a text or its tree. Errors: StatementRefused, UnknownTable."""
        tree = self._parsed(select_sql, self.where, first_line)
        root, names = self.query(tree, prefix="")
        return Query(bound_ranks(self, root), names, tuple(dict.fromkeys(self.notices)))

    def _parsed(self, select_sql: str | exp.Query, where: str, first_line: int = 1) -> exp.Query:
        """The tree of a SELECT, with the calls of users' functions marked."""
        tree = parse_select(select_sql, where=where, first_line=first_line) if isinstance(select_sql, str) else select_sql
        refuse_unread(tree, where)
        self.used_functions.update(mark_calls(tree, self.catalog.function))
        return tree

    # queries

    def query(self, tree: exp.Expr, prefix: str) -> tuple[Node, tuple[str, ...]]:
        """The node of a query and its columns' names; its fields begin with `prefix`."""
        if isinstance(tree, exp.Subquery):
            return self.query(tree.this, prefix)
        outer = self._named
        self._named = {**outer, **self._with(tree)}
        try:
            if isinstance(tree, exp.SetOperation):
                return bind_set(self, tree, prefix)
            if not isinstance(tree, exp.Select):
                raise self.refuse(f"{text_of(tree)} is not a SELECT over tables", "Write SELECT ... FROM table.")
            return self._select(tree, prefix)
        finally:
            self._named = outer

    def _with(self, tree: exp.Expr) -> dict[str, _NamedQuery]:
        """The queries that WITH names; each sees those before it."""
        found: dict[str, _NamedQuery] = {}
        clause = tree.args.get("with_")
        if clause is None:
            return found
        if clause.args.get("recursive"):
            raise self.refuse("WITH RECURSIVE is not kept incrementally", "Unfold the levels you need into joins.")
        for item in clause.expressions:
            columns = item.args["alias"].args.get("columns") or []
            visible = {**self._named, **found}
            found[item.alias] = _NamedQuery(item.this, tuple(name.name for name in columns) or None, visible)
        return found

    def _select(self, select: exp.Select, prefix: str) -> tuple[Node, tuple[str, ...]]:
        self._refuse_clauses(select)
        self._notice_hints(select)
        select = with_window_table(self, with_marks(self, select))
        scope = Scope(self.where)
        node = self._from(select, scope)
        where = select.args.get("where")
        items = self._expand_stars(select, scope, with_times=is_relation(select))
        names = tuple(_name_of(item, i) for i, item in enumerate(items))
        extra, positions = ordered_items(self, select, items, names)
        items = [*items, *extra]
        if where is not None:
            node = self._filter(node, where.this, scope)
        group = select.args.get("group")
        having = select.args.get("having")
        distinct = select.args.get("distinct")
        grouped = group is not None or having is not None or any(has_calls(item) for item in items)
        times = time_columns(scope, [unaliased(item) for item in items[: len(names)]], grouped=grouped) if is_relation(select) else {}
        bound = [exp.Null() if i in times else item for i, item in enumerate(items)]
        qualify = select.args["qualify"].this if select.args.get("qualify") is not None else None
        if grouped:
            if qualify is not None or windows_of(items):
                raise self.refuse("ROW_NUMBER over GROUP BY in one SELECT", "Put the GROUP BY into a subquery.")
            node, values, condition = bind_groups(self, node, scope, bound, group, having)
            if distinct is not None:
                raise self.refuse(
                    "SELECT DISTINCT over GROUP BY is not kept incrementally",
                    "Leave DISTINCT out: groups are distinct when their keys are selected.",
                )
        else:
            subqueries = Subqueries(self, scope)
            node, binder = self._numbered(node, scope, [*bound, *([qualify] if qualify is not None else [])], subqueries)
            values = [binder.bind(unaliased(item)) for item in bound]
            condition = binder.condition(qualify) if qualify is not None else None
            node = subqueries.applied(node)
        values = [times.get(i, value) for i, value in enumerate(values)]
        passed = passed_through(scope) if is_relation(select) and not (grouped or distinct or positions) else None
        if passed is not None:
            items.append(exp.column(PROCESSING_TIME))
            values.append(Value(column(passed.name), PROCTIME, passed.nullable))
            names = (*names, PROCESSING_TIME)
        fields = _unique_fields(prefix, tuple(_name_of(item, i) for i, item in enumerate(items)), values)
        made: Node = Calc(node, tuple(zip(fields, (value.ast for value in values), strict=True)), condition)
        if distinct is not None:
            if times:
                raise self.refuse("SELECT DISTINCT with PROCTIME(): no two rows would be equal", "Take PROCTIME() in a query around it.")
            if extra:
                raise self.refuse(f"ORDER BY {text_of(unaliased(extra[0]))} is not selected, and DISTINCT drops it", "Select it.")
            made = self.distinct(made)
        return (bind_limit(self, made, select, positions, len(names)) if positions else made), names

    def _numbered(self, node: Node, scope: Scope, trees: list[exp.Expr], subqueries: Subqueries) -> tuple[Node, ExpressionBinder]:
        """The node with the row numbers that `trees` use, and what binds them."""
        windows = windows_of(trees)
        if not windows:
            return node, ExpressionBinder(scope.resolve, where=self.where, intercept=subqueries.intercept())
        node, bound = bind_rank(self, node, scope, windows)
        numbers = subqueries.intercept(lambda tree: bound.get(text_of(tree)))
        return node, ExpressionBinder(scope.resolve, where=self.where, intercept=numbers)

    def distinct(self, node: Node) -> Node:
        """Each row of the node once."""
        calls = CallBuilder(retracting=node.is_retracting, where=self.where)
        accumulators = (calls.rows(),) if node.is_retracting else ()
        made = Aggregate(node, tuple((item, column(item.name)) for item in node.fields), accumulators, (), self.next_id())
        return emitted_once(self, made)

    def _refuse_clauses(self, select: exp.Select) -> None:
        reasons = {
            "windows": ("WINDOW", "named windows are not supported", "Write OVER (...) where it is used."),
            "laterals": ("LATERAL", "is not supported", "Use a lookup join."),
        }
        for key, (clause, reason, remedy) in reasons.items():
            if select.args.get(key):
                raise self.refuse(f"{clause}: {reason}", remedy)

    def _notice_hints(self, select: exp.Select) -> None:
        for name in query_hints(select):
            if name not in INERT_QUERY_HINTS:
                raise self.refuse(
                    f"the hint {name} is not known", f"Known, without effect here, are {', '.join(sorted(INERT_QUERY_HINTS))}."
                )
            self.notices.append(f"hint {name} has no effect here")

    # FROM

    def _from(self, select: exp.Select, scope: Scope) -> Node:
        source = select.args.get("from_")
        if source is None:
            raise self.refuse("SELECT without FROM has nothing to follow", "Read from a table, or use INSERT INTO ... VALUES.")
        node = self.source(source.this, scope)
        for join in select.args.get("joins") or ():
            if isinstance(join.this, exp.Unnest):
                node = bind_unnest(self, join, node, scope)
            elif isinstance(join.this, exp.Table) and join.this.args.get("version") is not None:
                node = bind_lookup(self, join, node, scope)
            else:
                node = bind_delta(self, join, node, scope, select.args.get("where"))
        return node

    def scope_of(self, select: exp.Select) -> Scope:
        """The columns that FROM of a subquery gives it."""
        scope = Scope(self.where)
        outer = self._named
        self._named = {**outer, **self._with(select)}
        try:
            self._from(select, scope)
        finally:
            self._named = outer
        return scope

    def source(self, item: exp.Expr, scope: Scope) -> Node:
        """One item of FROM; its columns become visible in the scope, under the names that its alias gives them."""
        node = self._source(item, scope)
        alias = item.args.get("alias")
        if alias is not None and alias.args.get("columns"):
            scope.rename(alias.name, [name.name for name in alias.args["columns"]])
        return node

    def _source(self, item: exp.Expr, scope: Scope) -> Node:
        if isinstance(item, exp.Subquery):
            alias = item.alias
            return self._derived(item.this, alias or "$subquery", scope)
        if isinstance(item, exp.Unnest):
            raise self.refuse(f"{text_of(item)} stands first in FROM: there is no stream that it follows", "Join it to a table.")
        call = window_call(item)
        if call is not None:
            return bind_windows(self, item, call, scope)
        if not isinstance(item, exp.Table) or not isinstance(item.this, exp.Identifier):
            raise self.refuse(f"{text_of(item)} cannot be read", "Read from a table, a view or a subquery.")
        if item.args.get("version") is not None:
            raise self.refuse(
                f"FOR SYSTEM_TIME AS OF on {item.name}: the first table of FROM is the stream itself", "Put it on the joined table."
            )
        named = self._named.get(item.name) if not item.db else None
        if named is not None:
            return self._named_query(named, alias_of(item), scope)
        name = table_name(item, self.default_database)
        view = self.catalog.view(name)
        if view is not None:
            return self._view(name, view, alias_of(item), scope)
        table = self.describe(name)
        if table.computed and not item.meta.get(STORED):
            return self._computed(table, item, scope)
        startup = parse_startup(self.check_table_hints(item, scan=True), table, self.where)
        return self._scan(table, alias_of(item), scope, startup)

    def _computed(self, table: TableDescriptor, item: exp.Table, scope: Scope) -> Node:
        """A table with computed columns, as a query over what it stores."""
        select = stored_select(table, self.where)
        for source in select.find_all(exp.Table):
            source.meta["hint"] = item.meta.get("hint", "")
        mark_calls(select, self.used_function)
        return self._derived(select, alias_of(item), scope)

    def used_function(self, name: str) -> FunctionDefinition | None:
        """The user's function of that name, which the statement is said to use."""
        found = self.catalog.function(name)
        if found is not None:
            self.used_functions[name] = found
        return found

    def _scan(self, table: TableDescriptor, alias: str, scope: Scope, startup: Startup | None) -> Scan:
        names, fields = table.column_names, table_fields(table, alias)
        if not table.has_primary_key:
            names, fields = (*names, PROCESSING_TIME), (*fields, Field(f"{alias}.{PROCESSING_TIME}", PROCTIME, nullable=False))
        if table.watermark is not None:
            mark = f"{MARK}{table.watermark.column}"
            names, fields = (*names, mark), (*fields, Field(f"{alias}.{mark}", TIMESTAMP3))
        scope.add(alias, names, fields)
        return Scan(table, alias, names, fields, self.next_id(), startup)

    def _named_query(self, named: _NamedQuery, alias: str, scope: Scope) -> Node:
        outer, self._named = self._named, named.visible
        try:
            return self._derived(named.tree, alias, scope, named.columns)
        finally:
            self._named = outer

    def _view(self, name: str, view: ViewDefinition, alias: str, scope: Scope) -> Node:
        if name in self._views:
            raise self.refuse(f"view {name} reads itself", "Define it over tables.")
        self._views.append(name)
        self.used_views[name] = view
        database, self.default_database = self.default_database, view.database
        named, self._named = self._named, {}
        try:
            return self._derived(self._parsed(view.sql, f"view {name}"), alias, scope, view.columns)
        finally:
            self._views.pop()
            self.default_database, self._named = database, named

    def _derived(self, tree: exp.Expr, alias: str, scope: Scope, renamed: tuple[str, ...] | None = None) -> Node:
        node, names = self.query(as_relation(tree), prefix=f"{alias}.")
        passed = names[-1:] if names[-1] == PROCESSING_TIME else ()
        if renamed is not None and len(renamed) != len(names) - len(passed):
            raise self.refuse(f"view {alias} names {len(renamed)} columns, its SELECT has {len(names) - len(passed)}", "Name as many.")
        scope.add(alias, (*renamed, *passed) if renamed is not None else names, node.fields)
        return node

    def describe(self, name: str) -> TableDescriptor:
        table = self.catalog.table(name)
        if table is None:
            alike = difflib.get_close_matches(name, dict.fromkeys(self.catalog.names()), n=3)
            hint = f"Did you mean {' or '.join(alike)}?" if alike else "SHOW TABLES lists the tables; names are database.table."
            raise UnknownTable(f"there is no table {name}", where=self.where, next_step=hint)
        return table

    def check_table_hints(self, item: exp.Table, *, scan: bool) -> dict[str, str]:
        """The hints behind a table's name. Errors: StatementRefused for one that is not known."""
        hints = table_hints(item, self.where)
        for key in hints:
            if key in INERT_TABLE_HINTS:
                self.notices.append(f"hint '{key}' has no effect here")
            elif key not in (STARTUP_HINTS if scan else LOOKUP_HINTS):
                raise self.refuse(f"the hint '{key}' on {item.name} is not known", "Leave it out; docs/sql.md lists the hints.")
        return hints

    # expressions

    def expressions(self, scope: Scope) -> ExpressionBinder:
        return ExpressionBinder(scope.resolve, where=self.where)

    def _filter(self, node: Node, condition: exp.Expr, scope: Scope) -> Node:
        if has_calls(condition):
            raise self.refuse(f"WHERE {text_of(condition)} uses an aggregate", "Use HAVING.")
        parts = conjuncts(condition)
        plain = [part for part in parts if not has_subquery(part)]
        if plain:
            bound = self.expressions(scope).condition(exp.and_(*plain) if len(plain) < len(parts) else condition)
            node = Calc(node, tuple((item, column(item.name)) for item in node.fields), bound)
        for part in parts:
            if part in plain:
                continue
            subqueries = Subqueries(self, scope)
            filtered = subqueries.filtered(node, part)
            if filtered is None:
                bound = ExpressionBinder(scope.resolve, where=self.where, intercept=subqueries.intercept()).condition(part)
                node = subqueries.applied(node)
                filtered = Calc(node, tuple((item, column(item.name)) for item in node.fields), bound)
            node = filtered
        return node

    def _expand_stars(self, select: exp.Select, scope: Scope, *, with_times: bool) -> list[exp.Expr]:
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
            owned = [
                exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(alias, quoted=True) if alias else None)
                for alias, name, kind in (scope.shown() if star_of == "" else scope.columns_of(star_of))
                if with_times or kind != PROCTIME
            ]
            if not owned:
                raise self.refuse(f"{star_of}.*: no table in FROM is called {star_of}", "Use an alias of FROM.")
            items.extend(owned)
        return items

    def refuse(self, what: str, next_step: str) -> StatementRefused:
        return StatementRefused(what, where=self.where, next_step=next_step)


def table_fields(table: TableDescriptor, alias: str, *, nullable: bool = False) -> tuple[Field, ...]:
    """The columns of a table as fields "alias.column"; `nullable`: all of them, as behind an outer join."""
    return tuple(
        Field(f"{alias}.{item.name}", parse_type(item.type), nullable or (item.nullable and item.name not in table.primary_key))
        for item in table.columns
    )


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
