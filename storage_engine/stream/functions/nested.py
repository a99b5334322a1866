"""Nested values: arrays, maps and rows inside expressions. A table holds none of them: what a column gets is taken out of them.

    ARRAY[a, b]   array[1]   MAP['k', v]   map['k']   ROW(a, b)   and the functions in NESTED
A position outside an array, and a key that a map does not have, give NULL (Flink gives -1 where the elements are NOT NULL).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, render
from storage_engine.stream.dialect.sqltypes import SqlType, array_of, common_type, map_of, row_of
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import Builtin, Value

Bind = Callable[[exp.Expr], Value]


def bind_array(node: exp.Array, bind: Bind, where: str) -> Value:
    """ARRAY[a, b, ...]"""
    items = [bind(item) for item in node.expressions]
    element = _common(items, node, where)
    listed = [cast(item.ast, element.duckdb) for item in items]
    return Value(exp.Anonymous(this="list_value", expressions=listed), array_of(element), nullable=False)


def bind_bracket(node: exp.Bracket, bind: Bind, where: str) -> Value:
    """MAP['k', v, ...], array[position], map[key]"""
    subject = node.this
    if isinstance(subject, exp.Column) and not subject.table and not subject.this.quoted and subject.name.upper() == "MAP":
        return _map(node, bind, where)
    value = bind(subject)
    if len(node.expressions) != 1:
        raise StatementRefused(f"{text_of(node)} takes one position or key", where=where, next_step="Write value[1].")
    written = node.expressions[0]
    key = bind(written)
    if value.type.name == "ARRAY":
        if not key.type.is_integer:
            raise StatementRefused(f"{text_of(node)}: a position is an integer, not {key.type}", where=where, next_step="CAST it AS INT.")
        if isinstance(written, exp.Literal) and int(written.name) < 1:
            raise StatementRefused(f"{text_of(node)}: positions begin at 1", where=where, next_step="Write array[1] for the first element.")
        checked = render("CASE WHEN _0 < 1 THEN error('positions of an array begin at 1') ELSE _0 END", key.ast)
        position = key.ast if isinstance(written, exp.Literal) else checked
        return Value(exp.Anonymous(this="list_extract", expressions=[value.ast, position]), value.type.parts[0][1])
    if value.type.name == "MAP":
        of = value.type.parts[0][1]
        return Value(exp.Anonymous(this="map_extract_value", expressions=[value.ast, cast(key.ast, of.duckdb)]), value.type.parts[1][1])
    raise StatementRefused(f"{text_of(subject)} is {value.type}, no array or map", where=where, next_step="Use SPLIT or ARRAY[...].")


def _map(node: exp.Bracket, bind: Bind, where: str) -> Value:
    if len(node.expressions) % 2 or not node.expressions:
        raise StatementRefused(f"{text_of(node)} takes pairs of key and value", where=where, next_step="Write MAP['a', 1, 'b', 2].")
    sides = [[bind(item) for item in node.expressions[start::2]] for start in (0, 1)]
    kinds = [_common(side, node, where) for side in sides]
    lists = [
        exp.Anonymous(this="list_value", expressions=[cast(item.ast, kind.duckdb) for item in side])
        for side, kind in zip(sides, kinds, strict=True)
    ]
    return Value(exp.Anonymous(this="map", expressions=lists), map_of(*kinds), nullable=False)


def bind_row(values: Sequence[Value]) -> Value:
    """ROW(a, b, ...)"""
    made = exp.Anonymous(this="row", expressions=[value.ast for value in values])
    return Value(made, row_of([(f"EXPR${i}", value.type) for i, value in enumerate(values)]), nullable=False)


def _common(items: Sequence[Value], node: exp.Expr, where: str) -> SqlType:
    found = common_type([item.type for item in items]) if items else types.NULL
    if not found.is_known:
        listed = ", ".join(sorted({str(item.type) for item in items})) or "nothing"
        raise StatementRefused(f"{text_of(node)} mixes {listed}", where=where, next_step="CAST the elements to one type.")
    return found


def _element(args: Sequence[Value]) -> SqlType:
    return args[0].type.parts[0][1] if args[0].type.name in ("ARRAY", "MAP") else types.UNKNOWN


def _same(args: Sequence[Value]) -> SqlType:
    return args[0].type


def _t(template: str) -> Callable[[Sequence[Value]], exp.Expr]:
    return lambda args: render(template, *[arg.ast for arg in args])


def _joined(args: Sequence[Value]) -> exp.Expr:
    items = args[0].ast if len(args) == 2 else render("list_transform(_0, _e -> COALESCE(_e, _1))", args[0].ast, args[2].ast)
    return render("array_to_string(_0, _1)", items, args[1].ast)


def _str_to_map(args: Sequence[Value]) -> exp.Expr:
    pair = args[1].ast if len(args) > 1 else exp.Literal.string(",")
    key = args[2].ast if len(args) > 2 else exp.Literal.string("=")
    value = "CASE WHEN contains(_p, _2) THEN SUBSTRING(_p, length(split_part(_p, _2, 1)) + length(_2) + 1) END"
    entries = f"list_transform(string_split(_0, _1), _p -> struct_pack(k := split_part(_p, _2, 1), v := {value}))"
    return render(f"map_from_entries({entries})", args[0].ast, pair, key)


_ARRAY_OF_KEYS = lambda args: array_of(args[0].type.parts[0][1]) if args[0].type.name == "MAP" else types.UNKNOWN  # noqa: E731
_ARRAY_OF_VALUES = lambda args: array_of(args[0].type.parts[1][1]) if args[0].type.name == "MAP" else types.UNKNOWN  # noqa: E731

NESTED: dict[str, Builtin] = {
    "CARDINALITY": Builtin(1, 1, types.INT, _t("CAST(len(_0) AS INT)")),
    "ELEMENT": Builtin(1, 1, _element, _t("CASE WHEN len(_0) > 1 THEN error('ELEMENT takes one element') ELSE _0[1] END"), "always"),
    "ARRAY_CONTAINS": Builtin(
        2,
        2,
        types.BOOLEAN,
        _t("CASE WHEN _1 IS NULL THEN len(list_filter(_0, _e -> _e IS NULL)) > 0 ELSE list_contains(_0, _1) END"),
        "any",
    ),
    "ARRAY_DISTINCT": Builtin(1, 1, _same, _t("list_transform(list_distinct(_0), _e -> _e)")),
    "ARRAY_REVERSE": Builtin(1, 1, _same, _t("list_reverse(_0)")),
    "ARRAY_MAX": Builtin(1, 1, _element, _t("list_max(_0)"), "always"),
    "ARRAY_MIN": Builtin(1, 1, _element, _t("list_min(_0)"), "always"),
    "ARRAY_POSITION": Builtin(2, 2, types.INT, _t("CAST(COALESCE(list_position(_0, _1), 0) AS INT)")),
    "ARRAY_JOIN": Builtin(2, 3, types.STRING, _joined),
    "MAP_KEYS": Builtin(1, 1, _ARRAY_OF_KEYS, _t("map_keys(_0)")),
    "MAP_VALUES": Builtin(1, 1, _ARRAY_OF_VALUES, _t("map_values(_0)")),
    "SPLIT": Builtin(2, 2, array_of(types.STRING), _t("string_split(_0, _1)")),
    "STR_TO_MAP": Builtin(1, 3, map_of(types.STRING, types.STRING), _str_to_map),
}
"""Functions over arrays and maps."""
