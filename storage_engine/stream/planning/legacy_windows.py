"""Legacy windows: GROUP BY TUMBLE(ts, INTERVAL ...), HOP(...) or SESSION(...) rewritten to the table functions of the same names.

    SELECT TUMBLE_START(ts, INTERVAL '1' MINUTE), k, COUNT(*) FROM t WHERE c GROUP BY TUMBLE(ts, INTERVAL '1' MINUTE), k
    SELECT window_start, k, COUNT(*) FROM TABLE(TUMBLE(TABLE (SELECT * FROM t WHERE c) t, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
      GROUP BY window_start, window_end, k
CURRENT_WATERMARK(ts) becomes the column that a scan has for it (plan.Scan).
Source: Flink 2.2, "Group Window Aggregation" (deprecated there, and met in many statements).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlglot import exp

from storage_engine.stream.dialect.syntax import alias_of, text_of
from storage_engine.stream.plan.tree import MARK

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder

_WINDOWS: Final = ("TUMBLE", "HOP", "SESSION")
_PROPERTIES: Final = {"START": "window_start", "END": "window_end", "ROWTIME": "window_time"}


def with_window_table(binder: Binder, select: exp.Select) -> exp.Select:
    """The SELECT over the table function, when it groups by a window; else itself. Errors: StatementRefused when it cannot be rewritten."""
    group = select.args.get("group")
    calls = [item for item in group.expressions if _name(item) in _WINDOWS] if group is not None else []
    if not calls:
        return select
    what = text_of(calls[0])
    if len(calls) > 1:
        raise binder.refuse(
            f"{what} and {text_of(calls[1])}: two windows in one GROUP BY", "Group by one window, then by another around it."
        )
    if select.args.get("joins") or select.args.get("from_") is None or not calls[0].expressions:
        raise binder.refuse(f"GROUP BY {what} takes one table", "Join in a subquery in FROM.")
    select = select.copy()
    call = next(item for item in select.args["group"].expressions if _name(item) in _WINDOWS)
    keys = [item for item in select.args["group"].expressions if item is not call]
    select.set("from_", exp.From(this=_window_table(binder, select, call, keys, what)))
    select.set("where", None)
    bounds = [exp.column(exp.to_identifier(name, quoted=True)) for name in ("window_start", "window_end")]
    select.set("group", exp.Group(expressions=[*bounds, *keys]))
    for found in [item for item in select.find_all(exp.Anonymous) if _name(item).startswith(tuple(f"{name}_" for name in _WINDOWS))]:
        label = _PROPERTIES.get(_name(found).partition("_")[2])
        if label is None:
            raise binder.refuse(
                f"{text_of(found)} is not known here", f"Known are {', '.join(f'{_name(call)}_{word}' for word in _PROPERTIES)}."
            )
        found.replace(exp.column(exp.to_identifier(label, quoted=True)))
    return select


def with_marks(binder: Binder, select: exp.Select) -> exp.Select:
    """The SELECT with CURRENT_WATERMARK(column) as the column that it stands for."""
    if not any(_name(item) == "CURRENT_WATERMARK" for item in select.find_all(exp.Anonymous)):
        return select
    select = select.copy()
    for call in [item for item in select.find_all(exp.Anonymous) if _name(item) == "CURRENT_WATERMARK"]:
        column = call.expressions[0] if len(call.expressions) == 1 else None
        if not isinstance(column, exp.Column):
            raise binder.refuse(f"{text_of(call)} takes the column of a WATERMARK", "Write CURRENT_WATERMARK(ts).")
        column = column.copy()
        column.set("this", exp.to_identifier(f"{MARK}{column.name}", quoted=True))
        call.replace(column)
    return select


def _window_table(binder: Binder, select: exp.Select, call: exp.Expr, keys: list[exp.Expr], what: str) -> exp.Table:
    source = select.args["from_"].this
    alias = alias_of(source)
    where = select.args.get("where")
    if where is not None:  # rows that are left out make no session longer
        source = exp.select("*").from_(source.copy()).where(where.this.copy()).subquery(alias)
    data = source.copy()
    if _name(call) == "SESSION":
        computed = next((item for item in keys if not isinstance(item, exp.Column)), None)
        if computed is not None:
            raise binder.refuse(f"GROUP BY {what}, {text_of(computed)}: sessions are kept by columns", "Compute the key in a subquery.")
        data.meta["partition_by"] = [exp.column(item.this.copy()) for item in keys]
    time, *lengths = [item.copy() for item in call.expressions]
    arguments = [data, exp.Anonymous(this="DESCRIPTOR", expressions=[time]), *lengths]
    made = exp.Table(this=exp.Anonymous(this=_name(call), expressions=arguments))
    made.set("alias", exp.TableAlias(this=exp.to_identifier(alias, quoted=True)))
    return made


def _name(item: exp.Expr) -> str:
    return str(item.this).upper() if isinstance(item, exp.Anonymous) else ""
