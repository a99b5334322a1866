"""Lookup binding: JOIN ... FOR SYSTEM_TIME AS OF PROCTIME() into a LookupJoin, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import duration_ms
from storage_engine.stream.dialect.render import cast, column, paren, render
from storage_engine.stream.dialect.sqltypes import common_type, parse_type
from storage_engine.stream.dialect.syntax import alias_of, table_name, text_of
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder
from storage_engine.stream.plan.tree import Calc, Field, LookupJoin, Node, columns_of

if TYPE_CHECKING:
    from storage_engine.stream.planning.bind import Binder
    from storage_engine.stream.planning.scope import Scope

NEWEST_HINT, REFRESH_HINT = "scan.partitions", "lookup.dynamic-partition.refresh-interval"
LOOKUP_HINTS = frozenset({"lookup.insert-if-not-exists", NEWEST_HINT, REFRESH_HINT})
"""Hints behind a looked-up table that mean something."""
NDU_OPTION = "table.optimizer.non-deterministic-update.strategy"


def bind_lookup(binder: Binder, join: exp.Join, node: Node, scope: Scope) -> Node:
    """A join of the stream `node` with a table as it is now. Adds the table's columns to the scope."""
    from storage_engine.stream.planning.bind import table_fields

    table, item = _joined_table(binder, join, scope)
    is_outer = str(join.side or "").upper() == "LEFT"
    alias = alias_of(item)
    hints = binder.check_table_hints(item, scan=False)
    if node.is_retracting and binder.settings.get(NDU_OPTION, "TRY_RESOLVE").upper() != "IGNORE":
        raise StatementRefused(
            f"the lookup join with {table.name} stands behind an input whose rows can be taken back: "
            "the row taken back could find other values than it found when it was inserted",
            where=binder.where,
            next_step=f"Join before the primary-key table, or SET '{NDU_OPTION}' = 'IGNORE' if {table.name} does not change.",
        )
    fields = table_fields(table, alias, nullable=is_outer)
    known = len(scope.columns)
    computed = _computed_fields(binder, table, alias, is_outer=is_outer)
    shown = {**dict(zip(table.column_names, fields, strict=True)), **{item.name.removeprefix(f"{alias}."): item for item, _ in computed}}
    scope.add(alias, [item.name for item in table.shown_columns], [shown[item.name] for item in table.shown_columns])
    residual: exp.Expr | None = None
    rest: list[exp.Expr] = []
    if (names := scope.joined_names(join, known)) is not None:
        keys, residual = _by_names(binder, names, table, scope, known, "LEFT" if is_outer else "")
    else:
        keys, rest = _split_condition(binder, join, table, alias, scope)
    newest_of = _newest_of(binder, table, hints, keys)
    is_prefix = newest_of is None and _check_keys(binder, table, keys)
    for part in rest:
        bound = ExpressionBinder(scope.resolve, where=binder.where).condition(part)
        residual = bound if residual is None else exp.And(this=paren(residual), expression=paren(bound))
    inserts = hints.get("lookup.insert-if-not-exists", "false").lower() == "true"
    if inserts and is_prefix:
        raise StatementRefused(
            f"lookup.insert-if-not-exists on {table.name} needs the whole primary key",
            where=binder.where,
            next_step=f"Join on {', '.join(table.primary_key)}.",
        )
    ordered = tuple((name, keys[name]) for name in table.primary_key if name in keys)
    made = LookupJoin(
        node, table, alias, ordered, table.column_names, fields, is_outer, is_prefix, residual, inserts, binder.next_id(), newest_of
    )
    if not computed:
        return made
    used = columns_of(residual).union(*(columns_of(tree) for tree in keys.values()))
    named = next((item.name for item, _ in computed if item.name in used), None)
    if named is not None:
        raise binder.refuse(f"ON names {named}, which is computed from the row that is looked up", "Filter in WHERE.")
    return Calc(made, (*((item, column(item.name)) for item in made.fields), *computed))


def _computed_fields(binder: Binder, table: TableDescriptor, alias: str, *, is_outer: bool) -> list[tuple[Field, exp.Expr]]:
    """The computed columns of a looked-up table, NULL where no row is found."""
    from storage_engine.stream.planning.computed_columns import values_of

    found = []
    for item, value in values_of(binder.used_function, table, alias, binder.where):
        if value is None:
            raise binder.refuse(f"{alias}.{item.name} is the processing time of a looked-up row", "Look up a table without it.")
        there = column(f"{alias}.{table.primary_key[0]}")
        tree = render("CASE WHEN _0 IS NOT NULL THEN _1 END", there, value.ast) if is_outer else value.ast
        found.append((Field(f"{alias}.{item.name}", value.type, is_outer or value.nullable), tree))
    return found


def _newest_of(binder: Binder, table: TableDescriptor, hints: Mapping[str, str], keys: Mapping[str, exp.Expr]) -> str | None:
    """The partition column, where a hint restricts the lookup to the newest partition. It is asked for with every micro-batch, which keeps
    any bound that a refresh interval sets.
    """
    if (interval := hints.get(REFRESH_HINT)) is not None:
        duration_ms(interval.replace(" ", ""), name=REFRESH_HINT, where=binder.where)
        binder.notices.append(f"hint '{REFRESH_HINT}' is kept: the newest partition is asked for with every micro-batch")
    wanted = hints.get(NEWEST_HINT)
    if wanted is None:
        return None
    rest = [name for name in table.primary_key if name not in table.partition_keys]
    if wanted.replace(" ", "").lower() != "max_pt()":
        raise binder.refuse(f"'{NEWEST_HINT}' = '{wanted}' is not known", "Write 'max_pt()', or join on the partition column.")
    if len(table.partition_keys) != 1 or table.column(table.partition_keys[0]).type != "STRING":
        raise binder.refuse(f"max_pt() of {table.name}, which is not partitioned by a STRING", "Leave the hint out.")
    if set(keys) != set(rest):
        raise binder.refuse(
            f"the lookup join with {table.name} gives {', '.join(sorted(keys)) or 'no key column'}",
            f"In its newest partition, join with equality on {', '.join(rest)}.",
        )
    return table.partition_keys[0]


def _joined_table(binder: Binder, join: exp.Join, scope: Scope) -> tuple[TableDescriptor, exp.Table]:
    item = join.this
    kind, side = str(join.kind or "").upper(), str(join.side or "").upper()
    what = text_of(item)
    assert isinstance(item, exp.Table), "bind.py sends only joins FOR SYSTEM_TIME here"
    if kind not in ("", "INNER", "OUTER") or side not in ("", "LEFT"):
        raise StatementRefused(
            f"{side or kind} JOIN with {what}: a lookup join follows the left input only",
            where=binder.where,
            next_step="Use JOIN or LEFT JOIN.",
        )
    if all(join.args.get(part) is None for part in ("on", "using", "method")):
        raise StatementRefused(f"the lookup join with {what} has no ON", where=binder.where, next_step="Write ON a.key = b.key.")
    _check_time(binder, item, scope)
    table = binder.describe(table_name(item, binder.default_database))
    if not table.has_primary_key:
        raise StatementRefused(
            f"{table.name} is a log table; a lookup needs a primary key", where=binder.where, next_step="Join with a primary-key table."
        )
    return table, item


def _check_time(binder: Binder, item: exp.Table, scope: Scope) -> None:
    version = item.args["version"]
    time = version.args.get("expression")
    is_proctime = isinstance(time, exp.Anonymous) and str(time.this).upper() == "PROCTIME"
    is_attribute = isinstance(time, exp.Column) and scope.time(time) is not None
    if str(version.args.get("kind")).upper() != "AS OF" or not (is_proctime or is_attribute):
        raise StatementRefused(
            f"{text_of(item)}: only FOR SYSTEM_TIME AS OF PROCTIME() is supported",
            where=binder.where,
            next_step="Use PROCTIME(), or a column that a view defines as PROCTIME().",
        )


def _split_condition(
    binder: Binder, join: exp.Join, table: TableDescriptor, alias: str, scope: Scope
) -> tuple[dict[str, exp.Expr], list[exp.Expr]]:
    keys: dict[str, exp.Expr] = {}
    rest: list[exp.Expr] = []
    expressions = ExpressionBinder(scope.resolve, where=binder.where)
    for part in _conjuncts(join.args["on"]):
        pair = _key_pair(part, table, alias, scope) if isinstance(part, exp.EQ) else None
        if pair is None or pair[0] in keys:
            rest.append(part)
            continue
        name, other = pair
        keys[name] = _as_key(binder, table, name, expressions.bind(other), text_of(part))
    return keys, rest


def _by_names(
    binder: Binder, names: list[str], table: TableDescriptor, scope: Scope, known: int, side: str
) -> tuple[dict[str, exp.Expr], exp.Expr | None]:
    """The keys of USING or NATURAL, and the equality of those of its columns that are no key of the table."""
    keys: dict[str, exp.Expr] = {}
    residual: exp.Expr | None = None
    for name, (left, right) in zip(names, scope.merge(names, known, side), strict=True):
        if name in table.primary_key:
            keys[name] = _as_key(binder, table, name, left, name)
            continue
        if not common_type([left.type, right.type]).is_known:
            raise binder.refuse(f"{name} compares {left.type} with {right.type}", "CAST one side, and write ON.")
        part = render("_0 = _1", left.ast, right.ast)
        residual = part if residual is None else exp.And(this=paren(residual), expression=paren(part))
    return keys, residual


def _conjuncts(node: exp.Expr) -> list[exp.Expr]:
    if isinstance(node, exp.Paren):
        return _conjuncts(node.this)
    if isinstance(node, exp.And):
        return _conjuncts(node.this) + _conjuncts(node.expression)
    return [node]


def _key_pair(part: exp.EQ, table: TableDescriptor, alias: str, scope: Scope) -> tuple[str, exp.Expr] | None:
    """(key column of the table, expression of the other side) when the equality is one."""
    for mine, other in ((part.this, part.expression), (part.expression, part.this)):
        if isinstance(mine, exp.Column) and mine.name in table.primary_key and _owner(mine, scope) == alias:
            if all(_owner(item, scope) != alias for item in other.find_all(exp.Column)):
                return mine.name, other
    return None


def _owner(node: exp.Column, scope: Scope) -> str:
    if node.table:
        return node.table
    owners = [alias for alias, name, _ in scope.columns if name == node.name]
    return owners[0] if len(owners) == 1 else ""


def _as_key(binder: Binder, table: TableDescriptor, name: str, value: Value, written: str) -> exp.Expr:
    wanted = parse_type(table.column(name).type)
    if value.type == wanted:
        return value.ast
    if common_type([value.type, wanted]) not in (wanted, value.type) or (
        value.type.name != wanted.name and not (value.type.is_integer and wanted.is_integer)
    ):
        raise StatementRefused(f"{written} compares {value.type} with {wanted}", where=binder.where, next_step="CAST one side.")
    return cast(value.ast, wanted.duckdb)


def _check_keys(binder: Binder, table: TableDescriptor, keys: dict[str, exp.Expr]) -> bool:
    """True for a prefix lookup, False for the whole key; refuses anything else."""
    if set(keys) == set(table.primary_key):
        return False
    prefix = set(table.bucket_keys) | set(table.partition_keys)
    if table.is_prefix_lookup_possible and set(keys) == prefix:
        return True
    possible = f"on {', '.join(table.primary_key)}" + (f", or on {', '.join(sorted(prefix))}" if table.is_prefix_lookup_possible else "")
    raise StatementRefused(
        f"the lookup join with {table.name} does not give its key: it has {', '.join(sorted(keys)) or 'no key column'}",
        where=binder.where,
        next_step=f"Join with equality {possible}.",
    )
