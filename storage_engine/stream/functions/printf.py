"""Printf: PRINTF(format, ...): Java's format strings, each place put together by itself, since NULL prints as the word null.

    %[-0+ ,][width][.precision] and d x X o (integers), f e (numbers), s, b; %% and %n
Errors: StatementRefused for a place that is not one of these, or has no value of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import cast, render, string
from storage_engine.stream.functions.builtins import Value, literal_text

_PLACE: Final = re.compile(
    r"%(?:(?P<flags>[-0+ ]*)(?P<width>\d+)?(?P<precision>\.\d+)?(?P<kind>[dxXofesb])|(?P<sign>[%n]))|(?P<unknown>%.?)"
)


def formatted(args: Sequence[Value]) -> exp.Expr:
    """The text as a DuckDB tree. `args`: the format, a literal, then the values of its places."""
    text, values, pieces, at = literal_text(args[0], "the format of PRINTF"), list(args[1:]), [], 0
    for match in _PLACE.finditer(text):
        pieces += [string(text[at : match.start()])] if match.start() > at else []
        at = match.end()
        if match["unknown"]:
            raise StatementRefused(
                f"PRINTF: {match[0]} is no place", where="function call", next_step="Use %d, %s, %.2f, %x, %o, %e, %b, %%."
            )
        if match["sign"]:
            pieces.append(string("%" if match["sign"] == "%" else "\n"))
        elif not values:
            raise StatementRefused(f"PRINTF: {match[0]} has no value", where="function call", next_step="Give one value for each place.")
        else:
            pieces.append(_piece(match, values.pop(0)))
    pieces += [string(text[at:])] if at < len(text) else []
    if not pieces:
        return string("")
    return render(" || ".join(f"_{i}" for i in range(len(pieces))), *pieces)


def _piece(match: re.Match[str], value: Value) -> exp.Expr:
    flags, width, precision, kind = (match[name] or "" for name in ("flags", "width", "precision", "kind"))
    if (kind in "dxXo" and not value.type.is_integer) or (kind in "fe" and not (value.type.is_numeric and not value.type.is_integer)):
        raise StatementRefused(
            f"PRINTF: {match[0]} does not take {value.type}", where="function call", next_step="Use %s, or CAST the value."
        )
    aligned = f"%{'-' if '-' in flags else ''}{width}{precision if kind in 'sb' else ''}s"
    null = string(_padded("false" if kind == "b" else "null", flags, width))
    if kind in "sb":
        shown = value.ast if value.type == types.STRING else cast(value.ast, "TEXT")
        return render("CASE WHEN _0 IS NULL THEN _1 ELSE printf(_2, _3) END", value.ast, null, string(aligned), shown)
    number = cast(value.ast, "DOUBLE" if kind in "fe" else "BIGINT")
    return render(
        "CASE WHEN _0 IS NULL THEN _1 ELSE printf(_2, _3) END", value.ast, null, string(f"%{flags}{width}{precision}{kind}"), number
    )


def _padded(text: str, flags: str, width: str) -> str:
    return text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0))
