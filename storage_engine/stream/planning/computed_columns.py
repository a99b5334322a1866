"""Computed columns in queries: a table that has some is read as if it were a view over what it stores.

    CREATE TABLE t (price DECIMAL(8, 2), qty INT, total AS price * qty)    FROM t  ->  (SELECT price, qty, (price * qty) AS total FROM t)

So whatever is true of views is true of them: windows and lookup joins go by a column AS PROCTIME(), event time passes unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sqlglot import exp

from storage_engine.client.store import Store
from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import Computed, TableDescriptor
from storage_engine.stream.dialect.parts import refuse_unread
from storage_engine.stream.dialect.syntax import parse_select
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.functions.function_calls import mark_calls
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.plan.tree import MARK
from storage_engine.stream.planning.bind_group import has_calls
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.processing_time import is_proctime

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Catalog

STORED: Final = "stored"
"""In the meta of a table's name: the stored columns are meant."""


def expression_of(item: Computed, where: str) -> exp.Expr:
    """The expression of a computed column. Errors: StatementRefused for what is more than an expression over one row."""
    tree = parse_select(f"SELECT {item.expression}", where=f"{where}, column {item.name}")
    refuse_unread(tree, where)
    found = tree.expressions[0] if isinstance(tree, exp.Select) and len(tree.expressions) == 1 else None
    if found is None or any(value for key, value in tree.args.items() if key not in ("expressions", "kind")):
        raise StatementRefused(
            f"column {item.name} AS {item.expression} is no expression", where=where, next_step="Write name AS expression."
        )
    if isinstance(found, exp.Alias | exp.Star) or has_calls(found) or found.find(exp.Query, exp.Window, exp.Star):
        what = f"column {item.name} AS {item.expression}: an expression over the columns of one row is meant"
        raise StatementRefused(what, where=where, next_step="Compute aggregates, windows and subqueries in a view.")
    return found


def stored_select(table: TableDescriptor, where: str, *, with_times: bool = True) -> exp.Select:
    """What stands for the table in FROM. `with_times`: also its processing times, and its watermark for CURRENT_WATERMARK."""
    items: list[exp.Expr] = []
    for shown in table.shown_columns:
        tree = expression_of(shown, where) if isinstance(shown, Computed) else exp.column(exp.to_identifier(shown.name, quoted=True))
        if with_times or not is_proctime(tree):
            items.append(exp.alias_(tree, exp.to_identifier(shown.name, quoted=True)))
    if with_times and table.watermark is not None:
        time = exp.column(exp.to_identifier(table.watermark.column, quoted=True))
        mark = exp.Anonymous(this="CURRENT_WATERMARK", expressions=[time])
        items.append(exp.alias_(mark, exp.to_identifier(f"{MARK}{table.watermark.column}", quoted=True)))
    database, _, name = table.name.partition(".")
    source = exp.Table(this=exp.to_identifier(name, quoted=True), db=exp.to_identifier(database, quoted=True))
    source.meta[STORED] = True
    return exp.Select(expressions=items, from_=exp.From(this=source))


def types_of(catalog: Catalog, table: TableDescriptor, where: str) -> dict[str, str]:
    """The type of each computed column. Errors: StatementRefused for an expression that cannot be computed from a row."""
    found: dict[str, str] = {}
    for item, value in values_of(catalog.function, table, table.name, where):
        if value is None:
            if table.has_primary_key:
                what = f"column {item.name} AS PROCTIME(): rows of a primary-key table have no one commit"
                raise StatementRefused(what, where=where, next_step="Leave PRIMARY KEY out, or the column.")
            found[item.name] = "PROCTIME"
            continue
        if not value.type.is_known:
            raise StatementRefused(
                f"the type of {item.name} AS {item.expression} is not known", where=where, next_step=f"CAST it: {item.name} AS CAST(...)."
            )
        found[item.name] = str(value.type)
    return found


def values_of(
    function: Callable[[str], FunctionDefinition | None], table: TableDescriptor, alias: str, where: str, *, nullable: bool = False
) -> list[tuple[Computed, Value | None]]:
    """Each computed column over the fields "alias.column" of the stored ones; None for a processing time."""
    from storage_engine.stream.planning.bind import table_fields
    from storage_engine.stream.planning.scope import Scope

    scope = Scope(where)
    scope.add(alias, table.column_names, table_fields(table, alias, nullable=nullable))
    found: list[tuple[Computed, Value | None]] = []
    for item in table.computed:
        tree = expression_of(item, where)
        mark_calls(tree, function)
        found.append((item, None if is_proctime(tree) else ExpressionBinder(scope.resolve, where=where).bind(tree)))
    return found


def computed_types(store: Store, table: TableDescriptor) -> dict[str, str]:
    """The types of a table's computed columns, by what the store knows. Errors: StatementRefused as `types_of` says."""
    return types_of(StoreCatalog(store), table, f"table {table.name}") if table.computed else {}
