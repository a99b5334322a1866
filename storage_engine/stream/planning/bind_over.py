"""Over binding: SUM(x) OVER (PARTITION BY ... ORDER BY ... ROWS | RANGE ...), LAG, LEAD, FIRST_VALUE, LAST_VALUE into an Over.

A partition that a change touches is computed anew (docs/adr/0018): a late row changes the frames of the rows behind it, whenever it comes.
FIRST_VALUE and LAST_VALUE pass over nulls, as Flink's do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlglot import exp

from storage_engine.stream.dialect.render import cast, column, render
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.aggregates import Accumulator, CallBuilder
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.plan.tree import Calc, Field, KeptSide, Node, Over
from storage_engine.stream.plan.tree_time import OverCall
from storage_engine.stream.planning.bind_delta import stored_side

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope

_AGGREGATES: Final = ("COUNT", "SUM", "MIN", "MAX", "AVG")
_NEIGHBOURS: Final = ("LAG", "LEAD")
_ENDS: Final = ("FIRST_VALUE", "LAST_VALUE")
FUNCTIONS: Final = (*_AGGREGATES, *_NEIGHBOURS, *_ENDS)
_MS: Final = {"MILLISECOND": 1, "SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}


def is_row_number(window: exp.Window) -> bool:
    """True for ROW_NUMBER() OVER (...), which becomes a Rank."""
    return isinstance(window.this, exp.Anonymous) and str(window.this.this).upper() == "ROW_NUMBER" and not window.this.expressions


def bind_over(binder: Binder, node: Node, scope: Scope, windows: list[exp.Window]) -> tuple[Over, dict[str, Value]]:
    """The rows with the functions over them, and what each window's text is bound to. Errors: StatementRefused."""
    return _OverBinder(binder, node, scope, windows).bind()


class _OverBinder:
    def __init__(self, binder: Binder, node: Node, scope: Scope, windows: list[exp.Window]) -> None:
        self._binder = binder
        self._node = node
        self._windows = windows
        self._plain = binder.expressions(scope)
        self._extra: list[tuple[Field, exp.Expr]] = []
        self._calls: list[OverCall] = []
        self._values: list[tuple[Field, exp.Expr]] = []
        self._id = binder.next_id()

    def bind(self) -> tuple[Over, dict[str, Value]]:
        first = self._windows[0]
        shared = [
            (self._listed(item.args.get("partition_by") or []), text_of(item.args["order"])) for item in map(self._ordered, self._windows)
        ]
        if len(set(shared)) > 1:
            raise self._binder.refuse(
                f"{text_of(first)} and {text_of(self._windows[1])}: windows of one SELECT have one PARTITION BY and one ORDER BY",
                "Compute one in a subquery, the other around it.",
            )
        by = tuple(dict.fromkeys(self._field_of(item) for item in first.args.get("partition_by") or ()))
        order = tuple(
            (self._field_of(item.this), bool(item.args.get("desc")), bool(item.args.get("nulls_first")))
            for item in first.args["order"].expressions
        )
        bound = {text_of(window): self._value(window, len(order)) for window in self._windows}
        node = self._node
        if self._extra:
            node = Calc(node, (*((item, column(item.name)) for item in node.fields), *self._extra))
        side = (stored_side(node, by) if by else None) or KeptSide(node, by, self._binder.next_id())
        return Over(side, order, tuple(self._calls), tuple(self._values), self._id), bound

    def _listed(self, trees: list[exp.Expr]) -> str:
        return ", ".join(text_of(tree) for tree in trees)

    def _ordered(self, window: exp.Window) -> exp.Window:
        if window.args.get("order") is None:
            raise self._binder.refuse(
                f"{text_of(window)} has no ORDER BY: which rows are before a row would not be defined", "Add ORDER BY."
            )
        return window

    def _field_of(self, written: exp.Expr) -> str:
        value = self._plain.bind(written)
        if isinstance(value.ast, exp.Column):
            return value.ast.name
        self._extra.append((Field(f"$w{self._binder.next_id()}", value.type, value.nullable), value.ast))
        return self._extra[-1][0].name

    def _value(self, window: exp.Window, n_orders: int) -> Value:
        what = text_of(window)
        call = window.this
        name = str(call.this).upper() if isinstance(call, exp.Anonymous) else ""
        if name not in FUNCTIONS:
            raise self._binder.refuse(
                f"{what}: {name or text_of(call)} is not kept over a window", f"Known are ROW_NUMBER and {', '.join(FUNCTIONS)}."
            )
        if name in _NEIGHBOURS:
            if window.args.get("spec") is not None:
                raise self._binder.refuse(f"{what}: {name} takes no frame", "Leave ROWS or RANGE out.")
            return self._neighbour(name, call, what)
        frame, is_by_row = self._frame(window.args.get("spec"), n_orders, what)
        if name in _ENDS:
            if len(call.expressions) != 1:
                raise self._binder.refuse(f"{what}: {name} takes one argument", "Write the column.")
            argument = self._plain.bind(call.expressions[0])
            tree = render(f"{name.lower()}(_0 IGNORE NULLS)", argument.ast)
            return self._added(Value(column(self._call(tree, frame, argument.type, is_by_row=is_by_row)), argument.type))
        return self._aggregate(name, call, frame, what, is_by_row=is_by_row)

    def _aggregate(self, name: str, call: exp.Anonymous, frame: str, what: str, *, is_by_row: bool) -> Value:
        arguments = call.expressions
        if len(arguments) != 1 or isinstance(arguments[0], exp.Distinct):
            raise self._binder.refuse(f"{what}: one argument, without DISTINCT", "Use GROUP BY for distinct values.")
        argument = None if isinstance(arguments[0], exp.Star) else self._plain.bind(arguments[0])
        builder = CallBuilder(retracting=False, where=self._binder.where)
        made = builder.call(name, argument, distinct=False, condition=None, text=what)
        names = {item.name: column(self._call(_over(item), frame, item.type, is_by_row=is_by_row)) for item in builder.accumulators}
        finish = made.finish.transform(
            lambda tree: names[tree.name].copy() if isinstance(tree, exp.Column) and tree.name in names else tree
        )
        return self._added(Value(cast(finish, made.type.duckdb) if made.type.is_known else finish, made.type, made.nullable))

    def _neighbour(self, name: str, call: exp.Anonymous, what: str) -> Value:
        if not 1 <= len(call.expressions) <= 3:
            raise self._binder.refuse(f"{what}: {name} takes a value, how many rows away, and a default", f"Write {name}(x, 1).")
        argument, *further = [self._plain.bind(item) for item in call.expressions]
        if further and not (isinstance(call.expressions[1], exp.Literal) and call.expressions[1].name.isdecimal()):
            raise self._binder.refuse(f"{what}: how many rows away must be a whole number", f"Write {name}(x, 1).")
        trees = [argument.ast, further[0].ast if further else exp.Literal.number(1)]
        if len(further) == 2:
            trees.append(cast(further[1].ast, argument.type.duckdb))
        tree = render(f"{name.lower()}({', '.join(f'_{i}' for i in range(len(trees)))})", *trees)
        return self._added(Value(column(self._call(tree, "", argument.type, is_by_row=True)), argument.type))

    def _call(self, function: exp.Expr, frame: str, kind: object, *, is_by_row: bool) -> str:
        item = Field(f"$o{self._id}_{len(self._calls)}", kind)  # type: ignore[arg-type]
        self._calls.append(OverCall(item, function, frame, is_by_row, item.type))
        return item.name

    def _added(self, value: Value) -> Value:
        item = Field(f"$v{self._id}_{len(self._values)}", value.type, value.nullable)
        self._values.append((item, value.ast))
        return Value(column(item.name), item.type, item.nullable)

    def _frame(self, spec: exp.WindowSpec | None, n_orders: int, what: str) -> tuple[str, bool]:
        """The frame as DuckDB writes it, and whether it counts rows."""
        if spec is None:
            return "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW", False
        kind = str(spec.args.get("kind") or "").upper()
        end = spec.args.get("end")
        if kind not in ("ROWS", "RANGE") or (end is not None and str(end).upper() != "CURRENT ROW") or spec.args.get("exclude"):
            raise self._binder.refuse(
                f"{what}: the frame must end at CURRENT ROW", "Write ROWS or RANGE BETWEEN ... PRECEDING AND CURRENT ROW."
            )
        start = spec.args.get("start")
        if str(start).upper() == "UNBOUNDED":
            return f"{kind} BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW", kind == "ROWS"
        if str(start).upper() == "CURRENT ROW":
            return f"{kind} BETWEEN CURRENT ROW AND CURRENT ROW", kind == "ROWS"
        if kind == "ROWS" and isinstance(start, exp.Literal) and start.name.isdecimal():
            return f"ROWS BETWEEN {start.name} PRECEDING AND CURRENT ROW", True
        if kind == "RANGE" and isinstance(start, exp.Interval) and n_orders == 1:
            unit = str(start.args.get("unit") or "").upper().removesuffix("S")
            if unit in _MS and start.this.name.isdecimal():
                return f"RANGE BETWEEN INTERVAL {int(start.this.name) * _MS[unit]} MILLISECOND PRECEDING AND CURRENT ROW", False
        raise self._binder.refuse(
            f"{what}: the frame's begin is not understood",
            "ROWS takes a number of rows, RANGE over one time column an INTERVAL in MILLISECOND to DAY; or UNBOUNDED PRECEDING.",
        )


def _over(item: Accumulator) -> exp.Expr:
    """The accumulator as a bare call, which can stand before OVER."""
    if item.kind == "rows":
        return render("count(*)")
    assert item.argument is not None, "only COUNT(*) has no argument"
    return render(f"{item.kind}(_0)", item.argument)
