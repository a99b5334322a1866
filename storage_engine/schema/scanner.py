"""Scanner: SQL text to tokens, with the line of each.

Owner: schema/ddl.py reads statements with it; nothing is interpreted here.
Holds: tokens carry their place in the text, so that the text of a clause can be cut out untouched.
       Comments are dropped between tokens; hints (/*+ ... */) are tokens.
Never: keeps keywords: a word is a word, its meaning depends on where it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from storage_engine.errors import StatementRefused

TokenKind = Literal["word", "quoted", "string", "number", "hint", "symbol", "end"]

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|/\*(?!\+).*?\*/)
    | (?P<hint>/\*\+.*?\*/)
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>`(?:[^`]|``)+`|"(?:[^"]|"")*")
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d]\w*)
    | (?P<symbol><>|!=|<=|>=|\|\||=>|::|[-+*/%=<>(),;.\[\]{}?:$@&|^~!\#\\])
    """,
    re.VERBOSE | re.DOTALL,
)
_UNFINISHED = {
    "'": "a string without its closing quote",
    "`": "a name without its closing backquote",
    '"': "a double-quoted text without its end",
}


@dataclass(frozen=True, slots=True)
class Token:
    """One token: `text` as written, its half-open place `start`, `stop` in the whole text, and its line (from 1)."""

    kind: TokenKind
    text: str
    start: int
    stop: int
    line: int

    @property
    def value(self) -> str:
        """The text without its quotes; a hint without its comment marks."""
        if self.kind in ("string", "quoted"):
            quote = self.text[0]
            return self.text[1:-1].replace(quote * 2, quote)
        if self.kind == "hint":
            return self.text[3:-2]
        return self.text

    @property
    def upper(self) -> str:
        """The word in capitals; "" for anything that is not a bare word."""
        return self.text.upper() if self.kind == "word" else ""

    def __str__(self) -> str:
        return "the end of the statement" if self.kind == "end" else self.text if len(self.text) <= 40 else self.text[:37] + "..."


def scan(sql: str) -> list[Token]:
    r"""All tokens of a text, without an end token.

    Errors: StatementRefused with the line, for an unfinished string, name or comment, or a character SQL does not have.

    >>> [(token.text, token.line) for token in scan("SELECT a -- first\n FROM `my db`.t")]
    [('SELECT', 1), ('a', 1), ('FROM', 2), ('`my db`', 2), ('.', 2), ('t', 2)]
    """
    tokens: list[Token] = []
    position, line = 0, 1
    while position < len(sql):
        match = _TOKEN.match(sql, position)
        if match is None or (match.lastgroup == "symbol" and sql.startswith("/*", position)):
            raise _unreadable(sql, position, line)
        kind, text = match.lastgroup, match.group()
        if kind != "space":
            tokens.append(Token(kind, text, position, match.end(), line))  # type: ignore[arg-type]
        line += text.count("\n")
        position = match.end()
    return tokens


def split_statements(sql: str) -> list[list[Token]]:
    """The tokens of each statement, without the semicolons that end them; empty statements are left out."""
    statements: list[list[Token]] = [[]]
    for token in scan(sql):
        if token.kind == "symbol" and token.text == ";":
            statements.append([])
        else:
            statements[-1].append(token)
    return [tokens for tokens in statements if tokens]


def _unreadable(sql: str, position: int, line: int) -> StatementRefused:
    start = sql[position]
    if sql.startswith("/*", position):
        what, remedy = "a comment without its end", "Close it with */."
    elif start in _UNFINISHED:
        what, remedy = _UNFINISHED[start], f"Close it with {start}; inside it, {start} is written twice."
    else:
        what, remedy = f"the character {start!r} is not SQL", "Remove it, or put it into a string."
    return StatementRefused(f"cannot read the statement: {what}", where=f"line {line}", next_step=remedy)
