"""Parts: which parts of the parser's nodes are read here; what nobody reads is refused by name.

The parser takes more than Flink's SQL, and gives it as further parts of nodes that we know: they would be left out in silence.
"""

from __future__ import annotations

from typing import Final

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.syntax import text_of

_OPERANDS: Final = frozenset({"this", "expression"})
_CLAUSES: Final = frozenset({"with_", "order", "limit", "offset"})
_QUERIES: Final[dict[type[exp.Expr], frozenset[str]]] = {
    exp.Select: _CLAUSES
    | {"expressions", "hint", "distinct", "from_", "joins", "laterals", "where", "group", "having", "qualify", "windows"},
    exp.SetOperation: _CLAUSES | _OPERANDS | {"distinct"},
    exp.Subquery: frozenset({"this", "alias"}),
    exp.Values: frozenset({"expressions", "alias"}),
    exp.With: frozenset({"expressions", "recursive"}),
    exp.CTE: frozenset({"this", "alias"}),
    exp.Table: frozenset({"this", "alias", "db", "catalog", "version"}),
    exp.Join: frozenset({"this", "on", "using", "side", "kind"}),
    exp.Unnest: frozenset({"expressions", "alias", "offset"}),
    exp.Distinct: frozenset({"expressions"}),
    exp.Group: frozenset({"expressions"}),
    exp.Order: frozenset({"expressions"}),
    exp.Ordered: frozenset({"this", "desc", "nulls_first"}),
    exp.Limit: frozenset({"expression", "offset"}),
    exp.Fetch: frozenset({"direction", "count", "limit_options"}),
    exp.LimitOptions: frozenset({"rows"}),
    exp.Offset: frozenset({"expression"}),
    exp.Window: frozenset({"this", "partition_by", "order", "spec", "over"}),
    exp.WindowSpec: frozenset({"kind", "start", "start_side", "end", "end_side"}),
}
_EXPRESSIONS: Final[dict[type[exp.Expr], frozenset[str]]] = {
    exp.Column: frozenset({"this", "table", "db", "catalog"}),
    exp.Interval: frozenset({"this", "unit"}),
    exp.Is: _OPERANDS,
    exp.In: frozenset({"this", "expressions", "query"}),
    exp.Between: frozenset({"this", "low", "high", "symmetric"}),
    exp.Like: _OPERANDS | {"negate"},
    exp.SimilarTo: _OPERANDS | {"negate"},
    exp.JSON: frozenset({"this"}),
    exp.Cast: frozenset({"this", "to", "safe"}),
    exp.TryCast: frozenset({"this", "to", "safe", "requires_string"}),
    exp.Floor: frozenset({"this", "to"}),
    exp.Ceil: frozenset({"this", "to"}),
    exp.Trim: frozenset({"this", "expression", "position"}),
    exp.StrPosition: frozenset({"this", "substr"}),
    exp.Case: frozenset({"this", "ifs", "default"}),
}
_READ: Final = {**_QUERIES, **_EXPRESSIONS}
NATURAL: Final = ("method", "NATURAL")
"""The part of a join that says so; other methods are not read."""
_NAMES: Final = {
    "from_": "FROM",
    "with_": "WITH",
    "method": "this kind of JOIN",
    "sample": "TABLESAMPLE",
    "pivots": "PIVOT",
    "locks": "FOR UPDATE",
}


def unread(node: exp.Expr) -> str | None:
    """The name of a part of this one node that nobody reads; None when all of it is read."""
    known = next((parts for kind, parts in _READ.items() if isinstance(node, kind)), None)
    if known is None:
        return None
    return next((name for name, value in node.args.items() if value and name not in known and (name, value) != NATURAL), None)


def refuse_unread(tree: exp.Expr, where: str) -> None:
    """Errors: StatementRefused for the first part of a statement that nobody reads."""
    for node in tree.walk():
        part = unread(node)
        if part is not None:
            name = _NAMES.get(part, part.strip("_").replace("_", " ").upper())
            shown = text_of(node)
            shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
            raise StatementRefused(f"{name} is not supported: {shown}", where=where, next_step="Leave it out, or say it in another way.")
