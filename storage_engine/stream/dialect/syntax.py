"""Dialect: Flink's SELECT text into a syntax tree, and that tree's names of tables, hints and time travel.

Holds: every function call stays what the user wrote (exp.Anonymous), so that builtins.py alone decides what it means.
Never: knows tables, types, or DuckDB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlglot import exp, parser, tokens
from sqlglot.dialects.dialect import Dialect, NormalizationStrategy
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokens import TokenType

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.json_syntax import NAMES as JSON_NAMES
from storage_engine.stream.dialect.json_syntax import parse_json_call

_SPECIAL_SYNTAX = ("CAST", "TRY_CAST", "EXTRACT", "TRIM", "POSITION", "SUBSTRING", "FLOOR", "CEIL", "OVERLAY")


WINDOW_FUNCTIONS = ("TUMBLE", "HOP", "CUMULATE", "SESSION")
"""Table functions that give each row its windows."""


def _window_function(name: str) -> Any:
    return lambda self: self._parse_window_function(name)


def _json_function(name: str) -> Any:
    return lambda self: parse_json_call(self, name)


class Flink(Dialect):
    """Flink SQL, as far as SELECT goes."""

    NORMALIZATION_STRATEGY = NormalizationStrategy.CASE_SENSITIVE
    NULL_ORDERING = "nulls_are_small"
    TABLESAMPLE_SIZE_IS_PERCENT = True

    class Tokenizer(tokens.Tokenizer):
        """Names in backquotes; a hint may stand behind a table's name."""

        IDENTIFIERS = ["`"]  # noqa: RUF012  # the base class's form
        STRING_ESCAPES = ["'"]  # noqa: RUF012
        HEX_STRINGS = [("x'", "'"), ("X'", "'")]  # noqa: RUF012
        KEYWORDS = {word: kind for word, kind in tokens.Tokenizer.KEYWORDS.items() if word != "SESSION"}  # noqa: RUF012  # a function here
        TOKENS_PRECEDING_HINT = {*tokens.Tokenizer.TOKENS_PRECEDING_HINT, TokenType.VAR, TokenType.IDENTIFIER}  # noqa: RUF012

    class Parser(parser.Parser):
        """Calls stay as written, but for those with a syntax of their own."""

        FUNCTIONS = {}  # noqa: RUF012
        FUNCTION_PARSERS = {  # noqa: RUF012
            **{name: parse for name, parse in parser.Parser.FUNCTION_PARSERS.items() if name in _SPECIAL_SYNTAX},
            **{name: _json_function(name) for name in JSON_NAMES},
            **{name: _window_function(name) for name in WINDOW_FUNCTIONS},
        }

        def _parse_table_parts(self, *args: Any, **kwargs: Any) -> Any:
            table = super()._parse_table_parts(*args, **kwargs)
            if table is not None and self._match(TokenType.HINT):
                table.meta["hint"] = " ".join(self._prev_comments or [])
            return table

        def _parse_window_function(self, name: str) -> exp.Expr:
            """The arguments as written: TABLE t or (SELECT ...), DESCRIPTOR(c), intervals; each may be named (SIZE => INTERVAL ...)."""
            return exp.Anonymous(this=name, expressions=self._parse_csv(self._parse_window_argument))

        def _parse_window_argument(self) -> exp.Expr | None:
            label = ""
            if self._next is not None and self._next.token_type == TokenType.FARROW:
                label = self._curr.text.upper()
                self._advance(2)
            is_table = self._match(TokenType.TABLE) and self._curr.token_type != TokenType.L_PAREN  # else TABLE (SELECT ...)
            argument = self._parse_table_parts() if is_table else self._parse_assignment()
            if argument is not None:
                if self._match(TokenType.PARTITION_BY):
                    argument.meta["partition_by"] = self._parse_partition_columns()
                argument.meta["label"] = label
            return argument

        def _parse_partition_columns(self) -> list[exp.Expr | None]:
            """Columns up to the next argument, which is no column: DESCRIPTOR(...), or a named one."""
            is_wrapped = self._match(TokenType.L_PAREN)
            columns = [self._parse_column()]
            while self._curr is not None and self._curr.token_type == TokenType.COMMA:
                behind = self._tokens[self._index + 2] if self._index + 2 < len(self._tokens) else None
                if not is_wrapped and behind is not None and behind.token_type in (TokenType.L_PAREN, TokenType.FARROW):
                    break
                self._advance()
                columns.append(self._parse_column())
            if is_wrapped:
                self._match_r_paren()
            return columns


def parse_select(sql: str, *, where: str = "statement", first_line: int = 1) -> exp.Query:
    """Parse one SELECT (also WITH ... SELECT, UNION, VALUES). `first_line`: where it begins in the user's text, for errors.

    Errors: StatementRefused with line and column, for text that is no query.
    """
    try:
        trees = Flink.parse(Flink(), "\n" * (first_line - 1) + sql)
    except (ParseError, TokenError) as error:
        if "MATCH_RECOGNIZE" in sql.upper():
            what = "MATCH_RECOGNIZE is not kept incrementally"
            raise StatementRefused(what, where=where, next_step="Compare neighbours with LAG and LEAD, or join the rows.") from error
        raise StatementRefused(_first_line(error), where=where, next_step="Correct the statement; SQL is Flink's dialect.") from error
    trees = [tree for tree in trees if tree is not None]
    if len(trees) != 1 or not isinstance(trees[0], exp.Query | exp.Values):
        raise StatementRefused("this is not one SELECT", where=where, next_step="Write one SELECT statement.")
    tree = trees[0]
    return tree if isinstance(tree, exp.Query) else exp.select("*").from_(tree)


def _first_line(error: Exception) -> str:
    details = getattr(error, "errors", None)
    if details:
        first: Mapping[str, Any] = details[0]
        place = f"line {first.get('line')}, column {first.get('col')}"
        return f"{first.get('description', 'syntax error')} near {first.get('highlight', '')!r}, {place}"
    return str(error).splitlines()[0]


def table_name(table: exp.Table, default_database: str = "") -> str:
    """The store's name of a table: database.table; a catalog before it is left out."""
    database = table.db or default_database
    return f"{database}.{table.name}" if database else table.name


def alias_of(source: exp.Expr) -> str:
    """The name by which columns of a FROM item are qualified."""
    return source.alias or source.name


def table_hints(table: exp.Table, where: str) -> dict[str, str]:
    """The options of /*+ OPTIONS('key' = 'value', ...) */ behind a table's name."""
    text = table.meta.get("hint", "").strip()
    if not text:
        return {}
    try:
        hint = Flink.parse(Flink(), f"SELECT {text}")[0]
    except (ParseError, TokenError) as error:
        raise StatementRefused(
            f"the hint {text!r} cannot be read", where=where, next_step="Write /*+ OPTIONS('key' = 'value') */."
        ) from error
    assert hint is not None
    call = hint.expressions[0]
    options: dict[str, str] = {}
    if not (isinstance(call, exp.Anonymous) and str(call.this).upper() == "OPTIONS"):
        raise StatementRefused(
            f"the hint {text!r} is not known", where=where, next_step="Behind a table's name only OPTIONS('key' = 'value') is known."
        )
    for item in call.expressions:
        if not (isinstance(item, exp.EQ) and isinstance(item.this, exp.Literal) and isinstance(item.expression, exp.Literal)):
            raise StatementRefused(f"the hint {text!r} cannot be read", where=where, next_step="Write OPTIONS('key' = 'value', ...).")
        options[item.this.name] = item.expression.name
    return options


def query_hints(select: exp.Select) -> list[str]:
    """The names of the hints behind SELECT, for example REPLICATED_SHUFFLE_HASH."""
    hint = select.args.get("hint")
    if hint is None:
        return []
    return [str(item.this if isinstance(item, exp.Anonymous) else item.sql()).upper() for item in hint.expressions]


def text_of(node: exp.Expr) -> str:
    """A piece of the user's statement, for messages and names."""
    return node.sql(dialect=Flink)
