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


def _cardinality(args: Sequence[Value]) -> exp.Expr:
    return render("CAST(cardinality(_0) AS INT)" if args[0].type.name == "MAP" else "CAST(len(_0) AS INT)", args[0].ast)


def _joined(args: Sequence[Value]) -> exp.Expr:
    items = args[0].ast if len(args) == 2 else render("list_transform(_0, _e -> COALESCE(_e, _1))", args[0].ast, args[2].ast)
    return render("array_to_string(_0, _1)", items, args[1].ast)


def _str_to_map(args: Sequence[Value]) -> exp.Expr:
    pair = args[1].ast if len(args) > 1 else exp.Literal.string(",")
    key = args[2].ast if len(args) > 2 else exp.Literal.string("=")
    value = "CASE WHEN contains(_p, _2) THEN SUBSTRING(_p, length(split_part(_p, _2, 1)) + length(_2) + 1) END"
    entries = f"list_transform(string_split(_0, _1), _p -> struct_pack(k := split_part(_p, _2, 1), v := {value}))"
    keys = "list_transform(string_split(_0, _1), _p -> split_part(_p, _2, 1))"
    last = f"list_filter({entries}, (_e, _i) -> NOT list_contains(list_slice({keys}, _i + 1, len({keys})), _e.k))"  # of equal keys the last
    return render(f"map_from_entries({last})", args[0].ast, pair, key)


_IS_IN = "(list_position(_1, _e) IS NOT NULL)"  # finds a NULL too


def _distinct(of: str) -> str:
    """Each value once, where it stands first; NULL is a value."""
    return f"list_filter({of}, (_e, _i) -> list_position({of}, _e) = _i)"


def _array_of_common(args: Sequence[Value]) -> SqlType:
    found = common_type([_element(args), args[1].type])
    return array_of(found) if found.is_known else types.UNKNOWN


def _common_array(args: Sequence[Value]) -> SqlType:
    found = common_type([_element([arg]) for arg in args])
    return array_of(found) if found.is_known else types.UNKNOWN


def _with_element(template: str) -> Callable[[Sequence[Value]], exp.Expr]:
    def build(args: Sequence[Value]) -> exp.Expr:
        of = _array_of_common(args)
        element = cast(args[1].ast, of.parts[0][1].duckdb) if of.is_known else args[1].ast
        return render(f"CASE WHEN _0 IS NOT NULL THEN {template} END", args[0].ast, element)

    return build


def _concatenated(args: Sequence[Value]) -> exp.Expr:
    there = " AND ".join(f"_{i} IS NOT NULL" for i in range(len(args)))
    return render(f"CASE WHEN {there} THEN {' || '.join(f'_{i}' for i in range(len(args)))} END", *[arg.ast for arg in args])


def _sliced(args: Sequence[Value]) -> exp.Expr:
    end = args[2].ast if len(args) == 3 else render("len(_0)", args[0].ast)
    return render("list_slice(_0, _1, _2)", args[0].ast, args[1].ast, end)


def _sorted(args: Sequence[Value]) -> exp.Expr:
    ascending, nulls_first = (args[1].ast if len(args) > 1 else exp.true()), (args[2].ast if len(args) > 2 else None)
    for flag in (ascending, nulls_first):
        if flag is not None and not isinstance(flag, exp.Boolean):
            raise StatementRefused("ARRAY_SORT takes TRUE or FALSE", where="function call", next_step="Write ARRAY_SORT(a, FALSE).")
    is_first = bool((nulls_first or ascending).this)
    order = f"'{'ASC' if ascending.this else 'DESC'}', 'NULLS {'FIRST' if is_first else 'LAST'}'"
    return render(f"list_sort(_0, {order})", args[0].ast)


def _entries(args: Sequence[Value]) -> SqlType:
    if args[0].type.name != "MAP":
        return types.UNKNOWN
    (_, key), (_, value) = args[0].type.parts
    return array_of(row_of([("key", key), ("value", value)]))


_ARRAY_OF_KEYS = lambda args: array_of(args[0].type.parts[0][1]) if args[0].type.name == "MAP" else types.UNKNOWN  # noqa: E731
_ARRAY_OF_VALUES = lambda args: array_of(args[0].type.parts[1][1]) if args[0].type.name == "MAP" else types.UNKNOWN  # noqa: E731

NESTED: dict[str, Builtin] = {
    "CARDINALITY": Builtin(1, 1, types.INT, _cardinality),
    "ELEMENT": Builtin(1, 1, _element, _t("CASE WHEN len(_0) > 1 THEN error('ELEMENT takes one element') ELSE _0[1] END"), "always"),
    "ARRAY_CONTAINS": Builtin(
        2,
        2,
        types.BOOLEAN,
        _t("CASE WHEN _1 IS NULL THEN len(list_filter(_0, _e -> _e IS NULL)) > 0 ELSE list_contains(_0, _1) END"),
        "any",
    ),
    "ARRAY_DISTINCT": Builtin(1, 1, _same, _t(_distinct("_0"))),
    "ARRAY_APPEND": Builtin(2, 2, _array_of_common, _with_element("list_append(_0, _1)")),
    "ARRAY_PREPEND": Builtin(2, 2, _array_of_common, _with_element("list_prepend(_1, _0)")),
    "ARRAY_REMOVE": Builtin(2, 2, _same, _t("list_filter(_0, _e -> _e IS DISTINCT FROM _1)")),
    "ARRAY_CONCAT": Builtin(1, 255, _common_array, _concatenated),
    "ARRAY_UNION": Builtin(2, 2, _common_array, _t(_distinct("(_0 || _1)"))),
    "ARRAY_INTERSECT": Builtin(
        2, 2, _common_array, _t(f"CASE WHEN _1 IS NOT NULL THEN {_distinct(f'list_filter(_0, _e -> {_IS_IN})')} END")
    ),
    "ARRAY_EXCEPT": Builtin(
        2, 2, _common_array, _t(f"CASE WHEN _1 IS NOT NULL THEN {_distinct(f'list_filter(_0, _e -> NOT {_IS_IN})')} END")
    ),
    "ARRAY_SLICE": Builtin(2, 3, _same, _sliced, "always"),
    "ARRAY_SORT": Builtin(1, 3, _same, _sorted),
    "ARRAY_REVERSE": Builtin(1, 1, _same, _t("list_reverse(_0)")),
    "ARRAY_MAX": Builtin(1, 1, _element, _t("list_max(_0)"), "always"),
    "ARRAY_MIN": Builtin(1, 1, _element, _t("list_min(_0)"), "always"),
    "ARRAY_POSITION": Builtin(2, 2, types.INT, _t("CAST(COALESCE(list_position(_0, _1), 0) AS INT)")),
    "ARRAY_JOIN": Builtin(2, 3, types.STRING, _joined),
    "MAP_KEYS": Builtin(1, 1, _ARRAY_OF_KEYS, _t("map_keys(_0)")),
    "MAP_VALUES": Builtin(1, 1, _ARRAY_OF_VALUES, _t("map_values(_0)")),
    "MAP_ENTRIES": Builtin(1, 1, _entries, _t("map_entries(_0)")),
    "MAP_FROM_ARRAYS": Builtin(2, 2, lambda args: map_of(_element(args[:1]), _element(args[1:])), _t("map(_0, _1)")),
    "MAP_UNION": Builtin(2, 255, _same, lambda args: exp.Anonymous(this="map_concat", expressions=[arg.ast for arg in args])),
    "SPLIT": Builtin(2, 2, array_of(types.STRING), _t("string_split(_0, _1)")),
    "STR_TO_MAP": Builtin(1, 3, map_of(types.STRING, types.STRING), _str_to_map),
}
"""Functions over arrays and maps."""
