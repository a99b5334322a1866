"""Python functions: what CREATE FUNCTION ... LANGUAGE PYTHON names, with its signature, and how DuckDB calls it.

    def shout(text: str) -> str                          called per row; NULL in, NULL out, unless a parameter is `X | None`
    def mean(a: pa.DoubleArray, b: pa.DoubleArray) -> pa.DoubleArray     called with whole vectors (up to 2,048 rows), NULLs in them
    @udf(inputs=["DECIMAL(12, 2)"], result="DECIMAL(12, 2)")             the signature in SQL's words, where annotations cannot say it

Holds: a definition carries its signature as text, so planning imports nothing (the store's server plans jobs, and runs no code of
       users). A process imports a function only from modules that its own configuration allows, whatever a job says.
       A function gives equal results for equal arguments: that is its contract, the proof of a job relies on it.
"""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import importlib
import inspect
import re
import types as python_types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import duckdb
import pyarrow as pa

from storage_engine.errors import StatementRefused, UserError
from storage_engine.schema.types import arrow_type
from storage_engine.stream.dialect.sqltypes import UNKNOWN, parse_type

KIND: Final = "function"
_MARK: Final = "__flashlake_udf__"
_SHOWN_MAX: Final = 60
_SCALARS: Final[Mapping[Any, str]] = {
    bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "STRING", bytes: "BYTES", dt.date: "DATE", dt.datetime: "TIMESTAMP(6)",
    decimal.Decimal: "DECIMAL(38, 18)",
}  # fmt: skip
_ARRAYS: Final[Mapping[Any, str]] = {
    pa.BooleanArray: "BOOLEAN", pa.Int8Array: "TINYINT", pa.Int16Array: "SMALLINT", pa.Int32Array: "INT", pa.Int64Array: "BIGINT",
    pa.FloatArray: "FLOAT", pa.DoubleArray: "DOUBLE", pa.StringArray: "STRING", pa.BinaryArray: "BYTES", pa.Date32Array: "DATE",
}  # fmt: skip
_UNTYPED_ARRAYS: Final = (pa.Array, pa.ChunkedArray)


class FunctionFailed(UserError):
    """A user's function raised, or gave what it did not declare; names the function and the row."""


@dataclass(frozen=True)
class FunctionDefinition:
    """A function as the store keeps it.

    target      "package.module.function"
    inputs      SQL types of its parameters; `result` of what it returns
    vectorised  takes and returns Arrow arrays
    nulls       "call": it sees NULL as None; "skip": a NULL argument gives NULL without a call
    """

    name: str
    target: str
    inputs: tuple[str, ...]
    result: str
    vectorised: bool = False
    nulls: Literal["call", "skip"] = "skip"

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(self.inputs)}) {self.result}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FunctionDefinition:
        return cls(**{**value, "inputs": tuple(value["inputs"])})


@dataclass(frozen=True)
class FunctionSources:
    """Where a process takes functions from.

    modules  packages and modules that they may come from; None: any that can be imported
    names    name in CREATE FUNCTION ... AS 'com.x.Y' -> "module.function"; these are allowed as well
    """

    modules: tuple[str, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FunctionSources:
        modules = value.get("modules")
        return cls(None if modules is None else tuple(modules), dict(value.get("names", {})))

    def allows(self, target: str) -> bool:
        return self.modules is None or target in self.names.values() or any(target.startswith(f"{name}.") for name in self.modules)


_sources = FunctionSources()


def configure(sources: FunctionSources) -> None:
    """Say where this process takes functions from: once, by its entry point."""
    global _sources
    _sources = sources


def udf(
    *, result: str, inputs: Sequence[str], vectorised: bool = False, nulls: Literal["call", "skip"] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function's signature in SQL types. `nulls`: unset, a vectorised function sees them and a plain one does not."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _MARK, (tuple(inputs), result, vectorised, nulls or ("call" if vectorised else "skip")))
        return function

    return mark


# definitions


def define(name: str, written: str, language: str, where: str) -> FunctionDefinition:
    """The definition of CREATE FUNCTION name AS 'written': imported and looked at.

    Errors: StatementRefused when it is not allowed here, cannot be imported, or its signature is not known.
    """
    target = written
    if language != "PYTHON":
        mapped = _sources.names.get(written)
        if mapped is None:
            known = f"Known names are {', '.join(_sources.names)}." if _sources.names else "The map is empty."
            raise StatementRefused(
                f"function {name}: {written!r} is {language}, which does not run here; the configuration maps it to no function",
                where=where,
                next_step=f'Add "{written}" = "module.function" to [functions] of flashlake.toml, or write LANGUAGE PYTHON. {known}',
            )
        target = mapped
    function = load(name, target, where)
    return _described(name, target, function, where)


def load(name: str, target: str, where: str) -> Callable[..., Any]:
    """The Python function. Errors: StatementRefused when this process does not allow it, or cannot import it."""
    module, _, attribute = target.rpartition(".")
    if not module:
        raise StatementRefused(f"function {name}: {target!r} names no module", where=where, next_step="Write AS 'module.function'.")
    if not _sources.allows(target):
        allowed = ", ".join([*(_sources.modules or ()), *_sources.names.values()]) or "none"
        raise StatementRefused(
            f"function {name}: {target} is in no module that functions may come from here (allowed: {allowed})",
            where=where,
            next_step="An operator can add its module to udf.modules in flashlake.toml.",
        )
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:
        raise StatementRefused(
            f"function {name}: module {module} cannot be imported: {type(error).__name__}: {error}",
            where=where,
            next_step="Put it into the project's folder, or install it where this process runs.",
        ) from error
    if not callable(found):
        what = "is no function" if found is not None else "does not exist"
        raise StatementRefused(f"function {name}: {target} {what}", where=where, next_step=f"Define {attribute} in {module}.")
    return found


def _described(name: str, target: str, function: Callable[..., Any], where: str) -> FunctionDefinition:
    def refused(what: str, next_step: str) -> StatementRefused:
        return StatementRefused(f"function {name}: {target} {what}", where=where, next_step=next_step)

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise refused("does not say its parameters", "Write a Python function around it.") from error
    if any(item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD, item.KEYWORD_ONLY) for item in parameters):
        raise refused("takes *args, **kwargs or keyword-only parameters", "Give it positional parameters.")
    if not parameters:
        raise refused("takes no parameters: its value would be a constant", "Write the constant into the query.")
    declared = getattr(function, _MARK, None)
    if declared is not None:
        inputs, result, vectorised, nulls = declared
    else:
        inputs, result, vectorised, nulls = _annotated(function, parameters, refused)
    if len(inputs) != len(parameters):
        raise refused(f"takes {len(parameters)} parameters and @udf declares {len(inputs)}", "Declare one type per parameter.")
    for written in (*inputs, result):
        if parse_type(written) == UNKNOWN:
            raise refused(f"declares {written}, which is no type", "Use a type that a table can have.")
    return FunctionDefinition(name, target, tuple(str(parse_type(item)) for item in inputs), str(parse_type(result)), vectorised, nulls)


def _annotated(
    function: Callable[..., Any], parameters: list[inspect.Parameter], refused: Callable[[str, str], StatementRefused]
) -> tuple[list[str], str, bool, Literal["call", "skip"]]:
    """The signature that annotations give."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError) as error:
        raise refused(f"has annotations that cannot be read: {error}", "Declare its types with @udf(inputs=[...], result=...).") from error
    written: list[str] = []
    kinds: set[bool] = set()
    sees_nulls = False
    for label, hint in [*((item.name, hints.get(item.name)) for item in parameters), ("return", hints.get("return"))]:
        plain, is_optional = _without_none(hint)
        sees_nulls |= is_optional and label != "return"
        if plain in _UNTYPED_ARRAYS:
            raise refused(f"has {label}: {plain.__name__}, which has no element type", "Annotate pa.Int64Array or the like, or use @udf.")
        found = _SCALARS.get(plain) or _ARRAYS.get(plain)
        if found is None:
            what = "no annotation" if hint is None else f"the annotation {hint}"
            raise refused(
                f"has {what} for {label}", "Annotate int, float, str, ... or Arrow arrays, or use @udf(inputs=[...], result=...)."
            )
        written.append(found)
        kinds.add(plain in _ARRAYS)
    if len(kinds) > 1:
        raise refused("mixes Arrow arrays with single values", "Take and return arrays only, or single values only.")
    vectorised = kinds == {True}
    return written[:-1], written[-1], vectorised, "call" if sees_nulls or vectorised else "skip"


def _without_none(hint: Any) -> tuple[Any, bool]:
    """X and whether None was in it, of X | None."""
    if typing.get_origin(hint) in (typing.Union, python_types.UnionType):
        rest = [item for item in typing.get_args(hint) if item is not type(None)]
        if len(rest) == 1 and len(rest) < len(typing.get_args(hint)):
            return rest[0], True
    return hint, False


# calls


def duckdb_name(definition: FunctionDefinition) -> str:
    """The function's name in DuckDB: another definition under the same name is another function."""
    digest = hashlib.sha256(repr(definition).encode()).hexdigest()[:12]
    return f"udf_{re.sub(r'[^a-z0-9]', '_', definition.name.lower())}_{digest}"


def register(con: duckdb.DuckDBPyConnection, functions: Mapping[str, FunctionDefinition], where: str) -> None:
    """Make functions callable in a connection, under `duckdb_name`; they live as long as the connection, not only its database.

    Errors: StatementRefused when one cannot be imported, or no longer has the signature that was recorded.
    """
    for definition in functions.values():
        name = duckdb_name(definition)
        if con.execute("SELECT 1 FROM duckdb_functions() WHERE function_name = ? LIMIT 1", [name]).fetchone():
            continue
        function = load(definition.name, definition.target, where)
        found = _described(definition.name, definition.target, function, where)
        if found != definition:
            raise StatementRefused(
                f"function {definition.name}: {definition.target} is {found.signature} now, and {definition.signature} was recorded",
                where=where,
                next_step="Give it back its signature, or DROP FUNCTION, create it and submit the statement under another job name.",
            )
        called: Any = _vectorised(definition, function) if definition.vectorised else _per_row(definition, function)
        named = [inspect.Parameter(f"p{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(len(definition.inputs))]
        called.__signature__ = inspect.Signature(named)  # DuckDB counts parameters
        create: Any = con.create_function  # its stub knows no type names
        create(
            name,
            called,
            [parse_type(item).duckdb for item in definition.inputs],
            parse_type(definition.result).duckdb,
            type="arrow",
            null_handling="special",
        )


def _per_row(definition: FunctionDefinition, function: Callable[..., Any]) -> Callable[..., pa.Array]:
    kind = arrow_type(definition.result)
    skips = definition.nulls == "skip"

    def call(*columns: pa.ChunkedArray) -> pa.Array:
        made = []
        for row in zip(*(item.to_pylist() for item in columns), strict=True):
            if skips and None in row:
                made.append(None)
                continue
            try:
                made.append(pa.scalar(function(*row), kind))
            except Exception as error:
                raise _failed(definition, row, error) from error
        return pa.array([None if item is None else item.as_py() for item in made], kind)

    return call


def _vectorised(definition: FunctionDefinition, function: Callable[..., Any]) -> Callable[..., pa.Array]:
    kinds = [arrow_type(item) for item in definition.inputs]
    kind = arrow_type(definition.result)

    def checked(columns: list[pa.Array]) -> pa.Array:
        made = function(*columns)
        made = made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
        if not isinstance(made, pa.Array):
            raise TypeError(f"it returned {type(made).__name__}, not an Arrow array")
        if len(made) != len(columns[0]):
            raise ValueError(f"it returned {len(made)} values for {len(columns[0])} rows")
        return made.cast(kind)

    def call(*given: pa.ChunkedArray) -> pa.Array:
        columns = [item.cast(wanted).combine_chunks() for item, wanted in zip(given, kinds, strict=True)]
        try:
            return checked(columns)
        except Exception as error:
            raise _first_failure(definition, columns, checked, error) from error

    return call


def _first_failure(
    definition: FunctionDefinition, columns: list[pa.Array], call: Callable[[list[pa.Array]], pa.Array], error: Exception
) -> FunctionFailed:
    """The error with the row that it is about: the first that fails alone, else the first of the batch."""
    for i in range(len(columns[0])):
        try:
            call([item.slice(i, 1) for item in columns])
        except Exception as alone:  # noqa: BLE001 - whatever the user's function raises; it is what this call returns
            return _failed(definition, tuple(item[i].as_py() for item in columns), alone)
    return _failed(definition, tuple(item[0].as_py() for item in columns), error, f" (of {len(columns[0])} rows together)")


def _failed(definition: FunctionDefinition, row: tuple[Any, ...], error: Exception, of: str = "") -> FunctionFailed:
    shown = ", ".join(text if len(text := repr(value)) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..." for value in row)
    return FunctionFailed(
        f"function {definition.name} ({definition.target}) failed on the row {definition.name}({shown}){of}: "
        f"{type(error).__name__}: {error}",
        where="function call",
        next_step="Correct the function, or filter such rows.",
    )


_RAISED = re.compile(r"FunctionFailed: (.*?) \[function call\]", re.DOTALL)


def function_failure(error: Exception, where: str) -> FunctionFailed | None:
    """The failure of a user's function that DuckDB reports in its own words; None for any other error."""
    match = _RAISED.search(str(error))
    if match is None:
        return None
    return FunctionFailed(match.group(1), where=where, next_step="Correct the function and start again, or filter such rows.")
