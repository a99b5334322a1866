"""Time travel: which version of the store a table of a query is read at: FOR SYSTEM_TIME AS OF a moment, FOR VERSION AS OF a number."""

from __future__ import annotations

from datetime import UTC, datetime

import duckdb
from sqlglot import exp

from query_engine.translate import translate
from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.planning.processing_time import is_proctime

_NEXT_STEP = "Write FOR SYSTEM_TIME AS OF TIMESTAMP '2026-01-31 12:00:00' (UTC), or FOR VERSION AS OF 42."


def take_version(store: Store, con: duckdb.DuckDBPyConnection, node: exp.Table) -> int | None:
    """The version a table is asked for, taken out of its node; None: as it is now, which is also what PROCTIME() means.

    Errors: StatementRefused for a moment that is no constant or still to come, and for a version that is not there.
    """
    version = node.args.get("version")
    if version is None:
        return None
    node.set("version", None)
    where, asked = f"FROM {node.name}", version.expression
    if is_proctime(asked) or (isinstance(asked, exp.Column) and _processing_times(node.root(), asked.name)):
        return None
    newest = store.version()
    if version.name.upper() == "VERSION":
        if not isinstance(asked, exp.Literal) or asked.is_string or not 0 <= int(asked.this) <= newest:
            raise StatementRefused(
                f"VERSION AS OF {text_of(asked)}: the store's versions are 0 to {newest}", where=where, next_step=_NEXT_STEP
            )
        return int(asked.this)
    moment = _moment(con, asked, where)
    return version_at(store, int(moment.timestamp() * 1000), newest)


def without_processing_times(tree: exp.Query) -> None:
    """Take `PROCTIME() AS p` out of a query's subqueries: when all tables are read now, nothing is left that asks for it.

    Errors: StatementRefused where its value is asked for.
    """
    for item in _processing_times(tree):
        if item.parent_select is not tree and all(column.name != item.alias for column in tree.find_all(exp.Column)):
            item.pop()
    left = next((call for call in tree.find_all(exp.Anonymous) if is_proctime(call)), None)
    if left is not None:
        what = "PROCTIME() has no value in a query: it is the time of windows and of FOR SYSTEM_TIME AS OF"
        raise StatementRefused(what, where="query", next_step="Take CURRENT_TIMESTAMP, or a column of the event's time.")


def _processing_times(tree: exp.Expr, name: str | None = None) -> list[exp.Alias]:
    """The items PROCTIME() AS name of SELECT lists; any name when none is given."""
    return [item for item in tree.find_all(exp.Alias) if is_proctime(item.this) and name in (None, item.alias)]


def version_at(store: Store, ms: int, newest: int) -> int:
    """The version that holds what was committed until `ms` (milliseconds since 1970 UTC, included). Some twenty looks at the journal."""
    low, high = 0, newest
    while low < high:  # the least version after which the first commit with rows is younger
        middle = (low + high) // 2
        after = store.commits(middle, 1)
        if after and after[0].version <= newest and after[0].timestamp_ms <= ms:
            low = after[0].version
        else:
            high = middle
    return low


def _moment(con: duckdb.DuckDBPyConnection, asked: exp.Expr, where: str) -> datetime:
    if asked.find(exp.Column) is not None:
        raise StatementRefused(f"SYSTEM_TIME AS OF {text_of(asked)} is not a constant", where=where, next_step=_NEXT_STEP)
    constant = translate(exp.select(exp.alias_(asked.copy(), "m")), {})
    try:
        moment, is_past = con.execute(f"SELECT t, t <= now()::TIMESTAMP FROM (SELECT m::TIMESTAMP AS t FROM ({constant}))").fetchall()[0]
    except duckdb.Error as error:
        raise StatementRefused(f"{text_of(asked)} is no moment", where=where, next_step=_NEXT_STEP) from error
    if not is_past:
        raise StatementRefused(f"{text_of(asked)} has not come yet", where=where, next_step=_NEXT_STEP)
    return moment.replace(tzinfo=UTC)
