"""Group binding: GROUP BY, its grouping sets and the aggregate calls above it into an Aggregate.

Grouping sets (GROUPING SETS, CUBE, ROLLUP, and lists of them) become one Expand below one Aggregate: each row counts once per set,
and the set's mark is a key of the group, so that a rolled-up NULL and a NULL of the data are two groups, as in Flink.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.render import column, render, sql
from storage_engine.stream.dialect.sqltypes import BIGINT
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions import aggregates
from storage_engine.stream.functions.aggregate_syntax import call_name, read_call
from storage_engine.stream.functions.aggregates import Call, CallBuilder
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.operators.compile import POSITION
from storage_engine.stream.plan.tree import Aggregate, Calc, Expand, Field, Node, is_positioned
from storage_engine.stream.planning.bind_emission import emitted_once

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope

GROUPING_SETS_MAX = 128
"""Each set is one more copy of every input row; a CUBE of seven columns reaches it."""
_GROUPING = ("GROUPING", "GROUPING_ID")


def bind_groups(
    binder: Binder, node: Node, scope: Scope, items: list[exp.Expr], group: exp.Group | None, having: exp.Having | None
) -> tuple[Node, list[Value], exp.Expr | None]:
    """The aggregate, the SELECT list over its fields, and the condition of HAVING. Errors: StatementRefused."""
    from storage_engine.stream.planning.bind_subquery import Subqueries

    keys, sets = _Keys(binder, scope, items), [()]
    if group is not None:
        sets = _grouping_sets(binder, keys, group)
    mark: Field | None = None
    if sets != [tuple(range(len(keys.found)))]:
        node, mark = _expanded(binder, node, keys, sets)
    plain = binder.expressions(scope)
    order = POSITION if is_positioned(node) else None
    builder = CallBuilder(retracting=node.is_retracting, where=binder.where, order=order, adds_wide=binder.adds_wide)
    calls = _CallCollector(plain, builder, keys, mark, binder.where)
    subqueries = Subqueries(binder, scope)
    above = ExpressionBinder(scope.resolve, where=binder.where, intercept=subqueries.intercept(calls.intercept))
    subqueries.use(above.bind)
    values = [above.bind(unaliased(item)) for item in items]
    condition = above.condition(having.this) if having is not None else None
    if node.is_retracting:
        calls.builder.rows()
    by: list[tuple[Field, exp.Expr]] = list(keys.found)
    if mark is not None:
        by = [(Field(item.name, item.type), column(item.name)) for item, _ in keys.found]
        by.append((mark, column(mark.name)))
    keeps_rows = calls.builder.keeps_rows
    if keeps_rows:
        node, by = _with_key_fields(node, by)
    made = Aggregate(node, tuple(by), tuple(calls.builder.accumulators), tuple(calls.found), binder.next_id(), keeps_rows)
    return subqueries.applied(emitted_once(binder, made)), values, condition


def _with_key_fields(node: Node, by: list[tuple[Field, exp.Expr]]) -> tuple[Node, list[tuple[Field, exp.Expr]]]:
    """The input with a field for each key: kept rows are found by fields."""
    computed = [(Field(f"$g{i}", item.type, item.nullable), tree) for i, (item, tree) in enumerate(by) if not isinstance(tree, exp.Column)]
    if not computed:
        return node, by
    names = {id(tree): item.name for item, tree in computed}
    keys: list[tuple[Field, exp.Expr]] = [(item, column(names[id(tree)]) if id(tree) in names else tree) for item, tree in by]
    return Calc(node, (*((item, column(item.name)) for item in node.fields), *computed)), keys


class _Keys:
    """The distinct keys of a GROUP BY, as fields of the aggregate."""

    def __init__(self, binder: Binder, scope: Scope, items: list[exp.Expr]) -> None:
        self.found: list[tuple[Field, exp.Expr]] = []
        self._by_text: dict[str, int] = {}
        self._binder = binder
        self._scope = scope
        self._items = items
        self._plain = binder.expressions(scope)

    def add(self, written: exp.Expr) -> int:
        """The number of the key that `written` is."""
        value = self._plain.bind(self._meant(written))
        known = self._by_text.get(sql(value.ast))
        if known is None:
            known = self._by_text[sql(value.ast)] = len(self.found)
            name = value.ast.name if isinstance(value.ast, exp.Column) else f"k{known}"
            self.found.append((Field(name, value.type, value.nullable), value.ast))
        return known

    def field_of(self, tree: exp.Expr) -> Field | None:
        known = self._by_text.get(sql(tree))
        return None if known is None else self.found[known][0]

    def number_of(self, tree: exp.Expr) -> int | None:
        return self._by_text.get(sql(tree))

    def renamed(self) -> None:
        """Give every key a name of its own: behind an Expand it is not the input's field any more."""
        self.found = [(Field(f"k{i}${item.name}", item.type, item.nullable), tree) for i, (item, tree) in enumerate(self.found)]

    def _meant(self, written: exp.Expr) -> exp.Expr:
        """A key as written, by position (GROUP BY 1), or by the alias of a selected expression."""
        if isinstance(written, exp.Literal) and not written.is_string:
            position = int(written.name)
            if not 1 <= position <= len(self._items):
                raise self._binder.refuse(f"GROUP BY {position}: there are {len(self._items)} columns", "Use a position from 1.")
            return unaliased(self._items[position - 1])
        if isinstance(written, exp.Column) and not written.table and all(name != written.name for _, name, _ in self._scope.columns):
            for item in self._items:
                if item.alias == written.name:
                    return unaliased(item)
        return written


def _grouping_sets(binder: Binder, keys: _Keys, group: exp.Group) -> list[tuple[int, ...]]:
    """The grouping sets of GROUP BY: each element gives some, and every combination of them is one."""
    elements = [_sets_of(keys, element) for element in group.expressions]
    count = 1
    for sets in elements:
        count *= len(sets)
    if count > GROUPING_SETS_MAX:
        raise binder.refuse(
            f"GROUP BY has {count} grouping sets: every row would be counted as often", f"Keep to {GROUPING_SETS_MAX} grouping sets."
        )
    combined = [tuple(dict.fromkeys(itertools.chain(*chosen))) for chosen in itertools.product(*elements)]
    if len({frozenset(item) for item in combined}) < len(combined):
        raise binder.refuse("GROUP BY names a grouping set twice: its rows could not be told apart", "Name each set once.")
    return combined


def _sets_of(keys: _Keys, element: exp.Expr) -> list[tuple[int, ...]]:
    if isinstance(element, exp.GroupingSets):
        return [item for part in element.expressions for item in _sets_of_part(keys, part)]
    if isinstance(element, exp.Rollup):
        parts = [_columns_of_part(keys, part) for part in element.expressions]
        return [tuple(itertools.chain(*parts[:n])) for n in range(len(parts), -1, -1)]
    if isinstance(element, exp.Cube):
        parts = [_columns_of_part(keys, part) for part in element.expressions]
        chosen = [[part for part, used in zip(parts, mask, strict=True) if used] for mask in itertools.product((1, 0), repeat=len(parts))]
        return [tuple(itertools.chain(*item)) for item in chosen]
    return [_columns_of_part(keys, element)]


def _sets_of_part(keys: _Keys, part: exp.Expr) -> list[tuple[int, ...]]:
    is_nested = isinstance(part, exp.GroupingSets | exp.Rollup | exp.Cube)
    return _sets_of(keys, part) if is_nested else [_columns_of_part(keys, part)]


def _columns_of_part(keys: _Keys, part: exp.Expr) -> tuple[int, ...]:
    if isinstance(part, exp.Tuple):
        return tuple(keys.add(item) for item in part.expressions)
    return (keys.add(part.this if isinstance(part, exp.Paren) else part),)


def _expanded(binder: Binder, node: Node, keys: _Keys, sets: list[tuple[int, ...]]) -> tuple[Expand, Field]:
    keys.renamed()
    mark = Field(f"grouping${binder.next_id()}", BIGINT, nullable=False)
    return Expand(node, tuple(keys.found), tuple(sets), mark), mark


class _CallCollector:
    """Binds what stands above a GROUP BY: group keys and aggregate calls become fields of the Aggregate."""

    def __init__(self, plain: ExpressionBinder, builder: CallBuilder, keys: _Keys, mark: Field | None, where: str) -> None:
        self.builder = builder
        self.found: list[tuple[Field, Call]] = []
        self._plain = plain
        self._keys = keys
        self._mark = mark
        self._where = where

    def intercept(self, node: exp.Expr) -> Value | None:
        if isinstance(node, exp.Literal | exp.Boolean | exp.Null | exp.Interval):
            return None
        filtered = node.this if isinstance(node, exp.Filter) else node
        name = call_name(filtered)
        if name in aggregates.NOT_MAINTAINED:
            raise StatementRefused(
                f"{text_of(node)}: {aggregates.NOT_MAINTAINED[name]}",
                where=self._where,
                next_step="Use SUM, COUNT, MIN, MAX, AVG or bitmaps.",
            )
        if name in aggregates.NAMES:
            return self._call(name, node, filtered)
        if name in _GROUPING:
            return self._grouping(node)
        if not has_calls(node):
            bound = self._plain.bind(node)
            item = self._keys.field_of(bound.ast)
            if item is not None:
                return Value(column(item.name), item.type, item.nullable or self._mark is not None)
            if isinstance(node, exp.Column):
                raise StatementRefused(
                    f"column {text_of(node)} is neither in GROUP BY nor inside an aggregate",
                    where=self._where,
                    next_step="Add it to GROUP BY.",
                )
        return None

    def _grouping(self, node: exp.Expr) -> Value:
        """GROUPING(a, b): the bits of its arguments, the last one lowest; 1 where the row's grouping set leaves the key out."""
        n_keys = len(self._keys.found)
        numbers = [self._keys.number_of(self._plain.bind(argument).ast) for argument in node.expressions]
        if self._mark is not None and numbers == list(range(n_keys)):
            return Value(column(self._mark.name), BIGINT, nullable=False)
        tree: exp.Expr | None = None
        for position, (argument, key) in enumerate(zip(node.expressions, numbers, strict=True)):
            if key is None:
                what = f"{text_of(node)}: {text_of(argument)} is not a key of GROUP BY"
                raise StatementRefused(what, where=self._where, next_step="Name its keys.")
            bit = exp.Literal.number(0)
            if self._mark is not None:
                bit = render(f"((_0 >> {n_keys - 1 - key}) & 1) << {len(node.expressions) - 1 - position}", column(self._mark.name))
            tree = bit if tree is None else render("_0 | _1", tree, bit)
        if tree is None:
            raise StatementRefused(f"{text_of(node)} takes keys of GROUP BY", where=self._where, next_step="Name keys.")
        return Value(render("CAST(_0 AS BIGINT)", tree), BIGINT, nullable=False)

    def _call(self, name: str, node: exp.Expr, call: exp.Expr) -> Value:
        written = read_call(call, self._where)
        argument = None if written.argument is None else self._plain.bind(written.argument)
        condition = self._plain.condition(node.expression.this) if isinstance(node, exp.Filter) else None
        made = self.builder.call(
            name, argument, distinct=written.distinct, condition=condition, text=text_of(node), separator=written.separator
        )
        for item, known in self.found:
            if sql(known.finish) == sql(made.finish):
                return Value(column(item.name), item.type, item.nullable)
        item = Field(f"c{len(self.found)}", made.type, made.nullable)
        self.found.append((item, made))
        return Value(column(item.name), item.type, item.nullable)


def has_calls(node: exp.Expr) -> bool:
    """True when an aggregate stands in the expression."""
    names = (*aggregates.NAMES, *aggregates.NOT_MAINTAINED, *_GROUPING)
    own = node.walk(prune=lambda item: isinstance(item, exp.Query))  # those of a subquery are its own
    return any(isinstance(item, exp.Anonymous) and call_name(item) in names and not _is_windowed(item) for item in own)


def _is_windowed(call: exp.Expr) -> bool:
    """True for the function of f(...) OVER (...), which is no aggregate."""
    return isinstance(call.parent, exp.Window) and call.arg_key == "this"


def unaliased(item: exp.Expr) -> exp.Expr:
    """A selected expression without its AS."""
    return item.this if isinstance(item, exp.Alias) else item
