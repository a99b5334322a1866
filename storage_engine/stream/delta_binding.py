"""Delta binding: JOIN and LEFT JOIN of two primary-key tables into a DeltaJoin, or a refusal that says which lookup is missing.

Both sides must be found by the other's key: the equalities of ON name each table's whole primary key, or its partition and bucket
keys (which a prefix lookup takes). Then no row of either side is kept anywhere but in its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect import text_of
from storage_engine.stream.expressions import ExpressionBinder
from storage_engine.stream.plan import Calc, DeltaJoin, Field, JoinSide, Node, Scan, columns_of
from storage_engine.stream.render import paren

if TYPE_CHECKING:
    from storage_engine.stream.bind import Binder, Scope


def bind_delta(binder: Binder, join: exp.Join, left: Node, scope: Scope) -> DeltaJoin:
    """The join of what FROM has so far with one more table. Errors: StatementRefused naming what cannot be looked up."""
    what = text_of(join.this)
    kind, side = str(join.kind or "").upper(), str(join.side or "").upper()
    if kind not in ("", "INNER") or side not in ("", "LEFT"):
        raise binder.refuse(f"{side or kind} JOIN with {what} is not kept incrementally", "Use JOIN or LEFT JOIN.")
    if join.args.get("on") is None:
        raise binder.refuse(f"the join with {what} has no ON", "Write ON a.key = b.key.")
    known = len(scope.columns)
    right = binder.source(join.this, scope)
    if side == "LEFT":
        scope.columns[known:] = [(alias, name, Field(item.name, item.type)) for alias, name, item in scope.columns[known:]]
    pairs, rest = _split(binder, join.args["on"], left, right, scope)
    if not pairs:
        raise binder.refuse(f"the join with {what} has no equality between its sides", "Join ON a.key = b.key.")
    residual: exp.Expr | None = None
    for part in rest:
        bound = ExpressionBinder(scope.resolve, where=binder.where).condition(part)
        residual = bound if residual is None else exp.And(this=paren(residual), expression=paren(bound))
    sides = [_side(binder, node, tuple(pair[i] for pair in pairs), what) for i, node in enumerate((left, right))]
    return DeltaJoin(sides[0], sides[1], residual, side == "LEFT", binder.next_id())


def _split(binder: Binder, on: exp.Expr, left: Node, right: Node, scope: Scope) -> tuple[list[tuple[str, str]], list[exp.Expr]]:
    """The equalities of a field of the left with a field of the right, and the other conditions."""
    types = {item.name: item.type for item in (*left.fields, *right.fields)}
    names = [{item.name for item in node.fields} for node in (left, right)]
    pairs: list[tuple[str, str]] = []
    rest: list[exp.Expr] = []
    for part in _conjuncts(on):
        found = [binder.expressions(scope).bind(item).ast for item in (part.this, part.expression)] if isinstance(part, exp.EQ) else []
        columns = [item.name for item in found if isinstance(item, exp.Column)]
        if len(columns) == 2 and columns[0] in names[1] and columns[1] in names[0]:
            columns.reverse()
        if len(columns) != 2 or columns[0] not in names[0] or columns[1] not in names[1]:
            rest.append(part)
            continue
        if types[columns[0]] != types[columns[1]]:
            raise binder.refuse(
                f"{text_of(part)} compares {types[columns[0]]} with {types[columns[1]]}: such a key cannot be looked up",
                "Declare both columns with one type.",
            )
        pairs.append((columns[0], columns[1]))
    return pairs, rest


def _conjuncts(node: exp.Expr) -> list[exp.Expr]:
    if isinstance(node, exp.Paren):
        return _conjuncts(node.this)
    if isinstance(node, exp.And):
        return _conjuncts(node.this) + _conjuncts(node.expression)
    return [node]


def _side(binder: Binder, node: Node, on: tuple[str, ...], what: str) -> JoinSide:
    scan, columns = _table_columns(binder, node, on, what)
    table = scan.table
    if not table.has_primary_key:
        raise binder.refuse(
            f"the join with {what} would have to keep the rows of {table.name}, a log table, as state",
            "Give the table a primary key that begins with the join's columns, or use a lookup join: FOR SYSTEM_TIME AS OF PROCTIME().",
        )
    whole, prefix = set(table.primary_key), {*table.partition_keys, *table.bucket_keys}
    if whole <= set(columns):
        keys = table.primary_key
    elif table.is_prefix_lookup_possible and prefix <= set(columns):
        keys = tuple(name for name in table.primary_key if name in prefix)
    else:
        possible = f"({', '.join(table.primary_key)})"
        if table.is_prefix_lookup_possible:
            possible += f" or ({', '.join(name for name in table.primary_key if name in prefix)})"
        raise binder.refuse(
            f"the join with {what} has to find rows of {table.name} by ({', '.join(columns)}), and the table is found by {possible}",
            f"Join on these columns, or key {table.name} by the join's columns first, with 'bucket.key' on them.",
        )
    return JoinSide(node, scan, on, columns, keys)


def _table_columns(binder: Binder, node: Node, on: tuple[str, ...], what: str) -> tuple[Scan, tuple[str, ...]]:
    """The table below a side, and its columns that the fields `on` are."""
    names = on
    while isinstance(node, Calc):
        trees = {item.name: tree for item, tree in node.projections}
        computed = [name for name in names if not isinstance(trees[name], exp.Column)]
        if computed:
            raise binder.refuse(
                f"the join with {what} compares a computed value ({', '.join(sorted(columns_of(trees[computed[0]])))})",
                "Join on columns of the table; a lookup goes by stored keys.",
            )
        names = tuple(trees[name].name for name in names)
        node = node.input
    if not isinstance(node, Scan):
        raise binder.refuse(
            f"the join with {what}: one side is itself a {type(node).__name__}, whose rows are not stored under the join's key",
            "Write that side into a primary-key table by a job of its own, and join the table.",
        )
    by_field = dict(zip((item.name for item in node.fields), node.columns, strict=True))
    return node, tuple(by_field[name] for name in names)
