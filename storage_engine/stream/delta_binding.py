"""Delta binding: JOIN and LEFT JOIN into a DeltaJoin: where each side's rows are found by the other's key.

A primary-key table whose whole key, or whose partition and bucket keys, the equalities of ON name is asked by lookups: no row of it is
kept anywhere but in its table. Every other side is kept in a state table of the job, by the join's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect import text_of
from storage_engine.stream.expressions import ExpressionBinder
from storage_engine.stream.interval_binding import with_expiry
from storage_engine.stream.plan import Calc, DeltaJoin, Field, KeptSide, Node, Scan, Side, StoredSide
from storage_engine.stream.render import paren

if TYPE_CHECKING:
    from storage_engine.stream.bind import Binder, Scope


def bind_delta(binder: Binder, join: exp.Join, left: Node, scope: Scope, where: exp.Where | None) -> DeltaJoin:
    """The join of what FROM has so far with one more table. Errors: StatementRefused.

    where  the SELECT's: FROM a, b WHERE a.key = b.key takes its equalities from there
    """
    what = text_of(join.this)
    kind, side = str(join.kind or "").upper(), str(join.side or "").upper()
    if kind not in ("", "INNER", "CROSS", "OUTER") or side not in ("", "LEFT"):
        raise binder.refuse(f"{side or kind} JOIN with {what} is not kept incrementally", "Use JOIN or LEFT JOIN.")
    known = len(scope.columns)
    right = binder.source(join.this, scope)
    if side == "LEFT":
        scope.columns[known:] = [(alias, name, Field(item.name, item.type)) for alias, name, item in scope.columns[known:]]
    on = join.args.get("on")
    parts = _conjuncts(on) if on is not None else _resolvable(_conjuncts(where.this) if where is not None else [], scope)
    pairs, rest = _split(binder, parts, left, right, scope)
    if not pairs:
        raise binder.refuse(f"the join with {what} has no equality between its sides", "Join ON a.key = b.key.")
    residual: exp.Expr | None = None
    for part in rest:
        bound = ExpressionBinder(scope.resolve, where=binder.where).condition(part)
        residual = bound if residual is None else exp.And(this=paren(residual), expression=paren(bound))
    sides = [_side(binder, node, tuple(pair[i] for pair in pairs)) for i, node in enumerate((left, right))]
    return with_expiry(binder, DeltaJoin(sides[0], sides[1], residual, side == "LEFT", binder.next_id()))


def _resolvable(parts: list[exp.Expr], scope: Scope) -> list[exp.Expr]:
    """The conditions over tables that FROM has named so far."""
    known = {alias for alias, _, _ in scope.columns}
    names = {name for _, name, _ in scope.columns}
    return [part for part in parts if all(c.table in known if c.table else c.name in names for c in part.find_all(exp.Column))]


def _split(
    binder: Binder, conditions: list[exp.Expr], left: Node, right: Node, scope: Scope
) -> tuple[list[tuple[str, str]], list[exp.Expr]]:
    """The equalities of a field of the left with a field of the right, and the other conditions."""
    types = {item.name: item.type for item in (*left.fields, *right.fields)}
    names = [{item.name for item in node.fields} for node in (left, right)]
    pairs: list[tuple[str, str]] = []
    rest: list[exp.Expr] = []
    for part in conditions:
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
                "CAST one side in a subquery, or declare both columns with one type.",
            )
        pairs.append((columns[0], columns[1]))
    return pairs, rest


def _conjuncts(node: exp.Expr) -> list[exp.Expr]:
    if isinstance(node, exp.Paren):
        return _conjuncts(node.this)
    if isinstance(node, exp.And):
        return _conjuncts(node.this) + _conjuncts(node.expression)
    return [node]


def _side(binder: Binder, node: Node, on: tuple[str, ...]) -> Side:
    """A table that can be asked for these fields by its key stays where it is; all other rows are kept."""
    return stored_side(node, on) or KeptSide(node, on, binder.next_id(), keeps_nulls=False)


def stored_side(node: Node, on: tuple[str, ...]) -> StoredSide | None:
    """The side of a primary-key table with projections and filters, when `on` names its whole key or a prefix that it is found by."""
    found = _table_columns(node, on)
    if found is None:
        return None
    scan, columns = found
    table = scan.table
    prefix = {*table.partition_keys, *table.bucket_keys}
    if set(table.primary_key) <= set(columns):
        return StoredSide(node, scan, on, columns, table.primary_key)
    if table.is_prefix_lookup_possible and prefix <= set(columns):
        return StoredSide(node, scan, on, columns, tuple(name for name in table.primary_key if name in prefix))
    return None


def _table_columns(node: Node, on: tuple[str, ...]) -> tuple[Scan, tuple[str, ...]] | None:
    """The primary-key table below a node, and its columns that the fields `on` are."""
    names = on
    while isinstance(node, Calc):
        trees = {item.name: tree for item, tree in node.projections}
        if not all(isinstance(trees[name], exp.Column) for name in names):
            return None
        names = tuple(trees[name].name for name in names)
        node = node.input
    if not isinstance(node, Scan) or not node.table.has_primary_key:
        return None
    by_field = dict(zip((item.name for item in node.fields), node.columns, strict=True))
    return node, tuple(by_field[name] for name in names)
