"""Builtins: the scalar functions of the dialect: their arguments, result types and DuckDB forms.

One table, read by the planner and by ad-hoc translation. A function that is not in it is not known: it is refused, never guessed.
Holds: results are Flink's; where an engine error differs (DuckDB raises on integer overflow, Flink wraps), docs/sql.md says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, render, string
from storage_engine.stream.dialect.sqltypes import SqlType, common_type
from storage_engine.stream.functions.datetime_format import to_strftime


@dataclass(frozen=True)
class Value:
    """A bound expression: `ast` in DuckDB's dialect over the fields of the input, its type, and whether it can be NULL."""

    ast: exp.Expr
    type: SqlType
    nullable: bool = True


@dataclass(frozen=True)
class Builtin:
    """One function. `build` gets bound arguments and returns the tree; `type` is fixed or follows from the arguments.

    nulls: the result may be NULL when "any" argument may, when "all" may, "always", or "never".
    """

    n_min: int
    n_max: int
    type: SqlType | Callable[[Sequence[Value]], SqlType]
    build: Callable[[Sequence[Value]], exp.Expr]
    nulls: str = "any"

    def bind(self, name: str, args: Sequence[Value], where: str) -> Value:
        if not self.n_min <= len(args) <= self.n_max:
            wanted = str(self.n_min) if self.n_min == self.n_max else f"{self.n_min} to {self.n_max}"
            raise StatementRefused(f"{name} takes {wanted} arguments, not {len(args)}", where=where, next_step="Correct the call.")
        result = self.type(args) if callable(self.type) else self.type
        rules = {"always": True, "never": False, "any": any(arg.nullable for arg in args), "all": all(arg.nullable for arg in args)}
        return Value(self.build(args), result, rules[self.nulls])


NONDETERMINISTIC = frozenset(
    {
        "NOW",
        "RAND",
        "RAND_INTEGER",
        "UUID",
        "CURRENT_TIMESTAMP",
        "CURRENT_DATE",
        "CURRENT_TIME",
        "LOCALTIMESTAMP",
        "LOCALTIME",
        "CURRENT_ROW_TIMESTAMP",
        "CURRENT_WATERMARK",
        "PROCTIME",
    }
)


def _t(template: str) -> Callable[[Sequence[Value]], exp.Expr]:
    return lambda args: render(template, *[arg.ast for arg in args])


def _same(args: Sequence[Value]) -> SqlType:
    return args[0].type


def _common(args: Sequence[Value]) -> SqlType:
    return common_type([arg.type for arg in args])


_NOTHING = (Value(exp.Null(), types.NULL),)


def _variadic(name: str) -> Callable[[Sequence[Value]], exp.Expr]:
    return lambda args: exp.Anonymous(this=name, expressions=[arg.ast for arg in args])


def literal_text(value: Value, what: str) -> str:
    """The text of an argument that must be written as a literal."""
    if not isinstance(value.ast, exp.Literal) or not value.ast.is_string:
        raise StatementRefused(f"{what} must be written as a literal", where="function call", next_step="Write it as 'text'.")
    return value.ast.name


def as_timestamp(value: Value) -> exp.Expr:
    """An argument of a time function; text is read as a timestamp, as Flink does."""
    return render("TRY_CAST(_0 AS TIMESTAMP)", value.ast) if value.type == types.STRING else value.ast


def _date_format(args: Sequence[Value]) -> exp.Expr:
    return render("strftime(_0, _1)", as_timestamp(args[0]), string(to_strftime(literal_text(args[1], "the pattern of DATE_FORMAT"))))


def _parsed(args: Sequence[Value], target: str) -> exp.Expr:
    if len(args) == 1:
        read = render("TRY_CAST(_0 AS TIMESTAMP)", args[0].ast)
    else:
        read = render("TRY_STRPTIME(_0, _1)", args[0].ast, string(to_strftime(literal_text(args[1], "the pattern"))))
    return cast(render("date_trunc('milliseconds', _0)", read) if target == "TIMESTAMP_MS" else read, target)


def _from_unixtime(args: Sequence[Value]) -> exp.Expr:
    pattern = to_strftime(literal_text(args[1], "the pattern")) if len(args) == 2 else "%Y-%m-%d %H:%M:%S"
    return render("strftime(make_timestamp(CAST(_0 AS BIGINT) * 1000000), _1)", args[0].ast, string(pattern))


def _unix_timestamp(args: Sequence[Value]) -> exp.Expr:
    if not args:
        raise StatementRefused(
            "UNIX_TIMESTAMP() without arguments reads the clock", where="function call", next_step="Take the time from a column."
        )
    return render("CAST(floor(epoch(_0)) AS BIGINT)", _parsed(args, "TIMESTAMP"))


def _to_timestamp_ltz(args: Sequence[Value]) -> exp.Expr:
    digits = args[1].ast.name if len(args) == 2 else "3"
    factor = {"0": "1000000", "3": "1000"}.get(digits)
    if factor is None:
        raise StatementRefused(
            f"TO_TIMESTAMP_LTZ with precision {digits}", where="function call", next_step="Use 0 (seconds) or 3 (milliseconds)."
        )
    return render(f"make_timestamptz(CAST(_0 AS BIGINT) * {factor})", args[0].ast)


def _part(unit: str) -> Builtin:
    return Builtin(1, 1, types.BIGINT, lambda args: date_part(unit, args[0]))


def date_part(unit: str, value: Value) -> exp.Expr:
    """EXTRACT(unit FROM value), BIGINT; DOW counts from 1 = Sunday, WEEK is ISO."""
    name = {"DAYOFMONTH": "DAY", "DAYOFYEAR": "DOY", "DAYOFWEEK": "DOW"}.get(unit, unit)
    whole = {
        "DOW": "date_part('dow', _0) + 1",
        "EPOCH": "CAST(floor(date_part('epoch', _0)) AS BIGINT)",
        "MILLISECOND": "date_part('millisecond', _0) % 1000",
        "MICROSECOND": "date_part('microsecond', _0) % 1000000",
    }
    template = whole.get(name, f"date_part('{name.lower()}', _0)")
    return render(template, as_timestamp(value))


def _substring(args: Sequence[Value]) -> exp.Expr:
    text, start = args[0].ast, args[1].ast
    if _is_positive(args[1]):
        found = render("SUBSTRING(_0, _1)", text, start) if len(args) == 2 else render("SUBSTRING(_0, _1, _2)", text, start, args[2].ast)
    else:  # from the end, and nothing where that is before the beginning
        first = render("CASE WHEN _0 = 0 THEN 1 ELSE _0 END", start)
        cut = "SUBSTRING(_0, _1)" if len(args) == 2 else "SUBSTRING(_0, _1, _2)"
        operands = [text, first, *[arg.ast for arg in args[2:]]]
        found = render(f"CASE WHEN _1 < -length(_0) THEN '' ELSE {cut} END", *operands)
    if len(args) == 2 or _is_positive(args[2]):
        return found
    return render("CASE WHEN _0 >= 0 THEN _1 END", args[2].ast, found)


def _is_positive(value: Value) -> bool:
    return isinstance(value.ast, exp.Literal) and not value.ast.is_string and float(value.ast.name) > 0


def _round(args: Sequence[Value]) -> exp.Expr:
    return cast(render("round(_0, _1)", args[0].ast, args[1].ast if len(args) == 2 else exp.Literal.number(0)), _round_type(args).duckdb)


def _round_type(args: Sequence[Value]) -> SqlType:
    of = args[0].type
    if of.name != "DECIMAL":
        return of
    digits = int(args[1].ast.name) if len(args) == 2 and isinstance(args[1].ast, exp.Literal) else 0
    scale = min(digits, of.scale or 0)
    return SqlType("DECIMAL", (of.precision or 0) - (of.scale or 0) + scale + (1 if scale < (of.scale or 0) else 0), scale)


def _coalesce(args: Sequence[Value]) -> exp.Expr:
    return exp.Anonymous(this="COALESCE", expressions=[arg.ast for arg in args])


def _if(args: Sequence[Value]) -> exp.Expr:
    return render("CASE WHEN _0 THEN _1 ELSE _2 END", *[arg.ast for arg in args])


def _extremum(comparison: str) -> Callable[[Sequence[Value]], exp.Expr]:
    def build(args: Sequence[Value]) -> exp.Expr:
        any_null = " OR ".join(f"_{i} IS NULL" for i in range(len(args)))
        inner = ", ".join(f"_{i}" for i in range(len(args)))
        return render(f"CASE WHEN {any_null} THEN NULL ELSE {comparison}({inner}) END", *[arg.ast for arg in args])

    return build


def _concat(args: Sequence[Value]) -> exp.Expr:
    return render(
        " || ".join(f"CAST(_{i} AS TEXT)" if arg.type != types.STRING else f"_{i}" for i, arg in enumerate(args)), *[a.ast for a in args]
    )


def _mod(args: Sequence[Value]) -> exp.Expr:
    return render("_0 % _1", args[0].ast, nonzero(args[1]))


def nonzero(divisor: Value) -> exp.Expr:
    """The divisor of an exact division: zero is an error, as in Flink (DuckDB would give NULL)."""
    if isinstance(divisor.ast, exp.Literal) and divisor.ast.name.strip("0.") != "":
        return divisor.ast
    return render("CASE WHEN _0 = 0 THEN error('division by zero') ELSE _0 END", divisor.ast)


def _key_value(args: Sequence[Value]) -> exp.Expr:
    # KEYVALUE(text, pair separator, key separator, key): the value of the first pair with that key
    return render(
        "list_extract(list_transform(list_filter(string_split(_0, _1), _p -> split_part(_p, _2, 1) = _3), "
        "_p -> SUBSTRING(_p, length(split_part(_p, _2, 1)) + length(_2) + 1)), 1)",
        *[arg.ast for arg in args],
    )


def _locate(args: Sequence[Value]) -> exp.Expr:
    if len(args) == 2:
        return render("CAST(strpos(_1, _0) AS INT)", *[arg.ast for arg in args])
    found = "strpos(substring(_1, greatest(_2, 1)), _0)"
    return render(f"CAST(CASE WHEN {found} = 0 THEN 0 ELSE {found} + greatest(_2, 1) - 1 END AS INT)", *[arg.ast for arg in args])


def _regexp_extract(args: Sequence[Value]) -> exp.Expr:
    if len(args) == 3 and all(isinstance(arg.ast, exp.Literal) for arg in args[1:]):
        try:
            n_groups = re.compile(args[1].ast.name).groups
        except re.error:  # RE2 has the last word on what is an expression
            n_groups = int(args[2].ast.name)
        if int(args[2].ast.name) > n_groups:
            return exp.Null()
    group = args[2].ast if len(args) == 3 else exp.Literal.number(0)
    return render("CASE WHEN regexp_matches(_0, _1) THEN regexp_extract(_0, _1, _2) END", args[0].ast, args[1].ast, group)


_CONVERT_TZ = "strftime(timezone(_2, timezone(_1, TRY_CAST(_0 AS TIMESTAMP))), '%Y-%m-%d %H:%M:%S')"
_LOG = "CASE WHEN _0 > 0 THEN {}(_0) WHEN _0 = 0 THEN CAST('-inf' AS DOUBLE) WHEN _0 < 0 THEN CAST('nan' AS DOUBLE) END"
DOUBLE_OF = {
    **{name: Builtin(1, 1, types.DOUBLE, _t(f"{name.lower()}(_0)")) for name in ("EXP", "SIN", "COS", "TAN")},
    **{name: Builtin(1, 1, types.DOUBLE, _t(_LOG.format(name.lower()))) for name in ("LN", "LOG10", "LOG2")},
    "SQRT": Builtin(1, 1, types.DOUBLE, _t("CASE WHEN _0 < 0 THEN CAST('nan' AS DOUBLE) ELSE sqrt(_0) END")),
}
"""Out of their domain they give what IEEE 754 gives, as Java does; DuckDB would fail."""

_PAD = "CASE WHEN _1 >= 0 AND _2 <> '' THEN {}(_0, greatest(CAST(_1 AS INT), 0), CASE WHEN _2 = '' THEN ' ' ELSE _2 END) END"
"""NULL for a negative length and for an empty pad, as in Flink; DuckDB fails for the second, also where the branch is not taken."""

BUILTINS: dict[str, Builtin] = {
    **DOUBLE_OF,
    **{
        unit: _part(unit)
        for unit in ("YEAR", "QUARTER", "MONTH", "WEEK", "DAYOFYEAR", "DAYOFMONTH", "DAYOFWEEK", "HOUR", "MINUTE", "SECOND")
    },
    # time
    "DATE_FORMAT": Builtin(2, 2, types.STRING, _date_format),
    "TO_TIMESTAMP": Builtin(1, 2, types.TIMESTAMP3, lambda args: _parsed(args, "TIMESTAMP_MS"), "always"),
    "TO_DATE": Builtin(1, 2, types.DATE, lambda args: _parsed(args, "DATE"), "always"),
    "TO_TIMESTAMP_LTZ": Builtin(1, 2, types.TIMESTAMP_LTZ3, _to_timestamp_ltz),
    "CONVERT_TZ": Builtin(3, 3, types.STRING, _t(_CONVERT_TZ), "always"),
    "FROM_UNIXTIME": Builtin(1, 2, types.STRING, _from_unixtime),
    "UNIX_TIMESTAMP": Builtin(0, 2, types.BIGINT, _unix_timestamp),
    # text
    "UPPER": Builtin(1, 1, types.STRING, _t("upper(_0)")),
    "LOWER": Builtin(1, 1, types.STRING, _t("lower(_0)")),
    **dict.fromkeys(("CHAR_LENGTH", "CHARACTER_LENGTH", "LENGTH"), Builtin(1, 1, types.INT, _t("CAST(length(_0) AS INT)"))),
    "CONCAT": Builtin(1, 255, types.STRING, _concat),
    "CONCAT_WS": Builtin(1, 255, types.STRING, lambda args: _variadic("concat_ws")([*args, *_NOTHING][: max(len(args), 2)])),
    **dict.fromkeys(("SUBSTRING", "SUBSTR"), Builtin(2, 3, types.STRING, _substring, "always")),
    "REPLACE": Builtin(3, 3, types.STRING, _t("replace(_0, _1, _2)")),
    "LPAD": Builtin(3, 3, types.STRING, _t(_PAD.format("lpad")), "always"),
    "RPAD": Builtin(3, 3, types.STRING, _t(_PAD.format("rpad")), "always"),
    "LTRIM": Builtin(1, 2, types.STRING, _variadic("ltrim")),
    "RTRIM": Builtin(1, 2, types.STRING, _variadic("rtrim")),
    "LEFT": Builtin(2, 2, types.STRING, _t("left(_0, greatest(_1, 0))")),
    "RIGHT": Builtin(2, 2, types.STRING, _t("right(_0, greatest(_1, 0))")),
    "REVERSE": Builtin(1, 1, types.STRING, _t("reverse(_0)")),
    "REPEAT": Builtin(2, 2, types.STRING, _t("repeat(_0, _1)")),
    "LOCATE": Builtin(2, 3, types.INT, _locate),
    "INSTR": Builtin(2, 2, types.INT, _t("CAST(strpos(_0, _1) AS INT)")),
    "SPLIT_INDEX": Builtin(3, 3, types.STRING, _t("list_extract(string_split(_0, _1), _2 + 1)"), "always"),
    "REGEXP": Builtin(2, 2, types.BOOLEAN, _t("regexp_matches(_0, _1)")),
    "REGEXP_EXTRACT": Builtin(2, 3, types.STRING, _regexp_extract, "always"),
    "REGEXP_REPLACE": Builtin(3, 3, types.STRING, _t("regexp_replace(_0, _1, _2, 'g')")),
    "STARTSWITH": Builtin(2, 2, types.BOOLEAN, _t("starts_with(_0, _1)")),
    "ENDSWITH": Builtin(2, 2, types.BOOLEAN, _t("suffix(_0, _1)")),
    "MD5": Builtin(1, 1, types.STRING, _t("md5(_0)")),
    "SHA1": Builtin(1, 1, types.STRING, _t("sha1(_0)")),
    "SHA256": Builtin(1, 1, types.STRING, _t("sha256(_0)")),
    "KEYVALUE": Builtin(4, 4, types.STRING, _key_value, "always"),
    # conditions
    "COALESCE": Builtin(1, 255, _common, _coalesce, "all"),
    "IFNULL": Builtin(2, 2, _common, _coalesce, "all"),
    "NULLIF": Builtin(2, 2, _same, _t("NULLIF(_0, _1)"), "always"),
    "IF": Builtin(3, 3, lambda args: common_type([args[1].type, args[2].type]), _if),
    "GREATEST": Builtin(1, 255, _common, _extremum("greatest")),
    "LEAST": Builtin(1, 255, _common, _extremum("least")),
    # numbers
    "ABS": Builtin(1, 1, _same, _t("abs(_0)")),
    "SIGN": Builtin(1, 1, _same, lambda args: cast(render("sign(_0)", args[0].ast), args[0].type.duckdb)),
    "MOD": Builtin(2, 2, lambda args: types.arithmetic("%", args[0].type, args[1].type), _mod),
    "POWER": Builtin(2, 2, types.DOUBLE, _t("pow(_0, _1)")),
    "ROUND": Builtin(1, 2, _round_type, _round),
    # bitmaps (bitmaps.py registers rb_*): RoaringFormatSpec, 32 bit
    **dict.fromkeys(("BITMAP_TO_BYTES", "BITMAP_FROM_BYTES"), Builtin(1, 1, types.BYTES, _t("_0"))),
    **dict.fromkeys(("BITMAP_COUNT", "BITMAP_CARDINALITY", "RB_CARDINALITY"), Builtin(1, 1, types.BIGINT, _t("rb_cardinality(_0)"))),
    **dict.fromkeys(("BITMAP_OR", "RB_OR"), Builtin(2, 2, types.BYTES, _t("rb_or(_0, _1)"))),
    **dict.fromkeys(("BITMAP_AND", "RB_AND"), Builtin(2, 2, types.BYTES, _t("rb_and(_0, _1)"))),
    **dict.fromkeys(("BITMAP_ANDNOT", "RB_ANDNOT"), Builtin(2, 2, types.BYTES, _t("rb_andnot(_0, _1)"))),
    **dict.fromkeys(("BITMAP_CONTAINS", "RB_CONTAINS"), Builtin(2, 2, types.BOOLEAN, _t("rb_contains(_0, CAST(_1 AS BIGINT))"))),
    **dict.fromkeys(("TO_BITMAP", "BITMAP_BUILD"), Builtin(1, 1, types.BYTES, _t("rb_build(list_value(CAST(_0 AS UINTEGER)))"))),
}
