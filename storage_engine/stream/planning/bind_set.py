"""Set binding: UNION ALL, UNION, INTERSECT and EXCEPT of queries.

INTERSECT and EXCEPT are a UNION ALL whose rows say which branch they are from, grouped by all columns: a row is in the result while
both branches have it, or only the first has. So NULL meets NULL, and either branch may take rows back.

Columns meet by position, as in SQL: the first branch names them, their types are widened to a common one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import cast, column, render
from storage_engine.stream.dialect.sqltypes import BIGINT, INT, NULL, SqlType, common_type
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.aggregates import CallBuilder
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.plan.tree import Aggregate, Calc, Field, Node, Union
from storage_engine.stream.planning.bind_limit import bind_limit, ordered_items

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder


def bind_set(binder: Binder, tree: exp.SetOperation, prefix: str) -> tuple[Node, tuple[str, ...]]:
    """The rows of the set operation. Errors: StatementRefused for INTERSECT ALL and EXCEPT ALL, and branches that do not fit."""
    word = tree.key.upper()
    if not isinstance(tree, exp.Union) and not tree.args.get("distinct"):
        raise binder.refuse(
            f"{word} ALL counts how often a row is in both inputs, which is not kept", f"Use {word}, which gives each row once."
        )
    written = _branches(tree) if isinstance(tree, exp.Union) else [tree.args["this"], tree.args["expression"]]
    branches = [binder.query(branch, prefix) for branch in written]
    names = branches[0][1]
    for _, others in branches[1:]:
        if len(others) != len(names):
            raise binder.refuse(
                f"the branches of {text_of(tree)[:80]} have {len(names)} and {len(others)} columns", "Select as many in each branch."
            )
    fields = tuple(
        Field(branches[0][0].fields[i].name, _common(binder, [node.fields[i] for node, _ in branches], name), _nullable(branches, i))
        for i, name in enumerate(names)
    )
    aligned = tuple(_aligned(node, fields) for node, _ in branches)
    if isinstance(tree, exp.Union):
        made: Node = Union(aligned, fields)
        made = binder.distinct(made) if tree.args.get("distinct") else made
    else:
        made = _compared(binder, aligned, fields, is_except=isinstance(tree, exp.Except))
    extra, positions = ordered_items(binder, tree, [], names)
    if extra:
        raise binder.refuse(
            f"ORDER BY {text_of(extra[0].this)} over a {word} is none of its columns", f"Use {', '.join(names)}, or a position."
        )
    return (bind_limit(binder, made, tree, positions, len(names)) if positions else made), names


def _compared(binder: Binder, branches: tuple[Calc, ...], fields: tuple[Field, ...], *, is_except: bool) -> Node:
    """The distinct rows of the first branch that the second has, or (EXCEPT) has not."""
    marks = [Field(f"$in{binder.next_id()}", INT, nullable=False) for _ in branches]
    rows = [
        replace(branch, projections=(*branch.projections, *((mark, exp.Literal.number(int(j == i))) for j, mark in enumerate(marks))))
        for i, branch in enumerate(branches)
    ]
    both = Union(tuple(rows), (*fields, *marks))
    calls = CallBuilder(retracting=both.is_retracting, where=binder.where)
    found = [
        calls.call("SUM", Value(column(mark.name), BIGINT, nullable=False), distinct=False, condition=None, text="SUM") for mark in marks
    ]
    if both.is_retracting:
        calls.rows()
    counts = [Field(f"$n{binder.next_id()}", BIGINT, nullable=False) for _ in marks]
    by = tuple((item, column(item.name)) for item in fields)
    grouped = Aggregate(both, by, tuple(calls.accumulators), tuple(zip(counts, found, strict=True)), binder.next_id())
    condition = render(f"_0 > 0 AND _1 {'=' if is_except else '>'} 0", *(column(item.name) for item in counts))
    return Calc(grouped, tuple((item, column(item.name)) for item in fields), condition)


def _branches(tree: exp.Expr) -> list[exp.Expr]:
    """The branches of UNIONs of the same kind, in order; one of another kind is a branch of its own."""
    found: list[exp.Expr] = []
    for side in (tree.args["this"], tree.args["expression"]):
        inner = side.this if isinstance(side, exp.Subquery) and not side.alias else side
        is_alike = isinstance(inner, exp.Union) and bool(inner.args.get("distinct")) == bool(tree.args.get("distinct"))
        has_own_clauses = any(inner.args.get(key) for key in ("order", "limit", "offset", "with_"))
        found.extend(_branches(inner) if is_alike and not has_own_clauses else [side])
    return found


def _common(binder: Binder, fields: list[Field], name: str) -> SqlType:
    types = [item.type for item in fields if item.type != NULL]
    common = common_type(types) if types else NULL
    if not common.is_known and types:
        raise binder.refuse(f"column {name} of the UNION is {' and '.join(str(item) for item in types)}", "CAST the branches to one type.")
    return common


def _nullable(branches: list[tuple[Node, tuple[str, ...]]], i: int) -> bool:
    return any(node.fields[i].nullable for node, _ in branches)


def _aligned(node: Node, fields: tuple[Field, ...]) -> Calc:
    """A branch with the union's field names and types."""
    pairs = []
    for mine, wanted in zip(node.fields, fields, strict=True):
        tree = column(mine.name)
        pairs.append((wanted, tree if mine.type == wanted.type else cast(tree, wanted.type.duckdb)))
    return Calc(node, tuple(pairs))
