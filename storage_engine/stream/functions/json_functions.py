"""JSON functions: SQL/JSON over documents kept as text, as DuckDB computes it. Source: Flink 2.2's JSON functions, by real answers.

A path is a literal: `[lax|strict] $.name['other'][0]`. In strict mode a path that is not there is an error, in lax mode it is empty; what
is done then, the clauses ON EMPTY and ON ERROR say, and unsaid it is NULL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.json_syntax import NAMES
from storage_engine.stream.dialect.render import cast, render, string
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import Value

Bind = Callable[[exp.Expr], Value]
CastText = Callable[[exp.Expr, exp.Expr], Value]
_PATH: Final = re.compile(r"^\s*(?:(lax|strict)\s+)?\$((?:\.[A-Za-z_]\w*|\.\"[^\"]+\"|\['[^']+'\]|\[\d+\])*)\s*$")
_PLACED: Final = re.compile(r"\['([^']+)'\]")
_JSON_CONSTRUCTORS: Final = ("JSON_OBJECT", "JSON_ARRAY")


def is_json_call(node: exp.Anonymous) -> bool:
    return str(node.this).upper() in NAMES


def bind_json(node: exp.Anonymous, bind: Bind, returning: CastText, where: str) -> Value:
    """A JSON call. `returning` casts a tree of text to the written type. Errors: StatementRefused for a path that cannot be followed."""
    name = str(node.this).upper()
    if name == "JSON_OBJECT":
        return _object(node, bind, where)
    if name == "JSON_ARRAY":
        return _array(node, bind, where)
    if len(node.expressions) < 2:
        raise StatementRefused(f"{name} takes a document and a path", where=where, next_step=f"Write {name}(document, '$.path').")
    document = bind(node.expressions[0])
    path, is_strict = _path(node.expressions[1], name, where)
    checked = render("CASE WHEN json_valid(_0) THEN _0 END", document.ast)
    kind = render("json_type(_0, _1)", checked, path)
    if name == "JSON_EXISTS":
        failed = _instead(node, "on_error", "FALSE", name, bind, "BOOLEAN")
        template = "CASE WHEN _0 IS NULL THEN NULL WHEN NOT json_valid(_0) THEN _1 ELSE COALESCE(_2 <> 'NULL', FALSE) END"
        return Value(render(template, document.ast, failed, kind), types.BOOLEAN, document.nullable)
    wanted = node.meta.get("returning")
    empty = _instead(node, "on_error" if is_strict else "on_empty", "NULL", name, bind, "TEXT")
    failed = _instead(node, "on_error", "NULL", name, bind, "TEXT")
    if name == "JSON_VALUE":
        found = render("CASE WHEN _0 IN ('OBJECT', 'ARRAY') THEN _1 ELSE json_extract_string(_2, _3) END", kind, failed, checked, path)
    else:
        found = _queried(node, kind, failed, render("CAST(json_extract(_0, _1) AS TEXT)", checked, path))
    template = "CASE WHEN _0 IS NULL THEN NULL WHEN NOT json_valid(_0) THEN _1 WHEN _2 IS NULL THEN _3 ELSE _4 END"
    made = render(template, document.ast, failed, kind, empty, found)
    if wanted is None:
        return Value(made, types.STRING)
    if name == "JSON_QUERY" and text_of(wanted).upper() not in ("STRING", "TEXT", "VARCHAR"):
        raise StatementRefused(f"JSON_QUERY RETURNING {text_of(wanted)}", where=where, next_step="Leave RETURNING out: it gives text.")
    return returning(made, wanted)


def bind_json_string(node: exp.Anonymous, bind: Bind, where: str) -> Value:
    """JSON_STRING(value): a value as JSON text; NULL stays NULL."""
    if len(node.expressions) != 1:
        raise StatementRefused("JSON_STRING takes one value", where=where, next_step="Write JSON_STRING(value).")
    return Value(_member(node.expressions[0], bind, absent=True, where=where), types.STRING)


def _queried(node: exp.Anonymous, kind: exp.Expr, failed: exp.Expr, text: exp.Expr) -> exp.Expr:
    wrapper = node.meta.get("wrapper", "WITHOUT")
    if wrapper == "WITH":
        return render("'[' || _0 || ']'", text)
    if wrapper == "CONDITIONAL":
        return render("CASE WHEN _0 IN ('OBJECT', 'ARRAY') THEN _1 ELSE '[' || _1 || ']' END", kind, text)
    return render("CASE WHEN _0 IN ('OBJECT', 'ARRAY') THEN _1 ELSE _2 END", kind, text, failed)


def _instead(node: exp.Anonymous, clause: str, unsaid: str, name: str, bind: Bind, kind: str) -> exp.Expr:
    """What a clause puts in the place of an answer."""
    said = str(node.meta.get(clause, unsaid))
    if said.startswith("DEFAULT "):
        return cast(bind(node.expressions[int(said.removeprefix("DEFAULT "))]).ast, kind)
    if said == "ERROR":
        what = "no value" if clause == "on_empty" else "no JSON, or no value of that kind,"
        return render(f"CAST(error(_0) AS {kind})", string(f"{name}: {what} at path {text_of(node.expressions[1])}"))
    return {
        "NULL": exp.Null(), "UNKNOWN": exp.Null(), "TRUE": exp.Boolean(this=True), "FALSE": exp.Boolean(this=False),
        "EMPTY ARRAY": string("[]"), "EMPTY OBJECT": string("{}"),
    }[said]  # fmt: skip


def _path(written: exp.Expr, name: str, where: str) -> tuple[exp.Expr, bool]:
    match = _PATH.match(written.name) if isinstance(written, exp.Literal) and written.is_string else None
    if match is None:
        raise StatementRefused(
            f"{name}: the path {text_of(written)} cannot be followed",
            where=where,
            next_step="Write a literal path of names and positions: '$.a.b[0]', with lax or strict before it.",
        )
    steps = _PLACED.sub(r'."\1"', match.group(2))
    return string(f"${steps}"), match.group(1) == "strict"


def _object(node: exp.Anonymous, bind: Bind, where: str) -> Value:
    members = []
    for key, value in zip(node.expressions[::2], node.expressions[1::2], strict=True):
        label = bind(key)
        if label.type != types.STRING or label.nullable:
            raise StatementRefused(f"JSON_OBJECT: the key {text_of(key)} may be NULL or no text", where=where, next_step="Write 'name'.")
        member = _member(value, bind, absent=bool(node.meta["absent"]), where=where)
        members.append(render("CAST(to_json(_0) AS TEXT) || ':' || _1", label.ast, member))
    return _joined("{", members, "}")


def _array(node: exp.Anonymous, bind: Bind, where: str) -> Value:
    return _joined("[", [_member(item, bind, absent=bool(node.meta["absent"]), where=where) for item in node.expressions], "]")


def _joined(begin: str, members: list[exp.Expr], end: str) -> Value:
    if not members:
        return Value(string(begin + end), types.STRING, nullable=False)
    listed = exp.Anonymous(this="list_value", expressions=members)
    made = render(f"'{begin}' || COALESCE(array_to_string(_0, ','), '') || '{end}'", listed)
    return Value(made, types.STRING, nullable=False)


def _member(node: exp.Expr, bind: Bind, *, absent: bool, where: str) -> exp.Expr:
    """A value as JSON text; NULL where it is left out."""
    value = bind(node)
    is_json = isinstance(node, exp.Anonymous) and str(node.this).upper() in _JSON_CONSTRUCTORS
    if is_json or value.type.is_numeric:
        text = cast(value.ast, "TEXT")
    elif value.type == types.BOOLEAN:
        text = render("CASE WHEN _0 THEN 'true' WHEN NOT _0 THEN 'false' END", value.ast)
    elif value.type in (types.STRING, types.DATE, types.TIME) or value.type.is_timestamp:
        text = render("CAST(to_json(CAST(_0 AS TEXT)) AS TEXT)", value.ast)
    elif value.type == types.NULL:
        text = exp.Null()
    else:
        raise StatementRefused(f"{text_of(node)} is {value.type}, which JSON does not hold", where=where, next_step="CAST it AS STRING.")
    return render("CASE WHEN _0 IS NOT NULL THEN _1 END" if absent else "CASE WHEN _0 IS NULL THEN 'null' ELSE _1 END", value.ast, text)


_KINDS = {"": "", "VALUE": "", "OBJECT": " = 'OBJECT'", "ARRAY": " = 'ARRAY'", "SCALAR": " NOT IN ('OBJECT', 'ARRAY')"}


def is_json(value: Value, kind: exp.JSON) -> Value:
    """IS JSON [VALUE | OBJECT | ARRAY | SCALAR]; false for NULL."""
    wanted = _KINDS[str(kind.args.get("this") or "").upper()]
    test = f"CASE WHEN json_valid(_0) THEN json_type(_0){wanted} ELSE FALSE END" if wanted else "COALESCE(json_valid(_0), FALSE)"
    return Value(render(test, value.ast), types.BOOLEAN, nullable=False)
