"""Function calls: the user's functions in a statement: found by name, marked in its tree, bound to what DuckDB calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.render import cast
from storage_engine.stream.dialect.sqltypes import NULL, UNKNOWN, is_storable_as, parse_type
from storage_engine.stream.dialect.syntax import WINDOW_FUNCTIONS
from storage_engine.stream.functions.aggregates import NAMES
from storage_engine.stream.functions.builtins import NONDETERMINISTIC, Value
from storage_engine.stream.functions.python_functions import FunctionDefinition, duckdb_name
from storage_engine.stream.functions.scalar_functions import SCALARS, WITH_SYNTAX

FUNCTION: Final = "function"
"""The key of a call's meta under which its definition is."""

_OTHERS: Final = frozenset(
    {"ROW_NUMBER", "RANK", "DENSE_RANK", "NTILE", "LAG", "LEAD", "GROUPING", "GROUPING_ID", "TABLE", "DESCRIPTOR", "UNNEST", "OPTIONS"}
)


def is_known_name(name: str) -> bool:
    """True for a name that SQL has already."""
    return any(name.upper() in names for names in (SCALARS, WITH_SYNTAX, NAMES, NONDETERMINISTIC, WINDOW_FUNCTIONS, _OTHERS))


def mark_calls(tree: exp.Expr, find: Callable[[str], FunctionDefinition | None]) -> dict[str, FunctionDefinition]:
    """Mark the calls of users' functions in a tree; the functions, by name."""
    used: dict[str, FunctionDefinition] = {}
    for call in tree.find_all(exp.Anonymous):
        name = str(call.this)
        found = None if is_known_name(name) else find(name.lower())
        if found is not None:
            call.meta[FUNCTION] = used[found.name] = found
    return used


def bind_call(definition: FunctionDefinition, arguments: Sequence[Value], where: str) -> Value:
    """A call. Errors: StatementRefused when the arguments do not fit the signature."""
    if len(arguments) != len(definition.inputs):
        raise StatementRefused(
            f"{definition.signature} takes {len(definition.inputs)} arguments, not {len(arguments)}",
            where=where,
            next_step="Correct the call.",
        )
    bound = []
    for number, (value, written) in enumerate(zip(arguments, definition.inputs, strict=True), 1):
        wanted = parse_type(written)
        if value.type not in (NULL, UNKNOWN) and not is_storable_as(value.type, wanted):
            raise StatementRefused(
                f"argument {number} of {definition.signature} is {value.type}", where=where, next_step=f"CAST it AS {written}."
            )
        bound.append(value.ast if value.type == wanted else cast(value.ast, wanted.duckdb))
    return Value(exp.Anonymous(this=duckdb_name(definition), expressions=bound), parse_type(definition.result))
