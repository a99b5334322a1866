"""Limit binding: ORDER BY ... LIMIT n over a whole query into a Rank without partitions (Top-N)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import column, render
from storage_engine.stream.dialect.sqltypes import BIGINT
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.plan.tree import Calc, Field, KeptSide, Node, Rank

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder

HIDDEN = "$order"
"""The prefix of columns that are only ordered by."""


def ordered_items(binder: Binder, tree: exp.Query, items: list[exp.Expr], names: tuple[str, ...]) -> tuple[list[exp.Expr], list[int]]:
    """What ORDER BY needs beside the selected items, and which of all of them it orders by, in its order.

    Errors: StatementRefused for ORDER BY without LIMIT, and LIMIT without ORDER BY.
    """
    order, limit = tree.args.get("order"), tree.args.get("limit")
    if order is None and limit is None and not tree.args.get("offset"):
        return [], []
    if order is None:
        raise binder.refuse(
            "LIMIT without ORDER BY: which rows are first changes as rows arrive", "Add ORDER BY, or limit when you query the table."
        )
    if limit is None:
        raise binder.refuse("ORDER BY: a stream has no end, so no order of all rows", "Add LIMIT, or order when you query the table.")
    extra: list[exp.Expr] = []
    positions: list[int] = []
    for written in order.expressions:
        key = written.this
        if isinstance(key, exp.Literal) and not key.is_string:
            position = int(key.name) - 1
            if not 0 <= position < len(names):
                raise binder.refuse(f"ORDER BY {key.name}: there are {len(names)} columns", "Use a position from 1.")
        elif isinstance(key, exp.Column) and not key.table and key.name in names:
            position = names.index(key.name)
        else:
            known = [i for i, item in enumerate(items) if text_of(item.this if isinstance(item, exp.Alias) else item) == text_of(key)]
            position = known[0] if known else len(items) + len(extra)
            if not known:
                extra.append(exp.alias_(key.copy(), f"{HIDDEN}{len(extra)}", quoted=True))
        positions.append(position)
    return extra, positions


def bind_limit(binder: Binder, node: Node, tree: exp.Query, positions: list[int], n_columns: int) -> Node:
    """The first rows of `node` in the order of its fields at `positions`; its first `n_columns` fields stay."""
    first = _whole(binder, tree.args["limit"], "LIMIT")
    skipped = _whole(binder, tree.args["offset"], "OFFSET") if tree.args.get("offset") else 0
    if first == 0:
        raise binder.refuse("LIMIT 0 keeps nothing", "Take at least one row.")
    orders = tuple(
        (node.fields[i].name, bool(written.args.get("desc")), bool(written.args.get("nulls_first")))
        for i, written in zip(positions, tree.args["order"].expressions, strict=True)
    )
    number = Field(f"$rank{binder.next_id()}", BIGINT, nullable=False) if skipped else None
    made = Rank(KeptSide(node, (), binder.next_id()), orders, first + skipped, number, binder.next_id())
    condition = render(f"_0 > {skipped}", column(number.name)) if number is not None else None
    kept = node.fields[:n_columns]
    key = node.unique_key if node.unique_key is not None and set(node.unique_key) <= {item.name for item in kept} else None
    return Calc(made, tuple((item, column(item.name)) for item in kept), condition, key)


def _whole(binder: Binder, clause: exp.Expr, word: str) -> int:
    value = clause.expression
    if not isinstance(value, exp.Literal) or value.is_string or not value.name.isdecimal():
        raise binder.refuse(f"{word} {text_of(value)} is no whole number", f"Write {word} 10.")
    return int(value.name)
