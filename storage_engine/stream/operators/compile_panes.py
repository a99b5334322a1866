"""Compile panes: windows put together from counts of single steps, as SQL over rows that are given as a SELECT.

    __ms     a row's time                      PANE    the end of the step that it lies in
    __end    the end of a window               OPENS   the end of the first window that it is in time for
All in milliseconds since 1970. The windows of a pane end at PANE, each step after it, up to last_end().
Never: runs anything.
"""

from __future__ import annotations

from typing import Final

from sqlglot import exp

from storage_engine.stream.dialect.render import column, sql
from storage_engine.stream.functions.aggregates import Accumulator
from storage_engine.stream.operators.compile_time import WATERMARK
from storage_engine.stream.plan.tree import OPENS, PANE, Aggregate, Windows

_PANE, _OPENS = f'"{PANE}"', f'"{OPENS}"'
_WHOLE: Final = {
    "min": "min({0})",
    "max": "max({0})",
    "bitmap_build": "rb_or_all(list({0}) FILTER (WHERE {0} IS NOT NULL))",
    "bitmap_or": "rb_or_all(list({0}) FILTER (WHERE {0} IS NOT NULL))",
}


def with_ms(node: Windows, rows: str) -> str:
    """The rows with their time in __ms; an error for a row without one."""
    time = _quoted(node.time)
    message = f"a row without a time lies in no window: {node.time} is null".replace("'", "''")
    return f"SELECT *, CAST(CASE WHEN {time} IS NULL THEN error('{message}') ELSE epoch_ms({time}) END AS BIGINT) AS __ms FROM ({rows})"


def floor(ms: str, step: int, offset: int) -> str:
    """The last multiple of `step` (counted from `offset`) that is not after `ms`."""
    return f"({ms} - ((({ms} - {offset}) % {step}) + {step}) % {step})"


def last_end(node: Windows) -> str:
    """The end of the last window of a PANE."""
    if node.kind == "CUMULATE":
        return f"({floor(f'({_PANE} - {node.step_ms})', node.size_ms, node.offset_ms)} + {node.size_ms})"
    return f"({_PANE} + {node.size_ms - node.step_ms})"


def counted(node: Aggregate, rows: str, *, is_timed: bool, retracting: bool = False) -> str:
    """One row per group and pane: the keys that are no window's, PANE, and the accumulators. `is_timed`: some rows (with WATERMARK) come
    late for some of their windows: OPENS tells panes apart, and what is late for all is left out.
    """
    windows = _windows_of(node)
    body = f"SELECT *, {floor('__ms', windows.step_ms, windows.offset_ms)} + {windows.step_ms} AS {_PANE} FROM ({with_ms(windows, rows)})"
    listed = [f"{sql(tree)} AS {_quoted(item.name)}" for item, tree in node.pane_keys]
    listed.append(_PANE)
    if is_timed:
        following = f"{floor(f'({WATERMARK} + 1)', windows.step_ms, windows.offset_ms)} + {windows.step_ms}"
        body = f"SELECT *, greatest({_PANE}, COALESCE({following}, {_PANE})) AS {_OPENS} FROM ({body})"
        body = f"SELECT * FROM ({body}) WHERE {_OPENS} <= {last_end(windows)}"
    listed.append(_OPENS if is_timed else f"{_PANE} AS {_OPENS}")
    values = [f"{sql(item.delta(retracting=retracting))} AS {_quoted(item.name)}" for item in node.accumulators]
    by = ", ".join(str(i + 1) for i in range(len(node.pane_keys) + 2))
    return f"SELECT {', '.join(listed + values)} FROM ({body}) GROUP BY {by}"


def in_windows(node: Aggregate, panes: str, first: str, last: str) -> str:
    """One row per group and window: the keys and the accumulators, from rows as counted() gives them.

    first, last  the ends of the first and the last window of a row that are wanted, as expressions; windows lie between those of the row
    """
    windows = _windows_of(node)
    body = f"SELECT *, unnest(range({first}, {last} + 1, {windows.step_ms})) AS __end FROM ({panes})"
    starts = f"__end - {windows.size_ms}" if windows.kind == "HOP" else floor("(__end - 1)", windows.size_ms, windows.offset_ms)
    moments = {item.name: value for item, value in zip(windows.window, (starts, "__end", "__end - 1"), strict=True)}
    listed = []
    for item, tree in node.keys:
        moment = moments.get(tree.name) if isinstance(tree, exp.Column) else None
        value = _quoted(item.name) if moment is None else f"CAST(make_timestamp_ms({moment}) AS TIMESTAMP_MS)"
        listed.append(f"{value} AS {_quoted(item.name)}")
    listed += [f"{_together(item)} AS {_quoted(item.name)}" for item in node.accumulators]
    by = ", ".join(str(i + 1) for i in range(len(node.keys)))
    return f"SELECT {', '.join(listed)} FROM ({body})" + (f" GROUP BY {by}" if by else " HAVING count(*) > 0")


def partial(node: Aggregate, rows: str, *, retracting: bool) -> str:
    """One row per group and window of a micro-batch, as compile.partial() says: each row is counted once."""
    return in_windows(node, counted(node, rows, is_timed=False, retracting=retracting), _PANE, last_end(_windows_of(node)))


def sent(node: Aggregate, panes: str, bounds: str) -> str:
    """The windows that the watermark passes. `bounds`: a relation of one row: their least and largest end (__low, __high)."""
    windows = _windows_of(node)
    first, last = f"greatest({_OPENS}, __low)", f"least({last_end(windows)}, __high)"
    return in_windows(node, f"SELECT * FROM ({panes}) CROSS JOIN {bounds} WHERE {first} <= {last}", first, last)


def ends(node: Aggregate, panes: str) -> str:
    """Per row of `panes` PANE's last end, in their order, as __last."""
    return f"SELECT {last_end(_windows_of(node))} AS __last FROM {panes}"


def _windows_of(node: Aggregate) -> Windows:
    assert isinstance(node.input, Windows), "panes are of windows"
    return node.input


def _together(item: Accumulator) -> str:
    """The accumulator of a window from those of its panes."""
    name = _quoted(item.name)
    return _WHOLE[item.kind].format(name) if item.kind in _WHOLE else f"CAST(sum({name}) AS {item.type.duckdb})"


def _quoted(name: str) -> str:
    return sql(column(name))
