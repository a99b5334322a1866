"""Micro-batch: what the operators of one micro-batch share: point reads, Arrow data by name in DuckDB, the event time of its sources, and
the outcome they add to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import duckdb
import pyarrow as pa

from storage_engine.api import WriteOp
from storage_engine.stream.operators.event_time import EventTime
from storage_engine.stream.plan.tree import StoredSide
from storage_engine.stream.plan.tree_time import Emission


class Reader(Protocol):
    """Point reads of the store, as a micro-batch needs them."""

    def lookup(self, table: str, keys: pa.Table, columns: list[str], *, insert_if_not_exists: bool = False) -> pa.Table:
        """One row per key in the order of the keys, with a last column `_found`."""
        ...

    def prefix_lookup(self, table: str, prefixes: pa.Table, columns: list[str]) -> pa.Table: ...

    def newest_partition(self, table: str) -> str:
        """The last partition by name that has rows now, "" when none has."""
        ...

    def rows_around(self, asked: Sequence[tuple[StoredSide, pa.Table]]) -> list[tuple[pa.Table, pa.Table]]:
        """Rows of each side's table under its keys, in the side's columns, as they stood before and after the micro-batch's input."""
        ...

    def all_rows(self, table: str) -> pa.Table:
        """The current rows of a state table."""
        ...

    def rows_of_input(self, table: str, positions: pa.Table, wanted: str) -> pa.Table:
        """Rows of the micro-batch's input by their places (POSITION without the time), in the columns of the table `wanted`."""
        ...


@dataclass
class Outcome:
    """What a micro-batch wants written, and what it counted."""

    ops: list[WriteOp] = field(default_factory=list)
    n_rows_out: int = 0
    n_dropped_nulls: int = 0
    n_late_rows: int = 0
    late: list[tuple[Emission, pa.Table]] = field(default_factory=list)
    """Places of late rows, as the operators find them: a row may be late for several."""


class Registry:
    """Arrow data by name, for the time of one micro-batch, and the event time of its sources."""

    def __init__(self, con: duckdb.DuckDBPyConnection, registered: dict[str, None], event_time: EventTime) -> None:
        self._con = con
        self._registered = registered
        self.event_time = event_time

    def put(self, name: str, rows: pa.Table) -> None:
        self._con.register(name, rows)
        self._registered[name] = None

    def query(self, text: str) -> pa.Table:
        return self._con.execute(text).to_arrow_table()


def append_op(outcome: Outcome, op: WriteOp) -> None:
    """Add a write, unless it has no rows."""
    if op.rows.num_rows:
        outcome.ops.append(op)
