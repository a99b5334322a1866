"""Calls: aggregates, with OVER or without, in DuckDB's words and with Flink's types.

The aggregates of jobs read the call, type it and refuse it, so that a query cannot mean something else by the same text. Beyond
jobs, DuckDB orders the texts of LISTAGG and ARRAY_AGG, and its own aggregates (MEDIAN, MODE ...) go through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, render
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.aggregate_syntax import JOINED, call_name, read_call
from storage_engine.stream.functions.aggregates import NAMES, NOT_MAINTAINED, CallBuilder
from storage_engine.stream.functions.builtins import Value

Bind = Callable[[exp.Expr], Value]

_NUMBERS: Final = {
    "ROW_NUMBER": types.BIGINT, "RANK": types.BIGINT, "DENSE_RANK": types.BIGINT, "NTILE": types.BIGINT,
    "PERCENT_RANK": types.DOUBLE, "CUME_DIST": types.DOUBLE,
}  # fmt: skip
_NEIGHBOURS: Final = ("LAG", "LEAD")
_ENDS: Final = ("FIRST_VALUE", "LAST_VALUE")
_PICKS: Final = ("NTH_VALUE", *_NEIGHBOURS, *_ENDS)
_NULLS: Final = (exp.IgnoreNulls, exp.RespectNulls)


def bind_aggregate(node: exp.Expr, bind: Bind) -> Value | None:
    """The value of an aggregate call, with FILTER or WITHIN GROUP or without; None for any other node.

    bind  binds its arguments: expressions over the rows of FROM
    Errors: StatementRefused, as a job refuses the call.
    """
    return _aggregate(node, bind, None)


def bind_window(node: exp.Window, bind: Bind) -> Value:
    """The value of f(...) OVER (...). `bind` binds what stands in it: over groups, aggregates too. Errors: StatementRefused."""
    frame = window_frame(node, bind)
    made = _aggregate(node.this, bind, frame) if _called(node.this) not in _ENDS else None
    return made or _function(node, bind, frame)


def window_frame(node: exp.Window, bind: Bind) -> exp.Window:
    """What stands behind OVER, or the definition of a named window, with its expressions bound."""
    made = node.copy()
    made.set("partition_by", [bind(item).ast for item in node.args.get("partition_by") or []])
    if made.args.get("order") is not None:
        made.set("order", exp.Order(expressions=_bound_order(node.args["order"].expressions, bind)))
    return made


def _bound_order(items: Sequence[exp.Expr], bind: Bind) -> list[exp.Expr]:
    made = [item.copy() for item in items]
    for item in made:
        item.set("this", bind(item.this).ast)
    return made


def _called(node: exp.Expr) -> str:
    """The name of a call, whatever is put around it."""
    inner = node
    while isinstance(inner, exp.Filter | exp.WithinGroup | exp.IgnoreNulls | exp.RespectNulls):
        inner = inner.this
    return call_name(inner)


def _aggregate(node: exp.Expr, bind: Bind, frame: exp.Window | None) -> Value | None:
    name = _called(node)
    if name in NOT_MAINTAINED:
        raise StatementRefused(f"{text_of(node)}: {NOT_MAINTAINED[name]}", where="query", next_step="Use ARRAY_AGG.")
    if name not in NAMES:
        return None
    call, condition = (node.this, bind(node.expression.this).ast) if isinstance(node, exp.Filter) else (node, None)
    call, order = _taken_order(call, name)
    if not isinstance(call, exp.Anonymous):
        raise StatementRefused(f"{text_of(node)} is not understood", where="query", next_step="Write the aggregate alone.")
    written = read_call(call, "query")
    argument = None if written.argument is None else bind(written.argument)
    made = CallBuilder(retracting=False, where="query", order=()).call(
        name, argument, distinct=written.distinct, condition=condition, text=text_of(node), separator=written.separator
    )
    listed = _bound_order(order, bind)
    totals = {item.name: _over(_ordered(item.total(), listed), frame) for item in made.needs}
    tree = made.finish.transform(lambda part: totals[part.name].copy() if isinstance(part, exp.Column) and part.name in totals else part)
    tree = tree.transform(_without_bytes_between, copy=False)
    if frame is not None and made.type.is_known:
        return Value(cast(tree, made.type.duckdb), made.type, nullable=True)
    return Value(exp.Paren(this=tree), made.type, made.nullable)


def _without_bytes_between(node: exp.Expr) -> exp.Expr:
    """The number of members of a union, without the union's bytes being written and read again."""
    union = node.expressions[0] if call_name(node) == "RB_CARDINALITY" else None
    return render("rb_or_all_cardinality(_0)", *union.expressions) if union is not None and call_name(union) == "RB_OR_ALL" else node


def _taken_order(call: exp.Expr, name: str) -> tuple[exp.Expr, list[exp.Expr]]:
    """The call without the order of its rows, and that: LISTAGG(x, ',' ORDER BY y), or LISTAGG(x, ',') WITHIN GROUP (ORDER BY y)."""
    if name not in (*JOINED, "ARRAY_AGG"):
        return call, []
    if isinstance(call, exp.WithinGroup):
        return call.this, call.expression.expressions
    last = call.expressions[-1] if call.expressions else None
    if not isinstance(last, exp.Order):
        return call, []
    plain = call.copy()
    plain.set("expressions", [*call.expressions[:-1], last.this])
    return plain, last.expressions


def _ordered(total: exp.Expr, order: list[exp.Expr]) -> exp.Expr:
    listed = total.find(exp.ArrayAgg) if order else None
    if listed is not None:
        listed.set("this", exp.Order(this=listed.this, expressions=order))
    return total


def _over(total: exp.Expr, frame: exp.Window | None) -> exp.Expr:
    """The aggregate over a window: inside the CAST and the functions that are put around it, outside its FILTER."""
    if frame is None:
        return total
    inner = total.find(exp.Filter, exp.AggFunc)
    assert inner is not None, "a total has an aggregate"
    made = frame.copy()
    made.set("this", inner.copy())
    if inner is total:
        return made
    inner.replace(made)
    return total


def _function(node: exp.Window, bind: Bind, frame: exp.Window) -> Value:
    """A function of windows alone: by its name in Flink's types; what is not known here goes through as it is."""
    call, nulls = node.this, None
    if isinstance(call, _NULLS):  # f(x) IGNORE NULLS OVER (...)
        call, nulls = call.this, type(call)
    name = call_name(call)
    if not name:
        return Value(frame, types.UNKNOWN)
    arguments = list(call.expressions)
    if arguments and isinstance(arguments[0], _NULLS):  # f(x IGNORE NULLS) OVER (...)
        nulls, arguments[0] = type(arguments[0]), arguments[0].this
    bound = [Value(item, types.UNKNOWN) if isinstance(item, exp.Star) else bind(item) for item in arguments]
    trees = [item.ast for item in bound]
    result = _NUMBERS.get(name, types.UNKNOWN)
    if name in _PICKS and bound:
        result = bound[0].type
        if name in _NEIGHBOURS and len(bound) == 3 and result.is_known:
            trees[2] = cast(trees[2], result.duckdb)
        nulls = nulls or (exp.IgnoreNulls if name in _ENDS else None)  # as Flink's do
    made = render(f"{name.lower()}({', '.join(f'_{i}' for i in range(len(trees)))})", *trees) if trees else call.copy()
    frame.set("this", made if nulls is None else nulls(this=made))
    return Value(frame, result)
