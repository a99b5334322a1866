"""URLs: PARSE_URL(url, part [, key of the query]), as java.net.URL takes one apart. What is no URL, or has no such part, gives NULL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.render import render, string
from storage_engine.stream.functions.builtins import Value, literal_text

_URL: Final = r"^([A-Za-z][A-Za-z0-9+.-]*)://((?:([^/?#@]*)@)?([^/?#:@]*)(?::\d+)?)([^?#]*)(?:\?([^#]*))?(?:#(.*))?$"
_GROUPS: Final = {"PROTOCOL": 1, "AUTHORITY": 2, "USERINFO": 3, "HOST": 4, "PATH": 5, "QUERY": 6, "REF": 7}
_MARKS: Final = {"USERINFO": "^[^/?#]*://[^/?#]*@", "QUERY": "^[^#]*\\?", "REF": "#"}
"""What must be in a URL for a part that may be missing: an empty part is there, a missing one is NULL."""


def part_of_url(args: Sequence[Value]) -> exp.Expr:
    """The part as a DuckDB tree. Errors: StatementRefused for a part that a URL does not have."""
    part = literal_text(args[1], "the part of PARSE_URL")
    if part == "FILE":
        return render(
            "CASE WHEN regexp_matches(_0, _1) THEN regexp_extract(_0, '^[^/?#]*://[^/?#]*([^#]*)', 1) END", args[0].ast, string(_URL)
        )
    if part not in _GROUPS:
        known = ", ".join([*_GROUPS, "FILE"])
        raise StatementRefused(f"PARSE_URL has no part {part}", where="function call", next_step=f"Parts are {known}.")
    there = string(_MARKS.get(part, ""))
    found = render(
        f"CASE WHEN regexp_matches(_0, _1) AND regexp_matches(_0, _2) THEN regexp_extract(_0, _1, {_GROUPS[part]}) END",
        args[0].ast, string(_URL), there,
    )  # fmt: skip
    if len(args) == 2:
        return found
    if part != "QUERY":
        raise StatementRefused(f"PARSE_URL({part}) takes no key", where="function call", next_step="Only QUERY has keys.")
    pattern = string(f"(?:^|&){re.escape(literal_text(args[2], 'the key of PARSE_URL'))}=([^&]*)")
    return render("CASE WHEN regexp_matches(_0, _1) THEN regexp_extract(_0, _1, 1) END", found, pattern)
