"""Expressions: from the user's expression tree to a typed one in DuckDB's dialect.

One binder for stream jobs (strict: what is not known is refused) and for ad-hoc translation (lenient: what is not known
goes through unchanged, with an unknown type).
Never: looks at FROM (a resolver answers for columns) or keeps state between expressions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.parts import unread
from storage_engine.stream.dialect.render import cast, render, string
from storage_engine.stream.dialect.sqltypes import SqlType, arithmetic, common_type, parse_type
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import BUILTINS, NONDETERMINISTIC, Value, as_timestamp, date_part, nonzero
from storage_engine.stream.functions.casts import cast_tree, try_cast_tree
from storage_engine.stream.functions.decimals import divide
from storage_engine.stream.functions.function_calls import FUNCTION, bind_call
from storage_engine.stream.functions.json_functions import bind_json, bind_json_string, is_json, is_json_call
from storage_engine.stream.functions.nan import not_nan
from storage_engine.stream.functions.nested import bind_array, bind_bracket, bind_row
from storage_engine.stream.functions.scalar_functions import SCALARS, WITH_SYNTAX

Resolver = Callable[[exp.Column], Value]
Intercept = Callable[[exp.Expr], "Value | None"]

_COMPARISONS = {exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_ARITHMETIC = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%"}
_UNITS = ("SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR", "MILLISECOND")
_UNITS_OF_TIME = ("MILLISECOND", "SECOND", "MINUTE", "HOUR")


class ExpressionBinder:
    """Binds expressions over one input.

    resolve    answers for a column, or raises
    intercept  is asked first for every node; a value it returns is taken (aggregates, group keys)
    """

    def __init__(self, resolve: Resolver, *, where: str, intercept: Intercept | None = None, strict: bool = True) -> None:
        self._resolve = resolve
        self._intercept = intercept
        self._where = where
        self._strict = strict

    def bind(self, node: exp.Expr) -> Value:
        """The typed form of an expression. Errors: StatementRefused naming the part that cannot be bound."""
        if self._intercept is not None and (taken := self._intercept(node)) is not None:
            return taken
        handler = next((handler for kind, handler in _HANDLERS.items() if isinstance(node, kind)), None)
        if handler is not None and unread(node) is None:
            return handler(self, node)
        if not self._strict:
            return self._pass_through(node)
        raise self._refuse(f"{text_of(node)} ({type(node).__name__}) is not supported here", "Rewrite the expression.")

    def condition(self, node: exp.Expr) -> exp.Expr:
        """A WHERE, ON or HAVING condition."""
        value = self.bind(node)
        if value.type not in (types.BOOLEAN, types.NULL, types.UNKNOWN):
            raise self._refuse(f"{text_of(node)} is {value.type}, not a condition", "Compare it with something.")
        return value.ast

    # leaves

    def _column(self, node: exp.Column) -> Value:
        name = node.name.upper()
        if self._strict and not node.table and not node.this.quoted and name in NONDETERMINISTIC:
            raise self._nondeterministic(name)
        return self._resolve(node)

    def _literal(self, node: exp.Literal) -> Value:
        if node.is_string:
            return Value(string(node.name), types.STRING, nullable=False)
        text = node.name
        if "E" in text.upper():
            return Value(cast(exp.Literal.number(text), "DOUBLE"), types.DOUBLE, nullable=False)
        if "." in text:
            whole, _, fraction = text.partition(".")
            return Value(exp.Literal.number(text), SqlType("DECIMAL", len(whole) + len(fraction), len(fraction)), nullable=False)
        return Value(exp.Literal.number(text), types.INT if abs(int(text)) < 2**31 else types.BIGINT, nullable=False)

    def _boolean(self, node: exp.Boolean) -> Value:
        return Value(exp.Boolean(this=node.this), types.BOOLEAN, nullable=False)

    def _bytes(self, node: exp.HexString) -> Value:
        return Value(render("unhex(_0)", string(node.name)), types.BYTES, nullable=False)

    def _null(self, _node: exp.Null) -> Value:
        return Value(exp.Null(), types.NULL)

    def _interval(self, node: exp.Interval) -> Value:
        unit = node.args["unit"].name.upper() if node.args.get("unit") else ""
        amount = node.this.name.strip() if isinstance(node.this, exp.Literal) else ""
        is_whole = amount.removeprefix("-").removeprefix("+").isdecimal()
        if unit not in _UNITS or isinstance(node.args["unit"], exp.IntervalSpan) or not is_whole:
            raise self._refuse(
                f"{text_of(node)} is not understood: an interval is a whole number of one unit",
                "Write INTERVAL '5' MINUTE; INTERVAL '14' MONTH for '1-2' YEAR TO MONTH, INTERVAL '1500' MILLISECOND for '1.5' SECOND.",
            )
        return Value(render(f"INTERVAL '{int(amount)}' {unit}"), types.INTERVAL, nullable=False)

    # operators

    def _paren(self, node: exp.Paren) -> Value:
        inner = self.bind(node.this)
        return Value(exp.Paren(this=inner.ast), inner.type, inner.nullable)

    def _negative(self, node: exp.Neg) -> Value:
        inner = self.bind(node.this)
        return Value(render("-_0", inner.ast), inner.type, inner.nullable)

    def _not(self, node: exp.Not) -> Value:
        inner = self.bind(node.this)
        return Value(render("NOT _0", inner.ast), types.BOOLEAN, inner.nullable)

    def _connector(self, node: exp.Connector) -> Value:
        left, right = self.bind(node.this), self.bind(node.expression)
        word = "AND" if isinstance(node, exp.And) else "OR"
        return Value(render(f"_0 {word} _1", left.ast, right.ast), types.BOOLEAN, left.nullable or right.nullable)

    def _comparison(self, node: exp.Binary) -> Value:
        left, right = self._comparable(node)
        made = render(f"_0 {_COMPARISONS[type(node)]} _1", left.ast, right.ast)
        if isinstance(node, exp.GT | exp.GTE):
            made = not_nan(made, left, right)
        elif isinstance(node, exp.LT | exp.LTE):
            made = not_nan(made, right, left)
        return Value(made, types.BOOLEAN, left.nullable or right.nullable)

    def _null_safe(self, node: exp.Binary) -> Value:
        left, right = self._comparable(node)
        word = "IS NOT DISTINCT FROM" if isinstance(node, exp.NullSafeEQ) else "IS DISTINCT FROM"
        return Value(render(f"_0 {word} _1", left.ast, right.ast), types.BOOLEAN, nullable=False)

    def _comparable(self, node: exp.Binary) -> tuple[Value, Value]:
        left, right = self.bind(node.this), self.bind(node.expression)
        if left.type.is_known and right.type.is_known and common_type([left.type, right.type]) == types.UNKNOWN:
            left, right = self._text_as_time(left, right), self._text_as_time(right, left)
            if common_type([left.type, right.type]) == types.UNKNOWN:
                raise self._refuse(f"{text_of(node)} compares {left.type} with {right.type}", "CAST one side.")
        return left, right

    @staticmethod
    def _text_as_time(value: Value, other: Value) -> Value:
        if value.type == types.STRING and (other.type.is_timestamp or other.type in (types.DATE, types.TIME)):
            return Value(cast(value.ast, other.type.duckdb), other.type, value.nullable)
        return value

    def _arithmetic(self, node: exp.Binary) -> Value:
        operator = _ARITHMETIC[type(node)]
        left, right = self.bind(node.this), self.bind(node.expression)
        nullable = left.nullable or right.nullable
        if types.INTERVAL in (left.type, right.type):
            moved = left if right.type == types.INTERVAL else right
            unit = next(iter(node.find_all(exp.Interval))).args["unit"].name
            if not self._can_move(moved.type, unit) or (moved is right and operator == "-") or operator not in "+-":
                raise self._refuse(
                    f"{text_of(node)}: {operator} does not take {left.type} and {right.type}"
                    + (f" of {unit}s" if moved.type == types.TIME else ""),
                    "An INTERVAL is added to, or taken from, a DATE or TIMESTAMP, and one of hours, minutes or seconds a TIME.",
                )
            result = _moved(moved.type, unit)
            return Value(cast(render(f"_0 {operator} _1", left.ast, right.ast), result.duckdb), result, nullable)
        result = arithmetic(operator, left.type, right.type)
        if result == types.UNKNOWN:
            if left.type.is_known and right.type.is_known:
                raise self._refuse(
                    f"{text_of(node)}: {operator} does not take {left.type} and {right.type}", "CAST the operands to numbers."
                )
            if operator == "/" and not (left.type.is_approximate or right.type.is_approximate):
                operator = "//"  # truncates integers, divides all else; what is divided by a zero DOUBLE is NULL then
            return Value(render(f"_0 {operator} _1", left.ast, right.ast), types.UNKNOWN, nullable)
        return Value(self._compute(operator, left, right, result), result, nullable)

    @staticmethod
    def _can_move(of: SqlType, unit: str) -> bool:
        """Whether a value can be moved by an interval. A type that is not known may be a time."""
        if of == types.TIME:
            return unit.upper() in _UNITS_OF_TIME
        return of.is_timestamp or of == types.DATE or not of.is_known

    @staticmethod
    def _compute(operator: str, left: Value, right: Value, result: SqlType) -> exp.Expr:
        if operator == "/" and result.is_integer:
            return render("_0 // _1", left.ast, nonzero(right))
        if operator == "/" and result.name == "DECIMAL":
            return divide(left.ast, left.type, nonzero(right), right.type, result)
        if operator == "/":
            return cast(render("CAST(_0 AS DOUBLE) / CAST(_1 AS DOUBLE)", left.ast, right.ast), result.duckdb)
        if result == types.DOUBLE and types.DOUBLE not in (left.type, right.type):  # DuckDB computes FLOAT with an exact number as FLOAT
            return render(f"CAST(_0 AS DOUBLE) {operator} CAST(_1 AS DOUBLE)", left.ast, right.ast)
        if operator == "%":
            return cast(render("_0 % _1", left.ast, nonzero(right)), result.duckdb)
        made = render(f"_0 {operator} _1", left.ast, right.ast)
        return cast(made, result.duckdb) if result.name == "DECIMAL" else made

    def _concatenate(self, node: exp.DPipe) -> Value:
        return BUILTINS["CONCAT"].bind("||", [self.bind(node.this), self.bind(node.expression)], self._where)

    def _is(self, node: exp.Is) -> Value:
        value = self.bind(node.this)
        what = node.expression
        word = "NULL" if isinstance(what, exp.Null) else ("TRUE" if what.this else "FALSE") if isinstance(what, exp.Boolean) else None
        if isinstance(what, exp.JSON) and unread(what) is None:
            return is_json(value, what)
        if word is None:
            raise self._refuse(f"{text_of(node)} is not supported", "Use IS NULL, IS TRUE or IS FALSE.")
        template = "_0 IS NULL" if word == "NULL" else f"_0 IS NOT DISTINCT FROM {word}"
        return Value(render(template, value.ast), types.BOOLEAN, nullable=False)

    def _in(self, node: exp.In) -> Value:
        if node.args.get("query") is not None:
            raise self._refuse(f"{text_of(node)}: a subquery is not kept incrementally here", "Use it in WHERE, HAVING or the SELECT list.")
        value = self.bind(node.this)
        items = [self._text_as_time(self.bind(item), value) for item in node.expressions]
        listed = ", ".join(f"_{i + 1}" for i in range(len(items)))
        return Value(
            render(f"_0 IN ({listed})", value.ast, *[item.ast for item in items]),
            types.BOOLEAN,
            value.nullable or any(i.nullable for i in items),
        )

    def _between(self, node: exp.Between) -> Value:
        value, low, high = (self.bind(part) for part in (node.this, node.args["low"], node.args["high"]))
        low, high = self._text_as_time(low, value), self._text_as_time(high, value)
        either = " OR _0 BETWEEN _2 AND _1" if node.args.get("symmetric") else ""
        made = render(f"_0 BETWEEN _1 AND _2{either}", value.ast, low.ast, high.ast)
        made = not_nan(exp.Paren(this=made) if either else made, high, value, *([low] if either else []))
        return Value(made, types.BOOLEAN, any(v.nullable for v in (value, low, high)))

    def _like(self, node: exp.Like) -> Value:
        value, pattern = self.bind(node.this), self.bind(node.expression)
        word = "NOT LIKE" if node.args.get("negate") else "LIKE"
        return Value(render(f"_0 {word} _1", value.ast, pattern.ast), types.BOOLEAN, value.nullable or pattern.nullable)

    def _similar(self, node: exp.SimilarTo) -> Value:
        value, pattern = self.bind(node.this), node.expression
        if not isinstance(pattern, exp.Literal):
            raise self._refuse(f"{text_of(node)}: the pattern is no literal", "Write the pattern as 'text', or use REGEXP.")
        word = "NOT " if node.args.get("negate") else ""
        matched = render(f"{word}regexp_full_match(_0, _1)", value.ast, string(_as_regular_expression(pattern.name)))
        return Value(matched, types.BOOLEAN, value.nullable)

    def _escape(self, node: exp.Escape) -> Value:
        like = self.bind(node.this)
        return Value(exp.Escape(this=like.ast, expression=self.bind(node.expression).ast), like.type, like.nullable)

    # CASE, CAST, calls

    def _case(self, node: exp.Case) -> Value:
        subject = self.bind(node.this) if node.this is not None else None
        branches: list[exp.Expr] = []
        results: list[Value] = []
        for branch in node.args["ifs"]:
            test = self.bind(branch.this)
            branches.append(render("_0 = _1", subject.ast, test.ast) if subject else test.ast)
            results.append(self.bind(branch.args["true"]))
        otherwise = self.bind(node.args["default"]) if node.args.get("default") is not None else Value(exp.Null(), types.NULL)
        result = self._unified([*results, otherwise], node)
        made = exp.Case(
            ifs=[exp.If(this=test, true=value.ast) for test, value in zip(branches, results, strict=True)], default=otherwise.ast
        )
        return Value(made, result, otherwise.nullable or any(value.nullable for value in results))

    def _if(self, node: exp.If) -> Value:
        args = [
            self.bind(node.this),
            self.bind(node.args["true"]),
            self.bind(node.args["false"]) if node.args.get("false") else Value(exp.Null(), types.NULL),
        ]
        return BUILTINS["IF"].bind("IF", args, self._where)

    def _unified(self, values: list[Value], node: exp.Expr) -> SqlType:
        result = common_type([value.type for value in values])
        if result == types.UNKNOWN and all(value.type != types.UNKNOWN for value in values):
            listed = ", ".join(sorted({str(value.type) for value in values}))
            raise self._refuse(f"{text_of(node)} mixes {listed}", "CAST the branches to one type.")
        return result

    def _cast(self, node: exp.Cast) -> Value:
        written = text_of(node.args["to"])
        target = parse_type(written)
        value = self.bind(node.this)
        if target == types.UNKNOWN:
            if self._strict:
                raise self._refuse(f"{text_of(node)}: {written} is not a known type", "Use a type that a table can have.")
            return Value(exp.Cast(this=value.ast, to=node.args["to"]), types.UNKNOWN, value.nullable)
        if value.type.is_timestamp and target.is_numeric:
            raise self._refuse(f"{text_of(node)}: a timestamp is not cast to a number", "Use UNIX_TIMESTAMP(CAST(x AS STRING)) or EXTRACT.")
        if isinstance(node, exp.TryCast):
            return Value(try_cast_tree(value, target, written), target)
        return Value(cast_tree(value, target, written), target, value.nullable)

    def _extract(self, node: exp.Extract) -> Value:
        value = self.bind(node.expression)
        return Value(date_part(node.this.name.upper(), value), types.BIGINT, value.nullable)

    def _rounded_time(self, node: exp.Floor | exp.Ceil) -> Value:
        value = self.bind(node.this)
        word = "floor" if isinstance(node, exp.Floor) else "ceil"
        unit = node.args.get("to")
        if unit is None:
            result = SqlType("DECIMAL", value.type.precision, 0) if value.type.name == "DECIMAL" else value.type
            return Value(
                cast(render(f"{word}(_0)", value.ast), result.duckdb) if result.is_known else render(f"{word}(_0)", value.ast),
                result,
                value.nullable,
            )
        name = unit.name.lower()
        time = as_timestamp(value)
        result = _moved(value.type, name)
        floor = render(_FLOOR_TO_WEEK if name == "week" else f"date_trunc('{name}', _0)", time)
        made = floor if word == "floor" else render(f"CASE WHEN _1 = _0 THEN _0 ELSE _1 + INTERVAL '1' {name} END", time, floor)
        return Value(cast(made, result.duckdb), result, value.nullable)

    def _trim(self, node: exp.Trim) -> Value:
        value = self.bind(node.this)
        side = str(node.args.get("position") or "BOTH").upper()
        name = {"BOTH": "trim", "LEADING": "ltrim", "TRAILING": "rtrim"}[side]
        if node.expression is not None:
            return Value(render(f"{name}(_0, _1)", value.ast, self.bind(node.expression).ast), types.STRING, value.nullable)
        return Value(render(f"{name}(_0)", value.ast), types.STRING, value.nullable)

    def _substring(self, node: exp.Substring) -> Value:
        parts = [node.this, node.args["start"], *([node.args["length"]] if node.args.get("length") is not None else [])]
        return BUILTINS["SUBSTRING"].bind("SUBSTRING", [self.bind(part) for part in parts], self._where)

    def _position(self, node: exp.StrPosition) -> Value:
        return BUILTINS["INSTR"].bind("POSITION", [self.bind(node.this), self.bind(node.args["substr"])], self._where)

    def _overlay(self, node: exp.Overlay) -> Value:
        value, new, start = (self.bind(part) for part in (node.this, node.expression, node.args["from_"]))
        length = self.bind(node.args["for_"]).ast if node.args.get("for_") is not None else render("length(_0)", new.ast)
        placed = "left(_0, _2 - 1) || _1 || substring(_0, _2 + _3)"
        made = render(f"CASE WHEN _2 BETWEEN 1 AND length(_0) THEN {placed} ELSE _0 END", value.ast, new.ast, start.ast, length)
        return Value(made, types.STRING, value.nullable or new.nullable or start.nullable)

    def _call(self, node: exp.Anonymous) -> Value:
        name = str(node.this).upper()
        if self._strict and name in NONDETERMINISTIC:
            raise self._nondeterministic(name)
        if name in ("TIMESTAMPDIFF", "TIMESTAMPADD"):
            return self._timestamp_arithmetic(name, node)
        if FUNCTION in node.meta:
            return bind_call(node.meta[FUNCTION], [self.bind(argument) for argument in node.expressions], self._where)
        if is_json_call(node):
            return bind_json(node, self.bind, self._cast_of_text, self._where)
        if name == "JSON_STRING":
            return bind_json_string(node, self.bind, self._where)
        if name == "ROW":
            return bind_row([self.bind(argument) for argument in node.expressions])
        builtin = SCALARS.get(name)
        if builtin is not None:
            return builtin.bind(name, [self.bind(argument) for argument in node.expressions], self._where)
        if not self._strict:
            return self._pass_through(node)
        alike = difflib.get_close_matches(name, [*SCALARS, *WITH_SYNTAX], n=2)
        raise self._refuse(
            f"function {name} is not known", f"Did you mean {' or '.join(alike)}?" if alike else "docs/sql.md lists the functions."
        )

    def _cast_of_text(self, text: exp.Expr, wanted: exp.Expr) -> Value:
        target = parse_type(text_of(wanted))
        return Value(cast_tree(Value(text, types.STRING), target, text_of(wanted)), target)

    def _nested(self, node: exp.Array | exp.Bracket) -> Value:
        bind = bind_array if isinstance(node, exp.Array) else bind_bracket
        try:
            return bind(node, self.bind, self._where)  # type: ignore[arg-type]
        except StatementRefused:
            if self._strict:
                raise
            return self._pass_through(node)

    def _timestamp_arithmetic(self, name: str, node: exp.Anonymous) -> Value:
        if len(node.expressions) != 3:
            raise self._refuse(f"{name} takes a unit and two arguments", f"Write {name}(MINUTE, a, b).")
        unit = node.expressions[0].name.upper()
        if unit not in _UNITS:
            raise self._refuse(f"{unit} is not a unit of time", f"Use one of {', '.join(_UNITS)}.")
        first, second = self.bind(node.expressions[1]), self.bind(node.expressions[2])
        if name == "TIMESTAMPDIFF":
            moments = [as_timestamp(first), as_timestamp(second)]
            if {first.type.name, second.type.name} == {"TIMESTAMP", "TIMESTAMP_LTZ"}:
                moments = [cast(moment, "TIMESTAMP") for moment in moments]
            made = render(f"CAST(date_sub('{unit.lower()}', _0, _1) AS INT)", *moments)
            return Value(made, types.INT, first.nullable or second.nullable)
        result = _moved(second.type, unit)
        step = {"QUARTER": "to_months(CAST(_1 * 3 AS INT))"}.get(unit, f"to_{unit.lower()}s(_1)")
        return Value(
            cast(render(f"_0 + {step}", as_timestamp(second), first.ast), result.duckdb), result, first.nullable or second.nullable
        )

    # refusals

    def _clock(self, node: exp.Expr) -> Value:
        if not self._strict:
            return self._pass_through(node)
        raise self._nondeterministic(text_of(node))

    def _subquery(self, node: exp.Expr) -> Value:
        if not self._strict:
            return self._pass_through(node)
        raise self._refuse(f"the subquery {text_of(node)} is not kept incrementally here", "Use it in WHERE, HAVING or the SELECT list.")

    def _window(self, node: exp.Window) -> Value:
        if not self._strict:
            return self._pass_through(node)
        raise self._refuse(f"the window function {text_of(node)} cannot be kept incrementally", "Use GROUP BY, or run it as batch.")

    def _pass_through(self, node: exp.Expr) -> Value:
        made = node.copy()
        for key, child in list(made.args.items()):
            if isinstance(child, exp.Query | exp.DataType | exp.Identifier):
                continue
            if isinstance(child, exp.Expr):
                made.set(key, self._inner(child))
            elif isinstance(child, list):
                made.set(key, [self._inner(item) if isinstance(item, exp.Expr) else item for item in child])
        return Value(made, types.UNKNOWN)

    def _inner(self, node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Query | exp.DataType | exp.Identifier | exp.Var | exp.Star):
            return node
        return self.bind(node).ast

    def _nondeterministic(self, name: str) -> StatementRefused:
        return self._refuse(
            f"{name} gives another value at each evaluation, so the result could not be recomputed",
            "Take the value from a column of the event.",
        )

    def _refuse(self, what: str, next_step: str) -> StatementRefused:
        return StatementRefused(what, where=self._where, next_step=next_step)


_FLOOR_TO_WEEK = "date_trunc('week', _0 + INTERVAL '1' DAY) - INTERVAL '1' DAY"  # a week begins on Sunday here, though WEEK() is ISO's


def _as_regular_expression(pattern: str) -> str:
    """A pattern of SIMILAR TO: _ is one character and % any number of them; | * + ? {} () [] are those of regular expressions."""
    return "(?s)" + "".join({"_": ".", "%": ".*"}.get(char, f"\\{char}" if char in ".^$\\" else char) for char in pattern)


def _moved(of: SqlType, unit: str) -> SqlType:
    """The type of a time that is moved by a unit, or cut to it: a DATE stays one as long as the unit is of days."""
    if of.is_timestamp or (of == types.DATE and unit.upper() in ("DAY", "WEEK", "MONTH", "QUARTER", "YEAR")):
        return of
    return types.TIME if of == types.TIME else types.TIMESTAMP3


_B = ExpressionBinder
_HANDLERS: dict[type, Callable[..., Value]] = {
    # leaves
    exp.Column: _B._column,
    exp.Literal: _B._literal,
    exp.Boolean: _B._boolean,
    exp.Null: _B._null,
    exp.Interval: _B._interval,
    exp.HexString: _B._bytes,
    # operators
    exp.Paren: _B._paren,
    exp.Neg: _B._negative,
    exp.Not: _B._not,
    exp.Connector: _B._connector,
    exp.NullSafeEQ: _B._null_safe,
    exp.NullSafeNEQ: _B._null_safe,
    **dict.fromkeys(_COMPARISONS, _B._comparison),
    **dict.fromkeys(_ARITHMETIC, _B._arithmetic),
    exp.DPipe: _B._concatenate,
    exp.Is: _B._is,
    exp.In: _B._in,
    exp.Between: _B._between,
    exp.Escape: _B._escape,
    exp.Like: _B._like,
    exp.SimilarTo: _B._similar,
    # CASE, CAST, calls
    exp.Case: _B._case,
    exp.If: _B._if,
    exp.Cast: _B._cast,
    exp.Extract: _B._extract,
    exp.Floor: _B._rounded_time,
    exp.Ceil: _B._rounded_time,
    exp.Trim: _B._trim,
    exp.Substring: _B._substring,
    exp.StrPosition: _B._position,
    exp.Overlay: _B._overlay,
    exp.Anonymous: _B._call,
    **dict.fromkeys((exp.Array, exp.Bracket), _B._nested),
    # refused in a stream
    **dict.fromkeys((exp.CurrentTimestamp, exp.CurrentDate, exp.CurrentTime), _B._clock),
    **dict.fromkeys((exp.Subquery, exp.Exists), _B._subquery),
    exp.Window: _B._window,
}
"""Which method binds which kind of node."""
