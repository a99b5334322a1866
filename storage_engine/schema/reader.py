"""Reader: walks the tokens of one statement; names, lists, option clauses, and refusals with their line.

Owner: schema/ddl.py and schema/create_table.py, one reader per statement.
State: the position of the next token; it only moves forward.
"""

from __future__ import annotations

from typing import Any

from storage_engine.errors import StatementRefused
from storage_engine.schema.scanner import Token, scan


class Reader:
    """The tokens of one statement, read from left to right. `statement` names it in refusals."""

    def __init__(self, sql: str, tokens: list[Token], database: str) -> None:
        self._sql = sql
        self._tokens = tokens
        self._database = database
        self._next = 0
        self._end = Token("end", "", tokens[-1].stop, tokens[-1].stop, tokens[-1].line)
        self.statement = ""

    @property
    def line(self) -> int:
        """The line on which the statement starts."""
        return self._tokens[0].line

    @property
    def place(self) -> dict[str, Any]:
        """What every statement carries: its text, its line, the current database."""
        return {"text": self._sql[self._tokens[0].start : self._end.start], "line": self.line, "database": self._database}

    def peek(self, ahead: int = 0) -> Token:
        position = self._next + ahead
        return self._tokens[position] if position < len(self._tokens) else self._end

    def take(self) -> Token:
        token = self.peek()
        self._next += token.kind != "end"
        return token

    def at(self, symbol: str) -> bool:
        token = self.peek()
        return token.kind == "symbol" and token.text == symbol

    def take_words(self, *words: str) -> bool:
        """Step over these words if they come next; False (and no step) otherwise."""
        if any(self.peek(index).upper != word for index, word in enumerate(words)):
            return False
        self._next += len(words)
        return True

    def expect_word(self, word: str, form: str) -> None:
        if not self.take_words(word):
            raise self.refusal(f"expected {word}, found {self.peek()}", f"Write {form}.")

    def expect(self, symbol: str, clause: str) -> None:
        if not self.at(symbol):
            raise self.refusal(f"{clause}: expected {symbol}, found {self.peek()}", f"Write {symbol} before {self.peek()}.")
        self._next += 1

    def expect_end(self) -> None:
        if self.peek().kind != "end":
            raise self.refusal(f"{self.peek()} is not understood here", "Remove it, or end the statement before it with a semicolon.")

    def refusal(self, what: str, next_step: str, token: Token | None = None) -> StatementRefused:
        """An error at a token (default: the next one)."""
        where = f"line {(token or self.peek()).line}"
        return StatementRefused(what, where=f"{self.statement}, {where}" if self.statement else where, next_step=next_step)

    def plain_name(self, role: str) -> str:
        """One name, quoted or not."""
        token = self.peek()
        if token.kind not in ("word", "quoted") or not token.value:
            raise self.refusal(f"{role} is missing, found {token}", "Write a name; one with other characters stands in backquotes.")
        return self.take().value

    def qualified_name(self, role: str) -> list[str]:
        """The parts of a name: a, a.b or a.b.c."""
        parts = [self.plain_name(role)]
        while self.at("."):
            self.take()
            parts.append(self.plain_name(role))
        return parts

    def table_name(self) -> str:
        """`catalog`.`database`.`table` as "database.table"; the current database where none is written."""
        start = self.peek()
        parts = self.qualified_name("the name")
        if len(parts) > 3:
            raise self.refusal(f"{'.'.join(parts)} has too many parts", "Write table, database.table or catalog.database.table.", start)
        return ".".join(parts[-2:] if len(parts) > 1 else [self._database, parts[0]])

    def database_name(self) -> str:
        start = self.peek()
        parts = self.qualified_name("the database's name")
        if len(parts) > 2:
            raise self.refusal(f"{'.'.join(parts)} has too many parts", "Write database or catalog.database.", start)
        return parts[-1]

    def job_name(self) -> str:
        """A job's name: a string, a quoted name, or bare as SHOW JOBS prints it: db.view, insert-into_db.t, insert-into_db.t(a,b)."""
        if self.peek().kind == "string":
            return self.take().value
        if self.peek().kind != "word":
            return self.plain_name("the job's name")
        token = self.take()
        name = token.text
        while self._joins(token) and (self.peek().kind in ("word", "number") or self.at(".") or self.at("-")):
            token = self.take()
            name += token.text
        if self._joins(token) and self.at("("):
            name += f"({','.join(self.name_list('the columns in the name of the job'))})"
        return name

    def _joins(self, token: Token) -> bool:
        """Whether the next token stands right behind this one."""
        return self.peek().kind != "end" and self.peek().start == token.stop

    def name_list(self, role: str) -> tuple[str, ...]:
        """(a, b, ...), each name once."""
        self.expect("(", role)
        names = [self.plain_name(role)]
        while self.at(","):
            self.take()
            if self.peek().kind in ("word", "quoted") and self.peek().value in names:
                raise self.refusal(f"{role}: {self.peek()} is named twice", "Name each column once.")
            names.append(self.plain_name(role))
        self.expect(")", role)
        return tuple(names)

    def string(self, clause: str) -> str:
        """A text in single quotes; double quotes are accepted, as in StarRocks."""
        token = self.take()
        if token.kind != "string" and not (token.kind == "quoted" and token.text[0] == '"'):
            raise self.refusal(f"{clause} needs a text in single quotes, found {token}", f"Write {clause} '...'.", token)
        return token.value

    def options(self, clause: str, *, names_are_words: bool = False) -> dict[str, str]:
        """('key' = 'value', ...), in order; an empty list is allowed, a repeated key is not."""
        self.expect("(", clause)
        found: dict[str, str] = {}
        while not self.at(")"):
            key_token = self.peek()
            is_name = names_are_words and key_token.kind in ("word", "quoted")
            key = self.take().value if is_name else self.string(f"an option of {clause}")
            if key in found:
                raise self.refusal(f"{clause}: '{key}' is written twice", "Write it once.", key_token)
            self.expect("=", f"{clause} '{key}'")
            is_number = names_are_words and self.peek().kind == "number"
            found[key] = self.take().value if is_number else self.string(f"'{key}' =")
            if not self.at(","):
                break
            self.take()
            if self.at(")"):
                raise self.refusal(f"{clause}: a comma before )", "Remove the comma.")
        self.expect(")", clause)
        return found

    def hint_options(self) -> dict[str, str]:
        """The options of a hint /*+ OPTIONS('key' = 'value') */ at this place; empty when there is none."""
        return parse_options_hint(self.take().value, line=self.peek(-1).line) if self.peek().kind == "hint" else {}

    def rest_select(self) -> str:
        """Everything to the end of the statement, as written; it must begin like a query."""
        token = self.peek()
        if token.upper not in ("SELECT", "WITH", "VALUES", "TABLE") and not self.at("("):
            raise self.refusal(f"expected SELECT, found {token}", "Write a SELECT (or VALUES (...)) here.")
        if self.peek(1).kind == "end":
            raise self.refusal(f"nothing follows {token}", "Write the whole query.")
        self._next = len(self._tokens)
        return self._sql[token.start : self._end.start]

    def expressions_until(self, stop: str) -> tuple[str, ...]:
        """The texts of comma-separated expressions before an unnested `stop`, which is left unread."""
        expressions: list[str] = []
        first, depth = self.peek(), 0
        while not (depth == 0 and self.at(stop)):
            if self.peek().kind == "end":
                raise self.refusal(f"expected {stop} before the end", f"Close the list with {stop}.")
            if depth == 0 and self.at(","):
                expressions.append(self._sql[first.start : self.take().start].strip())
                first = self.peek()
                continue
            token = self.take()
            depth += (token.text == "(") - (token.text == ")")
        expressions.append(self._sql[first.start : self.peek().start].strip())
        return tuple(expressions)

    def expression_before(self, *words: str) -> str:
        """The text of one expression before any of these unnested words, which is left unread."""
        first, depth = self.peek(), 0
        while not (depth == 0 and self.peek().upper in words):
            token = self.take()
            if token.kind == "end":
                raise self.refusal(f"expected {' or '.join(words)} before the end", "Complete the statement.")
            depth += (token.text == "(") - (token.text == ")")
        return self._sql[first.start : self.peek().start].strip()

    def expression_to_end(self, *words: str) -> str:
        """The text of one expression before any of these unnested words or symbols (left unread), or the end of the statement."""
        first, depth = self.peek(), 0
        while self.peek().kind != "end" and not (depth == 0 and (self.peek().upper or self.peek().text) in words):
            if depth == 0 and self.at(")"):
                raise self.refusal("a ) closes nothing", "Remove it, or open it before.")
            token = self.take()
            depth += (token.text == "(") - (token.text == ")")
        text = self._sql[first.start : self.peek().start].strip()
        if not text:
            raise self.refusal(f"an expression is missing, found {first}", "Complete the statement.", first)
        return text


def parse_options_hint(hint: str, *, line: int = 1) -> dict[str, str]:
    """The options of a hint's text, with or without its comment marks; other hints give no options.

    >>> parse_options_hint("/*+ OPTIONS('lookup.cache' = 'PARTIAL') */")
    {'lookup.cache': 'PARTIAL'}
    """
    text = hint.strip().removeprefix("/*+").removesuffix("*/")
    tokens = scan(text)
    found: dict[str, str] = {}
    position = 0
    while position < len(tokens):
        if tokens[position].upper == "OPTIONS":
            depth = 0
            stop = position + 1
            while stop < len(tokens):
                depth += (tokens[stop].text == "(") - (tokens[stop].text == ")")
                stop += 1
                if depth == 0:
                    break
            reader = Reader(text, tokens[position + 1 : stop] or tokens[position:], "")
            reader.statement = f"hint of line {line}"
            found.update(reader.options("OPTIONS"))
            reader.expect_end()
            position = stop
        else:
            position += 1
    return found
