"""Text and numbers: further scalar functions of Flink's, beside those of builtins.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, render, string
from storage_engine.stream.dialect.sqltypes import SqlType
from storage_engine.stream.functions.builtins import DOUBLE_OF, Builtin, Value, literal_text
from storage_engine.stream.functions.printf import formatted
from storage_engine.stream.functions.urls import part_of_url


def _t(template: str) -> Callable[[Sequence[Value]], exp.Expr]:
    return lambda args: render(template, *[arg.ast for arg in args])


def _same(args: Sequence[Value]) -> SqlType:
    return args[0].type


def _within_one(name: str) -> Builtin:
    """A function of [-1, 1]: beyond it NaN, as in Java."""
    inside = "CAST(_0 AS DOUBLE) BETWEEN -1 AND 1"
    made = f"CASE WHEN {inside} THEN {name}(CAST(_0 AS DOUBLE)) WHEN _0 IS NOT NULL THEN CAST('nan' AS DOUBLE) END"
    return Builtin(1, 1, types.DOUBLE, _t(made))


def _double(name: str, n_args: int = 1) -> Builtin:
    operands = ", ".join(f"CAST(_{i} AS DOUBLE)" for i in range(n_args))
    return Builtin(n_args, n_args, types.DOUBLE, _t(f"{name}({operands})"))


def _sha2(args: Sequence[Value]) -> exp.Expr:
    if not isinstance(args[1].ast, exp.Literal) or args[1].ast.name != "256":
        raise StatementRefused("SHA2 of another length than 256", where="function call", next_step="Use SHA2(text, 256).")
    return render("sha256(_0)", args[0].ast)


def _log(args: Sequence[Value]) -> exp.Expr:
    natural = [DOUBLE_OF["LN"].build([arg]) for arg in args]
    return natural[0] if len(args) == 1 else render("_1 / _0", *natural)


def _hex(args: Sequence[Value]) -> exp.Expr:
    return render("hex(_0)" if args[0].type == types.STRING else "hex(CAST(_0 AS BIGINT))", args[0].ast)


def _truncate(args: Sequence[Value]) -> exp.Expr:
    digits = args[1].ast.name if len(args) == 2 and isinstance(args[1].ast, exp.Literal) else "0" if len(args) == 1 else None
    if digits is None:
        raise StatementRefused("TRUNCATE takes its digits as a literal", where="function call", next_step="Write TRUNCATE(x, 2).")
    kind = args[0].type
    exact = args[0].ast if kind.name != "DOUBLE" else cast(args[0].ast, "DECIMAL(38, 15)")
    made = render(f"trunc(_0 * CAST(1{'0' * int(digits)} AS DECIMAL(18, 0))) / 1{'0' * int(digits)}", exact)
    return cast(made, kind.duckdb) if kind.is_known else made


_UPPER, _LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
_WORDS = f"regexp_extract_all(translate(_0, '{_UPPER}', '{_LOWER}'), '[a-z0-9]+|[^a-z0-9]+')"
_CAPITAL = f"translate(left(_w, 1), '{_LOWER}', '{_UPPER}') || substring(_w, 2)"
_INITCAP = f"array_to_string(list_transform({_WORDS}, _w -> {_CAPITAL}), '')"  # letters are those of ASCII, as in Flink
_URL_DECODE = "CASE WHEN NOT regexp_matches(_0, '%([^0-9A-Fa-f]|.[^0-9A-Fa-f]|.?$)') THEN url_decode(replace(_0, '+', ' ')) END"
_REGEXP_INSTR = (  # what comes before the first match, as long as it is
    "CAST(CASE WHEN regexp_matches(_0, _1) THEN length(regexp_extract(_0, '(?s)^(.*?)(?:' || _1 || ')', 1)) + 1 ELSE 0 END AS INT)"
)


def _regexp_extract_all(args: Sequence[Value]) -> exp.Expr:
    group = args[2].ast if len(args) == 3 else exp.Literal.number(1)
    return render("regexp_extract_all(_0, _1, _2)", args[0].ast, args[1].ast, group)


def _elt(args: Sequence[Value]) -> exp.Expr:
    listed = exp.Anonymous(this="list_value", expressions=[arg.ast for arg in args[1:]])
    return render("CASE WHEN _0 >= 1 THEN list_extract(_1, _0) END", args[0].ast, listed)


def _utf8(args: Sequence[Value]) -> Value:
    if literal_text(args[1], "the character set").upper() not in ("UTF-8", "UTF8"):
        raise StatementRefused(f"character set {args[1].ast.name}", where="function call", next_step="Use 'UTF-8'.")
    return args[0]


def _typeof(args: Sequence[Value]) -> exp.Expr:
    return string(f"{args[0].type}{'' if args[0].nullable else ' NOT NULL'}")


def _truncated(args: Sequence[Value]) -> SqlType:
    of = args[0].type
    if of.name != "DECIMAL":
        return of
    digits = int(args[1].ast.name) if len(args) == 2 and isinstance(args[1].ast, exp.Literal) else 0
    return SqlType("DECIMAL", of.precision, min(digits, of.scale or 0))


TEXT_AND_NUMBERS: dict[str, Builtin] = {
    **{name: _double(name.lower()) for name in ("ATAN", "COT", "DEGREES", "RADIANS", "SINH", "COSH", "TANH")},
    "ACOS": _within_one("acos"),
    "ASIN": _within_one("asin"),
    "ATAN2": _double("atan2", 2),
    "PI": Builtin(0, 0, types.DOUBLE, _t("pi()")),
    "E": Builtin(0, 0, types.DOUBLE, _t("exp(CAST(1 AS DOUBLE))")),
    "LOG": Builtin(1, 2, types.DOUBLE, _log),
    "TRUNCATE": Builtin(1, 2, _truncated, _truncate),
    "CEILING": Builtin(1, 1, _same, _t("ceil(_0)")),
    "SHA2": Builtin(2, 2, types.STRING, _sha2),
    "ASCII": Builtin(1, 1, types.INT, _t("CAST(ascii(_0) AS INT)")),
    "CHR": Builtin(1, 1, types.STRING, _t("chr(CAST(_0 % 256 AS INT))")),
    "TRANSLATE": Builtin(3, 3, types.STRING, _t("translate(_0, _1, _2)")),
    "BTRIM": Builtin(1, 2, types.STRING, lambda args: exp.Anonymous(this="trim", expressions=[arg.ast for arg in args])),
    "BIN": Builtin(1, 1, types.STRING, _t("bin(CAST(_0 AS BIGINT))")),
    "HEX": Builtin(1, 1, types.STRING, _hex),
    "TO_BASE64": Builtin(1, 1, types.STRING, _t("to_base64(encode(_0))")),
    "FROM_BASE64": Builtin(1, 1, types.STRING, _t("decode(from_base64(_0))")),
    "URL_ENCODE": Builtin(1, 1, types.STRING, _t("replace(url_encode(_0), '%20', '+')")),
    "URL_DECODE": Builtin(1, 1, types.STRING, _t(_URL_DECODE), "always"),
    "REGEXP_LIKE": Builtin(2, 2, types.BOOLEAN, _t("regexp_matches(_0, _1)")),
    "REGEXP_COUNT": Builtin(2, 2, types.INT, _t("CAST(len(regexp_extract_all(_0, _1)) AS INT)")),
    "REGEXP_SUBSTR": Builtin(2, 2, types.STRING, _t("CASE WHEN regexp_matches(_0, _1) THEN regexp_extract(_0, _1) END"), "always"),
    "REGEXP_INSTR": Builtin(2, 2, types.INT, _t(_REGEXP_INSTR)),
    "REGEXP_EXTRACT_ALL": Builtin(2, 3, types.array_of(types.STRING), _regexp_extract_all),
    "INITCAP": Builtin(1, 1, types.STRING, _t(_INITCAP)),
    "ELT": Builtin(2, 255, lambda args: types.common_type([arg.type for arg in args[1:]]), _elt, "always"),
    "PRINTF": Builtin(1, 255, types.STRING, formatted),
    "PARSE_URL": Builtin(2, 3, types.STRING, part_of_url, "always"),
    "ENCODE": Builtin(2, 2, types.BYTES, lambda args: render("encode(_0)", _utf8(args).ast)),
    "DECODE": Builtin(2, 2, types.STRING, lambda args: render("decode(_0)", _utf8(args).ast)),
    "UNHEX": Builtin(1, 1, types.BYTES, _t("CASE WHEN regexp_full_match(_0, '[0-9A-Fa-f]*') THEN unhex(_0) END"), "always"),
    "JSON_QUOTE": Builtin(1, 1, types.STRING, _t("replace(CAST(to_json(_0) AS TEXT), '/', '\\/')")),
    "JSON_UNQUOTE": Builtin(
        1,
        1,
        types.STRING,
        _t("CASE WHEN regexp_full_match(_0, '(?s)\".*\"') AND json_valid(_0) THEN json_extract_string(_0, '$') ELSE _0 END"),
    ),
    "TYPEOF": Builtin(1, 1, types.STRING, _typeof, "never"),
    "IS_DIGIT": Builtin(1, 1, types.BOOLEAN, _t("COALESCE(regexp_full_match(_0, '\\p{Nd}+'), FALSE)"), "never"),
    "IS_ALPHA": Builtin(1, 1, types.BOOLEAN, _t("COALESCE(regexp_full_match(_0, '\\p{L}+'), FALSE)"), "never"),
    "IS_DECIMAL": Builtin(1, 1, types.BOOLEAN, _t("COALESCE(TRY_CAST(_0 AS DOUBLE) IS NOT NULL, FALSE)"), "never"),
}
