"""Checked key: a result whose rows nothing in the plan tells apart, into a table whose primary key is said to do it.

The rows of a log have no key that is declared, so the result of an OVER aggregate over a log has none. The sink's primary key is taken
for it, and every micro-batch checks that: a second row under a key stops the job and is named, instead of replacing the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch
from storage_engine.stream.dialect.render import cast, column, sql
from storage_engine.stream.dialect.sqltypes import parse_type
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators.compile import quoted, relation
from storage_engine.stream.operators.micro_batch import Reader, Registry
from storage_engine.stream.plan.placement import as_key
from storage_engine.stream.plan.tree import Calc, Node, Over, is_positioned

if TYPE_CHECKING:
    from storage_engine.stream.operators.job_plan import JobPlan


def is_checked(root: Node) -> bool:
    """True for projections and filters over the OVER aggregates of a log: one row of the result per row of the log."""
    while isinstance(root, Calc):
        root = root.input
    return isinstance(root, Over) and is_positioned(root.side.node)


class CheckedKey:
    """Run in each micro-batch, before its rows are written."""

    def __init__(self, plan: JobPlan) -> None:
        self._sink = plan.sink
        keys = [f"{sink_cast(plan, name)} AS {quoted(name)}" for name in plan.sink.primary_key]
        present = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in plan.sink.primary_key)
        self._sql = (
            f"SELECT {', '.join(keys)}, sum({quoted(WEIGHT)}) AS __more FROM ({relation(plan.root)}) WHERE {present} "
            f"GROUP BY ALL HAVING sum({quoted(WEIGHT)}) > 0"
        )

    def run(self, tables: Registry, reader: Reader) -> None:
        """Errors: SchemaMismatch when two rows of the result have one key."""
        more = tables.query(self._sql)
        keys = more.drop_columns(["__more"])
        found = reader.lookup(self._sink.name, keys, list(self._sink.primary_key[:1]))["_found"]
        twice = keys.filter(pc.or_(pc.greater(more["__more"], 1), found))
        if twice.num_rows:
            shown = ", ".join(f"{name} = {value}" for name, value in twice.slice(0, 1).to_pylist()[0].items())
            raise SchemaMismatch(
                f"two rows of the result have the key {shown}",
                where=f"primary key of {self._sink.name}",
                next_step="Key the table by columns that tell the log's rows apart, or keep one row of each key first (ROW_NUMBER).",
            )


def sink_cast(plan: JobPlan, name: str) -> str:
    """A field of the result in the type of the sink's column. A key that comes out of groups or joins is the one they were found by."""
    of = parse_type(plan.sink.column(name).type)
    value = cast(column(name), of.duckdb)
    return sql(as_key(value, of) if name in plan.sink.primary_key and (plan.placements or plan.arrangements) else value)
