"""Window binding: TUMBLE, HOP and CUMULATE in FROM into a Windows operator: each row once for each window that its time lies in; SESSION
into a Session.

A window takes every row, whenever it comes, and what is computed over it changes then, unless the table has a WATERMARK
(bind_emission.py): either way a result depends on the rows alone.
Source: Flink 2.2 window TVFs (order and names of arguments, TimeWindow.getWindowStartWithOffset).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlglot import exp

from storage_engine.stream.dialect.render import column
from storage_engine.stream.dialect.sqltypes import PROCTIME, TIMESTAMP3
from storage_engine.stream.dialect.syntax import WINDOW_FUNCTIONS, alias_of, text_of
from storage_engine.stream.plan.tree import PROCESSING_TIME, Calc, Field, KeptSide, Node, Scan, Session, Windows, is_positioned
from storage_engine.stream.planning.bind_delta import stored_side
from storage_engine.stream.planning.bind_emission import emission_of, origin_of
from storage_engine.stream.planning.processing_time import is_proctime

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope

_UNIT_MS: Final = {"MILLISECOND": 1, "SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}
_ARGUMENTS: Final = {
    "TUMBLE": ("DATA", "TIMECOL", "SIZE", "OFFSET"),
    "HOP": ("DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"),
    "CUMULATE": ("DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"),
    "SESSION": ("DATA", "TIMECOL", "GAP"),
}
WINDOWS_PER_ROW_MAX: Final = 10_000
NAMES: Final = ("window_start", "window_end", "window_time")


def window_call(item: exp.Expr) -> exp.Anonymous | None:
    """TUMBLE(...) of FROM TABLE(TUMBLE(...)), or of FROM TUMBLE(...); `item` is an exp.Table then."""
    call = item.this if isinstance(item, exp.Table) else None
    if isinstance(call, exp.Anonymous) and str(call.this).upper() == "TABLE" and len(call.expressions) == 1:
        call = call.expressions[0]
    return call if isinstance(call, exp.Anonymous) and str(call.this).upper() in WINDOW_FUNCTIONS else None


def bind_windows(binder: Binder, item: exp.Expr, call: exp.Anonymous, scope: Scope) -> Node:
    """The rows of the function's table with their windows. Errors: StatementRefused for arguments that are none."""
    name = str(call.this).upper()
    what = text_of(call)
    arguments = _named(binder, call, name, what)
    table = arguments["DATA"]
    table = exp.to_table(table.sql()) if isinstance(table, exp.Column) else table
    alias = alias_of(item) or alias_of(table)
    known = len(scope.columns)
    node = binder.source(exp.alias_(table.copy(), alias, table=True), scope)
    time, is_processing = _time_field(binder, arguments["TIMECOL"], scope, known, what)
    if is_processing:
        node = _by_commit(binder, node, time, name, what)
    fields = tuple(Field(f"{alias}.{label}", TIMESTAMP3, nullable=False) for label in NAMES)
    if name == "SESSION":
        by = [_partition_field(binder, item, scope, known, what) for item in table.meta.get("partition_by", ())]
        scope.columns.extend((alias, label, made) for label, made in zip(NAMES, fields, strict=True))
        return _session(binder, node, tuple(by), time, _interval_ms(binder, arguments["GAP"], what), fields)
    if table.meta.get("partition_by"):
        raise binder.refuse(f"{what}: {name} has no PARTITION BY", "Leave it out: its windows are the same for every row.")
    size_ms = _interval_ms(binder, arguments["SIZE"], what)
    step_ms = _interval_ms(binder, arguments.get("SLIDE") or arguments.get("STEP") or arguments["SIZE"], what)
    offset_ms = _interval_ms(binder, arguments["OFFSET"], what) if "OFFSET" in arguments else 0
    if size_ms % step_ms:
        raise binder.refuse(f"{what}: the size must be a whole number of steps", f"It is {size_ms} ms, a step {step_ms} ms.")
    if size_ms // step_ms > WINDOWS_PER_ROW_MAX:
        raise binder.refuse(f"{what}: each row would lie in {size_ms // step_ms} windows", "Take a larger step.")
    scope.columns.extend((alias, label, made) for label, made in zip(NAMES, fields, strict=True))
    return Windows(node, time, "CUMULATE" if name == "CUMULATE" else "HOP", size_ms, step_ms, offset_ms, fields)


def _session(binder: Binder, node: Node, by: tuple[str, ...], time: str, gap_ms: int, fields: tuple[Field, ...]) -> Session:
    """The sessions of a relation's rows, sent once where they become final."""
    emission = emission_of(binder, node, time) if is_positioned(node) else None
    side = stored_side(node, by) if by and emission is None else None
    return Session(side or KeptSide(node, by, binder.next_id()), time, gap_ms, fields, binder.next_id(), emission)


def _named(binder: Binder, call: exp.Anonymous, name: str, what: str) -> dict[str, exp.Expr]:
    names = _ARGUMENTS[name]
    found: dict[str, exp.Expr] = {}
    for position, argument in enumerate(call.expressions):
        label = argument.meta.get("label") or (names[position] if position < len(names) else "")
        if label not in names or label in found:
            raise binder.refuse(f"{what}: argument {label or position + 1} is one too many", f"{name} takes {', '.join(names)}.")
        found[label] = argument
    lacking = [label for label in names if label not in found and label != "OFFSET"]
    if lacking:
        raise binder.refuse(f"{what} lacks {', '.join(lacking)}", f"{name} takes {', '.join(names)}.")
    return found


def _time_field(binder: Binder, written: exp.Expr, scope: Scope, known: int, what: str) -> tuple[str, bool]:
    """The field of DESCRIPTOR(...), and whether it is a processing time."""
    named = written.expressions[0] if isinstance(written, exp.Anonymous) and len(written.expressions) == 1 else written
    wanted = PROCESSING_TIME if is_proctime(named) else named.name if isinstance(named, exp.Column) else ""
    found = [item for _, label, item in scope.columns[known:] if label == wanted]
    if len(found) != 1:
        raise binder.refuse(f"{what}: {text_of(named)} is no column of the table", "Write DESCRIPTOR(column of the event's time).")
    is_processing = found[0].type == PROCTIME
    if found[0].type.name != "TIMESTAMP" and not is_processing:
        raise binder.refuse(f"{what}: {text_of(named)} is {found[0].type}", "Windows go by a TIMESTAMP column; CAST it in a subquery.")
    return found[0].name, is_processing


def _by_commit(binder: Binder, node: Node, time: str, name: str, what: str) -> Node:
    """The rows with their processing time as a plain field. Errors: StatementRefused where no log says it, and for sessions."""
    if name == "SESSION":
        raise binder.refuse(f"{what}: sessions of processing time are not kept", "Take TUMBLE, or a column of the event's time.")
    found = origin_of(node, time)
    if found is None or not isinstance(found[0], Scan):
        raise binder.refuse(
            f"{what}: PROCTIME() of rows that are not those of one log: the time of a row is when its commit into the log was done",
            "Take the window over the log, and join or aggregate around it.",
        )
    fields = (Field(time, TIMESTAMP3, nullable=False) if item.name == time else item for item in node.fields)
    return Calc(node, tuple((item, column(item.name)) for item in fields))


def _partition_field(binder: Binder, written: exp.Expr, scope: Scope, known: int, what: str) -> str:
    found = [item for _, label, item in scope.columns[known:] if isinstance(written, exp.Column) and label == written.name]
    if len(found) != 1:
        raise binder.refuse(f"{what}: {text_of(written)} is no column of the table", "PARTITION BY takes its columns.")
    return found[0].name


def _interval_ms(binder: Binder, written: exp.Expr, what: str) -> int:
    unit = str(written.args.get("unit") or "").upper().removesuffix("S") if isinstance(written, exp.Interval) else ""
    value = written.this.name if isinstance(written, exp.Interval) and isinstance(written.this, exp.Literal) else ""
    if unit not in _UNIT_MS or not value.isdecimal():
        raise binder.refuse(f"{what}: {text_of(written)} is no length of time", "Write INTERVAL '10' SECOND, MINUTE, HOUR or DAY.")
    return int(value) * _UNIT_MS[unit]
