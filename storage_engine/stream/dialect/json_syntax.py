"""JSON syntax: the clauses of JSON_VALUE, JSON_QUERY, JSON_EXISTS, JSON_OBJECT and JSON_ARRAY, read into calls.

A call stays exp.Anonymous; what its clauses say is in its meta: on_empty and on_error (a word, or "DEFAULT n": the n-th argument),
wrapper, returning, absent (are NULLs left out).
"""

from __future__ import annotations

from typing import Any, Final

from sqlglot import exp
from sqlglot.tokens import TokenType

NAMES: Final = ("JSON_VALUE", "JSON_QUERY", "JSON_EXISTS", "JSON_OBJECT", "JSON_ARRAY")
_ON: Final = {
    "JSON_VALUE": ("NULL", "ERROR"),
    "JSON_QUERY": ("NULL", "EMPTY ARRAY", "EMPTY OBJECT", "ERROR"),
    "JSON_EXISTS": ("TRUE", "FALSE", "UNKNOWN", "ERROR"),
}


def parse_json_call(parser: Any, name: str) -> exp.Expr:
    """The call behind its opening bracket; `parser` is sqlglot's. Errors: the parser's, for a clause that is none."""
    call = exp.Anonymous(this=name, expressions=[])
    if name in ("JSON_OBJECT", "JSON_ARRAY"):
        _members(parser, call, name)
    else:
        call.set("expressions", parser._parse_csv(parser._parse_assignment))
        _clauses(parser, call, name)
    if parser._curr is not None and parser._curr.token_type != TokenType.R_PAREN:
        parser.raise_error(f"{name}: {parser._curr.text} is not understood")
    return call


def _members(parser: Any, call: exp.Anonymous, name: str) -> None:
    members: list[exp.Expr] = []
    call.meta["absent"] = name == "JSON_ARRAY"
    while parser._curr is not None and parser._curr.token_type != TokenType.R_PAREN:
        if _on_null(parser, call):
            break
        if name == "JSON_OBJECT":
            parser._match_text_seq("KEY")
            members.append(parser._parse_string() or parser._parse_column())
            if not parser._match_text_seq("VALUE"):
                parser.raise_error("JSON_OBJECT takes KEY 'name' VALUE value")
        members.append(parser._parse_assignment())
        if not parser._match(TokenType.COMMA):
            _on_null(parser, call)
            break
    call.set("expressions", members)


def _on_null(parser: Any, call: exp.Anonymous) -> bool:
    for word in ("NULL", "ABSENT"):
        if parser._match_text_seq(word, "ON", "NULL"):
            call.meta["absent"] = word == "ABSENT"
            return True
    return False


def _clauses(parser: Any, call: exp.Anonymous, name: str) -> None:
    while parser._curr is not None and parser._curr.token_type != TokenType.R_PAREN:
        if name != "JSON_EXISTS" and parser._match_text_seq("RETURNING"):
            call.meta["returning"] = parser._parse_types()
        elif name == "JSON_QUERY" and (wrapper := _wrapper(parser)):
            call.meta["wrapper"] = wrapper
        elif (behaviour := _behaviour(parser, call, name)) is None:
            return
        else:
            which = "on_empty" if name != "JSON_EXISTS" and parser._match_text_seq("ON", "EMPTY") else "on_error"
            if which == "on_error" and not parser._match_text_seq("ON", "ERROR"):
                parser.raise_error(f"{name}: {behaviour} needs ON EMPTY or ON ERROR")
            call.meta[which] = behaviour


def _wrapper(parser: Any) -> str:
    for word, kind in (
        (("WITHOUT", "ARRAY", "WRAPPER"), "WITHOUT"), (("WITHOUT", "WRAPPER"), "WITHOUT"), (("WITH", "ARRAY", "WRAPPER"), "WITH"),
        (("WITH", "WRAPPER"), "WITH"), (("WITH", "UNCONDITIONAL", "ARRAY", "WRAPPER"), "WITH"),
        (("WITH", "UNCONDITIONAL", "WRAPPER"), "WITH"), (("WITH", "CONDITIONAL", "ARRAY", "WRAPPER"), "CONDITIONAL"),
        (("WITH", "CONDITIONAL", "WRAPPER"), "CONDITIONAL"),
    ):  # fmt: skip
        if parser._match_text_seq(*word):
            return kind
    return ""


def _behaviour(parser: Any, call: exp.Anonymous, name: str) -> str | None:
    for words in _ON[name]:
        if parser._match_text_seq(*words.split()):
            return words
    if name == "JSON_VALUE" and parser._match_text_seq("DEFAULT"):
        call.append("expressions", parser._parse_bitwise())
        return f"DEFAULT {len(call.expressions) - 1}"
    return None
