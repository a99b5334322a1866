"""Aggregates: how each aggregate function is kept while its input grows and shrinks.

A call (SUM(x)) is a small expression over accumulators; an accumulator is one column of state with three forms:
    delta   an aggregate over one micro-batch            sum(x), or sum(x * w) when rows can be taken back
    merge   old state and delta into new state           old + delta
    total   the same over all input, for recomputation   sum(x)
Holds: merge(delta(a), delta(b)) = delta(a and b), so how input is cut into micro-batches cannot matter.
Never: knows where state is kept (placement.py) or how it is read (execute.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, column, render, sql
from storage_engine.stream.dialect.sqltypes import SqlType
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.decimals import divide

WEIGHT = "__w"
"""The column of a retracting relation that says how often a row counts: 1 inserted, -1 taken back."""

Kind = Literal["rows", "count", "sum", "min", "max", "bitmap_build", "bitmap_or", "first", "last", "listagg", "array"]

_ADDITIVE = ("rows", "count", "sum")
_ORDERED = ("first", "last", "listagg", "array")
"""Values that depend on the order of rows: computed from the group's kept rows, in the order of their places in the log."""
_SINK_FUNCTIONS = {"rows": "sum", "count": "sum", "sum": "sum", "min": "min", "max": "max", "bitmap_build": "rbm32", "bitmap_or": "rbm32"}

NAMES = frozenset({
    "COUNT", "SUM", "SUM0", "MIN", "MAX", "AVG", "APPROX_COUNT_DISTINCT",
    "BITMAP_BUILD_AGG", "RB_BUILD_AGG", "BITMAP_OR_AGG", "RB_OR_AGG", "BITMAP_UNION", "BITMAP_UNION_COUNT",
    "BITMAP_BUILD_CARDINALITY_AGG", "RB_BUILD_CARDINALITY_AGG", "BITMAP_OR_CARDINALITY_AGG", "RB_OR_CARDINALITY_AGG",
    "LISTAGG", "STRING_AGG", "FIRST_VALUE", "LAST_VALUE", "ARRAY_AGG",
    "STDDEV", "STDDEV_POP", "STDDEV_SAMP", "VARIANCE", "VAR_POP", "VAR_SAMP",
})  # fmt: skip
_ORDERED_NAMES: dict[str, Kind] = {
    "LISTAGG": "listagg", "STRING_AGG": "listagg", "FIRST_VALUE": "first", "LAST_VALUE": "last", "ARRAY_AGG": "array",
}  # fmt: skip
NOT_MAINTAINED = {"COLLECT": "a multiset is no value of a table"}
"""Aggregates that are known and refused, with the reason."""


@dataclass(frozen=True)
class Accumulator:
    """One column of state. `argument` and `condition` are over the fields of the aggregate's input; "rows" has no argument.

    distinct: the argument counts once per group and value; which values were seen is in a state table of its own.
    """

    name: str
    kind: Kind
    argument: exp.Expr | None
    argument_type: SqlType
    condition: exp.Expr | None
    type: SqlType
    distinct: bool = False
    order: tuple[str, ...] = ()
    """Columns of the input that say which row came first, for a kind that depends on it."""
    separator: str = ""

    @property
    def identity(self) -> str:
        """Equal for two accumulators that hold the same value."""
        return "|".join(
            (
                self.kind,
                sql(self.argument) if self.argument else "",
                sql(self.condition) if self.condition else "",
                str(self.distinct),
                self.separator,
                str(self.type),
            )
        )

    @property
    def sink_function(self) -> str:
        """The aggregate function of a table column that merges this accumulator's deltas."""
        return _SINK_FUNCTIONS[self.kind]

    @property
    def is_retractable(self) -> bool:
        return self.kind in _ADDITIVE

    def delta(self, *, retracting: bool) -> exp.Expr:
        """The aggregate over one micro-batch; with `retracting`, rows count WEIGHT times."""
        return self._cast(self._filtered(self._aggregate(retracting=retracting)))

    def total(self) -> exp.Expr:
        """The aggregate over a whole input without weights."""
        if self.distinct:
            assert self.argument is not None
            call = {"count": "count(DISTINCT _0)", "sum": "sum(DISTINCT _0)"}[self.kind]
            return self._cast(self._filtered(render(call, self.argument)))
        return self.delta(retracting=False)

    def merge(self, old: exp.Expr, delta: exp.Expr) -> exp.Expr:
        """New state; `old` is NULL where the group is new."""
        if self.kind in ("rows", "count"):
            return cast(render("COALESCE(_0, 0) + COALESCE(_1, 0)", old, delta), self.type.duckdb)
        if self.kind == "sum":
            return cast(render("CASE WHEN _0 IS NULL THEN _1 WHEN _1 IS NULL THEN _0 ELSE _0 + _1 END", old, delta), self.type.duckdb)
        if self.kind in ("min", "max"):
            return render("least(_0, _1)" if self.kind == "min" else "greatest(_0, _1)", old, delta)
        return render("CASE WHEN _0 IS NULL THEN _1 WHEN _1 IS NULL THEN _0 ELSE rb_or(_0, _1) END", old, delta)

    def _aggregate(self, *, retracting: bool) -> exp.Expr:
        weight = column(WEIGHT)
        if self.kind == "rows":
            return render("sum(_0)", weight) if retracting else render("count(*)")
        assert self.argument is not None
        if self.kind == "count":
            return (
                render("sum(CASE WHEN _0 IS NULL THEN 0 ELSE _1 END)", self.argument, weight)
                if retracting
                else render("count(_0)", self.argument)
            )
        if self.kind == "sum":
            added = self.argument if self.type == self.argument_type else cast(self.argument, self.type.duckdb)
            return render("sum(_0 * _1)", added, weight) if retracting else render("sum(_0)", self.argument)
        if self.kind in _ORDERED:
            return self._in_order()
        if self.kind == "bitmap_build":
            return render("rb_build(list(CAST(_0 AS UINTEGER)))", self.argument)
        if self.kind == "bitmap_or":
            return render("rb_or_all(list(_0))", self.argument)
        return render(f"{self.kind}(_0)", self.argument)

    @property
    def is_ordered(self) -> bool:
        return self.kind in _ORDERED

    def _in_order(self) -> exp.Expr:
        assert self.argument is not None
        columns = ", ".join(sql(column(name)) for name in self.order)
        if self.kind in ("first", "last"):
            word = "arg_min" if self.kind == "first" else "arg_max"
            return render(f"{word}(_0, row({columns}))" if columns else f"{self.kind}(_0)", self.argument)
        listed = render(f"list(_0 ORDER BY {columns})" if columns else "list(_0)", self.argument)
        return listed if self.kind == "array" else render("array_to_string(_0, _1)", listed, exp.Literal.string(self.separator))

    def _filtered(self, aggregate: exp.Expr) -> exp.Expr:
        condition = self.condition
        if self.kind in ("first", "last", "listagg"):
            assert self.argument is not None
            present = render("_0 IS NOT NULL", self.argument)
            condition = present if condition is None else render("(_0) AND (_1)", present, condition)
        if condition is None:
            return aggregate
        if self.kind in ("bitmap_build", "bitmap_or", "listagg", "array"):
            inner = next(aggregate.find_all(exp.ArrayAgg), None)
            assert inner is not None, "a bitmap is built from a list"
            filtered = exp.Filter(this=inner.copy(), expression=exp.Where(this=condition))
            if inner is aggregate:
                return filtered
            inner.replace(filtered)
            return aggregate
        return exp.Filter(this=aggregate, expression=exp.Where(this=condition))

    def _cast(self, aggregate: exp.Expr) -> exp.Expr:
        return cast(aggregate, self.type.duckdb) if self.kind in _ADDITIVE and self.type.is_known else aggregate


@dataclass(frozen=True)
class Call:
    """An aggregate call of the statement: `finish` computes it from the accumulators' columns, `needs` names them.

    stored: the accumulator whose value is the call's value, so that the result column itself can be the state; None if there is none.
    """

    text: str
    finish: exp.Expr
    type: SqlType
    nullable: bool
    needs: tuple[Accumulator, ...]
    stored: Accumulator | None = None


class CallBuilder:
    """Collects the calls of one GROUP BY and shares accumulators between them.

    order       columns that say which row came first; () any order will do, None: the input has none
    keeps_rows  one of them cannot take a row back, and rows of the input may go; or it depends on their order
    adds_wide   the sum of an AVG has more digits than its values (planner.LAYOUT)
    """

    def __init__(self, *, retracting: bool, where: str, order: tuple[str, ...] | None = None, adds_wide: bool = True) -> None:
        self._order = order
        self._adds_wide = adds_wide
        self.retracting = retracting
        self.accumulators: list[Accumulator] = []
        self.keeps_rows = False
        self._where = where

    def rows(self) -> Accumulator:
        """The number of input rows of the group."""
        return self._accumulator("rows", None, types.BIGINT, None, types.BIGINT)

    def call(
        self, name: str, argument: Value | None, *, distinct: bool, condition: exp.Expr | None, text: str, separator: str = ","
    ) -> Call:
        """Bind one call. `argument` is None for COUNT(*).

        Errors: StatementRefused for a function that cannot be kept over this input.
        """
        if name == "APPROX_COUNT_DISTINCT":
            name, distinct = "COUNT", True
        if name == "COUNT" and argument is None:
            counted = (
                self.rows() if condition is None else self._accumulator("count", exp.Literal.number(1), types.INT, condition, types.BIGINT)
            )
            return Call(
                text, render("COALESCE(_0, 0)", column(counted.name)), types.BIGINT, nullable=False, needs=(counted,), stored=counted
            )
        if argument is None:
            raise StatementRefused(f"{text} lacks an argument", where=self._where, next_step="Only COUNT takes *.")
        distinct = distinct and name not in ("MIN", "MAX") and not name.startswith(("BITMAP", "RB"))
        if name == "COUNT":
            counted = self._count(argument, condition, distinct=distinct)
            return Call(
                text, render("COALESCE(_0, 0)", column(counted.name)), types.BIGINT, nullable=False, needs=(counted,), stored=counted
            )
        if name in ("SUM", "SUM0"):
            return self._sum(name, argument, condition, text, distinct=distinct)
        if name == "AVG":
            return self._avg(argument, condition, text, distinct=distinct)
        if name in ("MIN", "MAX"):
            kept = self._unretractable("min" if name == "MIN" else "max", argument, condition, argument.type)
            return Call(text, column(kept.name), argument.type, nullable=True, needs=(kept,), stored=kept)
        if name in _ORDERED_NAMES:
            return self._ordered(_ORDERED_NAMES[name], argument, condition, text, distinct=distinct, separator=separator)
        if name.startswith(("STDDEV", "VAR")):
            return self._spread(name, argument, condition, text, distinct=distinct)
        return self._bitmap(name, argument, condition, text)

    def _ordered(self, kind: Kind, argument: Value, condition: exp.Expr | None, text: str, *, distinct: bool, separator: str) -> Call:
        if self._order is None:
            raise StatementRefused(
                f"{text}: its value depends on the order in which rows arrive, and the input is no plain log whose rows have places",
                where=self._where,
                next_step="Aggregate the log itself, or take MIN, MAX, or the row that ROW_NUMBER() OVER (... ORDER BY ...) = 1 picks.",
            )
        if distinct or (kind == "listagg" and argument.type not in (types.STRING, types.UNKNOWN)):
            what = "DISTINCT is not kept in an order" if distinct else f"it joins text, not {argument.type}"
            raise StatementRefused(f"{text}: {what}", where=self._where, next_step="CAST the argument AS STRING; leave DISTINCT out.")
        result = types.array_of(argument.type) if kind == "array" else argument.type
        made = Accumulator("", kind, argument.ast, argument.type, condition, result, order=self._order, separator=separator)
        self.keeps_rows = True
        kept = self._shared(made)
        return Call(text, column(kept.name), result, argument.nullable or condition is not None, needs=(kept,))

    def _spread(self, name: str, argument: Value, condition: exp.Expr | None, text: str, *, distinct: bool) -> Call:
        """STDDEV and VAR from count, sum and sum of squares. Of integers each step is an integer one, as in Flink."""
        of = argument.type
        if distinct or (of.is_known and not of.is_numeric):
            raise StatementRefused(f"{text} takes numbers, without DISTINCT", where=self._where, next_step="CAST the argument.")
        exact = of.is_exact
        wide = types.decimal(38, of.scale or 0) if exact else types.DOUBLE
        squares = types.SqlType("DECIMAL", 38, min(2 * (of.scale or 0), 38)) if exact else types.DOUBLE
        value = cast(argument.ast, wide.duckdb)
        square = cast(render("CAST(_0 AS HUGEINT) * CAST(_0 AS HUGEINT)" if of.is_integer else "_0 * _0", argument.ast), squares.duckdb)
        total = self._accumulator("sum", value, wide, condition, wide)
        squared = self._accumulator("sum", square, squares, condition, squares)
        counted = self._count(argument, condition, distinct=False)
        s, q, n = (column(item.name) for item in (total, squared, counted))
        divisor = "_2" if name.endswith("_POP") else "(CASE WHEN _2 > 1 THEN _2 - 1 END)"
        if of.is_integer:
            whole = f"(CAST(_1 AS HUGEINT) - CAST(_0 AS HUGEINT) * CAST(_0 AS HUGEINT) // _2) // {divisor}"
        else:
            whole = f"greatest(CAST(_1 AS DOUBLE) - CAST(_0 AS DOUBLE) * CAST(_0 AS DOUBLE) / _2, 0) / {divisor}"
        result = types.SqlType("DECIMAL", 38, max(6, of.scale or 0)) if of.name == "DECIMAL" else of
        spread = render(whole, s, q, n)
        if name.startswith("STDDEV"):
            spread = render("sqrt(CAST(_0 AS DOUBLE))", spread)
        made = render("trunc(_0)", spread) if of.is_integer else spread
        finish = render("CASE WHEN _1 > 0 THEN _0 END", cast(made, result.duckdb) if result.is_known else made, n)
        return Call(text, finish, result, nullable=True, needs=(total, squared, counted))

    def _count(self, argument: Value, condition: exp.Expr | None, *, distinct: bool) -> Accumulator:
        if not argument.nullable and condition is None and not distinct:
            return self.rows()
        return self._accumulator("count", argument.ast, argument.type, condition, types.BIGINT, distinct=distinct)

    def _sum(
        self, name: str, argument: Value, condition: exp.Expr | None, text: str, *, distinct: bool, wide: SqlType | None = None
    ) -> Call:
        of = argument.type
        if not of.is_numeric and of.is_known:
            raise StatementRefused(f"{text}: {of} cannot be added up", where=self._where, next_step="SUM takes numbers; CAST the argument.")
        result = types.decimal(38, of.scale or 0) if of.name == "DECIMAL" else wide or of
        total = self._accumulator("sum", argument.ast, of, condition, result, distinct=distinct)
        if name == "SUM0":
            return Call(text, render("COALESCE(_0, 0)", column(total.name)), result, nullable=False, needs=(total,))
        if not self.retracting:
            return Call(text, column(total.name), result, nullable=argument.nullable or condition is not None, needs=(total,), stored=total)
        counted = self._count(argument, condition, distinct=distinct)
        finish = render("CASE WHEN _1 > 0 THEN _0 END", column(total.name), column(counted.name))
        if counted.kind == "rows":  # a group that exists has rows, and each has a value: the sum is never NULL
            finish = column(total.name)
        return Call(
            text, finish, result, nullable=counted.kind != "rows", needs=(total, counted), stored=total if counted.kind == "rows" else None
        )

    def _avg(self, argument: Value, condition: exp.Expr | None, text: str, *, distinct: bool) -> Call:
        of = argument.type
        wide = types.BIGINT if of.is_integer else types.DOUBLE if of.is_approximate else None  # what Flink adds up in
        total = self._sum("SUM", argument, condition, text, distinct=distinct, wide=wide if self._adds_wide else None).needs[0]
        counted = self._count(argument, condition, distinct=distinct)
        result = types.arithmetic("/", types.decimal(38, of.scale or 0), types.BIGINT) if of.name == "DECIMAL" else of
        if of.name == "DECIMAL":
            quotient = divide(column(total.name), total.type, column(counted.name), counted.type, result)
        else:
            quotient = cast(render("_0 // _1" if of.is_integer else "_0 / _1", column(total.name), column(counted.name)), result.duckdb)
        finish = render("CASE WHEN _1 > 0 THEN _0 END", quotient, column(counted.name))
        return Call(text, finish, result, nullable=True, needs=(total, counted))

    def _bitmap(self, name: str, argument: Value, condition: exp.Expr | None, text: str) -> Call:
        builds = "BUILD" in name
        if builds and argument.type.is_known and not argument.type.is_integer:
            raise StatementRefused(
                f"{text}: a bitmap holds integers, not {argument.type}", where=self._where, next_step="CAST the argument AS INT."
            )
        if not builds and argument.type not in (types.BYTES, types.UNKNOWN):
            raise StatementRefused(
                f"{text}: takes bitmaps (BYTES), not {argument.type}", where=self._where, next_step="Use BITMAP_BUILD_AGG for integers."
            )
        kept = self._unretractable("bitmap_build" if builds else "bitmap_or", argument, condition, types.BYTES)
        if "CARDINALITY" in name or name == "BITMAP_UNION_COUNT":
            return Call(text, render("COALESCE(rb_cardinality(_0), 0)", column(kept.name)), types.BIGINT, nullable=False, needs=(kept,))
        return Call(text, column(kept.name), types.BYTES, nullable=True, needs=(kept,), stored=kept)

    def _unretractable(self, kind: Kind, argument: Value, condition: exp.Expr | None, result: SqlType) -> Accumulator:
        """What leaves cannot be taken out of this value: over an input that retracts, the group's rows have to be kept."""
        self.keeps_rows |= self.retracting
        return self._accumulator(kind, argument.ast, argument.type, condition, result)

    def _accumulator(
        self,
        kind: Kind,
        argument: exp.Expr | None,
        argument_type: SqlType,
        condition: exp.Expr | None,
        result: SqlType,
        *,
        distinct: bool = False,
    ) -> Accumulator:
        return self._shared(Accumulator("", kind, argument, argument_type, condition, result, distinct))

    def _shared(self, made: Accumulator) -> Accumulator:
        """The accumulator that holds this value already, or the new one."""
        made = replace(made, name=f"a{len(self.accumulators)}")
        for known in self.accumulators:
            if known.identity == made.identity:
                return known
        self.accumulators.append(made)
        return made
