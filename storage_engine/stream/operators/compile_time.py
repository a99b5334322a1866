"""Compile time: sessions, OVER aggregates and lateness as SQL over rows that are given as a SELECT.

A scan whose watermark decides carries `__wm`: the row's watermark in milliseconds since 1970, null where no row came before it.
Never: runs anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlglot import exp

from storage_engine.stream.dialect.render import column, sql
from storage_engine.stream.plan.tree import Aggregate
from storage_engine.stream.plan.tree_time import Emission, InTime, Over, Session

WATERMARK: Final = "__wm"
SOURCE: Final = "__source"
"""The name of the table that a row comes from, where late rows of several have to be told apart."""


def watermark_name(emission: Emission) -> str:
    """The relation (one row, column ms) of the watermark of the emission's logs, for recomputations."""
    return f"{'commit' if emission.by_commit else 'wm'}_{'_'.join(str(scan.id) for scan in emission.scans)}"


def in_time(rows: str, last_ms: str) -> str:
    """The rows (with WATERMARK) whose window is not closed by their watermark. `last_ms`: the window's last millisecond."""
    return f"SELECT * FROM ({rows}) WHERE NOT {is_late(last_ms)}"


def is_late(last_ms: str) -> str:
    """The condition that a row's last moment lies at or below the watermark; false where there is none."""
    return f"COALESCE({last_ms} <= {WATERMARK}, FALSE)"


def group_last_ms(node: Aggregate) -> str:
    """The last millisecond of the window of a row of the aggregate's input."""
    emission = node.emission
    assert emission is not None, "only groups of windows have an end"
    assert emission.field is not None, "only groups of windows have an end"
    return f"epoch_ms({_quoted(emission.field)}) + {emission.shift_ms - 1}"


def window_key(node: Aggregate) -> int:
    """Which of the aggregate's keys says its window."""
    assert node.emission is not None, "only groups of windows have an end"
    field = node.emission.field
    return next(i for i, (_, tree) in enumerate(node.keys) if isinstance(tree, exp.Column) and tree.name == field)


def emitted_groups(node: Aggregate, groups: str) -> str:
    """Those of an aggregate's rows whose window is passed by the watermark."""
    emission = node.emission
    assert emission is not None, "only groups of windows have an end"
    key = node.keys[window_key(node)][0].name
    last = f"epoch_ms({_quoted(key)}) + {emission.shift_ms - 1}"
    return f"SELECT * FROM ({groups}) WHERE {last} <= (SELECT ms FROM {watermark_name(emission)})"


def row_last_ms(node: Session | InTime) -> str:
    """The last millisecond of the session that a row would have alone; or up to which a row of an interval join is in time."""
    return f"epoch_ms({_quoted(node.time)}) + {node.gap_ms - 1 if isinstance(node, Session) else node.slack_ms + 1}"


def final_ms(node: Session) -> str:
    """From which watermark on a session is final: no row in time can begin before its end any more."""
    return f"epoch_ms({_quoted(node.window[1].name)}) + {node.gap_ms - 1}"


def emitted_sessions(node: Session, rows: str) -> str:
    """The query of the sessions among `rows` whose end the watermark has passed by the gap."""
    emission = node.emission
    assert emission is not None, "only a session that is emitted once has a watermark"
    return f"SELECT * FROM ({rows}) WHERE {final_ms(node)} <= (SELECT ms FROM {watermark_name(emission)})"


def with_sessions(node: Session, rows: str, further: Sequence[str] = ()) -> str:
    """The rows with their sessions. `further`: columns of `rows` beside the fields.

    Two rows are of one session when the later one is not after the end that the earlier one alone would have (Flink's
    TimeWindow.intersects: windows that touch are merged).
    """
    time = f"epoch_ms({_quoted(node.time)})"
    by = f"PARTITION BY {', '.join(map(_quoted, node.side.on))} " if node.side.on else ""
    message = f"a row without a time lies in no session: {node.time} is null".replace("'", "''")
    listed = [_quoted(item.name) for item in node.side.node.fields] + [_quoted(name) for name in further]
    checked = f"CAST(CASE WHEN {_quoted(node.time)} IS NULL THEN error('{message}') ELSE {time} END AS BIGINT) AS __ms"
    begins = f"CASE WHEN __ms - lag(__ms) OVER ({by}ORDER BY __ms) <= {node.gap_ms} THEN 0 ELSE 1 END AS __begins"
    begins = f"SELECT *, {begins} FROM (SELECT *, {checked} FROM ({rows}))"
    numbered = f"SELECT *, sum(__begins) OVER ({by}ORDER BY __ms) AS __session FROM ({begins})"
    within = f"OVER (PARTITION BY {', '.join([*map(_quoted, node.side.on), '__session'])})"
    bounded = f"SELECT *, min(__ms) {within} AS __start, max(__ms) {within} + {node.gap_ms} AS __end FROM ({numbered})"
    for item, value in zip(node.window, ("__start", "__end", "__end - 1"), strict=True):
        listed.append(f"CAST(make_timestamp_ms({value}) AS TIMESTAMP_MS) AS {_quoted(item.name)}")
    return f"SELECT {', '.join(listed)} FROM ({bounded})"


def with_calls(node: Over, rows: str, tie_breaks: Sequence[str], further: Sequence[str] = ()) -> str:
    """The rows with the functions over them. `tie_breaks`: columns that order equal rows where frames count rows."""
    by = f"PARTITION BY {', '.join(map(_quoted, node.side.on))} " if node.side.on else ""
    order = [f"{_quoted(f)} {'DESC' if down else 'ASC'} NULLS {'FIRST' if first else 'LAST'}" for f, down, first in node.order]
    calls = []
    for call in node.calls:
        listed = ", ".join([*order, *(map(_quoted, tie_breaks) if call.is_by_row else ())])
        value = f"{sql(call.function)} OVER ({by}ORDER BY {listed} {call.frame})"
        value = f"CAST({value} AS {call.type.duckdb})" if call.type.is_known else value
        calls.append(f"{value} AS {_quoted(call.field.name)}")
    body = f"SELECT {', '.join(['*', *calls])} FROM ({rows})"
    fields = [_quoted(item.name) for item in node.side.node.fields]
    fields += [f"{sql(tree)} AS {_quoted(item.name)}" for item, tree in node.values]
    return f"SELECT {', '.join([*fields, *map(_quoted, further)])} FROM ({body})"


def _quoted(name: str) -> str:
    return sql(column(name))
