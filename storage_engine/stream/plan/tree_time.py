"""Plan of time: the operators that follow the order of events: sessions, OVER aggregates, and when a window's result is final.

    Windows   each row once per window of time that it lies in (TUMBLE, HOP, CUMULATE)
    Session   each row once, with the session it lies in: rows of a partition whose times are not further apart than the gap
    Over      each row with functions over the rows around it (SUM(x) OVER (...), LAG, FIRST_VALUE)
    InTime    the rows that are not late for an interval join, whose sides forget rows (Expiry)
    Emission  of an aggregate or a session: results are sent once, when the watermark says that no row in time can change them

Lateness is a fact of the data: a row's watermark is the largest time of the rows before it in its bucket (over all partitions, in the
order of the log), less the table's delay; it is late for a window that this watermark has passed. The watermark of a table is the least
over its buckets of the watermark that a further row of the bucket would have: so a window that is emitted is one for which any further
row is late, and both depend on the log alone, not on when or in which pieces it is read.
Holds: values only, like tree.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlglot import exp

if TYPE_CHECKING:
    from storage_engine.stream.dialect.sqltypes import SqlType
    from storage_engine.stream.plan.tree import Field, KeptSide, Node, Scan, Side


@dataclass(frozen=True)
class Emission:
    """Results are sent once.

    scans       the logs that the rows come from; the least of their watermarks decides
    field       aggregate: the field of its input (and a key of it) that says which window; None: the input arrives whole (a session's rows)
    shift_ms    what is added to that field's time for the end of the window
    late_tables per log, where its late rows are written as well; None: they are counted only
    by_commit   windows go by processing time: the watermark is the millisecond before the newest row's commit, and no row is late
    """

    scans: tuple[Scan, ...]
    field: str | None
    shift_ms: int = 0
    late_tables: tuple[str | None, ...] = ()
    by_commit: bool = False

    @property
    def when(self) -> str:
        """When a window is sent, in words."""
        if self.by_commit:
            return f"a row of {self.of} comes that was committed after the window"
        return f"the watermark of {self.of} passes the window"

    @property
    def of(self) -> str:
        """Whose watermark, in words."""
        return " and ".join(dict.fromkeys(scan.table.name for scan in self.scans))

    @property
    def is_whole(self) -> bool:
        return self.field is None


@dataclass(frozen=True)
class Windows:
    """Each input row once per window that its time lies in; an error for a row without a time.

    time    the input's field of the event's time
    kind    HOP: windows of `size_ms`, one every `step_ms` (TUMBLE: as long as the step). CUMULATE: windows that begin every `size_ms`
            and end after each further `step_ms`
    window  the fields of the window's start, its end, and its last millisecond
    """

    input: Node
    time: str
    kind: Literal["HOP", "CUMULATE"]
    size_ms: int
    step_ms: int
    offset_ms: int
    window: tuple[Field, Field, Field] | tuple[Field, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.input.fields + self.window

    @property
    def is_retracting(self) -> bool:
        return self.input.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        of_input = self.input.unique_key
        if of_input is None or self.size_ms == self.step_ms:
            return of_input
        return (*of_input, self.window[1 if self.kind == "CUMULATE" else 0].name)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)

    def line(self) -> str:
        return f"Windows {self.kind} by {self.time}: size {self.size_ms} ms, step {self.step_ms} ms, offset {self.offset_ms} ms"


@dataclass(frozen=True)
class Session:
    """Each input row with its session; an error for a row without a time.

    side      its `on` are the fields of PARTITION BY
    time      the field of the event's time
    gap_ms    two rows are of one session when the later one is at most this much later than the one before
    window    the fields of the session's start (its first time), its end (its last time and the gap) and the millisecond before
    emission  rows are sent when their session is final: no row in time can join it; None: sessions change while rows come
    """

    side: Side
    time: str
    gap_ms: int
    window: tuple[Field, ...]
    id: int = 0
    emission: Emission | None = None

    @property
    def sides(self) -> tuple[Side]:
        return (self.side,)

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.side.node.fields + self.window

    @property
    def is_retracting(self) -> bool:
        return self.emission is None

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return self.side.node.unique_key

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.side.node,)

    @property
    def kept(self) -> KeptSide:
        """The side of a session that is emitted once, which is always kept."""
        return self.side  # type: ignore[return-value]  # made so in bind_window.py

    def line(self) -> str:
        by = ", ".join(self.side.on) or "nothing"
        text = f"Session of {by} by {self.time}: gap {self.gap_ms} ms"
        if self.emission is not None:
            return f"{text}, sent once when the watermark of {self.emission.of} passes its end by the gap"
        return f"{text}, the sessions of a touched partition are computed anew"


@dataclass(frozen=True)
class InTime:
    """The rows of a log whose time and `slack_ms` do not lie before their watermark."""

    input: Node
    time: str
    slack_ms: int
    emission: Emission

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.input.fields

    @property
    def is_retracting(self) -> bool:
        return False

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return self.input.unique_key

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)

    def line(self) -> str:
        return f"InTime by {self.time}: rows more than {self.slack_ms} ms before their watermark are late"


@dataclass(frozen=True)
class Expiry:
    """A kept row goes when the watermark of `emission` is after the row's `time` and `after_ms`: nothing in time can match it."""

    time: str
    after_ms: int
    emission: Emission


@dataclass(frozen=True)
class OverCall:
    """One function over a frame: `field` holds its value.

    function   the call with its arguments, over the input's fields, as DuckDB writes it
    frame      ROWS or RANGE and its bounds; empty for functions without one (LAG, LEAD)
    is_by_row  equal rows have different frames: ties are broken by arrival
    """

    field: Field
    function: exp.Expr
    frame: str
    is_by_row: bool
    type: SqlType


@dataclass(frozen=True)
class Over:
    """Each input row with functions over the rows of its partition.

    side    its `on` are the fields of PARTITION BY
    order   fields of ORDER BY: (field, is descending, are nulls first)
    calls   the functions; `values` computes the new fields from them
    """

    side: Side
    order: tuple[tuple[str, bool, bool], ...]
    calls: tuple[OverCall, ...]
    values: tuple[tuple[Field, exp.Expr], ...]
    id: int = 0

    @property
    def sides(self) -> tuple[Side]:
        return (self.side,)

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.side.node.fields + tuple(item for item, _ in self.values)

    @property
    def is_retracting(self) -> bool:
        return True  # a late row changes the frames of the rows behind it

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return self.side.node.unique_key

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.side.node,)

    def line(self) -> str:
        order = ", ".join(f"{name}{' desc' if descending else ''}" for name, descending, _ in self.order)
        calls = ", ".join(f"{call.function.sql(dialect='duckdb')} {call.frame}".strip() for call in self.calls)
        return f"Over {', '.join(self.side.on) or 'nothing'} in order of {order}: {calls}; a touched partition is computed anew"
