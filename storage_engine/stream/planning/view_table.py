"""View table: the table of a materialized view: its query's columns, keyed by what identifies a row of the result.

Holds: a view whose table could not hold its result is refused when it is created, with what to write instead. That is so for a key that
       may be NULL: the first NULL would stop the view's job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.stream.dialect.sqltypes import UNKNOWN
from storage_engine.stream.plan.never_null import is_never_null
from storage_engine.stream.plan.result_key import with_result_key
from storage_engine.stream.plan.tree import Calc, Query
from storage_engine.stream.planning.bind import Binder, Catalog
from storage_engine.stream.planning.planner import ENFORCER_OPTION, identity


def plan_view(
    catalog: Catalog,
    name: str,
    select_sql: str,
    *,
    default_database: str = "",
    settings: Mapping[str, str] | None = None,
    sets_nulls_aside: bool = False,
) -> TableDescriptor:
    """The table of a materialized view. `sets_nulls_aside`: its job does not stop at a row whose key is NULL.

    Errors: StatementRefused, UnknownTable.
    """
    where = f"materialized view {name}"
    query = Binder(catalog, default_database=default_database, where=where, settings=settings).bind(select_sql)
    duplicate = next((item for item in query.column_names if query.column_names.count(item) > 1), None)
    if duplicate is not None:
        raise StatementRefused(f"column {duplicate} occurs twice", where=where, next_step="Give each column its own name with AS.")
    root = _named(query)
    for item in root.fields:
        if item.type == UNKNOWN:
            raise StatementRefused(f"the type of column {item.name} is not known", where=where, next_step="CAST it.")
    root, key = _keyed(root, name, where) if root.is_retracting else (root, ())
    if not sets_nulls_aside:
        _check_nulls(root, key, where)
    columns = tuple(Column(item.name, str(item.type), nullable=item.name not in key) for item in root.fields)
    return TableDescriptor(name, columns, key, (), key, 1, {})


def _named(query: Query) -> Calc:
    """The query's projection, its fields called like the columns."""
    root = query.root if isinstance(query.root, Calc) else identity(query.root)
    names = dict(zip((item.name for item in root.fields), query.column_names, strict=True))
    projections = tuple((replace(item, name=names[item.name]), tree) for item, tree in root.projections)
    return replace(root, projections=projections, key=root.key and tuple(names[item] for item in root.key))


def _keyed(root: Calc, name: str, where: str) -> tuple[Calc, tuple[str, ...]]:
    """The projection with what is known of its key, and the key's columns."""
    every = tuple(item.name for item in root.fields)
    any_key = TableDescriptor(name, tuple(Column(item.name, str(item.type)) for item in root.fields), every, (), every, 1, {})
    root = with_result_key(root, any_key)
    key = root.unique_key
    if key is None:
        raise StatementRefused(
            "the columns that identify a row of the result are not selected",
            where=where,
            next_step="Select every column of GROUP BY (or of the primary key; of a FULL JOIN COALESCE(a.key, b.key)).",
        )
    if key:
        return root, key
    constants = tuple(item.name for item, tree in root.projections if not item.nullable and tree.find(exp.Column) is None)
    if not constants:
        raise StatementRefused(
            "the result is one row, and the view's table needs a key to replace it by",
            where=where,
            next_step="Select a constant as its key as well: SELECT 'all' AS name, COUNT(*) AS n FROM ...",
        )
    return root, constants[:1]


def _check_nulls(root: Calc, key: tuple[str, ...], where: str) -> None:
    for column in key:
        if not is_never_null(root, column):
            raise StatementRefused(
                f"column {column} identifies a row of the result and may be NULL, which the key of a view's table cannot hold",
                where=where,
                next_step=f"Write WHERE ... IS NOT NULL, select COALESCE(..., a stand-in) AS {column}, declare the source's column "
                f"NOT NULL, or SET '{ENFORCER_OPTION}' = 'DROP', which leaves such rows out and counts them.",
            )
