"""Statement sets: statements that hold other statements.

EXECUTE STATEMENT SET BEGIN INSERT ...; INSERT ...; END;
BEGIN STATEMENT SET; INSERT ...; INSERT ...; END;
EXPLAIN [PLAN FOR] [CHANGELOG_MODE, ...] INSERT ... | SELECT ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from storage_engine.errors import StatementRefused
from storage_engine.schema.scanner import Token
from storage_engine.schema.statements import InsertInto, Query, Statement

_OPENINGS: Final = (("EXECUTE", "STATEMENT", "SET", "BEGIN"), ("BEGIN", "STATEMENT", "SET"))
_DETAILS: Final = ("ESTIMATED_COST", "CHANGELOG_MODE", "JSON_EXECUTION_PLAN", "PLAN_ADVICE")

Parse = Callable[[list[Token]], Statement]


@dataclass(frozen=True)
class StatementSet(Statement):
    """INSERTs that are planned together: all become jobs, or none does."""

    inserts: tuple[InsertInto, ...]


@dataclass(frozen=True)
class Explain(Statement):
    """EXPLAIN of an INSERT INTO ... SELECT, or of a Query."""

    of: InsertInto | Query


def parse_holding(tokens: list[Token], rest: list[list[Token]], parse: Parse) -> tuple[Statement, int] | None:
    """The statement that `tokens` begin, if it holds others, and how many of the following statements it takes."""
    if tokens[0].upper == "EXPLAIN" and len(tokens) > 1:
        return _explain(tokens, parse), 0
    for opening in _OPENINGS:
        if tuple(token.upper for token in tokens[: len(opening)]) == opening:
            return _set(tokens, len(opening), rest, parse)
    return None


def _set(tokens: list[Token], n_words: int, rest: list[list[Token]], parse: Parse) -> tuple[StatementSet, int]:
    line = tokens[0].line
    inserts: list[InsertInto] = []
    for n_taken, held in enumerate([tokens[n_words:], *rest]):
        if [token.upper for token in held] == ["END"]:
            if not inserts:
                raise StatementRefused("the statement set is empty", where=f"line {line}", next_step="Put INSERT INTO ...; into it.")
            return StatementSet(inserts=tuple(inserts), line=line, text="; ".join(item.text for item in inserts)), n_taken
        if not held:
            continue
        made = parse(held)
        if not isinstance(made, InsertInto) or made.is_values:
            raise StatementRefused(
                f"{held[0].text} in a statement set", where=f"line {held[0].line}", next_step="It holds INSERT INTO ... SELECT only."
            )
        inserts.append(made)
    raise StatementRefused("the statement set has no END", where=f"line {line}", next_step="Close it with END;")


def _explain(tokens: list[Token], parse: Parse) -> Explain:
    begin = 3 if [token.upper for token in tokens[1:3]] == ["PLAN", "FOR"] else 1
    while begin < len(tokens) - 1 and (tokens[begin].upper in _DETAILS or tokens[begin].text == ","):
        begin += 1
    made = parse(tokens[begin:])
    if isinstance(made, Query) or (isinstance(made, InsertInto) and not made.is_values):
        return Explain(of=made, line=tokens[0].line, text=made.text, database=made.database)
    raise StatementRefused(
        f"EXPLAIN {tokens[begin].text}", where=f"line {tokens[0].line}", next_step="EXPLAIN takes INSERT INTO ... SELECT, or SELECT."
    )
