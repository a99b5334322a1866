"""Subquery binding: IN, EXISTS and scalar subqueries into joins with what they read.

    WHERE x IN (SELECT y ...), EXISTS (...)    a semi join: the left rows that have a match
    NOT EXISTS (...), NOT IN                   an anti join; NOT IN over values that may be NULL also joins with "is there a NULL": one is
                                               enough to make every answer unknown, and an empty subquery lets everything through
    (SELECT SUM(v) ...) anywhere               a left join with the one row that the subquery gives
    IN and EXISTS as a value (CASE, OR)        a left join with the distinct values, and the answer computed from the match

A subquery may name columns of the query around it in equalities of its WHERE; they become keys of the join. EXISTS and IN as conditions
take any further comparison of both as well.
Holds: answers are SQL's, with its three truth values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, column, paren, render
from storage_engine.stream.dialect.sqltypes import common_type
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.aggregates import CallBuilder
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder, Intercept
from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, Field, JoinKind, Node
from storage_engine.stream.planning.bind_delta import conjuncts, extended, join_side, key_field
from storage_engine.stream.planning.bind_group import has_calls, unaliased

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope

Bind = Callable[[exp.Expr], Value]
_ZERO_WHEN_EMPTY = ("COUNT", "SUM0", "APPROX_COUNT_DISTINCT")


def has_subquery(tree: exp.Expr) -> bool:
    """True when a query stands in an expression."""
    return tree.find(exp.Query) is not None


@dataclass(frozen=True)
class _Inner:
    """A bound subquery: the fields that meet outer values (`keys`), and those that it selects."""

    node: Node
    keys: tuple[tuple[Value, Field], ...]
    selected: tuple[Field, ...]
    residual: tuple[exp.Expr, ...] = ()
    scope: Scope | None = None


class Subqueries:
    """The subqueries of one clause. `bind` binds an expression of the query around them.

    Conditions are joined by `filtered`; values are bound by `intercept`, and `applied` joins what they need.
    """

    def __init__(self, binder: Binder, scope: Scope, bind: Bind | None = None) -> None:
        self._binder = binder
        self._scope = scope
        self._bind: Bind = bind or binder.expressions(scope).bind
        self._joins: list[Callable[[Node], Node]] = []

    def use(self, bind: Bind) -> None:
        """What binds expressions around the subqueries from now on."""
        self._bind = bind

    def applied(self, node: Node) -> Node:
        """The node with everything joined that the intercepted subqueries need."""
        for join in self._joins:
            node = join(node)
        return node

    # conditions

    def filtered(self, node: Node, part: exp.Expr) -> Node | None:
        """The rows of `node` that meet a condition, when it is EXISTS, IN, or NOT of one; else None."""
        is_not = False
        while isinstance(part, exp.Paren | exp.Not):
            is_not ^= isinstance(part, exp.Not)
            part = part.this
        kind: JoinKind = "ANTI" if is_not else "SEMI"
        if isinstance(part, exp.Exists):
            inner = self._inner(part.this, selects=False)
            return self._joined(node, inner, inner.keys, kind)
        if isinstance(part, exp.In) and part.args.get("query") is not None:
            value = self._bind(part.this)
            inner = self._of_in(part)
            keys = (*inner.keys, (value, inner.selected[0]))
            joined = self._joined(node, inner, keys, kind)
            if is_not and (value.nullable or inner.selected[0].nullable):
                joined, nulls = self._with_nulls(joined, part)
                condition = render("_0 IS NULL OR (NOT _0 AND _1 IS NOT NULL)", column(nulls.name), value.ast)
                return Calc(joined, tuple((item, column(item.name)) for item in joined.fields), condition)
            return joined
        return None

    # values

    def intercept(self, otherwise: Intercept | None = None) -> Intercept:
        """Binds subqueries in expressions; what is none goes to `otherwise`."""

        def take(node: exp.Expr) -> Value | None:
            if isinstance(node, exp.Subquery):
                return self._scalar(node)
            if isinstance(node, exp.Exists):
                return self._exists_value(node)
            if isinstance(node, exp.In) and node.args.get("query") is not None:
                return self._in_value(node)
            return otherwise(node) if otherwise is not None else None

        return take

    def _scalar(self, node: exp.Subquery) -> Value:
        what = text_of(node)
        inner = self._inner(node.this, selects=True)
        if len(inner.selected) != 1:
            raise self._binder.refuse(f"{what} has {len(inner.selected)} columns, a value has one", "Select one column.")
        self._refuse_residual(inner.residual, what)
        unique = inner.node.unique_key
        if unique is None or not set(unique) <= {item.name for _, item in inner.keys}:
            raise self._binder.refuse(
                f"{what} may give several rows, and a value is one",
                "Aggregate (MAX, COUNT, ...), or compare the whole primary key of its table by =.",
            )
        found = inner.selected[0]
        self._joins.append(lambda outer: self._joined(outer, inner, inner.keys, "LEFT"))
        select = node.this
        item = unaliased(select.expressions[0]) if isinstance(select, exp.Select) else None
        name = str(item.this).upper() if isinstance(item, exp.Anonymous) else ""
        if name in _ZERO_WHEN_EMPTY and not select.args.get("group"):
            return Value(render("COALESCE(_0, 0)", column(found.name)), found.type, nullable=False)
        return Value(column(found.name), found.type)

    def _exists_value(self, node: exp.Exists) -> Value:
        inner = self._inner(node.this, selects=False)
        self._refuse_residual(inner.residual, text_of(node))
        mark = self._mark(inner, inner.keys)
        return Value(render("_0 IS NOT NULL", column(mark.name)), types.BOOLEAN, nullable=False)

    def _in_value(self, node: exp.In) -> Value:
        value = self._bind(node.this)
        inner = self._of_in(node)
        self._refuse_residual(inner.residual, text_of(node))
        mark = self._mark(inner, (*inner.keys, (value, inner.selected[0])))
        if not (value.nullable or inner.selected[0].nullable):
            return Value(render("_0 IS NOT NULL", column(mark.name)), types.BOOLEAN, nullable=False)
        nulls = self._nulls(node)
        self._joins.append(lambda outer: self._joined(outer, nulls, nulls.keys, "LEFT"))
        template = "CASE WHEN _0 IS NOT NULL THEN TRUE WHEN _1 IS NULL THEN FALSE WHEN _1 OR _2 IS NULL THEN NULL ELSE FALSE END"
        return Value(render(template, column(mark.name), column(nulls.selected[0].name), value.ast), types.BOOLEAN)

    def _mark(self, inner: _Inner, keys: tuple[tuple[Value, Field], ...]) -> Field:
        """A field that is not NULL where the subquery has a row for the keys."""
        mark = Field(f"$m{self._binder.next_id()}", types.BOOLEAN, nullable=False)
        once = self._distinct(inner, keys)
        listed = tuple((item, column(item.name)) for item in once.fields)
        marked = _Inner(Calc(once, (*listed, (mark, exp.Boolean(this=True)))), keys, inner.selected)
        self._joins.append(lambda outer: self._joined(outer, marked, keys, "LEFT"))
        return mark

    # NOT IN and NULL

    def _with_nulls(self, node: Node, part: exp.In) -> tuple[Node, Field]:
        nulls = self._nulls(part)
        return self._joined(node, nulls, nulls.keys, "LEFT"), nulls.selected[0]

    def _nulls(self, part: exp.In) -> _Inner:
        """Per key of the correlation: is there a NULL among the subquery's values; no row where there are no values at all."""
        inner = self._of_in(part)
        self._refuse_residual(inner.residual, text_of(part))
        node = inner.node
        of = inner.selected[0]
        calls = CallBuilder(retracting=node.is_retracting, where=self._binder.where)
        rows = calls.rows()
        valued = calls.call("COUNT", Value(column(of.name), of.type, of.nullable), distinct=False, condition=None, text="COUNT")
        fields = tuple(dict.fromkeys(item for _, item in inner.keys))
        number = self._binder.next_id()
        total, present = Field(f"$n{number}", types.BIGINT, nullable=False), Field(f"$p{number}", types.BIGINT, nullable=False)
        counted = calls.call("COUNT", None, distinct=False, condition=None, text="COUNT(*)")
        assert counted.needs == (rows,), "COUNT(*) is the group's rows"
        by = tuple((item, column(item.name)) for item in fields)
        grouped = Aggregate(node, by, tuple(calls.accumulators), ((total, counted), (present, valued)), self._binder.next_id())
        has_null = Field(f"$has_null{number}", types.BOOLEAN, nullable=False)
        listed = tuple((item, column(item.name)) for item in fields)
        made = Calc(grouped, (*listed, (has_null, render("_0 > _1", column(total.name), column(present.name)))))
        return _Inner(made, inner.keys, (has_null,))

    # joins

    def _joined(self, node: Node, inner: _Inner, keys: tuple[tuple[Value, Field], ...], kind: JoinKind) -> Node:
        """`node` joined with the subquery where the values of `keys` are equal; with all of it when there are none."""
        binder = self._binder
        left: list[tuple[Field, exp.Expr]] = []
        right: list[tuple[Field, exp.Expr]] = []
        pairs: list[tuple[str, str]] = []
        for value, item in keys or ((Value(cast(exp.Literal.number(1), "INT"), types.INT, nullable=False), None),):
            of = item.type if item is not None else types.INT
            common = common_type([value.type, of])
            if common == types.UNKNOWN:
                raise binder.refuse(f"a subquery's {of} is compared with {value.type}", "CAST one side.")
            other = Value(column(item.name), item.type, item.nullable) if item is not None else value
            pairs.append((key_field(binder, left, value, common), key_field(binder, right, other, common)))
        residual: exp.Expr | None = None
        for part in inner.residual:
            bound = self._residual(part, inner)
            residual = bound if residual is None else exp.And(this=paren(residual), expression=paren(bound))
        asked = extended(inner.node, right)
        only_grows = kind == "SEMI" and not node.is_retracting and not asked.is_retracting  # and may be appended to a log
        if kind in ("SEMI", "ANTI") and residual is None and not only_grows:
            asked = self._distinct_on(asked, tuple(name for _, name in pairs))
        sides = (
            join_side(binder, extended(node, left), tuple(name for name, _ in pairs)),
            join_side(binder, asked, tuple(name for _, name in pairs)),
        )
        return DeltaJoin(*sides, residual, kind, binder.next_id())

    def _distinct(self, inner: _Inner, keys: Sequence[tuple[Value, Field]]) -> Node:
        fields = tuple(dict.fromkeys(item for _, item in keys))
        return self._binder.distinct(Calc(inner.node, tuple((item, column(item.name)) for item in fields)))

    def _distinct_on(self, node: Node, names: tuple[str, ...]) -> Node:
        """The values under these names, each once: a match counts once, and only a first or last one is news to the join."""
        unique = node.unique_key
        if unique is not None and set(unique) <= set(names):
            return node
        by_name = {item.name: item for item in node.fields}
        kept = Calc(node, tuple((by_name[name], column(name)) for name in dict.fromkeys(names)))
        return self._binder.distinct(kept)

    def _residual(self, part: exp.Expr, inner: _Inner) -> exp.Expr:
        assert inner.scope is not None, "only a correlated subquery has further conditions"
        scope, own = self._scope, inner.scope
        aliases, names = _names(own)

        def resolve(node: exp.Column) -> Value:
            is_inner = node.table in aliases if node.table else node.name in names
            if not is_inner:
                return scope.resolve(node)
            value = own.resolve(node)
            return Value(column(_carried(inner, value.ast.name)), value.type, value.nullable)

        return ExpressionBinder(resolve, where=self._binder.where).condition(part)

    def _refuse_residual(self, residual: Sequence[exp.Expr], what: str) -> None:
        if residual:
            raise self._binder.refuse(
                f"{what}: {text_of(residual[0])} compares with the query around it by more than equality",
                "Compare by = there; or use EXISTS or IN as a condition of WHERE on its own.",
            )

    # the inner query

    def _of_in(self, node: exp.In) -> _Inner:
        query = node.args["query"]
        inner = self._inner(query.this if isinstance(query, exp.Subquery) else query, selects=True)
        if len(inner.selected) != 1:
            raise self._binder.refuse(f"{text_of(node)}: the subquery has {len(inner.selected)} columns", "Select one column.")
        return inner

    def _inner(self, query: exp.Expr, *, selects: bool) -> _Inner:
        """The subquery as a relation of its own; equalities with the query around it become keys.

        selects  its SELECT list is wanted; EXISTS asks only whether there are rows
        """
        binder = self._binder
        while isinstance(query, exp.Subquery):
            query = query.this
        prefix = f"$q{binder.next_id()}."
        if not isinstance(query, exp.Select):
            node, _ = binder.query(query, prefix)
            return _Inner(node, (), node.fields)
        scope = binder.scope_of(query)
        pairs, residual, rest = self._split(query, scope)
        made = query.copy()
        made.set("where", exp.Where(this=exp.and_(*rest, copy=False)) if rest else None)
        is_aggregate = any(has_calls(item) for item in made.expressions) and not made.args.get("group")
        items = list(made.expressions) if selects else []
        if not selects:
            for clause in ("order", "limit", "distinct"):
                made.set(clause, None)
            if is_aggregate:  # one row, whatever there is
                raise binder.refuse(
                    f"EXISTS ({text_of(query)}) has a row for every aggregate: it is always true", "Leave the aggregate out."
                )
        if pairs and (made.args.get("limit") or made.args.get("distinct")):
            raise binder.refuse(f"({text_of(query)}): LIMIT or DISTINCT inside a correlated subquery", "Use MAX or MIN, or EXISTS.")
        if residual and is_aggregate:
            self._refuse_residual(residual, f"({text_of(query)})")
        keys = [exp.alias_(mine.copy(), f"$c{i}", quoted=True) for i, (_, mine) in enumerate(pairs)]
        carried = self._carried_columns(residual, scope)
        one = [exp.alias_(exp.Literal.number(1), "$one", quoted=True)] if not (keys or items or carried) else []
        made.set("expressions", [*keys, *items, *carried, *one])
        if pairs and (is_aggregate or made.args.get("group")):
            group = made.args.get("group") or exp.Group(expressions=[])
            group.set("expressions", [*group.expressions, *(mine.copy() for _, mine in pairs)])
            made.set("group", group)
        node, _ = binder.query(made, prefix)
        fields = node.fields
        bound = tuple((self._bind(outer), item) for (outer, _), item in zip(pairs, fields, strict=False))
        selected = fields[len(keys) : len(keys) + len(items)]
        return _Inner(node, bound, selected, tuple(residual), scope)

    def _split(self, query: exp.Select, scope: Scope) -> tuple[list[tuple[exp.Expr, exp.Expr]], list[exp.Expr], list[exp.Expr]]:
        """WHERE of a subquery: equalities (outer expression, inner expression), other conditions over both, and its own conditions."""
        where = query.args.get("where")
        pairs: list[tuple[exp.Expr, exp.Expr]] = []
        residual: list[exp.Expr] = []
        rest: list[exp.Expr] = []
        aliases, names = _names(scope)

        def owners(tree: exp.Expr) -> set[bool]:
            return {(c.table in aliases if c.table else c.name in names) for c in tree.find_all(exp.Column)}

        for part in conjuncts(where.this) if where is not None else ():
            if has_subquery(part) or False not in owners(part):
                rest.append(part)
            elif isinstance(part, exp.EQ) and (owners(part.this), owners(part.expression)) == ({False}, {True}):
                pairs.append((part.this, part.expression))
            elif isinstance(part, exp.EQ) and (owners(part.this), owners(part.expression)) == ({True}, {False}):
                pairs.append((part.expression, part.this))
            else:
                residual.append(part)
        return pairs, residual, rest

    def _carried_columns(self, residual: list[exp.Expr], scope: Scope) -> list[exp.Expr]:
        """The subquery's columns that its further conditions with the query around it read."""
        aliases, names = _names(scope)
        found: dict[str, exp.Expr] = {}
        for part in residual:
            for item in part.find_all(exp.Column):
                if item.table in aliases if item.table else item.name in names:
                    name = scope.resolve(item).ast.name
                    found[name] = exp.alias_(item.copy(), f"$r{name}", quoted=True)
        return list(found.values())


def _names(scope: Scope) -> tuple[set[str], set[str]]:
    return {alias for alias, _, _ in scope.columns}, {name for _, name, _ in scope.columns}


def _carried(inner: _Inner, name: str) -> str:
    return next(item.name for item in inner.node.fields if item.name.endswith(f".$r{name}"))
