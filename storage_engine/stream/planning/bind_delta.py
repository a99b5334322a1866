"""Delta binding: JOIN, LEFT, RIGHT and FULL JOIN into a DeltaJoin: where each side's rows are found by the other's key.

A primary-key table whose whole key, or whose partition and bucket keys, the equalities of ON name is asked by lookups: no row of it is
kept anywhere but in its table. Every other side is kept in a state table of the job, by the join's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import cast, column, paren
from storage_engine.stream.dialect.sqltypes import UNKNOWN, SqlType, common_type
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.plan.tree import Calc, DeltaJoin, Field, JoinKind, KeptSide, Node, Scan, Side, StoredSide, columns_of
from storage_engine.stream.planning.bind_interval import with_expiry

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope


def bind_delta(binder: Binder, join: exp.Join, left: Node, scope: Scope, where: exp.Where | None) -> Node:
    """The join of what FROM has so far with one more table. Errors: StatementRefused.

    where  the SELECT's: FROM a, b WHERE a.key = b.key takes its equalities from there
    """
    what = text_of(join.this)
    kind, side = str(join.kind or "").upper(), str(join.side or "").upper()
    if kind not in ("", "INNER", "CROSS", "OUTER") or side not in ("", "LEFT", "RIGHT", "FULL"):
        raise binder.refuse(f"{side or kind} JOIN with {what} is not kept incrementally", "Use JOIN, or LEFT, RIGHT or FULL JOIN.")
    known = len(scope.columns)
    right = binder.source(join.this, scope)
    nullable = {"": slice(0), "LEFT": slice(known, None), "RIGHT": slice(known), "FULL": slice(None)}[side]
    scope.columns[nullable] = [(alias, name, Field(item.name, item.type)) for alias, name, item in scope.columns[nullable]]
    on = join.args.get("on")
    if (names := scope.joined_names(join, known)) is not None:
        (left, right), pairs, rest = *_by_names(binder, names, (left, right), scope, known, side, what), []
    else:
        parts = conjuncts(on) if on is not None else _resolvable(conjuncts(where.this) if where is not None else [], scope)
        (left, right), pairs, rest = _split(binder, parts, (left, right), scope)
    if not pairs:
        raise binder.refuse(
            f"the join with {what} has no equality between its sides: each change would read all rows of the other side",
            "Join ON a.key = b.key.",
        )
    residual: exp.Expr | None = None
    for part in rest:
        bound = ExpressionBinder(scope.resolve, where=binder.where).condition(part)
        residual = bound if residual is None else exp.And(this=paren(residual), expression=paren(bound))
    sides = [join_side(binder, node, tuple(pair[i] for pair in pairs)) for i, node in enumerate((left, right))]
    if side == "RIGHT":
        sides.reverse()
    made: JoinKind = "INNER" if side == "" else "FULL" if side == "FULL" else "LEFT"
    joined = with_expiry(binder, DeltaJoin(sides[0], sides[1], residual, made, binder.next_id()))
    return _with_merged(binder, joined, scope) if names is not None and made == "FULL" else joined


def _with_merged(binder: Binder, join: DeltaJoin, scope: Scope) -> Calc:
    """A FULL JOIN with the merged columns as fields: they identify its rows where both sides are joined by their whole keys."""
    values = scope.last_merged()
    sides = join.left, join.right
    nullable = any(item.nullable for side in sides for item in side.node.fields if item.name in side.on)
    fields = tuple(Field(f"$u{binder.next_id()}", value.type, nullable) for value in values)
    scope.settle(fields)
    is_keyed = not nullable and all(side.node.unique_key is not None and set(side.node.unique_key) == set(side.on) for side in sides)
    listed = [(item, column(item.name)) for item in join.fields]
    merged = [(item, value.ast) for item, value in zip(fields, values, strict=True)]
    return Calc(join, (*listed, *merged), key=tuple(item.name for item in fields) if is_keyed else None)


def _resolvable(parts: list[exp.Expr], scope: Scope) -> list[exp.Expr]:
    """The conditions over tables that FROM has named so far."""
    known = {alias for alias, _, _ in scope.columns}
    names = {name for _, name, _ in scope.columns}
    parts = [part for part in parts if part.find(exp.Query) is None]
    return [part for part in parts if all(c.table in known if c.table else c.name in names for c in part.find_all(exp.Column))]


def _split(
    binder: Binder, conditions: list[exp.Expr], nodes: tuple[Node, Node], scope: Scope
) -> tuple[tuple[Node, Node], list[tuple[str, str]], list[exp.Expr]]:
    """The equalities of the left with the right as pairs of fields, and the other conditions; a side that is an expression, or of
    another type, becomes a field of its node.
    """
    names = [{item.name for item in node.fields} for node in nodes]
    extra: _Extra = ([], [])
    pairs: list[tuple[str, str]] = []
    rest: list[exp.Expr] = []
    for part in conditions:
        found = [binder.expressions(scope).bind(item) for item in (part.this, part.expression)] if isinstance(part, exp.EQ) else []
        used = [columns_of(value.ast) for value in found]
        if found and used[0] & names[1]:
            found.reverse()
            used.reverse()
        if not found or not all(of and of <= known for of, known in zip(used, names, strict=True)):
            rest.append(part)
            continue
        pairs.append(_pair(binder, extra, (found[0], found[1]), text_of(part)))
    return (extended(nodes[0], extra[0]), extended(nodes[1], extra[1])), pairs, rest


_Extra = tuple[list[tuple[Field, exp.Expr]], list[tuple[Field, exp.Expr]]]


def _pair(binder: Binder, extra: _Extra, values: tuple[Value, Value], what: str) -> tuple[str, str]:
    """The fields of a key's two values."""
    common = common_type([value.type for value in values])
    if common == UNKNOWN:
        raise binder.refuse(f"{what} compares {values[0].type} with {values[1].type}: such a key cannot be looked up", "CAST one side.")
    mine, other = (key_field(binder, more, value, common) for more, value in zip(extra, values, strict=True))
    return mine, other


def _by_names(
    binder: Binder, names: list[str], nodes: tuple[Node, Node], scope: Scope, known: int, side: str, what: str
) -> tuple[tuple[Node, Node], list[tuple[str, str]]]:
    """The sides and their keys of USING or NATURAL, whose columns become one in the scope."""
    if not names:
        raise binder.refuse(f"NATURAL JOIN with {what}: no column has the same name on both sides", "Join ON a.key = b.key.")
    extra: _Extra = ([], [])
    values = zip(names, scope.merge(names, known, side), strict=True)
    pairs = [_pair(binder, extra, pair, f"{name} of the join with {what}") for name, pair in values]
    return (extended(nodes[0], extra[0]), extended(nodes[1], extra[1])), pairs


def key_field(binder: Binder, extra: list[tuple[Field, exp.Expr]], value: Value, wanted: SqlType) -> str:
    """The name of a field with a key's value; one that is no field as it stands is added to `extra`."""
    if isinstance(value.ast, exp.Column) and value.type == wanted:
        return value.ast.name
    made = Field(f"$k{binder.next_id()}", wanted, value.nullable)
    extra.append((made, value.ast if value.type == wanted else cast(value.ast, wanted.duckdb)))
    return made.name


def extended(node: Node, extra: list[tuple[Field, exp.Expr]]) -> Node:
    """The node with further fields."""
    return Calc(node, (*((item, column(item.name)) for item in node.fields), *extra)) if extra else node


def conjuncts(node: exp.Expr) -> list[exp.Expr]:
    """The parts of a condition that must all be true."""
    if isinstance(node, exp.Paren):
        return conjuncts(node.this)
    if isinstance(node, exp.And):
        return conjuncts(node.this) + conjuncts(node.expression)
    return [node]


def join_side(binder: Binder, node: Node, on: tuple[str, ...]) -> Side:
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
