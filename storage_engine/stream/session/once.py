"""Once: statements that run to their end: INSERT INTO ... VALUES, and INSERT INTO ... SELECT in batch mode. One commit each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import duckdb
import pyarrow as pa
from sqlglot import exp

from storage_engine.api import WriteOp
from storage_engine.client.store import Store
from storage_engine.errors import StatementRefused
from storage_engine.schema.computed import why_not_written
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.statements import InsertInto
from storage_engine.stream.dialect.render import sql
from storage_engine.stream.dialect.sqltypes import DATE, STRING, TIME, SqlType, is_storable_as, parse_type
from storage_engine.stream.dialect.syntax import parse_select, text_of
from storage_engine.stream.functions.bitmaps import open_connection
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.casts import as_precise, is_cut
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.startup import starts_of
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import plan_insert
from storage_engine.stream.run.batch import batch_select
from storage_engine.stream.run.history import Lake

_BITS: Final = {"TINYINT": 8, "SMALLINT": 16, "INT": 32, "BIGINT": 64}


def insert_once(
    store: Store,
    statement: InsertInto,
    settings: Mapping[str, str],
    views: Mapping[str, ViewDefinition],
    functions: Mapping[str, FunctionDefinition],
    lake: Lake | None = None,
) -> str:
    """Run INSERT INTO ... SELECT over what its sources hold now, in the store and in the `lake`; the message."""
    sink = store.describe(statement.table)
    plan = plan_insert(
        StoreCatalog(store, views, functions=functions),
        sink,
        statement.columns,
        statement.select_sql,
        job="batch",
        default_database=statement.database,
        settings=settings,
        runs_once=True,
    )
    plan = replace(plan, starts=starts_of(store, plan.startups, "batch", must_be_whole=False))
    rows, version = select_once(store, plan, f"line {statement.line}", lake)
    _write(store, sink, rows, plan.targets)
    return f"wrote {rows.num_rows} rows into {sink.name}, from version {version}"


def select_once(store: Store, plan: JobPlan, where: str, lake: Lake | None = None) -> tuple[pa.Table, int]:
    """The rows of a plan over what SELECT shows of its sources now, and the version that is.

    Errors: StatementRefused for a value DuckDB refuses, and for a tiered table of which the lake may hold more, and is not given.
    """
    version = store.version()
    try:
        return batch_select(store, plan, at_version=version, is_bounded=True, lake=lake), version
    except duckdb.Error as error:
        what = str(error).splitlines()[0].removeprefix("Conversion Error: ")
        raise StatementRefused(what, where=where, next_step="Correct the expression, or leave such rows out with WHERE.") from error


def is_of_constants(statement: InsertInto) -> bool:
    """Whether its rows are written in it: VALUES, or SELECT without FROM."""
    if statement.is_values:
        return True
    tree = parse_select(statement.select_sql, where=f"line {statement.line}", first_line=statement.select_line)
    return isinstance(tree, exp.Select) and set(_given(tree)) == {"expressions"}


def _given(tree: exp.Expr) -> list[str]:
    """The clauses that are there."""
    return [name for name, value in tree.args.items() if value]


def insert_constants(store: Store, statement: InsertInto) -> str:
    """Run INSERT INTO ... VALUES, or ... SELECT without FROM, which is one row; the message."""
    sink = store.describe(statement.table)
    where = f"line {statement.line}"
    targets = statement.columns or tuple(name for name in sink.column_names if name != sink.auto_increment_column)
    for name in targets:
        if name not in sink.column_names:
            what = why_not_written(sink, name) or f"{sink.name} has no column {name}"
            raise StatementRefused(what, where=where, next_step=f"Its columns are {', '.join(sink.column_names)}.")
    cells = [_row(item, sink, targets, where) for item in _tuples(statement, where)]
    rows = _computed(cells, sink, targets, where)
    _write(store, sink, rows, targets)
    return f"wrote {rows.num_rows} rows into {sink.name}"


def _tuples(statement: InsertInto, where: str) -> list[list[exp.Expr]]:
    if not statement.is_values:
        return [[item.unalias() for item in parse_select(statement.select_sql, where=where).expressions]]
    tree = parse_select(f"SELECT * FROM ({statement.select_sql}) AS v", where=where)
    values = tree.find(exp.Values)
    if values is None:
        raise StatementRefused("VALUES cannot be read", where=where, next_step="Write VALUES (1, 'a'), (2, 'b').")
    return [list(item.expressions) if isinstance(item, exp.Tuple) else [item] for item in values.expressions]


@dataclass(frozen=True)
class _Cell:
    """A value as it was written, and its expression in the column's type."""

    written: str
    computed: str


def _row(items: list[exp.Expr], sink: TableDescriptor, targets: tuple[str, ...], where: str) -> list[_Cell]:
    if len(items) != len(targets):
        raise StatementRefused(
            f"a row has {len(items)} values, {sink.name} takes {len(targets)}",
            where=where,
            next_step=f"Columns: {', '.join(targets)}.",
        )

    def no_columns(node: exp.Column) -> Value:
        raise StatementRefused(f"{text_of(node)} is not a constant", where=where, next_step="Write constants; quote text with '.")

    binder = ExpressionBinder(no_columns, where=where)
    cells = []
    for item, name in zip(items, targets, strict=True):
        value, wanted = binder.bind(item), parse_type(sink.column(name).type)
        if not (is_storable_as(value.type, wanted) or _fits(item, value.type, wanted)):
            what = f"{text_of(item)}, which is out of its range" if _whole_number(item) is not None else f"{text_of(item)} is {value.type}"
            raise StatementRefused(
                f"column {name} of {sink.name} is {wanted}, the value {what}",
                where=where,
                next_step=f"Write a value of its type, or CAST it AS {wanted}.",
            )
        is_cut_off = wanted.is_timestamp and (value.type == STRING or is_cut(value.type, wanted))
        computed = as_precise(value.ast, wanted) if is_cut_off else value.ast
        cells.append(_Cell(text_of(item), f"CAST({sql(computed)} AS {wanted.duckdb})"))
    return cells


def _fits(item: exp.Expr, of: SqlType, wanted: SqlType) -> bool:
    """A constant that may go where an expression of its type may not: a whole number that a narrower integer holds, and a time as text."""
    number = _whole_number(item)
    if number is not None:
        return wanted.name in _BITS and -(2 ** (_BITS[wanted.name] - 1)) <= number < 2 ** (_BITS[wanted.name] - 1)
    return of == STRING and isinstance(item, exp.Literal) and (wanted.is_timestamp or wanted in (DATE, TIME))


def _whole_number(item: exp.Expr) -> int | None:
    """The value of an integer constant; None for anything else."""
    if isinstance(item, exp.Neg):
        number = _whole_number(item.this)
        return None if number is None else -number
    return int(item.name) if isinstance(item, exp.Literal) and not item.is_string and item.name.isdecimal() else None


def _computed(rows: list[list[_Cell]], sink: TableDescriptor, targets: tuple[str, ...], where: str) -> pa.Table:
    """The values. Errors: StatementRefused naming the first that cannot be computed, or does not fit into its column."""
    selects = ["SELECT " + ", ".join(f'{cell.computed} AS "{name}"' for cell, name in zip(row, targets, strict=True)) for row in rows]
    con = open_connection()
    try:
        return con.execute(" UNION ALL ".join(selects)).to_arrow_table()
    except duckdb.Error as error:
        for row in rows:
            for cell, name in zip(row, targets, strict=True):
                try:
                    con.execute(f"SELECT {cell.computed}")
                except duckdb.Error as one:
                    reason = str(one).splitlines()[0].removeprefix("Conversion Error: ")
                    raise StatementRefused(
                        f"column {name} of {sink.name} is {sink.column(name).type} and cannot take {cell.written}: {reason}",
                        where=where,
                        next_step="Write a value that fits.",
                    ) from one
        raise StatementRefused(str(error).splitlines()[0], where=where, next_step="Write other values.") from error
    finally:
        con.close()


def _write(store: Store, sink: TableDescriptor, rows: pa.Table, targets: tuple[str, ...]) -> None:
    if rows.num_rows:
        kind = "upsert" if sink.has_primary_key else "append"
        store.commit([WriteOp(sink.name, kind, rows, targets if sink.has_primary_key else None)])
