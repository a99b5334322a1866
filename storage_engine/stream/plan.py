"""Plan: a statement as a tree of relational operators, each with typed fields, and what is known of it.

A relation is a multiset of rows that changes: in a retracting relation each row carries a weight, 1 for inserted and -1 for
taken back; an append-only relation has no weights. Every operator here maps changes of its input to changes of its output,
so one tree serves stream jobs, materialized views and (compiled without weights, compile.py) the batch recomputation.

    Scan         the log of a table, or the changelog of a primary-key table
    Calc         projection and filter
    LookupJoin   rows of another table as they are now, by its primary key or a prefix of it
    Aggregate    GROUP BY; its state is where placement.py says

Holds: plans are values; `id` of an operator is unique in its plan; field names are unique within a relation; expressions
       are DuckDB trees over the input's field names.
Never: reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlglot import exp

from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.aggregates import Accumulator, Call
from storage_engine.stream.render import sql
from storage_engine.stream.sqltypes import SqlType


@dataclass(frozen=True)
class Field:
    """A column of a relation."""

    name: str
    type: SqlType
    nullable: bool = True


@dataclass(frozen=True)
class Scan:
    """All changes of a table. `fields` are named "alias.column"."""

    table: TableDescriptor
    alias: str
    columns: tuple[str, ...]
    fields: tuple[Field, ...]
    id: int = 0

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

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(item for item, _ in self.projections)

    @property
    def is_retracting(self) -> bool:
        return self.input.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        of_input = self.input.unique_key
        if of_input is None:
            return None
        kept = {tree.name: item.name for item, tree in self.projections if isinstance(tree, exp.Column)}
        return tuple(kept[name] for name in of_input) if all(name in kept for name in of_input) else None

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
class Aggregate:
    """GROUP BY. Fields: the keys, then one per call."""

    input: Node
    keys: tuple[tuple[Field, exp.Expr], ...]
    accumulators: tuple[Accumulator, ...]
    calls: tuple[tuple[Field, Call], ...]
    id: int = 0

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(item for item, _ in self.keys) + tuple(item for item, _ in self.calls)

    @property
    def is_retracting(self) -> bool:
        return True  # a group's row changes whenever the group does

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        return tuple(item.name for item, _ in self.keys)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)


Node = Scan | Calc | LookupJoin | Aggregate


@dataclass(frozen=True)
class Query:
    """A bound SELECT: its tree, the names of its columns in order (fields carry unique names), and notices for the user."""

    root: Node
    column_names: tuple[str, ...]
    notices: tuple[str, ...] = ()


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, sources last."""
    yield node
    for child in node.inputs:
        yield from walk(child)


def scans(node: Node) -> list[Scan]:
    return [item for item in walk(node) if isinstance(item, Scan)]


def lookups(node: Node) -> list[LookupJoin]:
    return [item for item in walk(node) if isinstance(item, LookupJoin)]


def columns_of(tree: exp.Expr | None) -> set[str]:
    """The fields an expression reads."""
    return {item.name for item in tree.find_all(exp.Column)} if tree is not None else set()


def describe(node: Node, depth: int = 0) -> list[str]:
    """The tree as text, one operator per line, the sink's side first."""
    pad = "  " * depth
    mode = "retracting" if node.is_retracting else "append-only"
    if isinstance(node, Scan):
        kind = "changelog" if node.is_retracting else "log"
        line = f"Scan {kind} of {node.table.name} as {node.alias}: {', '.join(node.columns)}"
    elif isinstance(node, Calc):
        line = "Calc " + ", ".join(f"{item.name} = {sql(tree)}" for item, tree in node.projections)
        line += f" where {sql(node.condition)}" if node.condition is not None else ""
    elif isinstance(node, LookupJoin):
        keys = " and ".join(f"{name} = {sql(tree)}" for name, tree in node.keys)
        line = f"LookupJoin {'left' if node.is_outer else 'inner'} {node.table.name} as {node.alias} on {keys}: "
        line += ", ".join(node.columns) or "no columns"
        line += " (inserts missing keys)" if node.inserts_missing else ""
    else:
        by = ", ".join(sql(tree) for _, tree in node.keys) or "nothing"
        line = f"Aggregate by {by}: {', '.join(call.text for _, call in node.calls) or 'distinct'}"
    out = [f"{pad}{line} [{mode}]"]
    for child in node.inputs:
        out.extend(describe(child, depth + 1))
    return out
