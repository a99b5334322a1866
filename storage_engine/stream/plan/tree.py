"""Plan: a statement as a tree of relational operators, each with typed fields, and what is known of it.

A relation is a multiset of rows that changes: in a retracting relation each row carries a weight, 1 for inserted and -1 for
taken back; an append-only relation has no weights. Every operator here maps changes of its input to changes of its output,
so one tree serves stream jobs, materialized views and (compiled without weights, compile.py) the batch recomputation.

    Scan         the log of a table, or the changelog of a primary-key table
    Calc         projection and filter
    LookupJoin   rows of another table as they are now, by its primary key or a prefix of it
    DeltaJoin    two relations by equal keys; rows that are in a primary-key table already are not kept again
    Rank         the first rows of each partition in an order (Top-N, deduplication)
    Aggregate    GROUP BY; its state is where placement.py says
    Union        the rows of several relations, all of them (UNION ALL)
    Expand       each row once per grouping set (GROUPING SETS, CUBE, ROLLUP)
    Windows, Session, Over, InTime: tree_time.py; Unnest: tree_unnest.py

Holds: plans are values; `id` of an operator is unique in its plan; field names are unique within a relation; expressions
       are DuckDB trees over the input's field names.
Never: reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sqlglot import exp

from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.dialect.sqltypes import BIGINT, SqlType
from storage_engine.stream.functions.aggregates import Accumulator, Call
from storage_engine.stream.plan.startup import Startup
from storage_engine.stream.plan.tree_time import Emission, Expiry, InTime, Over, Session, Windows
from storage_engine.stream.plan.tree_unnest import Unnest


@dataclass(frozen=True)
class ViewDefinition:
    """A view: its SELECT, the database its unqualified names belong to, and the names it gives its columns (None: the SELECT's)."""

    sql: str
    database: str = ""
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Field:
    """A column of a relation."""

    name: str
    type: SqlType
    nullable: bool = True


MARK: Final = "$watermark of "
PROCESSING_TIME: Final = "$proctime"
PANE, OPENS = "$pane", "$opens"
"""Of an aggregate that counts by pane: the pane's end, and the end of the first window that its rows are in time for (compile_panes.py)."""


@dataclass(frozen=True)
class Scan:
    """All changes of a table. `fields` are named "alias.column". A log has columns more, which are not stored: PROCESSING_TIME, when the
    row's commit was done, and with a WATERMARK one called MARK and its time column's name: the row's watermark (CURRENT_WATERMARK).
    """

    table: TableDescriptor
    alias: str
    columns: tuple[str, ...]
    fields: tuple[Field, ...]
    id: int = 0
    startup: Startup | None = None

    @property
    def stored_columns(self) -> list[str]:
        return [name for name in self.columns if not is_hidden(name)]

    @property
    def marks(self) -> list[str]:
        """Its columns that are watermarks."""
        return [name for name in self.columns if name.startswith(MARK)]

    @property
    def is_retracting(self) -> bool:
        return self.table.has_primary_key

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        if not self.table.has_primary_key:
            return None
        names = dict(zip(self.columns, (item.name for item in self.fields), strict=True))
        key = self.table.primary_key
        return tuple(names[name] for name in key) if all(name in names for name in key) else None

    @property
    def inputs(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True)
class Calc:
    """Computed fields of the rows that meet the condition."""

    input: Node
    projections: tuple[tuple[Field, exp.Expr], ...]
    condition: exp.Expr | None = None
    key: tuple[str, ...] | None = None
    """What identifies a row, where result_key.py knows more than the plain columns say."""

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(item for item, _ in self.projections)

    @property
    def is_retracting(self) -> bool:
        return self.input.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        of_input = self.input.unique_key
        if self.key is not None or of_input is None:
            return self.key
        kept = {tree.name: item.name for item, tree in self.projections if isinstance(tree, exp.Column)}
        same = dict(self.input.twins) if isinstance(self.input, DeltaJoin) else {}
        same |= {other: name for name, other in same.items()}
        found = [kept.get(name, kept.get(same.get(name, name))) for name in of_input]
        return None if None in found else tuple(name for name in found if name is not None)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)


@dataclass(frozen=True)
class LookupJoin:
    """Each input row with the rows of `table` that have its key, as they are when the row is processed.

    keys      column of `table` -> expression over the input; the whole primary key, or a prefix of it
    residual  a further condition over both sides
    columns   columns of `table` that are used; their fields are named "alias.column" and follow the input's
    is_outer  LEFT JOIN: an input row without a match stays, with nulls
    newest_of  the partition column, where only the newest partition is looked into; it is then not among the keys
    """

    input: Node
    table: TableDescriptor
    alias: str
    keys: tuple[tuple[str, exp.Expr], ...]
    columns: tuple[str, ...]
    looked_up: tuple[Field, ...]
    is_outer: bool
    is_prefix: bool = False
    residual: exp.Expr | None = None
    inserts_missing: bool = False
    id: int = 0
    newest_of: str | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.input.fields + self.looked_up

    @property
    def is_retracting(self) -> bool:
        return self.input.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return None if self.is_prefix else self.input.unique_key

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)


@dataclass(frozen=True)
class StoredSide:
    """Rows that are in a table already: a Scan of a primary-key table, or a chain of Calcs over one.

    on       fields of the node by which its rows are asked for, in the operator's order
    columns  the table's columns that these fields are
    keys     those of `columns` by which the table is looked up: the whole primary key, or a prefix of it
    """

    node: Node
    scan: Scan
    on: tuple[str, ...]
    columns: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def is_prefix(self) -> bool:
        return set(self.keys) != set(self.scan.table.primary_key)


@dataclass(frozen=True)
class KeptSide:
    """Rows that the job keeps in a state table of its own, under the fields `on` (arrangement.py says how).

    keeps_nulls  rows with a null in `on` are kept as well: a group may be NULL, a join's key finds nothing then
    expiry       when a row goes; None: it is kept for good
    """

    node: Node
    on: tuple[str, ...]
    id: int = 0
    keeps_nulls: bool = True
    expiry: Expiry | None = None


Side = StoredSide | KeptSide
JoinKind = Literal["INNER", "LEFT", "FULL", "SEMI", "ANTI"]


@dataclass(frozen=True)
class DeltaJoin:
    """A join, kept by looking up the other side's rows for the keys that a micro-batch touches.

    residual  what ON says beside the equalities, over the fields of both
    kind      LEFT, FULL: a row without a match stays, with nulls. SEMI, ANTI: the left rows that have (no) match, each once
    is_whole  all rows that match each other come at once, of both sides (whole.py): nothing is kept
    """

    left: Side
    right: Side
    residual: exp.Expr | None
    kind: JoinKind = "INNER"
    id: int = 0
    is_whole: bool = False

    @property
    def is_outer(self) -> bool:
        return self.kind in ("LEFT", "FULL")

    @property
    def is_filter(self) -> bool:
        return self.kind in ("SEMI", "ANTI")

    @property
    def sides(self) -> tuple[Side, ...]:
        return () if self.is_whole else (self.left, self.right)

    @property
    def fields(self) -> tuple[Field, ...]:
        left, right = self.left.node.fields, self.right.node.fields
        if self.is_filter:
            return left
        if self.kind == "FULL":
            left = tuple(Field(item.name, item.type) for item in left)
        return left + (tuple(Field(item.name, item.type) for item in right) if self.is_outer else right)

    @property
    def is_retracting(self) -> bool:
        return self.kind not in ("INNER", "SEMI") or self.left.node.is_retracting or self.right.node.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        left, right = self.left.node.unique_key, self.right.node.unique_key
        if self.is_filter:
            return left
        if self.kind == "FULL":
            return None if left is None or right is None else (*left, *right)
        if left is not None and right is not None and set(right) <= set(self.right.on):
            return left  # a left row meets one right row at most
        if left is not None and right is not None and not self.is_outer and set(left) <= set(self.left.on):
            return right
        if left is None or right is None:
            return None
        equated = dict(zip(self.right.on, self.left.on, strict=True))
        return tuple(dict.fromkeys([*left, *(name for name in right if equated.get(name) not in left)]))

    @property
    def twins(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a left and a right field that always are equal."""
        return () if self.kind != "INNER" else tuple(zip(self.left.on, self.right.on, strict=True))

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.left.node, self.right.node)


@dataclass(frozen=True)
class Rank:
    """Top-N: the rows of each partition whose ROW_NUMBER is at most `limit`. Equal rows: the one that came first, where that is known.

    side    its `on` are the fields of PARTITION BY
    order   fields of ORDER BY: (field, is descending, are nulls first)
    number  the field of the row's number; None: not selected
    is_whole  all rows of a partition come at once (the groups of a window that is sent once): nothing is kept, no row is taken back
    """

    side: Side
    order: tuple[tuple[str, bool, bool], ...]
    limit: int
    number: Field | None
    id: int = 0
    is_whole: bool = False

    @property
    def sides(self) -> tuple[Side, ...]:
        return () if self.is_whole else (self.side,)

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.side.node.fields + ((self.number,) if self.number is not None else ())

    @property
    def is_retracting(self) -> bool:
        return not self.is_whole  # a new row may take the place of another

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        if self.limit == 1:
            return self.side.on
        if self.number is not None:
            return (*self.side.on, self.number.name)
        return self.side.node.unique_key

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.side.node,)


@dataclass(frozen=True)
class Aggregate:
    """GROUP BY. Fields: the keys, then one per call.

    emission    a group's row is sent once, when it is final; None: whenever the group changes
    keeps_rows  the input's rows are kept by group and a touched group is computed anew: for functions that cannot take a row back
                (MIN of rows that may leave); the keys are fields of the input then
    by_pane     rows are counted by the step of time that they lie in, and those counts by window: the input is a Windows (panes.py)
    """

    input: Node
    keys: tuple[tuple[Field, exp.Expr], ...]
    accumulators: tuple[Accumulator, ...]
    calls: tuple[tuple[Field, Call], ...]
    id: int = 0
    keeps_rows: bool = False
    emission: Emission | None = None
    by_pane: bool = False

    @property
    def pane_keys(self) -> tuple[tuple[Field, exp.Expr], ...]:
        """The keys that say no window."""
        window = {item.name for item in self.input.window} if isinstance(self.input, Windows) else set()
        return tuple((item, tree) for item, tree in self.keys if not (isinstance(tree, exp.Column) and tree.name in window))

    @property
    def state_fields(self) -> tuple[Field, ...]:
        """What its accumulators are kept by: the group; of windows that are sent once and counted by pane the group in the pane."""
        if not self.by_pane or self.emission is None:
            return tuple(item for item, _ in self.keys)
        return (*(item for item, _ in self.pane_keys), *(Field(name, BIGINT, nullable=False) for name in (PANE, OPENS)))

    @property
    def is_ordered(self) -> bool:
        """True when a value depends on the places of the input's rows in their log."""
        return any(item.is_ordered for item in self.accumulators)

    @property
    def sides(self) -> tuple[Side, ...]:
        return (KeptSide(self.input, tuple(tree.name for _, tree in self.keys), self.id),) if self.keeps_rows else ()

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(item for item, _ in self.keys) + tuple(item for item, _ in self.calls)

    @property
    def is_retracting(self) -> bool:
        return self.emission is None  # a group's row changes whenever the group does

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return tuple(item.name for item, _ in self.keys)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)


@dataclass(frozen=True)
class Union:
    """All rows of all branches. Every branch has the fields `fields`, by name and type (bind.py makes it so)."""

    branches: tuple[Node, ...]
    fields: tuple[Field, ...]

    @property
    def is_retracting(self) -> bool:
        return any(branch.is_retracting for branch in self.branches)

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return None  # the same key may come from two branches

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.branches


@dataclass(frozen=True)
class Expand:
    """Each input row once per grouping set, with the keys that the set leaves out set to null.

    keys  the grouping keys: new fields over the input; `nullable` says whether the data itself has nulls
    sets  per grouping set, which of `keys` it groups by
    mark  the field that tells the sets apart: bit i counted from the last key is 1 where the set leaves the key out (GROUPING_ID)
    """

    input: Node
    keys: tuple[tuple[Field, exp.Expr], ...]
    sets: tuple[tuple[int, ...], ...]
    mark: Field

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.input.fields + tuple(Field(item.name, item.type) for item, _ in self.keys) + (self.mark,)

    @property
    def is_retracting(self) -> bool:
        return self.input.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        of_input = self.input.unique_key
        return None if of_input is None else (*of_input, self.mark.name)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)

    def mark_of(self, grouped: tuple[int, ...]) -> int:
        """The mark's value of a grouping set."""
        return sum(1 << (len(self.keys) - 1 - i) for i in range(len(self.keys)) if i not in grouped)


Node = Scan | Calc | LookupJoin | DeltaJoin | Rank | Aggregate | Union | Expand | Windows | Session | Over | InTime | Unnest
Sided = DeltaJoin | Rank | Aggregate | Session | Over
"""Operators that find rows by key; an Aggregate only when it keeps rows (its `sides` are empty otherwise)."""


@dataclass(frozen=True)
class Query:
    """A bound SELECT: its tree, the names of its columns in order (fields carry unique names), and notices for the user."""

    root: Node
    column_names: tuple[str, ...]
    notices: tuple[str, ...] = ()


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, each once, and before what it reads: an operator with several readers (share.py) behind all of them."""
    met: dict[int, Node] = {}

    def visit(item: Node) -> None:
        if id(item) not in met:
            for child in reversed(item.inputs):
                visit(child)
            met[id(item)] = item

    visit(node)
    return reversed(met.values())


def scans(node: Node) -> list[Scan]:
    """The sources below a node, from left to right."""
    return [item for item in walk(node) if isinstance(item, Scan)]


def lookups(node: Node) -> list[LookupJoin]:
    """The lookup joins below a node, from left to right."""
    return [item for item in walk(node) if isinstance(item, LookupJoin)]


def is_hidden(name: str) -> bool:
    """True for a column that a scan has beside those of its table: no * selects it."""
    return name == PROCESSING_TIME or name.startswith(MARK)


def columns_of(tree: exp.Expr | None) -> set[str]:
    """The fields an expression reads."""
    return {item.name for item in tree.find_all(exp.Column)} if tree is not None else set()


def is_positioned(node: Node) -> bool:
    """True when each row stands for one row of one log, whose place in the log tells it from all others and orders it."""
    if isinstance(node, Scan):
        return not node.table.has_primary_key
    return (isinstance(node, Calc | InTime) or (isinstance(node, LookupJoin) and not node.is_prefix)) and is_positioned(node.input)
