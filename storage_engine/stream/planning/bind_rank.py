"""Rank binding: ROW_NUMBER() OVER (PARTITION BY ... ORDER BY ...) with a bound on it into a Rank (Top-N, deduplication).

The number is bound where it is selected; what bounds it stands above (WHERE rn <= 3 around a subquery, or QUALIFY). `bound_ranks` finds
the bound and refuses a number without one: every new row would move all rows behind it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import column
from storage_engine.stream.dialect.sqltypes import BIGINT
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.operators.compile import POSITION
from storage_engine.stream.plan.tree import Calc, DeltaJoin, Field, KeptSide, Node, Over, Rank, Scan, Session, Union, is_positioned
from storage_engine.stream.planning.bind_delta import stored_side
from storage_engine.stream.planning.bind_emission import emitted_at
from storage_engine.stream.planning.bind_over import bind_over, is_row_number

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope

UNBOUNDED = 0
"""The limit of a Rank whose bound has not been found yet."""


def windows_of(trees: list[exp.Expr]) -> list[exp.Window]:
    """The OVER expressions in a SELECT list, without repeats."""
    found: dict[str, exp.Window] = {}
    for tree in trees:
        for window in tree.find_all(exp.Window):
            found.setdefault(text_of(window), window)
    return list(found.values())


def bind_rank(binder: Binder, node: Node, scope: Scope, windows: list[exp.Window]) -> tuple[Rank | Over, dict[str, Value]]:
    """The rows with the window functions, and what each window's text is bound to. Errors: StatementRefused."""
    if not any(is_row_number(item) for item in windows):
        return bind_over(binder, node, scope, windows)
    window = windows[0]
    what = text_of(window)
    if len(windows) > 1:
        raise binder.refuse(f"{what} and {text_of(windows[1])} in one SELECT", "Number in one subquery, then compute in another around it.")
    if window.args.get("spec") is not None:
        raise binder.refuse(f"{what}: ROW_NUMBER takes no frame", "Leave ROWS or RANGE out.")
    order = window.args.get("order")
    if order is None:
        raise binder.refuse(f"{what} has no ORDER BY: which row is first would not be defined", "Add ORDER BY.")
    plain = binder.expressions(scope)
    extra: list[tuple[Field, exp.Expr]] = []

    def field_of(written: exp.Expr) -> str:
        value = plain.bind(written)
        if isinstance(value.ast, exp.Column):
            return value.ast.name
        extra.append((Field(f"$w{binder.next_id()}", value.type, value.nullable), value.ast))
        return extra[-1][0].name

    by = tuple(dict.fromkeys(field_of(item) for item in window.args.get("partition_by") or ()))
    orders = _by_arrival(binder, node, order, what) or tuple(
        (field_of(item.this), bool(item.args.get("desc")), bool(item.args.get("nulls_first"))) for item in order.expressions
    )
    if extra:
        node = Calc(node, (*((item, column(item.name)) for item in node.fields), *extra))
    side = stored_side(node, by) if by else None
    is_whole = not node.is_retracting and any(emitted_at(node, name) is not None for name in by)
    number = Field(f"$rank{binder.next_id()}", BIGINT, nullable=False)
    made = Rank(side or KeptSide(node, by, binder.next_id()), orders, UNBOUNDED, number, binder.next_id(), is_whole)
    return made, {what: Value(column(number.name), BIGINT, nullable=False)}


def _by_arrival(binder: Binder, node: Node, order: exp.Order, what: str) -> tuple[tuple[str, bool, bool], ...]:
    """The order of ORDER BY PROCTIME(): the places of the rows in their log. Empty for another order."""
    first = order.expressions[0]
    if not (isinstance(first.this, exp.Anonymous) and str(first.this.this).upper() == "PROCTIME"):
        return ()
    if len(order.expressions) > 1 or not is_positioned(node):
        raise binder.refuse(f"{what}: rows arrive in an order only in a log", "Order by columns.")
    return tuple((name, bool(first.args.get("desc")), False) for name in POSITION)


def bound_ranks(binder: Binder, node: Node) -> Node:
    """The tree with the limit of each Rank taken from the conditions above it. Errors: StatementRefused for a Rank without a bound."""
    return _bounded(binder, node, {})


def _bounded(binder: Binder, node: Node, bounds: dict[str, int]) -> Node:
    """`bounds`: field of the node -> the largest value that is let through above."""
    if isinstance(node, Calc):
        below = dict(_bounds_of(node.condition))
        for item, tree in node.projections:
            if item.name in bounds and isinstance(tree, exp.Column):
                below[tree.name] = min(bounds[item.name], below.get(tree.name, bounds[item.name]))
        return replace(node, input=_bounded(binder, node.input, below))
    if isinstance(node, Rank):
        side = replace(node.side, node=_bounded(binder, node.side.node, {}))
        limit = node.limit or (bounds.get(node.number.name, UNBOUNDED) if node.number is not None else UNBOUNDED)
        if limit == UNBOUNDED:
            raise binder.refuse(
                "ROW_NUMBER() has no bound: every new row would change the number of all rows behind it",
                "Keep the first rows: WHERE rn <= 10 around the subquery, or QUALIFY ROW_NUMBER() OVER (...) <= 10.",
            )
        return replace(node, side=side, limit=max(limit, 1))
    if isinstance(node, Session | Over):
        return replace(node, side=replace(node.side, node=_bounded(binder, node.side.node, {})))
    if isinstance(node, DeltaJoin):
        sides = [replace(side, node=_bounded(binder, side.node, {})) for side in node.sides]
        return replace(node, left=sides[0], right=sides[1])
    if isinstance(node, Union):
        return replace(node, branches=tuple(_bounded(binder, branch, bounds) for branch in node.branches))
    return node if isinstance(node, Scan) else replace(node, input=_bounded(binder, node.input, {}))


def _bounds_of(condition: exp.Expr | None) -> list[tuple[str, int]]:
    """(field, largest value) of comparisons of a field with a whole number, of those parts that must all be true."""
    if isinstance(condition, exp.Paren):
        return _bounds_of(condition.this)
    if isinstance(condition, exp.And):
        return _bounds_of(condition.this) + _bounds_of(condition.expression)
    if isinstance(condition, exp.Between):
        return _bounds_of(exp.LTE(this=condition.this, expression=condition.args["high"]))
    pairs: tuple[tuple[type[exp.Expr], type[exp.Expr], int], ...] = ((exp.LTE, exp.GTE, 0), (exp.LT, exp.GT, -1), (exp.EQ, exp.EQ, 0))
    for forward, backward, step in pairs:
        for kind, mine, other in ((forward, "this", "expression"), (backward, "expression", "this")):
            if isinstance(condition, kind):
                name, value = condition.args[mine], condition.args[other]
                if isinstance(name, exp.Column) and isinstance(value, exp.Literal) and not value.is_string and value.name.isdecimal():
                    return [(name.name, int(value.name) + step)]
    return []
