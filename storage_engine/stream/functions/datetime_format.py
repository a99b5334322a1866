"""Patterns of DATE_FORMAT and TO_TIMESTAMP: Java's letters into strftime's.

Errors: StatementRefused for a letter whose meaning we do not carry over. Nothing is guessed.
"""

from __future__ import annotations

import re

from storage_engine.errors import StatementRefused

_PIECES = {
    "yyyy": "%Y",
    "yy": "%y",
    "uuuu": "%Y",
    "MM": "%m",
    "M": "%-m",
    "MMM": "%b",
    "MMMM": "%B",
    "dd": "%d",
    "d": "%-d",
    "DDD": "%j",
    "D": "%-j",
    "HH": "%H",
    "H": "%-H",
    "hh": "%I",
    "h": "%-I",
    "mm": "%M",
    "m": "%-M",
    "ss": "%S",
    "s": "%-S",
    "SSS": "%g",
    "SSSSSS": "%f",
    "SSSSSSSSS": "%n",
    "a": "%p",
    "EEEE": "%A",
    "EEE": "%a",
    "E": "%a",
}
_TOKEN = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']+")


def to_strftime(pattern: str) -> str:
    """A Java date pattern as strftime's.

    >>> to_strftime("yyyy-MM-dd'T'HH:mm:ss.SSS")
    '%Y-%m-%dT%H:%M:%S.%g'
    """
    out = []
    for match in _TOKEN.finditer(pattern):
        piece = match.group(0)
        if piece.startswith("'"):
            out.append((match.group(1).replace("''", "'") or "'").replace("%", "%%"))
        elif piece[0].isalpha():
            if piece not in _PIECES:
                known = ", ".join(sorted(_PIECES))
                raise StatementRefused(
                    f"{piece!r} in the date pattern {pattern!r}", where="date pattern", next_step=f"Known are {known}; quote text."
                )
            out.append(_PIECES[piece])
        else:
            out.append(piece.replace("%", "%%"))
    return "".join(out)
