"""Function statements as a session runs them: CREATE, DROP and SHOW FUNCTIONS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from storage_engine.client.store import Store
from storage_engine.errors import AlreadyExists, StatementRefused, UnknownTable
from storage_engine.schema import statements as st
from storage_engine.stream.functions.aggregates import NAMES
from storage_engine.stream.functions.function_calls import is_known_name
from storage_engine.stream.functions.python_functions import KIND, FunctionDefinition, define
from storage_engine.stream.functions.scalar_functions import SCALARS, WITH_SYNTAX
from storage_engine.stream.planning.catalog import stored_functions

Functions = dict[str, FunctionDefinition]
Answer = tuple[str, pa.Table | None]


def _create(store: Store, temporary: Functions, statement: st.CreateFunction) -> Answer:
    name, where = statement.name.lower(), f"line {statement.line}"
    if is_known_name(name):
        raise StatementRefused(f"{statement.name} is a function of SQL", where=where, next_step="Choose another name.")
    known = temporary.get(name) if statement.temporary else stored_functions(store).get(name)
    if known is not None and statement.if_not_exists:
        return f"function {name} exists", None
    made = define(name, statement.target, statement.language, where)
    if known is not None and known != made:
        raise AlreadyExists(f"function {name} exists as {known.signature} of {known.target}", where=where, next_step="DROP FUNCTION first.")
    if statement.temporary:
        temporary[name] = made
    elif known is None:
        store.put_object(KIND, name, made.to_json())
    return f"function {made.signature}", None


def _drop(store: Store, temporary: Functions, statement: st.DropFunction) -> Answer:
    name = statement.name.lower()
    if temporary.pop(name, None) is not None:
        return f"dropped function {name}", None
    if name not in store.objects(KIND):
        if statement.if_exists:
            return f"there is no function {name}", None
        raise UnknownTable(f"there is no function {name}", where=f"line {statement.line}", next_step="SHOW FUNCTIONS lists them.")
    store.drop_object(KIND, name)
    return f"dropped function {name}; jobs that use it go on with what they recorded", None


def _show(store: Store, temporary: Functions, statement: st.ShowFunctions) -> Answer:
    found = [(item, "temporary") for item in temporary.values()]
    found += [(item, "stored") for name, item in stored_functions(store).items() if name not in temporary]
    rows = [(item.name, item.signature, item.target, kind) for item, kind in sorted(found, key=lambda pair: pair[0].name)]
    if not statement.only_users:
        rows += [(name, "", "", "built in") for name in sorted([*SCALARS, *WITH_SYNTAX, *NAMES])]
    names = ("function", "signature", "target", "kind")
    return "functions", pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})


ANSWERS: dict[type, Callable[[Store, Functions, Any], Answer]] = {
    st.CreateFunction: _create,
    st.DropFunction: _drop,
    st.ShowFunctions: _show,
}
