"""Result key: what identifies a row of a query whose keys are written with a stand-in for NULL.

A primary key has no nulls, but a query's key may: GROUP BY GROUPING SETS rolls keys up to NULL, a LEFT JOIN finds nothing, and data
has nulls of its own. Users write COALESCE(key, 'ALL') into the sink's key. That still tells rows apart as long as none says 'ALL':
the projection is made to check that, and the row that would meet another one is an error instead of a wrong total.
"""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.stream.dialect.render import column, render, sql, string
from storage_engine.stream.plan.same_fields import same_fields
from storage_engine.stream.plan.tree import Aggregate, Calc, DeltaJoin, Expand, Field, Node


def with_result_key(root: Calc, sink: TableDescriptor) -> Calc:
    """The projection with its key, where the sink's primary key holds the input's key as columns or COALESCE(column, literal)."""
    below = root.input
    if root.unique_key is not None:
        return root
    if (joined := _full_join_key(root, sink)) is not None:  # one of the two is there, so that it is NULL only where a key itself is
        held = tuple((replace(item, nullable=False) if item.name in joined else item, tree) for item, tree in root.projections)
        return replace(root, projections=held, key=joined)
    if below.unique_key is None:
        return root
    projections = list(root.projections)
    key: list[str] = []
    by_name = {item.name: item for item in below.fields}
    same = same_fields(below)
    for item in (by_name[name] for name in below.unique_key):
        found = _position_of(item, projections, sink)
        if found is None:
            others = [by_name[name] for names in same if item.name in names for name in sorted(names - {item.name})]
            found = next((place for other in others if (place := _position_of(other, projections, sink)) is not None), None)
        if found is None:
            if _is_implied(item, below):
                continue
            return root
        wanted, tree = projections[found]
        if (literal := _stand_in(tree, item)) is not None:
            projections[found] = (wanted, _checked(item, tree, literal, sink, wanted.name))
        key.append(wanted.name)
    return replace(root, projections=tuple(projections), key=tuple(dict.fromkeys(key)))


def _full_join_key(root: Calc, sink: TableDescriptor) -> tuple[str, ...] | None:
    """COALESCE(left key, right key) of a FULL JOIN by the whole keys of both sides: one of them is there, and both are equal."""
    node = root.input
    while isinstance(node, Calc) and all(isinstance(tree, exp.Column) and tree.name == item.name for item, tree in node.projections):
        node = node.input
    if not isinstance(node, DeltaJoin) or node.kind != "FULL" or node.residual is not None:
        return None  # by a further condition two rows of one key may both stay alone
    if any(side.node.unique_key is None or set(side.node.unique_key) != set(side.on) for side in node.sides):
        return None
    pairs = {frozenset(pair) for pair in zip(node.left.on, node.right.on, strict=True)}
    found: dict[frozenset[str], str] = {}
    for item, tree in root.projections:
        is_either = isinstance(tree, exp.Anonymous | exp.Coalesce) and item.name in sink.primary_key
        names = (
            frozenset(part.name for part in tree.find_all(exp.Column))
            if is_either and sql(tree).upper().startswith("COALESCE(")
            else frozenset()
        )
        if names in pairs:
            found.setdefault(names, item.name)
    return tuple(found.values()) if len(found) == len(pairs) else None


def _position_of(item: Field, projections: list[tuple[Field, exp.Expr]], sink: TableDescriptor) -> int | None:
    for i, (wanted, tree) in enumerate(projections):
        if wanted.name not in sink.primary_key:
            continue
        if isinstance(tree, exp.Column) and tree.name == item.name:
            return i
        if _stand_in(tree, item) is not None:
            return i
    return None


def _stand_in(tree: exp.Expr, item: Field) -> exp.Expr | None:
    """The literal of COALESCE(item, literal)."""
    if not (isinstance(tree, exp.Anonymous) and str(tree.this).upper() == "COALESCE" and len(tree.expressions) == 2):
        return None
    first, second = tree.expressions
    value = second
    while isinstance(value, exp.Cast | exp.Paren | exp.Neg):
        value = value.this
    is_ours = isinstance(first, exp.Column) and first.name == item.name
    return second if is_ours and isinstance(value, exp.Literal) else None


def _is_implied(item: Field, node: Node) -> bool:
    """True for the mark of grouping sets where the data has no nulls: the stand-ins alone say which keys are rolled up."""
    below = node.input if isinstance(node, Aggregate) else None
    return isinstance(below, Expand) and item.name == below.mark.name and not any(key.nullable for key, _ in below.keys)


def _checked(item: Field, tree: exp.Expr, literal: exp.Expr, sink: TableDescriptor, name: str) -> exp.Expr:
    message = f"column {name} of {sink.name}: {sql(literal)} stands for NULL, and the data has it as a value; choose another stand-in"
    template = f"CASE WHEN _0 = _1 THEN CAST(error(_2) AS {item.type.duckdb}) ELSE _3 END"
    return render(template, column(item.name), literal, string(message), tree)
